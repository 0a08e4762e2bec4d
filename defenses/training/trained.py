"""What all training-time defenses share: a fresh network, and the one training loop with an objective of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advbench.attacks.rng import ExampleRNG
from advbench.defenses.defended import Architecture, Defended
from advbench.zoo.data import DataSet
from advbench.zoo.training import Budget, Progress, Step, derive_seed, seeded, train


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained(ABC):
    """A defense that is nothing but an objective: what is minimised over a network that starts from scratch."""

    @abstractmethod
    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
        """Named scalar loss terms, whose sum is minimised; images (n, c, h, w), labels (n,)."""

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
        """The network trained with the objective, on `device`; `seed` fixes weights, order, dropout and noise."""
        model = fresh(architecture, seed)
        train(model, self.objective, data, budget=budget, seed=seed, device=device, progress=progress)
        return Defended(model)


def fresh(architecture: Architecture, seed: int) -> nn.Module:
    """An untrained network on the CPU whose weights `seed` fixes; torch's global generator is left untouched."""
    with seeded(derive_seed(seed, "weights")):
        return architecture()


def stream(step: Step) -> ExampleRNG:
    """The random numbers of a training step, by example: fresh in every step, the same ones in every validation."""
    if step.training:
        return ExampleRNG.make(step.seed, "train", step.index).at(step.iteration)
    return ExampleRNG.make(step.seed, "validation", step.index)
