"""The last stage of `auto` on purifiers and detectors: survivors of everything cheaper meet what knows the chain."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from advbench.attacks.aims import Aim
from advbench.attacks.apgd import APGD
from advbench.attacks.evasion import pursue
from advbench.attacks.iterates import Search, look
from advbench.attacks.losses import margin
from advbench.attacks.square import Square
from advbench.attacks.stages import Bare, EveryStep, FirstToHold, View, staged, through
from advbench.attacks.threat import Goal

if TYPE_CHECKING:
    from advbench.attacks.access import WhiteBox
    from advbench.attacks.auto import Standings


@dataclass(frozen=True, slots=True, kw_only=True)
class Pursuers:
    """The runs on examples that have survived so far; each sees only those that the runs before it left.

    1. APGD on the margin of each of the `targets` likeliest wrong classes.
    2. Behind a purifier: APGD on the bare classifier, on the mean logits of all steps (`EveryStep`, after DiffAttack,
       arXiv:2311.16124) and on the step that holds first (`FirstToHold`), each from the start, and from where it led APGD
       on the whole chain.
    3. Beside a detector: a Lagrangian with an adaptive weight (`evasion.pursue`), from the image and from the best image.
    4. Of a random model: APGD from the best image on `share`, whose gradient is that of the draws that are close to
       breaking, after DiffHammer's selective attack on the vulnerable purifications.
    5. `queries` of Square around the best image, each averaged over `draws` draws at the least.

    The gradients are those of the model as it is. What a stochastic model's survivors are handed out with is, of the image
    before and the one after, that which more of `judged` fresh draws misclassify.

    steps: of each run.
    """

    targets: int = 3
    steps: int = 100
    queries: int = 1000
    draws: int = 8
    judged: int = 32

    def __call__(self, standings: Standings) -> None:
        """Attack the survivors."""
        before = standings.best.x_adv.clone()
        chosen = ~standings.best.achieved
        if not len(standings.live(chosen)):
            return
        self._targets(standings)
        for name, view in VIEWS.items():
            self._elsewhere(standings, name, view)
        self._evade(standings)
        if standings.access.stochastic:
            standings.refine(self._ascent, standings.best, survivors(standings), loss=share)
        self._squares(standings)
        if standings.access.stochastic:
            self._keep_the_better(standings, before, chosen)

    @property
    def _ascent(self) -> APGD:
        return APGD(steps=self.steps, form="box-aware")

    def _targets(self, standings: Standings) -> None:
        for number, target in enumerate(standings.likeliest_targets(self.targets, survivors(standings))):
            standings.ascend(f"survivor-{number}", self._ascent, margin, target, survivors(standings))

    def _elsewhere(self, standings: Standings, name: str, view: View) -> None:
        """A run through another view of the chain, and one of the chain from where it led.

        A view's answers are not the model's, so that nobody who watches keeps them; under a budget of passes there is none.
        """
        chain, rows = staged(standings.access.model), standings.live(survivors(standings))
        budgeted = standings.access.watch is not None and standings.access.watch.budget is not None
        if chain is None or budgeted or not len(rows):
            return
        given = standings.search(rows, name)
        shown = view(chain, given.goal.y)
        there = Search(through(given.access, shown, evading=view is not Bare), given.x, given.goal, given.rng, stop="never")
        self._ascent.climb(there, Aim(margin), standings.threat, given.rng.fork("there"))
        found = there.best.x_adv

        def run(search: Search[WhiteBox]) -> None:
            look(search, found, margin)
            (start,) = search.keep(found)
            self._ascent.refine(search, Aim(margin), standings.threat, start)

        standings.run(rows, f"{name}-on", run)

    def _evade(self, standings: Standings) -> None:
        """The Lagrangian, where there is a detector."""
        if standings.access.detector is None:
            return
        for name, start in (("image", standings.x), ("best", standings.best.x_adv)):
            rows = standings.live(survivors(standings))
            run = partial(pursue, threat=standings.threat, start=start[rows], steps=2 * self.steps)
            standings.run(rows, f"evade-{name}", run)

    def _squares(self, standings: Standings) -> None:
        """Square around the best images, with averaged draws."""
        rows, best, access = standings.live(survivors(standings)), standings.best, standings.access
        square = Square(queries=_FIRST_SQUARE + self.queries, rescale=False)

        def run(search: Search[WhiteBox]) -> None:
            search.best.update(best.x_adv[rows], best.achieved[rows], best.loss[rows])
            square.ask(search, standings.threat, range(_FIRST_SQUARE, square.queries))

        standings.access = access.averaging(max(self.draws, access.draws))
        standings.run(rows, "survivor-squares", run)
        standings.access = access

    def _keep_the_better(self, standings: Standings, before: Tensor, chosen: Tensor) -> None:
        """Of images before and after, (n, c, h, w), those that more fresh draws misclassify, for the examples `chosen`."""
        rows = chosen.nonzero().squeeze(1)
        access, goal, best = standings.access.select(rows).averaging(1), standings.goal.select(rows), standings.best
        broken = [
            torch.stack([goal.achieved(access.logits(x_adv[rows])) for _ in range(self.judged)]).sum(dim=0)
            for x_adv in (before, best.x_adv)
        ]
        back = rows[broken[0] > broken[1]]
        best.x_adv[back], best.achieved[back] = before[back], False


_FIRST_SQUARE = 50
"""Where the sizes of squares begin, past the largest ones, which would undo what the best image has."""

VIEWS: dict[str, View] = {"bare": Bare, "steps": EveryStep, "first": FirstToHold}


def applies(standings: Standings) -> bool:
    """Whether the model is known to purify or to detect, and is differentiated as it is."""
    chain = staged(standings.access.model)
    return standings.access.detector is not None if chain is None else not chain.substituted


def survivors(standings: Standings) -> Tensor:
    """Who has withstood so far, (n,), bool."""
    return ~standings.best.achieved


def share(logits: Tensor, goal: Goal) -> Tensor:
    """A smooth count of the draws that err: the logistic function of twice the margin over the logits' spread, (n,).

    Averaged over draws its gradient is that of the draws near the boundary: those that err for certain and those that are
    far from it add little.
    """
    spread = logits.detach().std(dim=1).clamp_min(1e-12)
    return torch.sigmoid(2 * margin(logits, goal) / spread)
