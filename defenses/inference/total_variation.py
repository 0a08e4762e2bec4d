"""Total-variation minimisation of the input, unrolled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advbench.attacks.rng import ExampleRNG
from advbench.defenses.defended import Defended
from advbench.defenses.inference.at_test_time import TestTimeDefense
from advbench.defenses.inference.composition import checkpointed, purified

_STEP = 1 / math.sqrt(8)
"""Of the primal and the dual variable: their product times the squared norm of the differences, 8, is at most one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TotalVariation(TestTimeDefense):
    """Total-variation minimisation of the input, Guo et al. 2018, arXiv:1711.00117.

    Some pixels are dropped at random, and the image is rebuilt from the others: the model sees the z that minimises
    ``1/2 sum over kept pixels of (z - x)^2 + weight * TV(z)``, TV the sum over pixels and channels of the length of the
    difference to the right and lower neighbours (isotropic, Rudin, Osher and Fatemi 1992, doi:10.1016/0167-2789(92)90242-F;
    Guo et al. take rows and columns as wholes, and drop a pixel in all channels, as here). A fixed number of primal-dual
    steps (Chambolle and Pock 2011, doi:10.1007/s10851-010-0251-1) solves it, so that the attacker can unroll them.

    weight: of the total variation; 0.03 in the paper, on ImageNet. drop: probability that a pixel is dropped, 0.5 in the
    paper; with 0 the defense draws nothing. steps: primal-dual steps. base: the spec of the defense that trained the model
    behind it.
    """

    weight: float = 0.03
    drop: float = 0.5
    steps: int = 50
    base: str = "none"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"Expected `weight` > 0, got {self.weight}")
        if not 0 <= self.drop < 1:
            raise ValueError(f"Expected `drop` in [0, 1), got {self.drop}")
        if self.steps < 1:
            raise ValueError(f"Expected `steps` >= 1, got {self.steps}")

    def wrap(self, inputs: Mapping[str, Defended]) -> Defended:
        """The minimisation in front of ``inputs["base"]``."""
        smoothed = Smoothed(weight=self.weight, drop=self.drop, steps=self.steps)
        return purified(inputs["base"], smoothed, stochastic=self.drop > 0)


class Smoothed(nn.Module):
    """Images (n, c, h, w) -> images of the same shape, of smaller total variation; takes an rng where pixels are dropped."""

    def __init__(self, *, weight: float, drop: float, steps: int) -> None:
        super().__init__()
        self.weight = weight
        self.drop = drop
        self.steps = steps

    def extra_repr(self) -> str:
        """What the structure is."""
        return f"weight={self.weight}, drop={self.drop}, steps={self.steps}"

    def forward(self, x: Tensor, rng: ExampleRNG | None = None) -> Tensor:
        """The rebuilt images."""
        kept = None
        if self.drop > 0:
            if rng is None:
                raise ValueError("Expected `rng`, an ExampleRNG of the images, got None: the dropped pixels are random")
            kept = (rng.fork("drop").uniform((1, *x.shape[2:]), torch.float32) >= self.drop).to(x.dtype)
        return smoothed(x, self.weight, self.steps, kept)


def smoothed(x: Tensor, weight: float, steps: int, kept: Tensor | None = None) -> Tensor:
    """The minimiser of ``1/2 sum kept (z - x)^2 + weight * TV(z)`` over images z, after so many primal-dual steps.

    x: (n, c, h, w). kept: 1 where a pixel counts and 0 where it does not, (n, 1, h, w); all if None. What was dropped has
    no influence: it starts from the mean of what was kept.
    """
    kept = torch.ones_like(x[:, :1]) if kept is None else kept
    share = kept.mean(dim=(2, 3), keepdim=True).clamp(min=1 / kept[0].numel())
    z = x * kept + (1 - kept) * (x * kept).mean(dim=(2, 3), keepdim=True) / share

    def step(state: tuple[Tensor, ...], _: int) -> tuple[Tensor, ...]:
        z, ahead, p, q = state
        p, q = _within(p + _STEP * difference(ahead, dim=2), q + _STEP * difference(ahead, dim=3), weight)
        moved = z - _STEP * (adjoint(p, dim=2) + adjoint(q, dim=3))
        found = (moved + _STEP * kept * x) / (1 + _STEP * kept)
        return found, 2 * found - z, p, q

    return checkpointed(step, (z, z, torch.zeros_like(x), torch.zeros_like(x)), steps)[0]


def _within(p: Tensor, q: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """The vectors (p, q) of each pixel, shortened to `radius` where they are longer."""
    length = (p.square() + q.square()).clamp(min=radius**2).sqrt()
    return p * (radius / length), q * (radius / length)


def difference(z: Tensor, *, dim: int) -> Tensor:
    """The next pixel along an axis minus this one, of the shape of `z`; zero at the last."""
    length = z.shape[dim]
    inside = z.narrow(dim, 1, length - 1) - z.narrow(dim, 0, length - 1)
    return torch.cat((inside, torch.zeros_like(z.narrow(dim, 0, 1))), dim=dim)


def adjoint(p: Tensor, *, dim: int) -> Tensor:
    """The adjoint of `difference`."""
    inside = p.narrow(dim, 0, p.shape[dim] - 1)
    nothing = torch.zeros_like(p.narrow(dim, 0, 1))
    return torch.cat((nothing, inside), dim=dim) - torch.cat((inside, nothing), dim=dim)
