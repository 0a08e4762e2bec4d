"""The bookkeeping that iterative attacks share: the best iterate of every example, and who is still attacked."""

from __future__ import annotations

from typing import Generic, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from advbench.attacks.access import Access, Loss, ScoreBased, WhiteBox
from advbench.attacks.progress import tell
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal

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
        twice; all examples in order where None.
        """
        loss = loss.detach().to(self.loss.dtype)
        held, least = (self.achieved, self.loss) if rows is None else (self.achieved[rows], self.loss[rows])
        gained = achieved & ~held & ~loss.isnan()
        better = (gained | ((achieved == held) & (loss > least))).nonzero().squeeze(1)
        if not len(better):
            return
        rows = better if rows is None else rows[better]
        self.x_adv.index_copy_(0, rows, x_adv.detach().index_select(0, better))
        self.achieved[rows] = achieved[better]
        self.loss[rows] = loss[better]


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
    draw is no success, and models with a random state of their own need their whole batch.
    """

    def __init__(self, access: AccessT, x: Tensor, goal: Goal, rng: ExampleRNG, stop: Stop = "success") -> None:
        self.access = access
        self.x = x
        self.goal = goal
        self.rng = rng
        self.rows = torch.arange(len(x), device=x.device)
        self.best = BestSoFar(x)
        self._leaving = stop == "success" and not access.stochastic
        self._kept: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def record(self, x_adv: Tensor, logits: Tensor, loss: Tensor, within: Tensor | None = None) -> None:
        """Note the iterates of the live examples, shape (m, c, h, w), with their logits (m, classes) and losses (m,).

        With ``stop="success"`` those that achieved their goal leave: the search's own fields shrink at once, and `keep`
        shrinks everything else. within: which iterates may count as a success at all, shape (m,), bool; all where None.
        """
        achieved = self.goal.achieved(logits)
        if within is not None:
            achieved &= within
        self.best.update(x_adv, achieved, loss, self.rows)
        tell(self.access.rows, achieved)
        self._kept = None
        if self._leaving and achieved.any():
            self._kept = kept = (~achieved).nonzero().squeeze(1)
            self.access, self.goal, self.rng = self.access.select(kept), self.goal.select(kept), self.rng.select(kept)
            self.x, self.rows = self.x[kept], self.rows[kept]

    def keep(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The rows of `values`, each of shape (m, ...), that are live after the last `record`."""
        return values if self._kept is None else tuple(value[self._kept] for value in values)


def look(search: Search[LogitsT], x_adv: Tensor, loss: Loss) -> None:
    """Ask for the logits of the live iterates `x_adv`, shape (m, c, h, w), without a gradient, and record them."""
    if search:
        logits = search.access.logits(x_adv)
        search.record(x_adv, logits, loss(logits, search.goal))
