"""Robust optimisation: train on the worst images of a ball, found by steepest ascent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from advbench.attacks.threat import Norm, ThreatModel
from advbench.defenses.training.ascent import ascend
from advbench.defenses.training.trained import Trained, stream
from advbench.zoo.training import Step

_SMALLEST = 1e-6
"""The epsilon of the first step of a warm-up, which cannot be 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustOptimisation(Trained):
    """Robust optimisation by one steepest-ascent step, Shaham et al. 2015, arXiv:1511.05432.

    Algorithm 1: for every batch one ascent step inside the ball, then one descent step on the perturbed images alone. The
    step maximises the linearised loss: ``epsilon * sign(g)`` (linf), ``epsilon * g / ||g||_2`` (l2), ``epsilon`` on the
    pixel of the largest gradient (l1).

    norm: the ball, set by the subclass. epsilon: its size in pixel units of [0, 1]; None is that of the run's threat,
    which the plan fills in. (The paper's are in units of standardised pixels: 0.2, 2 and 2 on MNIST for linf,
    l2 and l1, which are 0.055, 0.55 and 0.55 here.) steps: ascent steps, 1 in the paper. step_size: as a fraction of
    epsilon. random_start: start from a uniform point of the ball. clip: keep perturbed images in [0, 1]. The paper trains
    on standardised images without clipping; here pixels live in [0, 1], so the default clips, and ``clip=False`` is the
    paper's. warm_up: share of the training over which epsilon grows from 0 to its value; none in the paper. alpha: share
    of the clean images' loss in the mixture ``alpha J(x) + (1 - alpha) J(x_adv)`` of Goodfellow et al. 2015
    (arXiv:1412.6572, section 6), of which the paper is the case 0 and plain training the case 1.
    """

    norm: ClassVar[Norm]
    epsilon: float | None = None
    steps: int = 1
    step_size: float = 1.0
    random_start: bool = False
    clip: bool = True
    warm_up: float = 0.0
    alpha: float = 0.0

    def __post_init__(self) -> None:
        if self.epsilon is not None:
            ThreatModel(self.norm, self.epsilon)
        if self.steps < 1:
            raise ValueError(f"Expected `steps` >= 1, got {self.steps}")
        if not self.step_size > 0:
            raise ValueError(f"Expected `step_size` > 0, got {self.step_size}")
        if not 0 <= self.warm_up <= 1:
            raise ValueError(f"Expected `warm_up` in [0, 1], got {self.warm_up}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"Expected `alpha` in [0, 1], got {self.alpha}")

    @property
    def threat(self) -> ThreatModel:
        """The set of images that the training defends against. ValueError if `epsilon` is None."""
        if self.epsilon is None:
            raise ValueError(f"Expected `epsilon` > 0, got None: give {type(self).__name__} one in {self.norm}")
        return ThreatModel(self.norm, self.epsilon, (0.0, 1.0) if self.clip else None)

    def _share(self) -> float | None:
        """The share of the values that an l1 step is spread over; None for the paper's one pixel."""
        return None

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
        """Cross-entropy of the perturbed batch, of the clean one, or of both, each times its share.

        On the validation split too, with one fixed random start and the whole epsilon.
        """
        terms = {}
        if self.alpha < 1:
            terms["adversarial"] = (1 - self.alpha) * cross_entropy(model(self._perturbed(model, x, y, step)), y)
        if self.alpha > 0:
            terms["clean"] = self.alpha * cross_entropy(model(x), y)
        return terms

    def _perturbed(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:
        threat = self.threat
        if step.training and step.progress < self.warm_up:
            threat = replace(threat, epsilon=max(_SMALLEST, threat.epsilon_or_inf * step.progress / self.warm_up))
        return ascend(
            model,
            x,
            y,
            threat,
            steps=self.steps,
            step_size=self.step_size,
            random_start=self.random_start,
            rng=stream(step),
            sparsity=self._share(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustLinf(RobustOptimisation):
    """Robust optimisation in the linf ball, one signed step, Shaham et al. 2015, arXiv:1511.05432."""

    norm: ClassVar[Norm] = "linf"


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustL2(RobustOptimisation):
    """Robust optimisation in the l2 ball, one gradient step, Shaham et al. 2015, arXiv:1511.05432."""

    norm: ClassVar[Norm] = "l2"


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustL1(RobustOptimisation):
    """Robust optimisation in the l1 ball, one pixel per step, Shaham et al. 2015, arXiv:1511.05432."""

    norm: ClassVar[Norm] = "l1"


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedLinf(RobustLinf):
    """Fast-gradient-sign adversarial training on clean and perturbed images, Goodfellow et al. 2015, arXiv:1412.6572.

    The loss is ``alpha J(x) + (1 - alpha) J(x + epsilon sign(g))`` with alpha 0.5 (section 6), as Shaham et al. 2015 name it
    (arXiv:1511.05432). The fields are those of `RobustOptimisation`.
    """

    alpha: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class FastAT(RobustLinf):
    """Fast adversarial training, one signed step from a random start, Wong et al. 2020, arXiv:2001.03994.

    The step is 1.25 epsilon long, and the ball is that of `epsilon`. The fields are those of
    `RobustOptimisation`. Long trainings at a large epsilon may end in catastrophic overfitting, after which only one-step
    attacks fail: read it under PGD.
    """

    step_size: float = 1.25
    random_start: bool = True
