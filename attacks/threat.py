"""Threat models and goals: what an attacker may do to an image, and what the attacker wants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Norm = Literal["linf", "l2", "l1", "l0", "none"]
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1", "l0", "none")


@dataclass(frozen=True, slots=True)
class ThreatModel:
    """The set of images that an attacker may choose from, around a clean image.

    norm: ``linf``, ``l2``, ``l1``, ``l0``, or ``none`` for corruptions whose distance is only reported.
    epsilon: the largest distance in pixel units of [0, 1]; None for minimal-norm attacks, whose distance is the result.
    box: the range of pixels; None where a paper does not clip (such records never enter a leaderboard).

    Raises ValueError for an unknown norm, an epsilon that is not positive and finite, or an empty box.

    >>> ThreatModel("linf", 8 / 255)
    ThreatModel(norm='linf', epsilon=0.03137254901960784, box=(0.0, 1.0))
    >>> ThreatModel("l2", -1.0)
    Traceback (most recent call last):
        ...
    ValueError: Expected `epsilon` > 0, got -1.0
    """

    norm: Norm
    epsilon: float | None
    box: tuple[float, float] | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"Expected `norm` to be one of {', '.join(NORMS)}, got {self.norm!r}")
        if self.epsilon is not None and not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise ValueError(f"Expected `epsilon` > 0, got {self.epsilon}")
        if self.box is not None and not self.box[0] < self.box[1]:
            raise ValueError(f"Expected `box` to be (low, high) with low < high, got {self.box}")

    @property
    def epsilon_or_inf(self) -> float:
        """`epsilon` as a number: infinity if it is None."""
        return math.inf if self.epsilon is None else self.epsilon

    @property
    def radius(self) -> float:
        """The same by an older name, for plug-ins."""
        return self.epsilon_or_inf


@dataclass(frozen=True, slots=True, eq=False)
class Untargeted:
    """Make the model answer anything but the true label.

    y: true labels, shape (n,), int64.

    >>> logits = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
    >>> Untargeted(torch.tensor([0, 1])).achieved(logits).tolist()
    [False, True]
    """

    y: Tensor

    def achieved(self, logits: Tensor) -> Tensor:
        """Whether each row of `logits`, shape (n, classes), is an error; shape (n,), bool."""
        return logits.argmax(dim=1) != self.y

    def select(self, rows: Tensor) -> Untargeted:
        """The goal of the given rows: a bool mask or int64 positions."""
        return Untargeted(self.y[rows])

    def tile(self, times: int) -> Untargeted:
        """The goal for `times` copies of the batch, one copy after the other."""
        return self if times == 1 else Untargeted(self.y.repeat(times))


@dataclass(frozen=True, slots=True, eq=False)
class Targeted:
    """Make the model answer a given wrong label.

    y: true labels, target: wanted labels; both of shape (n,), int64.
    """

    y: Tensor
    target: Tensor

    def achieved(self, logits: Tensor) -> Tensor:
        """Whether each row of `logits`, shape (n, classes), has the target on top; shape (n,), bool."""
        return logits.argmax(dim=1) == self.target

    def select(self, rows: Tensor) -> Targeted:
        """The goal of the given rows: a bool mask or int64 positions."""
        return Targeted(self.y[rows], self.target[rows])

    def tile(self, times: int) -> Targeted:
        """The goal for `times` copies of the batch, one copy after the other."""
        return self if times == 1 else Targeted(self.y.repeat(times), self.target.repeat(times))


Goal: TypeAlias = Untargeted | Targeted


def cross_entropy(logits: Tensor, goal: Goal) -> Tensor:
    """The loss that a first-order attack ascends: cross-entropy of the true label, or minus that of the target.

    Worked as -log sigmoid(z_y - logsumexp of the other logits): the same number, but its gradient keeps all digits where the
    model is confident, while that of a plain softmax loses the term of the label at 17 nats in float32. It underflows to
    zero at about 100 nats, which `margin` does not.

    logits: (n, classes). Returns (n,), in nats.

    >>> logits = torch.tensor([[0.0, 0.0]]).double()
    >>> round(cross_entropy(logits, Untargeted(torch.tensor([0]))).item(), 4)  # log 2
    0.6931
    """
    if isinstance(goal, Targeted):
        return torch.nn.functional.logsigmoid(_log_odds(logits, goal.target))
    return -torch.nn.functional.logsigmoid(_log_odds(logits, goal.y))


def _log_odds(logits: Tensor, label: Tensor) -> Tensor:
    """log(p / (1 - p)) of the softmax probability p of each row's label."""
    column = label.unsqueeze(1)
    return logits.gather(1, column).squeeze(1) - logits.scatter(1, column, -torch.inf).logsumexp(dim=1)
