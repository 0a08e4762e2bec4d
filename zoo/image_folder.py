"""The user's own images: one folder per class."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from advbench.reading import check_memory, open_plain
from advbench.zoo.data import DataSet
from advbench.zoo.splits import permutation, with_validation, without_training

PREFIX = "folder:"
_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
"""What Pillow decodes by itself; others, such as PostScript, would start other programs."""
_LARGEST = 2**24
"""Pixels of an image."""


def folder(path: Path) -> DataSet:
    """A folder with train/CLASS/IMAGE and test/CLASS/IMAGE (or val/CLASS/IMAGE), all images of one size.

    Without train these are test images alone, which trained models are scored on; so are CLASS/IMAGE in the folder itself.

    Classes are numbered in the order of their names. Images that are grey throughout become one channel. The test images
    are shuffled once and for all, so that the first ones come from all classes.
    Raises FileNotFoundError for missing folders, ValueError for classes or sizes that differ, and, with the file's name, for
    what is no whole image.
    """
    held_out = next((part for part in ("test", "val") if (path / part).is_dir()), None)
    trained = (path / "train").is_dir()
    if not trained and path.is_dir() and (held_out is not None or _has_classes(path)):
        return _alone(path, _listed(path / held_out if held_out is not None else path))
    if held_out is None or not trained:
        raise FileNotFoundError(f"Expected folders train and test (or val) in {path}, got {_names_in(path)}")
    train, test = _listed(path / "train"), _listed(path / held_out)
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(f"Expected the same classes in train and {held_out} of {path}, got {', '.join(odd)} in one only")
    if len(train.classes) < 2:
        raise ValueError(f"Expected at least 2 classes in {path}, got {len(train.classes)}")
    size, _ = _image(train.files[0])
    check_memory((len(train.files) + len(test.files)) * size[0] * size[1] * 3 * 5, f"images in {path}")
    x_train, x_test = (_images(part, size) for part in (train, test))
    if _is_grey(x_train) and _is_grey(x_test):
        x_train, x_test = x_train[:, :1], x_test[:, :1]
    order = permutation(len(test.files))
    y_train, y_test = (torch.tensor(part.labels, dtype=torch.int64) for part in (train, test))
    pairs = (x_train.float().div_(255), y_train), (x_test[order].float().div_(255), y_test[order])
    return with_validation(f"{PREFIX}{path}", *pairs, len(train.classes))


def _has_classes(path: Path) -> bool:
    """Whether a folder has two folders or more, and images in the first one."""
    with os.scandir(path) as entries:
        inside = sorted(entry.path for entry in entries if _is_folder(entry))
    return len(inside) > 1 and bool(_files(inside[0]))


def _alone(path: Path, test: _Listed) -> DataSet:
    """The images of one part as a data set without training images."""
    if len(test.classes) < 2:
        raise ValueError(f"Expected at least 2 classes in {path}, got {len(test.classes)}")
    size, _ = _image(test.files[0])
    check_memory(len(test.files) * size[0] * size[1] * 3 * 5, f"images in {path}")
    x = _images(test, size)
    x = x[:, :1] if _is_grey(x) else x
    order = permutation(len(test.files))
    y = torch.tensor(test.labels, dtype=torch.int64)
    return without_training(f"{PREFIX}{path}", x[order].float().div_(255), y[order], len(test.classes))


def resolve(name: str) -> Callable[[Path | None], DataSet]:
    """The factory of ``folder:PATH``. It reads PATH, not the folder of registered data sets."""
    path = Path(name.removeprefix(PREFIX)).expanduser()
    return lambda data_dir: folder(path)  # noqa: ARG005


@dataclass(frozen=True, slots=True)
class _Listed:
    """The image files of one part, each with the number of its class."""

    classes: list[str]
    files: list[str]
    labels: list[int]


def _listed(path: Path) -> _Listed:
    """The images of a part, in the order of torchvision's ImageFolder. ValueError if a class has none."""
    with os.scandir(path) as entries:
        classes = sorted(entry.name for entry in entries if _is_folder(entry))
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = _files(str(path / name))
        if not found:
            raise ValueError(f"Expected images ({' '.join(_SUFFIXES)}) in {path / name}, got none")
        files += found
        labels += [label] * len(found)
    if not classes:
        raise ValueError(f"Expected a folder with images for each class in {path}, got no folder")
    return _Listed(classes, files, labels)


def _files(folder: str) -> list[str]:
    """The image files under a folder. Links are followed; ValueError where one leads to a folder that was seen before."""
    by_folder: dict[str, list[str]] = {}
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        status = os.stat(place)  # noqa: PTH116 - names may be many
        if (status.st_dev, status.st_ino) in seen:
            raise ValueError(f"Expected each folder once, got {place} again by a link")
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(place) as entries:
            for entry in entries:
                if _is_folder(entry):
                    waiting.append(entry.path)
                elif entry.name.lower().endswith(_SUFFIXES):
                    by_folder.setdefault(place, []).append(entry.path)
    return [file for place in sorted(by_folder) for file in sorted(by_folder[place])]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _images(part: _Listed, size: tuple[int, int]) -> Tensor:
    """All images, (n, 3, h, w), uint8; `size` is (w, h)."""
    images = np.empty((len(part.files), size[1], size[0], 3), np.uint8)
    for row, file in enumerate(part.files):
        found, pixels = _image(file, size)
        if pixels is None:
            got = f"{found[0]}x{found[1]} in {file}"
            raise ValueError(f"Expected all images to be {size[0]}x{size[1]}, got {got}: resize them")
        images[row] = pixels
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _image(file: str, size: tuple[int, int] | None = None) -> tuple[tuple[int, int], NDArray[np.uint8] | None]:
    """The size (w, h) of an image and, if it is `size`, its pixels (h, w, 3); those of no other are decoded.

    ValueError, with the file, for what is no whole image of a sane size.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings(), open_plain(Path(file)) as plain:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(plain, formats=_FORMATS) as image:
                if image.width * image.height > _LARGEST:
                    raise ValueError(f"{image.width}x{image.height} pixels")
                return image.size, np.asarray(image.convert("RGB")) if image.size == size else None
    except Exception as error:  # Pillow answers damaged bytes with a dozen kinds of exceptions
        raise ValueError(f"Expected a whole image of at most {_LARGEST:,} pixels, got {file}: {error!s:.120}") from None


def _is_grey(x: Tensor) -> bool:
    return bool((x == x[:, :1]).all())


def _names_in(path: Path) -> str:
    names = sorted(entry.name for entry in path.iterdir())[:5] if path.is_dir() else ["no folder there"]
    return ", ".join(names) or "an empty folder"
