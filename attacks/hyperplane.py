"""The shortest way from an image to a hyperplane, inside the box."""

from __future__ import annotations

import torch
from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.threat import ThreatModel


def way_to_hyperplane(x: Tensor, normal: Tensor, level: Tensor, threat: ThreatModel) -> Tensor:
    """The smallest step, in the threat's norm, from `x` to the part of ``<normal, z> = level`` that lies in the box.

    Exact: every value moves towards the plane, by the same amount in linf, in proportion to the normal in l2, and those with
    the largest normal first in l1, each no farther than the box allows (Croce & Hein 2020, arXiv:1907.02044, section 2.2).
    Where the box does not meet the plane, the step to the box's corner nearest to it; a zero normal gives a zero step.

    x: points in the box, normal: (n, c, h, w) each. level: what <normal, z - x> has to be, shape (n,). Returns (n, c, h, w).
    Raises ValueError for a norm other than linf, l2, l1.

    The first value can move by 0.1 only, so that in l2 the second has to move farther:

    >>> x, normal = torch.tensor([[0.9, 0.5]]).double(), torch.tensor([[4.0, 3.0]]).double()
    >>> way_to_hyperplane(x, normal, torch.tensor([1.0]).double(), ThreatModel("l2", None, box=None))
    tensor([[0.1600, 0.1200]], dtype=torch.float64)
    >>> way_to_hyperplane(x, normal, torch.tensor([1.0]).double(), ThreatModel("l2", None))
    tensor([[0.1000, 0.2000]], dtype=torch.float64)
    """
    size = balls.distance(normal, "linf")
    size = size.where(size > 0, 1)
    direction = normal.sign() * balls.per_example(level.sign(), normal)
    slopes = (normal.abs() / balls.per_example(size, normal)).flatten(1)
    room = balls.headroom(direction, x, threat).flatten(1)
    if threat.norm not in _LENGTHS:
        raise ValueError(f"Expected a threat in linf, l2 or l1 for the way to a hyperplane, got {threat.norm}")
    lengths = _LENGTHS[threat.norm](slopes, room, level.abs() / size)
    return direction * lengths.view_as(x)


def _linf_lengths(slopes: Tensor, room: Tensor, height: Tensor) -> Tensor:
    level = balls.water_level(slopes, _capacity(slopes, room), height)
    return _finite(level).minimum(room)


def _l2_lengths(slopes: Tensor, room: Tensor, height: Tensor) -> Tensor:
    level = balls.water_level(slopes.square(), _capacity(slopes, room), height)
    return (_finite(level) * slopes).minimum(room)


def _l1_lengths(slopes: Tensor, room: Tensor, height: Tensor) -> Tensor:
    steepest, order = slopes.sort(dim=1, descending=True)
    capacity = _capacity(steepest, room.gather(1, order))
    before = torch.nn.functional.pad(capacity.cumsum(dim=1)[:, :-1], (1, 0))
    climbed = (height.unsqueeze(1) - before).clamp(min=0).minimum(capacity)
    return torch.zeros_like(slopes).scatter(1, order, climbed / steepest.where(steepest > 0, 1))


_LENGTHS = {"linf": _linf_lengths, "l2": _l2_lengths, "l1": _l1_lengths}
"""norm -> (slopes >= 0 and room >= 0, each (n, d), height (n,)) -> how far each value moves, (n, d), to climb the height."""


def _capacity(slopes: Tensor, room: Tensor) -> Tensor:
    """What each value can climb; zero where the slope is zero."""
    return (slopes * room).where(slopes > 0, 0)


def _finite(level: Tensor) -> Tensor:
    return level.clamp(max=torch.finfo(level.dtype).max).unsqueeze(1)
