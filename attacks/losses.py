"""Losses that an attacker ascends, by name; each is positive progress towards the goal, per example."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from advbench.attacks.access import Loss
from advbench.attacks.threat import Goal, Targeted, cross_entropy


def margin(logits: Tensor, goal: Goal) -> Tensor:
    """The margin of Carlini & Wagner 2017 (arXiv:1608.04644, f6), unclamped: above zero exactly where the goal is achieved.

    Untargeted: the best wrong logit minus the true one. Targeted: the target's logit minus the best other one. The label is
    masked by minus infinity, so the logits' offset and magnitude do not matter.

    logits: (n, classes). Returns (n,).

    >>> from advbench.attacks.threat import Untargeted
    >>> logits = torch.tensor([[3.0, 1.0, 0.0], [1.0, 3.0, 0.0]])
    >>> margin(logits, Untargeted(torch.tensor([0, 0]))).tolist()  # right by 2, wrong by 2
    [-2.0, 2.0]
    """
    label = goal.target if isinstance(goal, Targeted) else goal.y
    column = label.unsqueeze(1)
    lead = logits.gather(1, column).squeeze(1) - logits.scatter(1, column, -torch.inf).amax(dim=1)
    return lead if isinstance(goal, Targeted) else -lead


def dlr(logits: Tensor, goal: Goal) -> Tensor:
    """The difference of logits ratio of Croce & Hein 2020 (arXiv:2003.01690, equations 6 and 7): free of the logits' scale.

    Untargeted: the best wrong logit minus the true one, over the gap of the largest and the third largest logit. Targeted:
    the target's logit minus the true one, over the gap of the largest and the mean of the third and the fourth. These need
    three and four classes; with fewer it is `cross_entropy`.

    logits: (n, classes). Returns (n,).

    Ten times the logits change the cross-entropy, but not this loss:

    >>> from advbench.attacks.threat import Untargeted
    >>> logits, goal = torch.tensor([[4.0, 1.0, 0.0]]), Untargeted(torch.tensor([0]))
    >>> dlr(logits, goal).item(), dlr(10 * logits, goal).item()
    (-0.75, -0.75)
    """
    targeted = isinstance(goal, Targeted)
    if logits.shape[1] < (4 if targeted else 3):
        return cross_entropy(logits, goal)
    top = logits.topk(4 if targeted else 3, dim=1).values
    gap = top[:, 0] - top[:, 2:].mean(dim=1)
    return (lead(logits, goal.y, goal.target) if isinstance(goal, Targeted) else margin(logits, goal)) / (gap + _TINY)


def lead(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """By how much the target's logit exceeds that of `y`: logits (n, classes), y and target (n,). Returns (n,)."""
    return logits.gather(1, target.unsqueeze(1)).squeeze(1) - logits.gather(1, y.unsqueeze(1)).squeeze(1)


_TINY = 1e-12
"""What keeps the ratio finite where all logits are equal."""

LOSSES: Mapping[str, Loss] = {"cross-entropy": cross_entropy, "margin": margin, "dlr": dlr}


def loss_named(name: str) -> Loss:
    """The loss of a name. Raises ValueError for an unknown one."""
    if name not in LOSSES:
        raise ValueError(f"Expected `loss` to be one of {', '.join(LOSSES)}, got {name!r}")
    return LOSSES[name]
