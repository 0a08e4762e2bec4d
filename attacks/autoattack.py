"""AutoAttack: the field's standard ensemble, without parameters to tune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from advbench.attacks.access import Access, WhiteBox
from advbench.attacks.apgd import APGD, APGDDLR, APGDT
from advbench.attacks.attack import Attack, check_norm, check_positive
from advbench.attacks.capabilities import ENSEMBLE, Passes, cut
from advbench.attacks.ensemble import passes_together, worst_case
from advbench.attacks.fab import FABT
from advbench.attacks.iterates import Stop
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.square import Square
from advbench.attacks.threat import Goal, ThreatModel


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoAttack:
    """AutoAttack, its standard version (Croce & Hein 2020, arXiv:2003.01690; l1: 2021, arXiv:2103.01208).

    The worst case over `APGD` on the cross-entropy (one start; in l1 five), `APGDT` (nine targets; in l1 five), `FABT` (nine
    targets) and `Square`, whose schedule is not rescaled, in this order, each on the examples that withstood the others.

    steps: of each run of the gradient-based attacks. queries: of `Square`. stop: of all of them. Results under the name of
    AutoAttack need the defaults.
    """

    steps: int = 100
    queries: int = 5000
    stop: Stop = "success"

    norms: ClassVar[frozenset[str]] = frozenset({"linf", "l2", "l1"})
    minimal_norm: ClassVar[bool] = False
    knowledge: ClassVar[type[Access]] = WhiteBox
    targeted: ClassVar[bool] = True
    family: ClassVar[str] = ENSEMBLE

    def __post_init__(self) -> None:
        check_positive(self, "steps", "queries")

    def components(self, threat: ThreatModel) -> list[Attack]:
        """The attacks, as they run for a threat."""
        sparse = threat.norm == "l1"
        return [
            APGD(steps=self.steps, restarts=5 if sparse else 1, stop=self.stop),
            APGDT(steps=self.steps, targets=5 if sparse else 9, stop=self.stop),
            FABT(steps=self.steps, stop=self.stop),
            Square(queries=self.queries, rescale=False, stop=self.stop),
        ]

    def passes(self, threat: ThreatModel, classes: int) -> Passes:
        """Those of the four attacks."""
        return passes_together(self.components(threat), threat, classes, self.stop)

    def short(self) -> Self:
        """A cheap setting, for tests."""
        return cut(self, steps=6, queries=40)

    def __call__(self, access: WhiteBox, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Return the worst image found for each example, shape (n, c, h, w), inside the ball around `x` and the box."""
        check_norm(self, threat)
        return worst_case(self.components(threat), access, x, goal, threat, rng, self.stop)


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoAttackRand:
    """AutoAttack for stochastic models, its rand version (Croce & Hein 2020, arXiv:2003.01690).

    The worst case over `APGD` on the cross-entropy and `APGDDLR`, with gradients and losses averaged over draws.

    steps: of each run. draws: passes that every question to a stochastic model is averaged over, in place of the
    access's own. stop: of both; a stochastic model's examples are always attacked to the end.
    """

    steps: int = 100
    draws: int = 20
    stop: Stop = "success"

    norms: ClassVar[frozenset[str]] = frozenset({"linf", "l2", "l1"})
    minimal_norm: ClassVar[bool] = False
    knowledge: ClassVar[type[Access]] = WhiteBox
    targeted: ClassVar[bool] = True
    family: ClassVar[str] = ENSEMBLE

    def __post_init__(self) -> None:
        check_positive(self, "steps", "draws")

    def components(self) -> list[Attack]:
        """The attacks."""
        return [APGD(steps=self.steps, stop=self.stop), APGDDLR(steps=self.steps, stop=self.stop)]

    def passes(self, threat: ThreatModel, classes: int) -> Passes:
        """Those of the two attacks."""
        return passes_together(self.components(), threat, classes, self.stop)

    def short(self) -> Self:
        """A cheap setting, for tests."""
        return cut(self, steps=6, draws=2)

    def __call__(self, access: WhiteBox, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Return the worst image found for each example, shape (n, c, h, w), inside the ball around `x` and the box."""
        check_norm(self, threat)
        return worst_case(self.components(), access.averaging(self.draws), x, goal, threat, rng, self.stop)
