"""Input normalisation as the first module of a network, so that images outside it stay in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SMALLEST_STD = 1e-3


class Standardise(nn.Module):
    """Subtract the training mean and divide by the training standard deviation.

    channels: statistics per channel; None takes one mean and one standard deviation over all pixels (global).
    The identity until `fit_statistics` is called, which the training loop does once before the first step.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int | None) -> None:
        super().__init__()
        shape = (1, 1, 1, 1) if channels is None else (1, channels, 1, 1)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))

    def fit_statistics(self, x: Tensor) -> None:
        """Take the mean and the standard deviation from training images `x`, shape (n, c, h, w)."""
        std, mean = torch.std_mean(x, dim=(0, 2, 3) if self.mean.shape[1] > 1 else (0, 1, 2, 3), correction=0)
        self.mean.copy_(mean.view(self.mean.shape))
        self.std.copy_(std.clamp_min(_SMALLEST_STD).view(self.std.shape))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, c, h, w) in [0, 1] to standardised ones."""
        return (x - self.mean) / self.std


def fit_statistics(model: nn.Module, x: Tensor) -> None:
    """Call ``fit_statistics(x)`` of every submodule of `model` that has one; `x`: training images (n, c, h, w)."""
    with torch.no_grad():
        for module in model.modules():
            fit = getattr(module, "fit_statistics", None)
            if fit is not None:
                fit(x)
