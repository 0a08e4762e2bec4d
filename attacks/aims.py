"""What a run of an attack aims at: the goal itself, or one wrong class after the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advbench.attacks.access import Evaluation, Loss, WhiteBox
from advbench.attacks.iterates import Search
from advbench.attacks.threat import Goal, Targeted


@dataclass(frozen=True, slots=True, eq=False)
class Aim:
    """A loss, of the search's own goal or, where there is a `target`, towards that class; success is the goal's either way.

    target: classes of all examples of the search, live or not, shape (n,), int64.
    """

    loss: Loss
    target: Tensor | None = None

    def goal(self, search: Search[WhiteBox]) -> Goal:
        """What the loss is taken of, for the live examples."""
        return search.goal if self.target is None else Targeted(search.goal.y, self.target[search.rows])

    def observe(self, search: Search[WhiteBox], x_adv: Tensor) -> Evaluation:
        """Loss, gradient and logits at the live examples' iterates; one forward, one backward."""
        return search.access.loss_gradient(x_adv, self.goal(search), self.loss)


def likeliest_targets(logits: Tensor, y: Tensor, count: int) -> tuple[Tensor, ...]:
    """The wrong classes with the largest logits, the largest first: at most `count` and all wrong classes, each (n,) int64.

    logits: (n, classes). y: true labels, (n,).
    """
    wrong = logits.scatter(1, y.unsqueeze(1), -torch.inf)
    return wrong.topk(min(count, logits.shape[1] - 1), dim=1).indices.unbind(dim=1)
