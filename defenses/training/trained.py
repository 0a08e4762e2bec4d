"""What all training-time defenses share: a fresh network, and the one training loop with an objective of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advbench.attacks.rng import ExampleRNG
from advbench.defenses.defended import Architecture, Defended
from advbench.zoo.data import DataSet, Split
from advbench.zoo.training import Budget, Objective, Progress, Step, derive_seed, seeded, train


@dataclass(frozen=True, slots=True, kw_only=True)
class FromScratch(ABC):
    """A defense that is nothing but an objective: what is minimised over a network that starts from scratch.

    Two defenses of the same seed start from the same weights and see the same batches in the same order.
    """

    @abstractmethod
    def start(self, training: Split) -> Objective:
        """The objective of one training, which may keep a state of its own; `training`: its images, on its device."""

    @property
    def inputs(self) -> Mapping[str, str]:
        """None: the network starts from scratch."""
        return {}

    def build(self, architecture: Architecture, data: DataSet, inputs: Mapping[str, Defended]) -> Defended:  # noqa: ARG002
        """The untrained network."""
        return Defended(fresh(architecture, seed=0))

    def fit(
        self,
        architecture: Architecture,
        data: DataSet,
        *,
        inputs: Mapping[str, Defended],  # noqa: ARG002
        seed: int,
        device: torch.device,
        budget: Budget,
        progress: Progress | None = None,
    ) -> Defended:
        """The network trained with the objective, on `device`; `seed` fixes weights, order, dropout and noise.

        Raises ValueError for a defense that clips images to [0, 1] on a data set whose images have no such range.
        """
        if data.box is None and getattr(self, "clip", False):
            raise ValueError(f"Expected `clip=False`, for the images of {data.name} have no range of pixels, got clip=True")
        return train_fresh(architecture, data, self.start, seed=seed, device=device, budget=budget, progress=progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained(FromScratch):
    """A defense whose objective needs nothing but the batch."""

    @abstractmethod
    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
        """Named scalar loss terms, whose sum is minimised; images (n, c, h, w), labels (n,)."""

    def start(self, training: Split) -> Objective:  # noqa: ARG002
        """The objective, which keeps no state."""
        return self.objective


def train_fresh(
    architecture: Architecture,
    data: DataSet,
    start: Callable[[Split], Objective],
    *,
    seed: int,
    device: torch.device,
    budget: Budget,
    progress: Progress | None = None,
) -> Defended:
    """A network trained from scratch with the objective that `start` makes for the training images, and its history."""
    model = fresh(architecture, seed)
    objective = start(data.train.first(budget.train_examples).to(device))
    history = train(model, objective, data, budget=budget, seed=seed, device=device, progress=progress, streams=stream)
    return Defended(model, history=history)


def fresh(architecture: Architecture, seed: int) -> nn.Module:
    """An untrained network on the CPU whose weights `seed` fixes; torch's global generator is left untouched."""
    with seeded(derive_seed(seed, "weights")):
        return architecture()


def stream(step: Step) -> ExampleRNG:
    """The random numbers of a training step, by example: fresh in every step, the same ones in every validation."""
    if step.training:
        return ExampleRNG.make(step.seed, "train", step.index).at(step.iteration)
    return ExampleRNG.make(step.seed, "validation", step.index)


def places(split: Split) -> Tensor:
    """Where in `split` the image of each data-set index stands: shape (largest index + 1,), int64, -1 for none."""
    found = split.index.new_full((int(split.index.max()) + 1,), -1)
    found[split.index] = torch.arange(len(split), device=split.index.device)
    return found
