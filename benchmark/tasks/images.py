"""The images that a task looks at, and how they pass through a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from advbench.zoo.data import DataSet, Split

SplitName = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class Images:
    """Everything beside the components that the bits of an outcome depend on.

    seed: of all random draws. fingerprint: of the data set. split: which part of it. n: how many images. batch: images per
    compute batch. device: its name, with the model of the processor or GPU.
    """

    seed: int
    fingerprint: str
    split: SplitName
    n: int
    batch: int
    device: str


def scored_split(data: DataSet, n: int | None) -> Split:
    """The scored test images: all, or `n` of them by a fixed permutation, in the order of the data set."""
    if n is None or n >= len(data.test):
        return data.test
    generator = torch.Generator().manual_seed(0)
    return data.test.select(torch.randperm(len(data.test), generator=generator)[:n].sort().values)


def split_of(data: DataSet, name: SplitName) -> Split:
    """The split of a data set by its name."""
    return {"train": data.train, "validation": data.validation, "test": data.test}[name]


def copied(split: Split) -> Split:
    """The same images, labels and indices in tensors of their own, for code that may write into them."""
    return Split(split.x.clone(), split.y.clone(), split.index.clone())
