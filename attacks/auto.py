"""An ensemble of AutoAttack's parts that spends its passes on the examples that are close to breaking.

An example that withstands costs 840 to 4,200 passes, by how close it is, where `AutoAttack` spends 9,700 on each. Where
gradients do no better than a few hundred random squares, as masked gradients do, it gets AutoAttack's budget too. The price
is a bet: an example that only thousands of squares would break, while gradients do wear its margin off, is left standing;
results to be compared with the literature need `autoattack`. Little is saved where nearly all examples break in
AutoAttack's first run, and an example that falls late in that run may cost more here. Time is saved less than passes on
small networks in small batches, where a few last examples hold up a long sequence of squares. With ``stop="never"``, and
for a stochastic model, every example that breaks costs all of the 4,200 passes, and a stochastic model's best images of
every run are settled on fresh draws (`iterates.settle`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Self, TypeAlias

import torch
from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.access import Access, Loss, WhiteBox
from advbench.attacks.aims import Aim, likeliest_targets
from advbench.attacks.apgd import APGD
from advbench.attacks.attack import check_norm, check_positive
from advbench.attacks.capabilities import ENSEMBLE, LOOK, Passes, cut
from advbench.attacks.fab import FAB
from advbench.attacks.iterates import BestSoFar, Search, Stop, look, settle
from advbench.attacks.losses import dlr, margin
from advbench.attacks.nearest import log_odds
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.square import Square
from advbench.attacks.survivors import Pursuers, applies
from advbench.attacks.threat import Goal, Targeted, ThreatModel

Run: TypeAlias = Callable[[Search[WhiteBox]], None]
"""One run of an attack on the examples of a search."""

CLOSE = {"linf": 1.1, "l2": 1.1, "l1": 2.0}
"""How far an adversarial may lie, in units of epsilon, for a longer run to bring it into the ball; in l1 they gain most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Auto:
    """AutoAttack's parts in short runs, and long ones where an example is close (after Croce & Hein 2020, arXiv:2003.01690).

    1. APGD of `steps` steps on the log-odds; towards each of the `targets` classes that are likeliest at the best image so
       far, APGD on the difference of logits ratio and FAB; APGD from the best image of all, with a small first step. In l1,
       where a run has three phases, all take twice the steps.
    2. Where FAB found an adversarial within `CLOSE` epsilon, FAB with `long_steps`; where no more than half of `near` is
       left, APGD with `long_steps` on the margin.
    3. `survey` queries of Square, and APGD from where they led: on models whose gradients are masked far from the boundary
       this breaks what neither does alone.
    4. Square goes on, up to `queries`, for the near examples, as long as of its own margin no more is left than the share
       survey / queries so far. Whenever its queries have doubled, APGD sets out from where it is once more.
    5. An example is misled where the survey wore off the margin by the share `misled` of what all gradients did, or more:
       random squares rarely come so far unless the gradients point astray; and where a gradient had a component that was no
       finite number. It gets AutoAttack's own budget: APGD on the difference of logits ratio and FAB with `long_steps`
       towards each of the `all_targets` likeliest classes, and Square with `all_queries`, however its margin wears off.

    6. Behind a purifier, and beside a detector, what has survived all that is attacked by what knows the chain (`Pursuers`),
       with `long_steps` steps to a run and `survivor_queries` queries. It costs some 2,000 forwards and 1,300 backwards for
       each survivor, and nothing for the others; a model whose gradient is a stand-in's (BPDA) does not get it.

    Near is an example whose margin is worn off but for a share `near` of the clean image's. An example is left alone once
    broken; all decisions are its own, so that it does not depend on its batch. With ``stop="never"``, and for a stochastic
    model, broken examples count as near and go through parts 1 to 4.
    """

    steps: int = 25
    long_steps: int = 100
    targets: int = 3
    near: float = 0.3
    queries: int = 2400
    survey: int = 300
    misled: float = 0.8
    all_targets: int = 9
    all_queries: int = 5000
    survivor_queries: int = 1000
    stop: Stop = "success"

    norms: ClassVar[frozenset[str]] = frozenset({"linf", "l2", "l1"})
    minimal_norm: ClassVar[bool] = False
    knowledge: ClassVar[type[Access]] = WhiteBox
    targeted: ClassVar[bool] = True
    family: ClassVar[str] = ENSEMBLE

    def __post_init__(self) -> None:
        check_positive(self, "steps", "long_steps", "targets", "near", "queries", "survey")
        check_positive(self, "misled", "all_targets", "all_queries")
        if self.survivor_queries < 0:
            raise ValueError(f"Expected `survivor_queries` >= 0, got {self.survivor_queries}")

    def passes(self, threat: ThreatModel, classes: int) -> Passes:
        """Those of an example near the boundary, which goes through parts 1 to 4; one far from it has a fifth of them.

        A misled example, which no declaration can foresee, costs up to 9,700 passes more, a survivor of a purifier or a
        detector up to 3,300.
        """
        steps, targets = self._steps(threat), min(self.targets, classes - 1)
        ascent, long = (APGD(steps=each, stop="never").passes(threat, classes) for each in (steps, self.long_steps))
        refined = Passes(steps + 1, steps + (threat.norm == "l1"))
        short = LOOK + ascent + LOOK + (ascent + Passes(2, 1) * steps + LOOK) * targets + refined
        lengthened = (Passes(2, 1) * self.long_steps + LOOK) * targets + long
        doublings = max(0, math.ceil(math.log2(self.queries / self.survey)))
        squares = Passes(self.queries) + refined * (1 + doublings)
        return short + lengthened + replace(squares, at_most=True)

    def short(self) -> Self:
        """A cheap setting, for tests."""
        queries = {"queries": 40, "survey": 20, "all_queries": 60, "survivor_queries": 10}
        return cut(self, steps=6, long_steps=12, targets=3, all_targets=3, **queries)

    def __call__(self, access: WhiteBox, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Return the best image found for each example, shape (n, c, h, w), inside the ball around `x` and the box."""
        check_norm(self, threat)
        standings = Standings(access, x, goal, threat, rng, self.stop)
        steps = self._steps(threat)
        targets = self._short_runs(standings, steps)
        self._long_runs(standings, targets)
        self._squares(standings, _ascent(steps))
        if self.survivor_queries and applies(standings):
            Pursuers(targets=self.targets, steps=self.long_steps, queries=self.survivor_queries)(standings)
        return standings.best.x_adv

    def _steps(self, threat: ThreatModel) -> int:
        """The steps of a short run."""
        return 2 * self.steps if threat.norm == "l1" else self.steps

    def _short_runs(self, standings: Standings, steps: int) -> list[Tensor | None]:
        """Part 1; returns the classes that the runs went to, each (n,) int64, or None for the goal itself."""
        standings.ascend("open", _ascent(steps), log_odds)
        targets = standings.likeliest_targets(self.targets)
        for number, target in enumerate(targets):
            standings.ascend(f"short-{number}", _ascent(steps), dlr, target)
            standings.walk(FAB(steps=steps), target)
        standings.refine(_ascent(steps), standings.best)
        return targets

    def _long_runs(self, standings: Standings, targets: list[Tensor | None]) -> None:
        """Part 2."""
        for target in targets:
            standings.walk(FAB(steps=self.long_steps), target, standings.close())
        standings.ascend("long", _ascent(self.long_steps), margin, chosen=standings.near(self.near / 2))

    def _squares(self, standings: Standings, ascent: APGD) -> None:
        """Parts 3 to 5."""
        square = Square(queries=max(self.queries, self.all_queries), rescale=False)
        by_gradients = standings.best.loss.clone()
        standings.ask(square, range(min(self.survey, self.queries)))
        misled = standings.misled(by_gradients, self.misled)
        standings.refine(ascent, standings.trail)
        self._all_targets(standings, misled)
        self._square_on(standings, square, ascent, self.survey, self.queries, standings.near(self.near) & ~misled, misled)
        self._square_on(standings, square, ascent, max(self.survey, self.queries), self.all_queries, misled, misled)

    def _all_targets(self, standings: Standings, misled: Tensor) -> None:
        """AutoAttack's targeted runs, for the examples `misled`, shape (n,), bool."""
        for number, target in enumerate(standings.likeliest_targets(self.all_targets, misled)):
            standings.ascend(f"all-{number}", _ascent(self.long_steps), dlr, target, misled)
            standings.walk(FAB(steps=self.long_steps), target, misled)

    def _square_on(
        self,
        standings: Standings,
        square: Square,
        ascent: APGD,
        asked: int,
        queries: int,
        chosen: Tensor,
        misled: Tensor,
    ) -> None:
        """Square from `asked` to `queries` for the examples `chosen` while they wear off, and for all that are `misled`."""
        while asked < queries:
            chosen = misled | (chosen & standings.trail_near(self.survey / asked))
            standings.ask(square, range(asked, min(2 * asked, queries)), chosen)
            standings.refine(ascent, standings.trail, chosen)
            asked *= 2


def _ascent(steps: int) -> APGD:
    """APGD as the ensemble runs it: in short runs the exact projection gains more than it loses."""
    return APGD(steps=steps, form="box-aware")


class Standings:
    """Where every example of the batch stands, and the runs that move it.

    best: the best images, by (goal achieved, margin). clean: by how much the clean image withstands, (n,), its margin with
    the sign turned. distance: of the nearest adversarial that FAB found, (n,). trail: the best points of Square alone.
    """

    def __init__(self, access: WhiteBox, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG, stop: Stop) -> None:
        self.access, self.x, self.goal, self.threat, self.rng, self.stop = access, x, goal, threat, rng, stop
        self.best = BestSoFar(x)
        self.trail = BestSoFar(x)
        self.distance = torch.full_like(self.best.loss, torch.inf)
        logits = access.logits(x)
        self.clean = -margin(logits, goal).to(x.dtype)
        if stop == "success":
            self.best.update(x, goal.achieved(logits), -self.clean)

    def live(self, chosen: Tensor | None = None) -> Tensor:
        """The rows, int64, that are still attacked, of those `chosen`, shape (n,), bool."""
        leaving = self.stop == "success" and not self.access.stochastic
        live = ~self.best.achieved if leaving else torch.ones_like(self.best.achieved)
        return (live if chosen is None else live & chosen).nonzero().squeeze(1)

    def near(self, share: float) -> Tensor:
        """Whose margin is worn off but for a share, shape (n,), bool."""
        return -self.best.loss <= share * self.clean

    def trail_near(self, share: float) -> Tensor:
        """Whose margin the squares alone have worn off but for a share, shape (n,), bool."""
        return -self.trail.loss <= share * self.clean

    def close(self) -> Tensor:
        """Who has an adversarial not far outside the ball, shape (n,), bool."""
        return self.distance <= CLOSE[self.threat.norm] * self.threat.epsilon_or_inf

    def misled(self, by_gradients: Tensor, share: float) -> Tensor:
        """Whose margin squares wore off by a share of what gradients did, or more, or whose gradients are no numbers, and
        who still withstands, shape (n,), bool.

        by_gradients: the highest margins that gradients had reached before the squares, shape (n,).
        """
        squares, gradients = self.clean + self.trail.loss, self.clean + by_gradients
        broken = self.access.ledger.nonfinite[self.access.rows] > 0
        return (broken | (squares >= share * gradients.clamp(min=0))) & ~self.best.achieved

    def likeliest_targets(self, count: int, chosen: Tensor | None = None) -> list[Tensor | None]:
        """The wrong classes likeliest at the best images, each (n,) int64; None where the goal has a target.

        chosen: whose, shape (n,), bool; of all that are still attacked if None.
        """
        rows = self.live(chosen)
        if isinstance(self.goal, Targeted) or not len(rows):
            return [None]
        logits = self.access.select(rows).logits(self.best.x_adv[rows])
        found = likeliest_targets(logits, self.goal.y[rows], count)
        return [torch.zeros_like(self.goal.y).index_put((rows,), target) for target in found]

    def ascend(
        self, name: str, attack: APGD, loss: Loss, target: Tensor | None = None, chosen: Tensor | None = None
    ) -> None:
        """A run of APGD from a random start, of the stream `name`."""
        rows = self.live(chosen)
        aim = Aim(loss, None if target is None else target[rows])
        self.run(rows, name, lambda search: attack.climb(search, aim, self.threat, search.rng))

    def refine(self, attack: APGD, start: BestSoFar, chosen: Tensor | None = None, loss: Loss = margin) -> None:
        """A run of APGD, on the margin unless told otherwise, from points that are good already."""
        rows = self.live(chosen)
        points = start.x_adv[rows]
        self.run(rows, "refine", lambda search: attack.refine(search, Aim(loss), self.threat, points))

    def walk(self, attack: FAB, target: Tensor | None, chosen: Tensor | None = None) -> None:
        """A run of FAB, and a look at its images, brought into the ball."""
        rows = self.live(chosen)
        if not len(rows):
            return
        walked = self.search(rows, "walk")
        attack.walk(walked, self.threat, None if target is None else target[rows])
        distance = (-walked.best.loss).where(walked.best.achieved, torch.inf)
        self.distance[rows] = self.distance[rows].minimum(distance)
        inside = balls.project(walked.best.x_adv, self.x[rows], self.threat)
        self.run(rows, "look", lambda search: look(search, inside, margin))

    def ask(self, attack: Square, numbers: range, chosen: Tensor | None = None) -> None:
        """The numbered queries of Square along its own trail."""
        rows = self.live(chosen)

        def run(search: Search[WhiteBox]) -> None:
            if not numbers.start:
                attack.begin(search, self.threat)
            else:
                search.best.update(self.trail.x_adv[rows], self.trail.achieved[rows], self.trail.loss[rows])
            attack.ask(search, self.threat, range(max(1, numbers.start), numbers.stop))

        found = self.run(rows, "trail", run)
        self.trail.update(found.x_adv, found.achieved, found.loss, rows)

    def search(self, rows: Tensor, name: str) -> Search[WhiteBox]:
        """A search of some examples, with the random stream of a name."""
        access, goal, rng = self.access.select(rows), self.goal.select(rows), self.rng.select(rows).fork(name)
        return Search(access, self.x[rows], goal, rng, self.stop)

    def run(self, rows: Tensor, name: str, run: Run) -> BestSoFar:
        """Run on some examples; what it finds is kept where it is better."""
        search = self.search(rows, name)
        if search:
            run(search)
            settle(search, margin)
        self.best.update(search.best.x_adv, search.best.achieved, search.best.loss, rows)
        return search.best
