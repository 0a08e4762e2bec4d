"""Fixed splits: the same images in the same parts on every machine."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from advbench.zoo.data import DataSet, Split

MNIST_RADII: Mapping[str, float] = {"linf": 0.3, "l2": 1.5, "l1": 10.0}
"""The usual radii of MNIST and of grey images in general."""

CIFAR_RADII: Mapping[str, float] = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}
"""The usual radii of CIFAR-10 and of colour images in general."""


def permutation(n: int) -> Tensor:
    """A fixed order of n images, shape (n,), int64; NumPy keeps this generator's stream for all versions (NEP 19)."""
    return torch.from_numpy(np.random.RandomState(0).permutation(n).astype(np.int64))


def without_training(name: str, x: Tensor, y: Tensor, n_classes: int) -> DataSet:
    """A data set of test images alone, which models that are trained already are scored on.

    x, y: images (n, c, h, w) float32 in [0, 1] and labels (n,) int64. Radii as in `with_validation`.
    """
    nothing = Split.of(x[:0], y[:0])
    radii = MNIST_RADII if x.shape[1] == 1 else CIFAR_RADII
    return DataSet(name, nothing, nothing, Split.of(x, y), n_classes, radii)


def with_validation(name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], n_classes: int) -> DataSet:
    """A data set whose validation split is the last tenth of the training images in a fixed order.

    train, test: images (n, c, h, w) float32 in [0, 1] and labels (n,) int64. The radii are the usual ones of grey or of
    colour images. Raises ValueError for fewer than two training images.
    """
    x, y = train
    if len(y) < 2:
        raise ValueError(f"Expected at least 2 training images in {name}, got {len(y)}")
    order = permutation(len(y))
    kept = len(y) - max(1, len(y) // 10)
    parts = [Split.of(x[rows], y[rows]) for rows in (order[:kept], order[kept:])]
    radii = MNIST_RADII if x.shape[1] == 1 else CIFAR_RADII
    return DataSet(name, parts[0], parts[1], Split.of(*test), n_classes, radii)
