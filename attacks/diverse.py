"""Momentum steps along gradients of randomly resized and padded images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advbench.attacks.access import Evaluation, WhiteBox
from advbench.attacks.capabilities import Passes
from advbench.attacks.iterates import Search
from advbench.attacks.losses import loss_named
from advbench.attacks.momentum import MIFGSM
from advbench.attacks.threat import ThreatModel


@dataclass(frozen=True, slots=True, kw_only=True)
class DIFGSM(MIFGSM):
    """Momentum steps with diverse inputs, M-DI2-FGSM (Xie et al. 2019, arXiv:1803.06978).

    At each step and for each example, with the given probability, the gradient is that of the image shrunk to a random size
    (nearest neighbour) and padded with zeros at a random place; decay 0 gives DI2-FGSM. The paper enlarges images of 299
    pixels to at most 330; here they are shrunk and padded back to their own size, which any model takes.

    probability: of a transformed image, in [0, 1]. smallest: the shortest side, as a fraction of the image's, in (0, 1].
    The other fields are those of `MIFGSM`.

    An iterate is judged as it is, untransformed: it costs steps backwards and 2 steps + 1 forwards.
    """

    probability: float = 0.5
    smallest: float = 0.9

    def __post_init__(self) -> None:
        MIFGSM.__post_init__(self)
        if not 0 <= self.probability <= 1:
            raise ValueError(f"Expected `probability` in [0, 1], got {self.probability}")
        if not 0 < self.smallest <= 1:
            raise ValueError(f"Expected `smallest` in (0, 1], got {self.smallest}")

    def passes(self, threat: ThreatModel, classes: int) -> Passes:  # noqa: ARG002
        """2 steps + 1 forwards and steps backwards."""
        return Passes(2 * self.steps + 1, self.steps)

    def _evaluate(self, search: Search[WhiteBox], x_adv: Tensor, step: int) -> Evaluation:
        loss = loss_named(self.loss)
        logits = search.access.logits(x_adv)
        numbers = search.rng.fork("diversity").at(step).uniform((4,), torch.float64)
        x_adv = x_adv.detach().requires_grad_()
        with torch.enable_grad():
            shown = resized(x_adv, numbers, self.probability, self.smallest)
        gradient = search.access.loss_gradient(shown, search.goal, loss).gradient
        (gradient,) = torch.autograd.grad(shown, x_adv, gradient)
        return Evaluation(loss(logits, search.goal), gradient, logits)


def resized(x: Tensor, numbers: Tensor, probability: float, smallest: float) -> Tensor:
    """Images shrunk (nearest neighbour) and padded with zeros to their own size, shape (n, c, h, w), differentiable in `x`.

    numbers: (n, 4), float64, uniform in [0, 1): whether an image is transformed (below `probability`), its size between
    `smallest` and the whole of each side, and the place of its top and of its left edge.
    """
    whether, size, *places = numbers.unbind(dim=1)
    size = size.where(whether < probability, torch.inf)
    for dim, place in zip((2, 3), places, strict=True):
        source, inside = _window(size, place, x.shape[dim], smallest)
        shape = [len(x), 1, 1, 1]
        shape[dim] = x.shape[dim]
        x = x.gather(dim, source.view(shape).expand_as(x)).where(inside.view(shape), 0)
    return x


def _window(size: Tensor, place: Tensor, side: int, smallest: float) -> tuple[Tensor, Tensor]:
    """For each pixel along one side, which pixel it shows and whether it shows any; both (n, side)."""
    shortest = max(1, round(smallest * side))
    length = (shortest + (size * (side - shortest + 1)).floor()).clamp(max=side).long()
    first = (place * (side - length + 1)).floor().long()
    position = torch.arange(side, device=size.device) - first.unsqueeze(1)
    inside = (position >= 0) & (position < length.unsqueeze(1))
    return (position * side // length.unsqueeze(1)).clamp(0, side - 1), inside
