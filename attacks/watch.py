"""What an attack asks of a model: the best image that it visited of each example, and a budget of passes that ends it.

An attack returns images; it has asked about many more. A `Watch` at its access keeps, of each example, one image: the
nearest adversarial for attacks of minimal norm, the image of highest margin in the ball and the box for a fixed radius. An
attack that returns worse ones keeps its books badly; one that visits no better ones searches badly.

With a budget an example has so many passes. A pass is one image going forward through the model once, or one cotangent going
back once: the sum of `Ledger.forwards` and `Ledger.backwards`, in which a query of a black-box attack is one forward, each
draw of a random model counts, and a detector's score belongs to the forward beside it. The first pass that an example cannot
pay freezes it: the model is not asked about it again, and the attack sees its last answer and gradients of zero. Random
models, and those with a detector, answer whole batches: there a frozen example is asked along, and nothing is made of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.access import Ledger
from advbench.attacks.losses import margin
from advbench.attacks.threat import Goal, ThreatModel
from advbench.attacks.waiting import on_host


class BudgetSpent(BaseException):
    """Every example has spent its passes: the attack ends, and the images that were kept are what it found.

    No Exception, so that no attack that catches those goes on.
    """


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """How an attack is watched.

    visited: whether the best image that was asked about stands beside what the attack returns; not for random answers.
    budget: passes for each example, without end if None. ends: as in `Watch`. Raises ValueError for a budget below 1.
    """

    visited: bool = False
    budget: int | None = None
    ends: bool = True

    def __post_init__(self) -> None:
        if self.budget is not None and self.budget < 1:
            raise ValueError(f"Expected `budget` >= 1, got {self.budget}")

    def begin(self, x: Tensor, goal: Goal, threat: ThreatModel) -> Watch | None:
        """A watch over the attack on clean images x (n, c, h, w); None if there is nothing to be watched."""
        if not self.visited and self.budget is None:
            return None
        return Watch(x, goal, threat, budget=self.budget, ends=self.ends)


NOT_WATCHED = WatchSettings()
"""Nothing is kept, and there is no budget."""


class Watch:
    """Follows all questions of one attack on some examples, those of the access's ledger, in order.

    x: clean images (n, c, h, w), goal, threat: what the attack was given. budget: passes for each example, None for no end.
    ends: whether the attack may end when every example has spent its budget or is broken at the fixed radius; if False, all
    must have spent it.

    x_adv: the kept images, (n, c, h, w), the clean ones at first: one for each example, however long the attack. achieved:
    whether they achieve the goal by the model's answer, (n,) bool. score: their margin, or minus the distance of an
    adversarial where the threat has no epsilon, (n,). nearest: the least distance in the box at which an image that was
    asked about achieved the goal, (n,) float64, infinite for none, NaN in the norm ``none``. frozen: who could not pay a
    pass, (n,) bool. paid: the passes that were run within the budget. seconds: that keeping images took.
    """

    def __init__(self, x: Tensor, goal: Goal, threat: ThreatModel, *, budget: int | None = None, ends: bool = False) -> None:
        n = len(x)
        self.clean, self.goal, self.threat, self.budget = x.detach().clone(), goal, threat, budget
        self.ends = ends and threat.epsilon is not None
        self.x_adv = self.clean.clone()
        self.achieved = torch.zeros(n, dtype=torch.bool, device=x.device)
        self.score = torch.full((n,), -torch.inf, dtype=torch.float64, device=x.device)
        none = torch.nan if threat.norm == "none" else torch.inf
        self.nearest = torch.full((n,), none, dtype=torch.float64, device=x.device)
        self.frozen = torch.zeros(n, dtype=torch.bool, device=x.device)
        self.paid = Ledger.zeros(n, x.device)
        self.seconds = 0.0
        self._last: Tensor | None = None

    # --- questions

    def answers(
        self, ask: Callable[[Tensor | None], Tensor], x: Tensor, rows: Tensor, *, whole: bool, draws: int = 1
    ) -> Tensor:
        """The logits (m, classes) that an attack sees of images x (m, c, h, w), and a note of them.

        rows: whose image each is, (m,) int64. ask: (positions of some images, or None for all) -> the model's logits of
        these. whole: whether the model can only be asked about all. draws: as in `note`. Raises `BudgetSpent`.
        """
        paid = self.charge(rows)
        if paid is None or whole:
            logits = ask(None)
            self.note(x, logits.detach(), rows, paid, draws)
            return logits
        if not len(paid):
            return self._stale(x, rows)
        found = ask(paid)
        self.note(x[paid], found.detach(), rows[paid])
        return self._stale(x, rows).index_copy(0, paid, found)

    def charge(self, rows: Tensor) -> Tensor | None:
        """Pay a forward for each of the examples `rows`, (m,) int64; positions of those that were paid, None if all were.

        Raises `BudgetSpent` if nothing is left to be asked.
        """
        return None if self.budget is None else _some(self._pay(rows, "forwards", 1))

    def pays_back(self, rows: Tensor, passes: int) -> Tensor | None:
        """Which of the examples `rows`, (k,) int64, pay so many backwards each, (k,) bool; None if all do.

        Raises `BudgetSpent` if nothing is left to be asked.
        """
        if self.budget is None:
            return None
        paid = self._pay(rows, "backwards", passes)
        return None if bool(paid.all()) else paid

    def owners(self, x: Tensor) -> Tensor:
        """The examples whose clean images lie next to images x (m, c, h, w), (m,) int64, where nobody says whose they are.

        An image that is adversarial for an example is so whoever asked about it.
        """
        return torch.cdist(x.detach().flatten(1), self.clean.flatten(1).to(x.dtype)).argmin(dim=1)

    def settled(self, returned: Tensor | None) -> Tensor:
        """The images of the attack, (n, c, h, w), where examples are frozen the kept ones; all of these if it was ended.

        returned: by the attack, None if it was ended.
        """
        if returned is None:
            return self.x_adv
        if not self.frozen.any() or returned.shape != self.x_adv.shape:  # another shape is refused later
            return returned
        return torch.where(balls.per_example(self.frozen, returned), self.x_adv.to(returned.dtype), returned)

    def _pay(self, rows: Tensor, name: str, passes: int) -> Tensor:
        """Charge so many passes for each of `rows`, in order; which of them were paid, (m,) bool."""
        assert self.budget is not None
        left = (self.budget - self.paid.forwards - self.paid.backwards)[rows]
        paid = ~self.frozen[rows] & ((occurrences(rows) + 1) * passes <= left)
        self.frozen[rows[~paid]] = True
        over = self.frozen | self.achieved if self.ends else self.frozen
        if bool(self.frozen.any()) and bool(over.all()):
            raise BudgetSpent
        getattr(self.paid, name).index_add_(0, rows, paid * passes)
        return paid

    def _stale(self, x: Tensor, rows: Tensor) -> Tensor:
        """The last answers about the examples `rows`, (m, classes), which depend on the images x with a slope of zero."""
        if self._last is None:  # nobody could pay the first question
            raise BudgetSpent
        return self._last[rows].to(x.dtype) + x.flatten(1)[:, :1].mul(0).nan_to_num(0.0)

    # --- notes

    def note(self, x: Tensor, logits: Tensor, rows: Tensor, paid: Tensor | None = None, draws: int = 1) -> None:
        """Keep what is better of images x (m, c, h, w) with these logits (m, classes), of examples `rows`, (m,) int64.

        paid: positions of those that count, (k,) int64, all if None. draws: so many copies of the same images, one after the
        other, which count with the mean of their logits.
        """
        begun = time.perf_counter()
        if draws > 1:
            x, logits, rows, paid = _means(x, logits, rows, paid, draws)
        if paid is not None:
            x, logits, rows = x[paid], logits[paid], rows[paid]
        if self._last is None:
            self._last = logits.new_zeros(len(self.clean), logits.shape[1])
        for part in _apart(rows):
            self._keep(*((x, logits, rows) if part is None else (x[part], logits[part], rows[part])))
        self.seconds += time.perf_counter() - begun

    def _keep(self, x: Tensor, logits: Tensor, rows: Tensor) -> None:
        """Keep what is better of images (m, c, h, w) of different examples."""
        assert self._last is not None
        self._last[rows] = logits.to(self._last.dtype)
        goal, x = self.goal.select(rows), x.detach().to(self.clean.dtype)
        achieved, score = goal.achieved(logits), margin(logits, goal).double()
        distance = self.nearest[rows]
        if self.threat.norm != "none":
            distance = balls.distance(x - self.clean[rows], self.threat.norm).double()
        if self.threat.epsilon is None and self.threat.norm != "none":
            score = torch.where(achieved, -distance, score)
        held, best = self.achieved[rows], self.score[rows]
        wins = ~score.isnan() & ((achieved & ~held) | ((achieved == held) & (score > best)))
        nearer = achieved & (distance < self.nearest[rows])
        if on_host(x):
            some = (wins | nearer).nonzero().squeeze(1)
            if not len(some):
                return
            x, rows, achieved, score, distance = (one[some] for one in (x, rows, achieved, score, distance))
            wins, nearer = wins[some], nearer[some]
        inside = ~balls.violations(x, self.clean[rows], self.threat)
        wins, nearer = wins & inside, nearer & inside
        for kept, new, where in (
            (self.x_adv, x, wins),
            (self.achieved, achieved, wins),
            (self.score, score, wins),
            (self.nearest, distance, nearer),
        ):
            kept[rows] = torch.where(balls.per_example(where, new), new, kept[rows])


def occurrences(rows: Tensor) -> Tensor:
    """How many earlier entries of `rows`, (m,) int64, are the same as each, (m,) int64.

    >>> occurrences(torch.tensor([3, 1, 3, 3, 1])).tolist()
    [0, 0, 1, 2, 1]
    """
    order = rows.argsort(stable=True)
    ordered = rows[order]
    rank = torch.arange(len(rows), device=rows.device) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(rank).index_copy_(0, order, rank)


def _means(
    x: Tensor, logits: Tensor, rows: Tensor, paid: Tensor | None, draws: int
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """One copy of images, the mean logits of the copies that count, whose they are, and the positions that count."""
    n = len(rows) // draws
    counts = torch.ones(draws * n, 1, dtype=logits.dtype, device=logits.device)
    if paid is not None:
        counts.zero_()[paid] = 1
    each = counts.view(draws, n, 1)
    mean = (logits.view(draws, n, -1) * each).sum(dim=0) / each.sum(dim=0).clamp(min=1)
    return x[:n], mean, rows[:n], None if paid is None else each.sum(dim=0).flatten().nonzero().squeeze(1)


def _apart(rows: Tensor) -> Iterator[Tensor | None]:
    """Positions in `rows`, (m,) int64, in parts in which no example is twice; None if all are one part."""
    if bool((rows[1:] > rows[:-1]).all()):
        yield None
        return
    nth = occurrences(rows)
    for number in range(int(nth.max()) + 1):
        yield (nth == number).nonzero().squeeze(1)


def _some(mask: Tensor) -> Tensor | None:
    """Where a mask (m,) is true; None if it is everywhere."""
    return None if bool(mask.all()) else mask.nonzero().squeeze(1)
