"""A fifth of CIFAR-10, for experiments that take minutes on a CPU."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from advbench.zoo import torchvision_sets
from advbench.zoo.data import DataSet
from advbench.zoo.npz import npz
from advbench.zoo.splits import with_validation

FILE = "cifar10-small.npz"
_TRAIN, _TEST = 15_000, 5_000


def cifar10_small(data_dir: Path | None = None) -> DataSet:
    """CIFAR-10 in part, 15,000 training and 5,000 test images (Krizhevsky 2009).

    Those of `cifar10-small.npz` in the folder of data sets (x_train, y_train, x_test, y_test, by Keras' convention) if there
    is one, or else the first ones of CIFAR-10. Raises FileNotFoundError and ValueError as these do.
    """
    chosen = data_dir or os.environ.get("ADVBENCH_DATA")
    path = Path(chosen).expanduser() / FILE if chosen else None
    if path is not None and path.is_file():
        return replace(npz(path), name="cifar10-small")
    whole = torchvision_sets.cifar10(data_dir)
    kept = min(_TRAIN, len(whole.train))
    train, test = whole.train.first(kept), whole.test.first(_TEST)
    return with_validation("cifar10-small", (train.x, train.y), (test.x, test.y), whole.n_classes)
