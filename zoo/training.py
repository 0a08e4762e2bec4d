"""The one training loop. A defense changes what is minimised, never how the loop runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long and how a model is trained.

    epochs: passes over the training images. train_examples: how many of them, all where None. batch_size: images per step.
    optimizer: `adam` or `sgd`. learning_rate: the first one. weight_decay: L2 coefficient on weight matrices (not on biases
    and norms). schedule: `constant`, `cosine` or `one-cycle`. patience: epochs without a better validation loss before the
    training stops and the best weights come back; None trains to the end and keeps the last.
    """

    epochs: int = 10
    train_examples: int | None = None
    batch_size: int = 128
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "one-cycle"
    patience: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """Where the training stands, for an objective that needs random numbers or a schedule.

    seed: the training seed. epoch, iteration: from 0; `iteration` counts steps over all epochs. index: the batch's data-set
    indices, shape (n,), int64. training: False while the loss is taken on the validation split.
    """

    seed: int
    epoch: int
    iteration: int
    index: Tensor
    training: bool = True


Objective: TypeAlias = Callable[[nn.Module, Tensor, Tensor, Step], Mapping[str, Tensor]]
"""(model, x, y, step) -> named scalar loss terms, whose sum is minimised."""

Progress: TypeAlias = Callable[[int, int], None]
"""(steps done, steps in all), called after every step."""
