"""The smooth gradient method: the training images themselves climb the loss, a little in each epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from advbench.defenses.defended import Architecture, Defended
from advbench.defenses.training.trained import FromScratch, places, train_fresh
from advbench.zoo.data import DataSet, Split
from advbench.zoo.training import Budget, Objective, Step, cross_entropy


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothGradient(FromScratch):
    """Smooth gradient method, Mosca and Magoulas 2018, doi:10.1007/s00500-017-2998-4.

    Every training image is kept with the sum u of its updates. In each epoch the weights descend on x + u, and u moves up
    the same gradient, taken before the weights move: ``u += input_lr * dE/dx`` (equation 15), without sign or clipping.

    Under an augmentation T, which is linear, the network sees T(x + u), and the gradient is pulled back through T: u stays
    in the frame of the image before augmentation (the paper leaves this open).

    input_lr: the input learning rate, in [-1, 1] as in the paper, which takes 0.2; negative descends. gradient: of which
    error. `per-example` takes that of the image's own loss, as equation 14 reads (through batch norm, of all losses of the
    batch); `batch-mean` that of the batch's mean loss, as the authors' public code does, smaller by the batch size.
    persistent: whether updates add up over epochs, as the paper's equations have it; otherwise each epoch starts again
    from x, moved by the previous epoch's update alone.

    Raises ValueError for an `input_lr` out of range or an unknown gradient.
    """

    input_lr: float = 0.2
    gradient: Literal["per-example", "batch-mean"] = "per-example"
    persistent: bool = True

    def __post_init__(self) -> None:
        if not -1 <= self.input_lr <= 1:
            raise ValueError(f"Expected `input_lr` in [-1, 1], got {self.input_lr}")
        if self.gradient not in ("per-example", "batch-mean"):
            raise ValueError(f"Expected `gradient` to be per-example or batch-mean, got {self.gradient!r}")

    def start(self, training: Split) -> InputUpdates:
        """The objective with a fresh buffer, all zeros."""
        return InputUpdates(self, training)


class InputUpdates:
    """The objective of one training, and its buffer.

    updates: what has been added to each training image so far, shape (n, c, h, w), in the order of the training split.
    """

    def __init__(self, defense: SmoothGradient, training: Split) -> None:
        self.defense = defense
        self.updates = torch.zeros_like(training.x)
        self._places = places(training)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
        """Cross-entropy of the moved images, whose backward pass moves them; of the images as they are in validation."""
        if not step.training:
            return cross_entropy(model, x, y, step)
        rows = self._places[step.index]
        update = self.updates[rows].requires_grad_()
        rate = self.defense.input_lr * (len(y) if self.defense.gradient == "per-example" else 1)
        update.register_hook(lambda gradient: self._move(rows, rate * gradient))  # type: ignore[no-untyped-call]
        return cross_entropy(model, x + step.transform(update), y, step)

    def rms(self) -> float:
        """Root mean square of the updates over all images and pixels."""
        return math.sqrt(float(self.updates.double().square().mean()))

    def _move(self, rows: Tensor, change: Tensor) -> None:
        self.updates[rows] = self.updates[rows] + change if self.defense.persistent else change


@dataclass(frozen=True, slots=True, eq=False)
class Followed:
    """A training that was watched.

    defended: the trained network. updates: of the watched images at the end of each epoch, shape (epochs, n, c, h, w), on
    the CPU. rms: root mean square of all images' updates at the end of each epoch.
    """

    defended: Defended
    updates: Tensor
    rms: tuple[float, ...]


def follow(
    defense: SmoothGradient,
    architecture: Architecture,
    data: DataSet,
    rows: Tensor,
    *,
    seed: int,
    device: torch.device,
    budget: Budget,
) -> Followed:
    """`defense.fit`, watching the training images at positions `rows`, shape (n,); the network is the same, bit for bit."""
    images: list[Tensor] = []
    sizes: list[float] = []
    buffers: list[InputUpdates] = []

    def note() -> None:
        images.append(buffers[0].updates[rows.to(device)].cpu())
        sizes.append(buffers[0].rms())

    def start(training: Split) -> Objective:
        buffers.append(defense.start(training))

        def objective(model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
            if step.training and step.epoch > len(images):
                note()
            return buffers[0](model, x, y, step)

        return objective

    defended = train_fresh(architecture, data, start, seed=seed, device=device, budget=budget)
    note()
    return Followed(defended, torch.stack(images), tuple(sizes))
