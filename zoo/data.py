"""Data sets as the harness sees them: three splits of images in [0, 1] and a fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Labelled images.

    x: images, shape (n, c, h, w), float32 in [0, 1] (or in the box of their data set). y: labels, shape (n,), int64. index:
    the images' positions in the whole split, shape (n,), int64, which identify an image.
    """

    x: Tensor
    y: Tensor
    index: Tensor

    @staticmethod
    def of(x: Tensor, y: Tensor) -> Split:
        """A whole split, numbered from 0."""
        return Split(x, y, torch.arange(len(y)))

    def __len__(self) -> int:
        return len(self.y)

    def select(self, rows: Tensor | slice) -> Split:
        """Some of the images: a bool mask, int64 positions, or a slice."""
        return Split(self.x[rows], self.y[rows], self.index[rows])

    def first(self, n: int | None) -> Split:
        """The first `n` images, all if None."""
        return self if n is None else self.select(slice(n))

    def to(self, device: torch.device | str) -> Split:
        """The same images on `device`."""
        return replace(self, x=self.x.to(device), y=self.y.to(device), index=self.index.to(device))


@dataclass(frozen=True, slots=True, eq=False)
class DataSet:
    """A data set with a fixed split.

    name: as the user named it. radii: the radius that the field usually attacks at, by norm (`linf`, `l2`, `l1`), in pixel
    units of [0, 1]. fingerprint: SHA-256 of the images and labels of all three splits. box: the range of pixels, [0, 1] for
    images; None for whitened ones, which have none, and whose radii are in their own units.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    n_classes: int
    radii: Mapping[str, float]
    fingerprint: str = field(default="")
    box: tuple[float, float] | None = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", fingerprint(self.train, self.validation, self.test))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        c, h, w = self.test.x.shape[1:]
        return c, h, w


def fingerprint(*splits: Split) -> str:
    """SHA-256 over the shapes, images (as float32) and labels of the splits."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(repr(tuple(split.x.shape)).encode())
        digest.update(split.x.contiguous().numpy().data)
        digest.update(split.y.contiguous().numpy().data)
    return digest.hexdigest()
