"""Projected gradient descent past a detector: two gradients, one step at a time, into what both let through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self, TypeAlias

import torch
from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.access import Access, Sides, WhiteBox
from advbench.attacks.attack import check_norm, check_positive
from advbench.attacks.capabilities import ASCENT, Passes, cut
from advbench.attacks.iterates import Search, Stop, look, settle
from advbench.attacks.losses import margin
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, ThreatModel

Strategy: TypeAlias = Literal["joint", "selective", "orthogonal"]
"""Which way a step goes: see `SelectivePGD`."""

_L2 = ThreatModel("l2", None)
"""The geometry of the steps, for any threat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectivePGD:
    """Selective and orthogonal PGD on a classifier and its detector (Bryniarski et al. 2021, arXiv:2106.15023).

    What stands in the way is two things at once: the classifier that is still right, by its margin, and the detector that
    rejects, by its score. Each gradient is brought to length one, so that neither has to be weighed against the other, and
    a strategy makes a direction of them:

    ``joint``: the sum of those whose thing still stands in the way. ``selective``: the detector's where the classifier
    errs, else the classifier's. ``orthogonal``: as selective, without the part along the other gradient, so that what is
    won on one side is not lost on the other (to first order).

    Steps are of l2 length in every norm: the signs of a gradient move pixels that tell the classifier nothing and tell the
    detector that something is afoot. Their length falls from `step_size` to a thousandth of it, exponentially, for what
    both let through can be a thin layer along the classifier's boundary, such as the low-confidence errors that feature
    squeezing lets pass. Every iterate is projected on ball and box.

    steps: of each run. step_sizes: first steps, one run after the other, as shares of the longest l2 perturbation in the
    ball. strategies: all step sizes with one, then with the next. restarts: of all that, the first from the clean image,
    the others from random points of the ball. stop: whether an example is left alone after its first success, an error that
    is not rejected; inputs that are already misclassified and not rejected are returned unchanged.

    Without a detector it is PGD on the margin with l2 steps. A run costs steps + 1 forwards and twice steps backwards.
    """

    steps: int = 100
    step_sizes: tuple[float, ...] = (0.4, 0.05)
    strategies: tuple[Strategy, ...] = ("joint", "orthogonal")
    restarts: int = 1
    stop: Stop = "success"

    norms: ClassVar[frozenset[str]] = frozenset({"linf", "l2", "l1"})
    minimal_norm: ClassVar[bool] = False
    knowledge: ClassVar[type[Access]] = WhiteBox
    targeted: ClassVar[bool] = True
    family: ClassVar[str] = ASCENT

    def __post_init__(self) -> None:
        check_positive(self, "steps", "restarts")
        if not self.step_sizes or not all(size > 0 for size in self.step_sizes):
            raise ValueError(f"Expected `step_sizes` above 0, one or more, got {self.step_sizes}")
        if not self.strategies or not set(self.strategies) <= set(_DIRECTIONS):
            raise ValueError(f"Expected `strategies` of joint, selective, orthogonal, one or more, got {self.strategies}")

    def passes(self, threat: ThreatModel, classes: int) -> Passes:  # noqa: ARG002
        """steps + 1 forwards and steps backwards for each run; beside a detector twice the backwards."""
        runs = self.restarts * len(self.strategies) * len(self.step_sizes)
        return Passes(self.steps + 1, self.steps) * runs

    def short(self) -> Self:
        """A cheap setting, for tests."""
        return cut(self, steps=6, restarts=2)

    def __call__(self, access: WhiteBox, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Return the best iterate of each image, shape (n, c, h, w), inside the ball around `x` and the box."""
        check_norm(self, threat)
        search = Search(access, x, goal, rng, self.stop)
        for restart in range(self.restarts):
            for strategy in self.strategies:
                for size in self.step_sizes:
                    start = balls.random_start(search.x, threat, search.rng.at(restart)) if restart else search.x
                    self._climb(search, start, threat, _DIRECTIONS[strategy], size * reach(threat, x))
        return settle(search, margin)

    def _climb(
        self, search: Search[WhiteBox], x_adv: Tensor, threat: ThreatModel, direction: Callable[[Sides], Tensor], step: float
    ) -> None:
        for number in range(self.steps):
            if not search:
                return
            sides = search.access.sides(x_adv, search.goal, margin)
            search.record(x_adv, sides.logits, margin(sides.logits, search.goal))
            x_adv, ahead = search.keep(x_adv, direction(sides))
            x_adv = balls.project(x_adv + step * _SHORTEST ** (number / self.steps) * ahead, search.x, threat)
        look(search, x_adv, margin)


_SHORTEST = 1e-3
"""The length of the last step beside the first one's."""


def reach(threat: ThreatModel, x: Tensor) -> float:
    """The l2 length of the longest perturbation of an image of `x`, (n, ...), in the ball of a threat in linf, l2 or l1."""
    return float(threat.epsilon_or_inf * (x[0:1].numel() ** 0.5 if threat.norm == "linf" else 1.0))


def _joint(sides: Sides) -> Tensor:
    """The sum of the unit gradients of what stands in the way, or of both where nothing does; of length one."""
    right, rejected = sides.progress <= 0, sides.score > 0
    nothing = ~(right | rejected)
    up, down = (balls.steepest(each, _L2) for each in (sides.uphill, sides.downhill))
    weights = ((right | nothing).to(up.dtype), (rejected | nothing).to(up.dtype))
    return balls.steepest(balls.per_example(weights[0], up) * up + balls.per_example(weights[1], down) * down, _L2)


def _selective(sides: Sides) -> Tensor:
    """The classifier's unit gradient where it is right, the score's where it errs and is caught, both where it is not."""
    right = balls.per_example(sides.progress <= 0, sides.uphill)
    alone = sides.uphill.where(right, sides.downhill)
    return torch.where(right | balls.per_example(sides.score > 0, alone), balls.steepest(alone, _L2), _joint(sides))


def _orthogonal(sides: Sides) -> Tensor:
    """As selective, each gradient without its part along the other."""
    up, down = (balls.steepest(each, _L2) for each in (sides.uphill, sides.downhill))
    along = balls.per_example((up * down).flatten(1).sum(dim=1), up)
    return _selective(Sides(sides.progress, sides.score, _rest(up, along * down), _rest(down, along * up), sides.logits))


def _rest(gradient: Tensor, part: Tensor) -> Tensor:
    """A unit gradient without a part of it; as it was where no more than rounding errors would be left."""
    rest = gradient - part
    left = balls.distance(rest, "l2") > _PARALLEL
    return rest.where(balls.per_example(left, rest), gradient)


_PARALLEL = 1e-5

_DIRECTIONS: Mapping[str, Callable[[Sides], Tensor]] = {
    "joint": _joint,
    "selective": _selective,
    "orthogonal": _orthogonal,
}
