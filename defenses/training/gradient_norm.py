"""Gradient-norm regularisation: small input gradients in every direction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from advbench.defenses.training.linearised import linearise
from advbench.defenses.training.trained import Trained
from advbench.zoo.training import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientNorm(Trained):
    """Gradient-norm regularisation, the baseline of Roth et al. 2018, arXiv:1805.08736.

    The loss is ``cross-entropy + coefficient / 2 * mean of ||g||_2^2``, g the gradient of an image's cross-entropy in its
    pixels: structured gradient regularisation with the identity for a covariance. The weights' gradient goes through a
    double backward pass, so that a step costs at least twice a plain one.

    coefficient: lambda of the paper, which does not print its value, in units of squared pixels of [0, 1].
    """

    coefficient: float = 0.1

    def __post_init__(self) -> None:
        check_coefficient(self.coefficient)

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
        """Cross-entropy of the clean batch, and the penalty; on the validation split too."""
        loss, gradient = linearise(model, x, y, differentiable=step.training)
        return {"cross_entropy": loss, "gradient_norm": self.coefficient / 2 * gradient.square().sum() / len(x)}


def check_coefficient(coefficient: float) -> None:
    """Raise ValueError unless the coefficient of a penalty is a number >= 0."""
    if not (math.isfinite(coefficient) and coefficient >= 0):
        raise ValueError(f"Expected `coefficient` >= 0, got {coefficient}")
