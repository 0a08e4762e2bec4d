"""Plain training: no defense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from advbench.defenses.training.trained import Trained
from advbench.zoo.training import Step, cross_entropy


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain(Trained):
    """Plain training, no defense: the cross-entropy of clean images."""

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
        """Cross-entropy of the clean batch."""
        return cross_entropy(model, x, y, step)
