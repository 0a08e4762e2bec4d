"""Random noise, the weakest attack that a defense must withstand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.access import Access, ScoreBased, WhiteBox
from advbench.attacks.attack import check_norm, check_positive
from advbench.attacks.capabilities import NOISE, Passes, cut
from advbench.attacks.iterates import Search, Stop, look
from advbench.attacks.losses import loss_named
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, ThreatModel


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformNoise:
    """Uniform noise in the ball, the worst of several points (baseline).

    points: random points tried per example. stop: whether an example is left alone after its first success.
    """

    points: int = 1
    loss: str = "cross-entropy"
    stop: Stop = "success"

    norms: ClassVar[frozenset[str]] = frozenset({"linf", "l2", "l1"})
    minimal_norm: ClassVar[bool] = False
    knowledge: ClassVar[type[Access]] = ScoreBased
    targeted: ClassVar[bool] = True
    family: ClassVar[str] = NOISE

    def __post_init__(self) -> None:
        check_positive(self, "points")
        loss_named(self.loss)

    def passes(self, threat: ThreatModel, classes: int) -> Passes:  # noqa: ARG002
        """One query for each point."""
        return Passes(self.points)

    def short(self) -> Self:
        """A cheap setting, for tests."""
        return cut(self, points=3)

    def __call__(self, access: ScoreBased | WhiteBox, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Return the worst random point for each image, shape (n, c, h, w); one query per point."""
        check_norm(self, threat)
        search = Search(access, x, goal, rng, self.stop)
        for point in range(self.points):
            if not search:
                break
            x_adv = balls.random_start(search.x, threat, search.rng.at(point))
            look(search, x_adv, loss_named(self.loss))
        return search.best.x_adv
