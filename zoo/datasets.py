"""The data sets by name."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from advbench.zoo import DATASETS
from advbench.zoo.data import DataSet, Split

_DIGITS_RADII = {"linf": 0.1, "l2": 1.0, "l1": 10.0}


def load(name: str, data_dir: Path | None = None) -> DataSet:
    """A data set by name: images (n, c, h, w) float32 in [0, 1], labels (n,) int64, a fixed split.

    data_dir: where the files are.
    Raises ValueError for an unknown name, FileNotFoundError where files are missing.
    """
    if name not in DATASETS:
        raise ValueError(f"Expected a data set among {', '.join(sorted(DATASETS))}, got {name!r}")
    module, _, attribute = DATASETS[name].partition(":")
    dataset: DataSet = getattr(importlib.import_module(module), attribute)(data_dir)
    return dataset


def digits(_: Path | None = None) -> DataSet:
    """UCI handwritten digits, scaled from 8 x 8 to 28 x 28, 10 classes, 1,797 images (Alpaydin and Kaynak 1998).

    Comes with scikit-learn, so that nothing is downloaded. Bilinear scaling in whole numbers, the same bits on every
    machine. 20% of each class are the test split, 10% of the rest the validation split.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    weights = _bilinear_weights(8, 28)
    scaled = weights @ bunch.images.astype(np.int64) @ weights.T
    x = torch.from_numpy((scaled / (16 * weights[0].sum() ** 2)).astype(np.float32)).unsqueeze(1)
    y = torch.from_numpy(bunch.target.astype(np.int64))
    order = _permutation(len(y))
    test = _stratified(y[order], 0.2)
    rest = order[~test]
    validation = _stratified(y[rest], 0.1)
    parts = (rest[~validation], rest[validation], order[test])
    train, validation_split, test_split = (Split.of(x[rows], y[rows]) for rows in parts)
    return DataSet("digits", train, validation_split, test_split, 10, _DIGITS_RADII)


def _bilinear_weights(size: int, target: int) -> NDArray[np.int64]:
    """Whole-number weights (target, size) of bilinear scaling with half-pixel centres; each row sums to 2 * target."""
    weights = np.zeros((target, size), dtype=np.int64)
    for row in range(target):
        # The source coordinate (row + 1/2) * size / target - 1/2, counted in steps of 1 / (2 * target).
        position = min(max((2 * row + 1) * size - target, 0), 2 * target * (size - 1))
        left, right_weight = divmod(position, 2 * target)
        weights[row, left] += 2 * target - right_weight
        weights[row, min(left + 1, size - 1)] += right_weight
    return weights


def _permutation(n: int) -> Tensor:
    """A fixed order of n images; NumPy guarantees this generator's stream for all versions (NEP 19)."""
    return torch.from_numpy(np.random.RandomState(0).permutation(n).astype(np.int64))


def _stratified(y: Tensor, share: float) -> Tensor:
    """Which images, shape (n,), bool, belong to a part with `share` of each class: the first ones of the class."""
    chosen = torch.zeros(len(y), dtype=torch.bool)
    for label in range(int(y.max()) + 1):
        rows = (y == label).nonzero().flatten()
        chosen[rows[: round(share * len(rows))]] = True
    return chosen
