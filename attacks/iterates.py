"""The bookkeeping that iterative attacks share: the best iterate of every example, and who is still attacked."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from advbench.attacks.access import Access, Loss, ScoreBased, WhiteBox
from advbench.attacks.balls import per_example
from advbench.attacks.progress import tell
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal
from advbench.attacks.waiting import on_host, positions

Stop: TypeAlias = Literal["success", "never"]
"""``success``: an example is left alone once its goal is achieved. ``never``: every example is attacked to the end."""

AccessT = TypeVar("AccessT", bound=Access)
LogitsT = TypeVar("LogitsT", bound=WhiteBox | ScoreBased)


class BestSoFar:
    """The best iterate of each example, ordered by (goal achieved, loss): a success never gives way to a higher loss.

    x_adv: the iterates, shape (n, c, h, w), the clean images until an update is better. achieved: (n,), bool. loss: (n,),
    minus infinity before the first update. An iterate whose loss is NaN is never kept.
    """

    def __init__(self, x: Tensor) -> None:
        self.x_adv = x.detach().clone()
        self.achieved = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.loss = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)

    def update(self, x_adv: Tensor, achieved: Tensor, loss: Tensor, rows: Tensor | None = None) -> None:
        """Keep the iterates that are better than what is held for their examples.

        x_adv: (m, c, h, w); achieved: (m,), bool; loss: (m,); rows: the examples that they belong to, (m,), int64, none
        twice; all examples in order if None.
        """
        loss = loss.detach().to(self.loss.dtype)
        held, least = (self.achieved, self.loss) if rows is None else (self.achieved[rows], self.loss[rows])
        gained = achieved & ~held & ~loss.isnan()
        wins = gained | ((achieved == held) & (loss > least))
        if not on_host(wins):
            self._update(x_adv, achieved, loss, rows, wins)
            return
        better = wins.nonzero().squeeze(1)
        if not len(better):
            return
        rows = better if rows is None else rows[better]
        self.x_adv.index_copy_(0, rows, x_adv.detach().index_select(0, better))
        self.achieved[rows] = achieved[better]
        self.loss[rows] = loss[better]

    def _update(self, x_adv: Tensor, achieved: Tensor, loss: Tensor, rows: Tensor | None, wins: Tensor) -> None:
        """Keep the iterates where `wins`, (m,) bool, on an accelerator, which is not asked where that is."""
        rows = torch.arange(len(wins), device=wins.device) if rows is None else rows
        for held, new in ((self.x_adv, x_adv.detach()), (self.achieved, achieved), (self.loss, loss)):
            old = held.index_select(0, rows)
            held.index_copy_(0, rows, torch.where(per_example(wins, old), new, old))


class Contenders:
    """The iterates of a stochastic model's examples that did best when they were looked at, and the last one.

    Of a hundred looks at a few draws each, the best is the luckiest rather than the strongest. So the best `places` and the
    last are all looked at again, on fresh draws, before one of them is handed out (`settled`).

    x_adv: (places, n, c, h, w); achieved, loss: (places, n), minus infinity where a place is free. latest: the last ones.
    """

    def __init__(self, x: Tensor, places: int = 3) -> None:
        self.x_adv = x.detach().unsqueeze(0).repeat(places, *(1 for _ in x.shape))
        self.achieved = torch.zeros(places, len(x), dtype=torch.bool, device=x.device)
        self.loss = torch.full((places, len(x)), -torch.inf, dtype=x.dtype, device=x.device)
        self.latest = x

    def update(self, x_adv: Tensor, achieved: Tensor, loss: Tensor) -> None:
        """Let the iterates of all examples, (n, c, h, w), take the place of the worst that are held, where they are better.

        achieved: (n,), bool; loss: (n,). An iterate whose loss is NaN is never held.
        """
        loss = loss.detach().to(self.loss.dtype)
        # The worst place by (achieved, loss): the smallest loss among those that did not achieve, where there are any.
        weak = self.loss.masked_fill(self.achieved & ~self.achieved.all(dim=0), torch.inf)
        place, example = weak.argmin(dim=0), torch.arange(len(loss), device=loss.device)
        held, least = self.achieved[place, example], self.loss[place, example]
        wins = (achieved & ~held & ~loss.isnan()) | ((achieved == held) & (loss > least))
        self.latest = x_adv.detach()
        if not on_host(wins):
            self.x_adv[place, example] = torch.where(per_example(wins, x_adv), self.latest, self.x_adv[place, example])
            self.achieved[place, example] = torch.where(wins, achieved, held)
            self.loss[place, example] = torch.where(wins, loss, least)
            return
        better = wins.nonzero().squeeze(1)
        place = place[better]
        self.x_adv[place, better] = self.latest[better]
        self.achieved[place, better] = achieved[better]
        self.loss[place, better] = loss[better]

    def settled(
        self, access: WhiteBox | ScoreBased, goal: Goal, loss: Loss, draws: int = 8
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The strongest contenders (n, c, h, w), by the share of fresh draws that achieve the goal, then by the mean loss.

        draws: fresh ones for each contender, at the least as many as the access averages. Returns with them whether at least
        half of their draws achieved the goal, (n,) bool, and their mean losses, (n,).
        """
        pool = torch.cat([self.x_adv, self.latest.unsqueeze(0)])
        free = torch.cat([self.loss.isneginf(), torch.zeros_like(self.achieved[:1])])
        judged = [_judged(access.averaging(1), x_adv, goal, loss, max(draws, access.draws)) for x_adv in pool]
        share, mean = (torch.stack(column) for column in zip(*judged, strict=True))
        share, mean = share.masked_fill(free, -1.0), mean.nan_to_num(nan=-torch.inf)
        choice = mean.masked_fill(share < share.amax(dim=0), -torch.inf).argmax(dim=0)
        example = torch.arange(len(choice), device=choice.device)
        return pool[choice, example], share[choice, example] >= 0.5, mean[choice, example].to(self.loss.dtype)


def _judged(access: WhiteBox | ScoreBased, x_adv: Tensor, goal: Goal, loss: Loss, draws: int) -> tuple[Tensor, Tensor]:
    """The share of draws on which the goal is achieved and the mean loss, (n,) each, float64."""
    answers = [access.logits(x_adv) for _ in range(draws)]
    shares = torch.stack([goal.achieved(logits) for logits in answers]).to(torch.float64).mean(dim=0)
    return shares, torch.stack([loss(logits, goal) for logits in answers]).to(torch.float64).mean(dim=0)


class Search(Generic[AccessT]):
    """The examples that are still attacked (access, clean images, goal, random streams) and the best iterates of all.

    A loop asks ``search.access`` about its iterates, hands the answers to `record`, and carries on with what `keep` leaves:

        search = Search(access, x, goal, rng, self.stop)
        x_adv = start
        for _ in range(steps):
            if not search:
                break
            evaluation = search.access.loss_gradient(x_adv, search.goal, loss)
            search.record(x_adv, evaluation.logits, evaluation.loss)
            x_adv, gradient = search.keep(x_adv, evaluation.gradient)
            x_adv = ...

    With ``stop="success"`` examples leave as soon as their goal is achieved. For a stochastic model they never do: one lucky
    draw does not count as a success, and models with a random state of their own need their whole batch.
    """

    def __init__(self, access: AccessT, x: Tensor, goal: Goal, rng: ExampleRNG, stop: Stop = "success") -> None:
        self.access = access
        self.x = x
        self.goal = goal
        self.rng = rng
        self.rows = torch.arange(len(x), device=x.device)
        self.best = BestSoFar(x)
        self.contenders = Contenders(x) if access.stochastic else None
        self._leaving = stop == "success" and not access.stochastic
        self._kept: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def record(
        self, x_adv: Tensor, logits: Tensor, loss: Tensor, within: Tensor | None = None, leaving: Tensor | None = None
    ) -> None:
        """Note the iterates of the live examples, shape (m, c, h, w), with their logits (m, classes) and losses (m,).

        With ``stop="success"`` those that achieved their goal leave: the search's own fields shrink at once, and `keep`
        shrinks everything else. within: which iterates may count as a success at all, shape (m,), bool; all if None.
        leaving: examples that go whatever they achieved, as more steps would tell nothing new, (m,), bool; none if None.
        """
        achieved = self.goal.achieved(logits)
        if within is not None:
            achieved &= within
        self.best.update(x_adv, achieved, loss, self.rows)
        if self.contenders is not None:
            self.contenders.update(x_adv, achieved, loss)
        tell(self.access.rows, achieved)
        self._kept = None
        if self._leaving:
            leaving = achieved if leaving is None else leaving | achieved
        if leaving is not None:
            self._kept = positions(~leaving, self.access.doubts)
        if self._kept is not None:
            self._shrink(self._kept)

    def keep(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The rows of `values`, each of shape (m, ...), that are live after the last `record`."""
        return values if self._kept is None else tuple(value[self._kept] for value in values)

    @contextmanager
    def run(self) -> Iterator[Search[AccessT]]:
        """One of several runs: a search of the same live examples, with the same best iterates.

        An example that leaves a run without success is live again afterwards, one that leaves with success is not.
        """
        run = copy.copy(self)
        yield run
        if self._leaving:
            kept = positions(~self.best.achieved[self.rows], self.access.doubts)
            if kept is not None:
                self._shrink(kept)
        self._kept = None

    def _shrink(self, kept: Tensor) -> None:
        self.access, self.goal, self.rng = self.access.select(kept), self.goal.select(kept), self.rng.select(kept)
        self.x, self.rows = self.x[kept], self.rows[kept]


def look(search: Search[LogitsT], x_adv: Tensor, loss: Loss) -> None:
    """Ask for the logits of the live iterates `x_adv`, shape (m, c, h, w), without a gradient, and record them."""
    if search:
        logits = search.access.logits(x_adv)
        search.record(x_adv, logits, loss(logits, search.goal))


def settle(search: Search[LogitsT], loss: Loss) -> Tensor:
    """The best images of all examples, (n, c, h, w): what an attack hands out.

    Of a stochastic model they are chosen among the `Contenders` on fresh draws, which costs four times eight forwards, more
    where the access averages over more than eight draws; the search's best iterates are those from then on.
    """
    if search.contenders is not None and search:
        best, settled = search.best, search.contenders.settled(search.access, search.goal, loss)
        best.x_adv, best.achieved, best.loss = settled
    return search.best.x_adv
