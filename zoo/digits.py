"""The embedded data set: UCI handwritten digits at the size of MNIST."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from advbench.zoo.data import DataSet, Split
from advbench.zoo.splits import permutation

_RADII = {"linf": 0.125, "l2": 2.0, "l1": 20.0}
"""The largest of a few radii at which PGD training for that radius keeps half of the validation images under PGD, 40 steps.

Tried were sixteenths in linf (a grey level of the original), multiples of 0.5 in l2, and 5, 10, 15, 20 and 30 in l1, for
gu2014/n200-200-10 with the usual budget and three training seeds. On average they keep 59% at 2/16 and 36% at 3/16, 52% at 2
and 39% at 2.5, 62% at 20 and 41% at 30. Of an undefended network 1%, 11% and 13% are left at the radii chosen.
"""


def digits(_: Path | None = None) -> DataSet:
    """UCI handwritten digits, scaled from 8 x 8 to 28 x 28 pixels, 1,797 images (Alpaydin and Kaynak 1998).

    Comes with scikit-learn, so that nothing is downloaded. Scaling is bilinear in whole numbers, which gives the same bits
    on every machine. A fifth of each class is the test split, a tenth of the rest the validation split.
    """
    rows = _bundled()
    x = torch.from_numpy(_upscale(rows[:, :-1].reshape(-1, 8, 8), 28)).unsqueeze(1)
    y = torch.from_numpy(rows[:, -1].copy())
    order = permutation(len(y))
    tested = _first_of_each_class(y[order], 0.2)
    rest = order[~tested]
    validated = _first_of_each_class(y[rest], 0.1)
    parts = [Split.of(x[rows], y[rows]) for rows in (rest[~validated], rest[validated], order[tested])]
    return DataSet("digits", parts[0], parts[1], parts[2], 10, _RADII)


def _bundled() -> NDArray[np.int64]:
    """Scikit-learn's table of the digits, shape (1797, 65): 64 pixels from 0 to 16 and the label.

    It is read from its file, for importing scikit-learn takes longer than everything else here; `load_digits` serves where
    the file lies elsewhere.
    """
    package = find_spec("sklearn")
    for folder in (package.submodule_search_locations or []) if package else []:
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            with gzip.open(path, "rt") as file:
                return np.loadtxt(file, delimiter=",", dtype=np.int64)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack((bunch.data, bunch.target)).astype(np.int64)


def _upscale(images: NDArray[np.int64], target: int) -> NDArray[np.float32]:
    """Images (n, size, size) of whole numbers from 0 to 16, scaled to (n, target, target) in [0, 1]."""
    weights = _bilinear_weights(images.shape[1], target)
    scaled: NDArray[np.float32] = (weights @ images @ weights.T / (16 * (2 * target) ** 2)).astype(np.float32)
    return scaled


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


def _first_of_each_class(y: Tensor, share: float) -> Tensor:
    """Which images, shape (n,), bool, are among the first `share` of their class."""
    chosen = torch.zeros(len(y), dtype=torch.bool)
    for label in range(int(y.max()) + 1):
        rows = (y == label).nonzero().flatten()
        chosen[rows[: round(share * len(rows))]] = True
    return chosen
