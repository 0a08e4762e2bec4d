"""The user's own arrays: a NumPy archive by Keras' convention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from advbench.reading import arrays_of, check_memory
from advbench.zoo.data import DataSet
from advbench.zoo.splits import with_validation, without_training

PREFIX = "npz:"
_TRAIN, _TEST = ("x_train", "y_train"), ("x_test", "y_test")
_CHANNELS = (1, 3)


def npz(path: Path) -> DataSet:
    """A NumPy archive with x_test, y_test, and x_train, y_train to train on; images as bytes or floats in [0, 1].

    Images are (n, h, w), (n, h, w, c) or (n, c, h, w) with c = 1 or 3, labels (n,) or (n, 1), whole numbers from 0 that all
    occur in training, if there are training images. The test images stay in the file's order. Arrays of objects are refused,
    since they hold code, and sizes that the file cannot hold (`advbench.reading.arrays_of`).
    Raises FileNotFoundError for a missing file, ValueError for contents of another form.
    """
    arrays = _read(path)
    if not any(key in arrays for key in _TRAIN):
        x, y = _images("x_test", arrays), _labels("y_test", arrays, len(arrays["x_test"]))
        return without_training(f"{PREFIX}{path}", x, y, max(2, int(y.max()) + 1))
    train, test = (
        (_images(f"x_{part}", arrays), _labels(f"y_{part}", arrays, len(arrays[f"x_{part}"]))) for part in ("train", "test")
    )
    if train[0].shape[1:] != test[0].shape[1:]:
        sizes = [tuple(x.shape[1:]) for x, _ in (train, test)]
        raise ValueError(f"Expected x_train and x_test with images of one shape, got {sizes[0]} and {sizes[1]}")
    return with_validation(f"{PREFIX}{path}", train, test, _class_count(train[1], test[1]))


def resolve(name: str) -> Callable[[Path | None], DataSet]:
    """The factory of ``npz:PATH``. It reads PATH, not the folder of registered data sets."""
    path = Path(name.removeprefix(PREFIX)).expanduser()
    return lambda data_dir: npz(path)  # noqa: ARG005


def _read(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"Expected a NumPy archive, got no file at {path}")
    try:
        arrays = arrays_of(path, _TEST, _TRAIN)
        missing = [key for key in _TRAIN if key not in arrays]
        if len(missing) == 1:
            raise ValueError(f"it lacks {missing[0]}")
        check_memory(sum(array.size * 4 + array.nbytes for array in arrays.values()), "arrays")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Expected a NumPy archive with {', '.join(_TEST)} (and {', '.join(_TRAIN)} to train) at {path}: {error}"
        ) from None
    return arrays


def _images(key: str, arrays: dict[str, NDArray[Any]]) -> Tensor:
    """Images (n, c, h, w), float32 in [0, 1]."""
    x = arrays[key]
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[3] in _CHANNELS:
        x = x.transpose(0, 3, 1, 2)
    elif not (x.ndim == 4 and x.shape[1] in _CHANNELS):
        raise ValueError(f"Expected {key} as (n, h, w), (n, h, w, c) or (n, c, h, w) with c = 1 or 3, got {x.shape}")
    if x.size == 0:
        raise ValueError(f"Expected images in {key}, got shape {arrays[key].shape}")
    if x.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(x)).float().div_(255)
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"Expected {key} as uint8 or as floats in [0, 1], got {x.dtype}: convert it")
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"Expected {key} as uint8 or as floats in [0, 1], got {x.dtype} in [{low:g}, {high:g}]: rescale it")
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))


def _labels(key: str, arrays: dict[str, NDArray[Any]], n: int) -> Tensor:
    """Labels (n,), int64."""
    y = arrays[key]
    if y.shape not in ((n,), (n, 1)):
        raise ValueError(f"Expected {key} as ({n},) or ({n}, 1), one label per image, got {y.shape}")
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"Expected {key} as whole numbers from 0, got {y.dtype}: convert it")
    if int(y.min()) < 0:
        raise ValueError(f"Expected {key} as whole numbers from 0, got {int(y.min())}")
    return torch.from_numpy(y.reshape(n).astype(np.int64))


def _class_count(train: Tensor, test: Tensor) -> int:
    present = set(train.tolist())
    n_classes = len(present)
    if present != set(range(n_classes)):
        gap = next(label for label in range(n_classes) if label not in present)
        raise ValueError(f"Expected y_train to hold every label from 0 to {max(present)}, got none of {gap}: renumber them")
    if n_classes < 2:
        raise ValueError("Expected at least 2 classes in y_train, got 1")
    if int(test.max()) >= n_classes:
        raise ValueError(f"Expected y_test with labels of y_train (0 to {n_classes - 1}), got {int(test.max())}")
    return n_classes
