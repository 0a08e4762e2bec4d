"""A Lagrangian with an adaptive weight: an error of the classifier under the constraint that the detector accepts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.access import Sides, WhiteBox
from advbench.attacks.iterates import Search, look
from advbench.attacks.losses import margin
from advbench.attacks.threat import ThreatModel

_L2 = ThreatModel("l2", None)
"""The geometry of unit gradients, for any threat."""
_FIRST, _LAST = 0.2, 0.002
"""The first and the last step, as shares of the root mean square of the longest perturbation."""
_FASTER = 1.1
"""What the weight is multiplied with, or divided by, at a step."""


class Pursuit(NamedTuple):
    """Where the live examples stand: iterates (m, c, h, w), weights (m,), and Adam's two moments (m, c, h, w)."""

    x_adv: Tensor
    weight: Tensor
    mean: Tensor
    square: Tensor


def pursue(search: Search[WhiteBox], threat: ThreatModel, start: Tensor, steps: int) -> None:
    """Adam on ``margin of the classifier - weight * score of the detector``, from the live examples' `start` (m, c, h, w).

    Both gradients are brought to length one. The weight is the constraint's multiplier: it grows by a tenth at each step
    where the image is rejected though the classifier errs, and shrinks by as much where it is accepted though the classifier
    is right, so that each example finds the balance in which neither holds the other back; a sum of fixed weights
    (`SelectivePGD`'s joint strategy) stays where the two gradients cancel. The step falls exponentially. Iterates are
    projected on ball and box and recorded.

    One forward and two backwards per step, and a look at the end.
    """
    nothing = torch.zeros_like(start)
    at = Pursuit(start, start.new_ones(len(start)), nothing, nothing)
    length = _step(threat, start)
    for number in range(steps):
        if not search:
            return
        sides = search.access.sides(at.x_adv, search.goal, margin)
        search.record(at.x_adv, sides.logits, margin(sides.logits, search.goal))
        ahead = _balanced(sides, at)
        at = Pursuit(*search.keep(*ahead))
        share = _FIRST * (_LAST / _FIRST) ** (number / max(1, steps - 1))
        moved = at.x_adv + share * length * _direction(at, number)
        at = at._replace(x_adv=balls.project(moved, search.x, threat))
    look(search, at.x_adv, margin)


def _balanced(sides: Sides, at: Pursuit) -> Pursuit:
    """The weights and moments after a look."""
    wrong, rejected = sides.progress > 0, sides.score > 0
    weight = torch.where(rejected & wrong, at.weight * _FASTER, at.weight)
    weight = torch.where(~rejected & ~wrong, weight / _FASTER, weight)
    up, down = (balls.steepest(each, _L2) for each in (sides.uphill, sides.downhill))
    share = (weight / (1 + weight)).to(up.dtype)
    gradient = balls.per_example(1 - share, up) * up + balls.per_example(share, down) * down
    return Pursuit(at.x_adv, weight, 0.9 * at.mean + 0.1 * gradient, 0.99 * at.square + 0.01 * gradient.square())


def _direction(at: Pursuit, number: int) -> Tensor:
    """Adam's step, of about one in every pixel."""
    mean, square = at.mean / (1 - 0.9 ** (number + 1)), at.square / (1 - 0.99 ** (number + 1))
    return mean / (square.sqrt() + 1e-8)


def _step(threat: ThreatModel, x: Tensor) -> float:
    """The root mean square of the longest perturbation in the ball, by pixel."""
    pixels = max(1, x[0:1].numel())
    return threat.epsilon_or_inf if threat.norm == "linf" else threat.epsilon_or_inf / pixels**0.5
