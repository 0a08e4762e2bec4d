"""Noise with long-range correlations, which common training against short-range perturbations does not cover."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.access import Access, ScoreBased, WhiteBox
from advbench.attacks.attack import Attack, check_norm, check_positive
from advbench.attacks.capabilities import NOISE, Passes, cut
from advbench.attacks.iterates import Search, Stop, look
from advbench.attacks.losses import loss_named
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, ThreatModel

_MOST_PIXELS = 4096
"""The largest image, height times width, whose covariance (h w, h w) is factored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrelatedNoise:
    """Long-range correlated noise, the worst of several draws (Roth et al. 2018, arXiv:1805.08736).

    Gaussian noise z of unit variance whose covariance falls as exp(-r / decay_length) with the distance r in pixels, times
    `channel_correlation` between two channels. What becomes of it depends on the norm, and is clipped to the box:

    none: x + sigma z, the paper's; the threat has no epsilon. l2: x + epsilon z / |z|_2, the same up to a scale for each
    draw; sigma corresponds to epsilon = sigma sqrt(c h w). linf: x + epsilon sign(z), the farthest point of the ball along
    the noise, patches of the full budget.

    points: draws tried per example. decay_length: in pixels. channel_correlation: in [0, 1]. sigma: standard deviation of
    the noise where the norm is none. stop: whether an example is left alone after its first success. One query per draw.

    Raises ValueError for an image of more than 4096 pixels, whose covariance is too large to factor.
    """

    points: int = 100
    decay_length: float = 16.0
    channel_correlation: float = 0.5
    sigma: float = 0.3
    loss: str = "cross-entropy"
    stop: Stop = "success"

    norms: ClassVar[frozenset[str]] = frozenset({"none", "linf", "l2"})
    minimal_norm: ClassVar[bool] = False
    knowledge: ClassVar[type[Access]] = ScoreBased
    targeted: ClassVar[bool] = True
    family: ClassVar[str] = NOISE

    def __post_init__(self) -> None:
        check_positive(self, "points", "decay_length", "sigma")
        if not 0 <= self.channel_correlation <= 1:
            raise ValueError(f"Expected `channel_correlation` in [0, 1], got {self.channel_correlation}")
        loss_named(self.loss)

    def passes(self, threat: ThreatModel, classes: int) -> Passes:  # noqa: ARG002
        """One query for each draw."""
        return Passes(self.points)

    def short(self) -> Self:
        """A cheap setting, for tests."""
        return cut(self, points=3)

    def __call__(self, access: ScoreBased | WhiteBox, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Return the worst noisy image found for each example, shape (n, c, h, w)."""

        def noise(images: Tensor, streams: ExampleRNG) -> Tensor:
            return correlated(images, streams, self.decay_length, self.channel_correlation)

        return worst_draw(self, noise, access, x, goal, threat, rng)


class NoiseAttack(Attack, Protocol):
    """An attack with noise of unit variance: the number of draws, their scale, and how the worst is chosen."""

    @property
    def points(self) -> int:
        """Draws per example."""
        ...

    @property
    def sigma(self) -> float:
        """The standard deviation in the norm none."""
        ...

    @property
    def loss(self) -> str:
        """What orders the draws that achieve the same."""
        ...

    @property
    def stop(self) -> Stop:
        """Whether an example is left alone after its first success."""
        ...


def worst_draw(
    attack: NoiseAttack,
    noise: Callable[[Tensor, ExampleRNG], Tensor],
    access: ScoreBased | WhiteBox,
    x: Tensor,
    goal: Goal,
    threat: ThreatModel,
    rng: ExampleRNG,
) -> Tensor:
    """The worst of the attack's draws of `noise` for each example, scaled to the threat as `CorrelatedNoise` says.

    noise: (images (n, c, h, w), streams) -> noise of their shape.
    Raises ValueError for a norm that the attack does not know, and for an epsilon in the norm none.
    """
    if threat.norm != "none":
        check_norm(attack, threat)
    elif threat.epsilon is not None:
        raise ValueError(f"Expected no epsilon in the norm none, where `sigma` is the strength, got {threat.epsilon}")
    search = Search(access, x, goal, rng, attack.stop)
    for point in range(attack.points):
        if not search:
            break
        drawn = noise(search.x, search.rng.at(point))
        drawn = attack.sigma * drawn if threat.norm == "none" else threat.epsilon_or_inf * balls.steepest(drawn, threat)
        look(search, balls.project(search.x + drawn, search.x, threat), loss_named(attack.loss))
    return search.best.x_adv


def correlated(x: Tensor, rng: ExampleRNG, decay_length: float, channel_correlation: float) -> Tensor:
    """Gaussian noise of unit variance, of the shape (n, c, h, w) and the dtype of `x`; worked in float64.

    Its covariance is the product of that of the pixels, `exponential_factor`, and that of the channels: 1 with itself,
    `channel_correlation` with another. The channels share one field and have one each of their own.
    """
    c, h, w = x.shape[1:]
    white = rng.normal((c + 1, h * w), torch.float64)
    mixed = (1 - channel_correlation) ** 0.5 * white[:, 1:] + channel_correlation**0.5 * white[:, :1]
    factor = exponential_factor(h, w, decay_length).to(x.device)
    noise: Tensor = mixed @ factor.T
    return noise.view(-1, c, h, w).to(x.dtype)


@lru_cache(maxsize=2)
def exponential_factor(height: int, width: int, decay_length: float) -> Tensor:
    """The Cholesky factor of the pixels' covariance exp(-r / decay_length), row by row: (h w, h w), float64, lower.

    That function is positive definite in the plane at any decay length, so the factor exists and the covariance is exact;
    an embedding in a circulant matrix is not positive where the decay length is near the image's side.

    Raises ValueError for more than 4096 pixels.
    """
    if height * width > _MOST_PIXELS:
        raise ValueError(f"Expected images of at most {_MOST_PIXELS} pixels for correlated noise, got {height} x {width}")
    pixels = torch.cartesian_prod(torch.arange(height), torch.arange(width)).to(torch.float64)
    factor: Tensor = torch.linalg.cholesky(
        torch.exp(-torch.cdist(pixels, pixels, compute_mode="donot_use_mm_for_euclid_dist") / decay_length)
    )
    return factor
