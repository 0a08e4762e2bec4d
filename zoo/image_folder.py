"""The user's own images: one folder per class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from advbench.zoo.data import DataSet
from advbench.zoo.splits import permutation, with_validation

if TYPE_CHECKING:
    from torchvision.datasets import ImageFolder

PREFIX = "folder:"


def folder(path: Path) -> DataSet:
    """A folder with train/CLASS/IMAGE and test/CLASS/IMAGE (or val/CLASS/IMAGE), all images of one size.

    Classes are numbered in the order of their names. Images that are grey throughout become one channel. The test images
    are shuffled once and for all, so that the first ones come from all classes.
    Raises FileNotFoundError for missing folders, ValueError for classes or sizes that differ.
    """
    held_out = next((part for part in ("test", "val") if (path / part).is_dir()), None)
    if held_out is None or not (path / "train").is_dir():
        raise FileNotFoundError(f"Expected folders train and test (or val) in {path}, got {_listing(path)}")
    train, test = _open(path / "train"), _open(path / held_out)
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(f"Expected the same classes in train and {held_out} of {path}, got {', '.join(odd)} in one only")
    if len(train.classes) < 2:
        raise ValueError(f"Expected at least 2 classes in {path}, got {len(train.classes)}")
    size = train[0][0].size
    x_train, x_test = (_images(part, size) for part in (train, test))
    if _is_grey(x_train) and _is_grey(x_test):
        x_train, x_test = x_train[:, :1], x_test[:, :1]
    order = permutation(len(test))
    y_train, y_test = (torch.tensor(part.targets, dtype=torch.int64) for part in (train, test))
    pairs = (x_train.float().div_(255), y_train), (x_test[order].float().div_(255), y_test[order])
    return with_validation(f"{PREFIX}{path}", *pairs, len(train.classes))


def resolve(name: str) -> Callable[[Path | None], DataSet]:
    """The factory of ``folder:PATH``. It reads PATH, not the folder of registered data sets."""
    path = Path(name.removeprefix(PREFIX)).expanduser()
    return lambda data_dir: folder(path)  # noqa: ARG005


def _open(path: Path) -> ImageFolder:
    from torchvision.datasets import ImageFolder

    try:
        return ImageFolder(str(path))
    except FileNotFoundError as error:
        raise ValueError(f"Expected a folder with images for each class in {path}: {str(error).splitlines()[0]}") from None


def _images(part: ImageFolder, size: tuple[int, int]) -> Tensor:
    """All images, (n, 3, h, w), uint8; `size` is (w, h)."""
    images = []
    for position, (image, _) in enumerate(part):
        if image.size != size:
            found = f"{image.size[0]}x{image.size[1]} in {part.samples[position][0]}"
            raise ValueError(f"Expected all images to be {size[0]}x{size[1]}, got {found}: resize them")
        images.append(np.asarray(image))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _is_grey(x: Tensor) -> bool:
    return bool((x == x[:, :1]).all())


def _listing(path: Path) -> str:
    names = sorted(entry.name for entry in path.iterdir())[:5] if path.is_dir() else ["no folder there"]
    return ", ".join(names) or "an empty folder"
