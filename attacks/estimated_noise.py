"""Noise whose covariance is that of a data set, or of another attack's perturbations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from torch import Tensor

from advbench.attacks.access import Access, ScoreBased, WhiteBox
from advbench.attacks.attack import check_positive
from advbench.attacks.calibration import HeldOut
from advbench.attacks.capabilities import NOISE, Need, Passes, cut, with_stop
from advbench.attacks.correlated_noise import worst_draw
from advbench.attacks.covariance import FORMS, Covariance, Form, estimate
from advbench.attacks.ensemble import named
from advbench.attacks.iterates import Stop
from advbench.attacks.losses import loss_named
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, Norm, ThreatModel


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseOf:
    """Gaussian noise of a given covariance, the worst of several draws (Roth et al. 2018, arXiv:1805.08736).

    covariance: of images like those attacked (`covariance.estimate`). points, sigma, loss, stop, and what becomes of the
    noise in each norm: as in `CorrelatedNoise`.
    """

    covariance: Covariance = field(repr=False)
    points: int = 100
    sigma: float = 0.3
    loss: str = "cross-entropy"
    stop: Stop = "success"

    norms: ClassVar[frozenset[str]] = frozenset({"none", "linf", "l2"})
    minimal_norm: ClassVar[bool] = False
    knowledge: ClassVar[type[Access]] = ScoreBased
    targeted: ClassVar[bool] = True
    family: ClassVar[str] = NOISE

    def __post_init__(self) -> None:
        check_positive(self, "points", "sigma")
        loss_named(self.loss)

    def passes(self, threat: ThreatModel, classes: int) -> Passes:  # noqa: ARG002
        """One query for each draw."""
        return Passes(self.points)

    def short(self) -> Self:
        """A cheap setting, for tests."""
        return cut(self, points=3)

    def __call__(self, access: ScoreBased | WhiteBox, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Return the worst noisy image found for each example, shape (n, c, h, w)."""
        return worst_draw(self, self.covariance.sample, access, x, goal, threat, rng)


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimatedNoise:
    """Noise with the covariance of the data, the worst of several draws (Roth et al. 2018, arXiv:1805.08736).

    of: ``data``, whose covariance is that of the training images, or an attack such as ``pgd(steps=10)``, whose
    perturbations of held-out images of the attacked model give it; the latter attacks in the norm `of_norm` within
    `of_epsilon`, to the end. form: the covariance matrix (``matrix``), its mean by displacement (``displacement``) or by
    distance (``radial``); see `covariance.estimate`. The covariance is scaled to a mean variance of 1.

    points: draws tried per example, one query each. sigma: standard deviation of the noise in the norm none. stop: whether
    an example is left alone after its first success. Before it runs, it is calibrated to a `NoiseOf`.
    """

    of: str = "data"
    of_norm: Norm = "linf"
    of_epsilon: float = 0.1
    form: Form = "matrix"
    points: int = 100
    sigma: float = 0.3
    loss: str = "cross-entropy"
    stop: Stop = "success"

    norms: ClassVar[frozenset[str]] = NoiseOf.norms
    minimal_norm: ClassVar[bool] = False
    knowledge: ClassVar[type[Access]] = ScoreBased
    targeted: ClassVar[bool] = True
    family: ClassVar[str] = NOISE

    def __post_init__(self) -> None:
        check_positive(self, "points", "sigma", "of_epsilon")
        loss_named(self.loss)
        if self.form not in FORMS:
            raise ValueError(f"Expected `form` to be one of {', '.join(FORMS)}, got {self.form!r}")
        if self.of != "data" and self.of_norm not in named(self.of).norms:
            raise ValueError(f"Expected `of_norm` to be one that {self.of!r} knows, got {self.of_norm!r}")

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the attacks that it makes use of."""
        return () if self.of == "data" else (self.of.partition("(")[0],)

    @property
    def need(self) -> Need:
        """Training images alone, or held-out images and the model that `of` attacks."""
        return Need("train", model=False) if self.of == "data" else Need("validation", model=True)

    def calibrate(self, held_out: HeldOut) -> dict[str, Tensor]:
        """The covariance, as `Covariance.values`."""
        if self.of == "data":
            return estimate(held_out.x, self.form).values()
        attack = with_stop(named(self.of), "never")
        epsilon = None if attack.minimal_norm else self.of_epsilon
        trial = replace(held_out, threat=ThreatModel(self.of_norm, epsilon, held_out.threat.box)).attacked(attack)
        return estimate((trial.x_adv - held_out.x).cpu(), self.form).values()

    def calibrated(self, values: Mapping[str, Tensor]) -> NoiseOf:
        """The attack with the covariance that `calibrate` found."""
        covariance = Covariance.of_values(values)
        return NoiseOf(covariance=covariance, points=self.points, sigma=self.sigma, loss=self.loss, stop=self.stop)

    def passes(self, threat: ThreatModel, classes: int) -> Passes:  # noqa: ARG002
        """One query for each draw."""
        return Passes(self.points)

    def short(self) -> Self:
        """A cheap setting, for tests."""
        return cut(self, points=3)

    def __call__(self, access: ScoreBased | WhiteBox, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:  # noqa: ARG002
        """Raise ValueError: it has to be calibrated first."""
        raise ValueError("Expected a covariance: find it with advbench.attacks.calibration.calibrate, or call NoiseOf")
