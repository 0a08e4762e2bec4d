"""The small convnet of Wong and Kolter 2018 (arXiv:1711.00851), fast enough for attacks on a CPU."""

from __future__ import annotations

from torch import nn

from advbench.zoo.architectures.sizes import flat_features


def small(shape: tuple[int, int, int], n_classes: int) -> nn.Sequential:
    """Small convnet, 16 and 32 strided filters and 100 dense units (Wong and Kolter 2018, arXiv:1711.00851)."""
    body = nn.Sequential(
        nn.Conv2d(shape[0], 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
    )
    features = flat_features(body, shape, "wong2018/small")
    return nn.Sequential(*body, nn.Linear(features, 100), nn.ReLU(), nn.Linear(100, n_classes))
