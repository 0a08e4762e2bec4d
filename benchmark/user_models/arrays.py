"""Live models and arrays as what the harness works with: splits, data sets, devices."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from advbench.attacks.access import frozen
from advbench.files import temporary_folder
from advbench.user_models.handed import outside_inference_mode
from advbench.zoo.data import DataSet, Split


def split_of(x: Tensor | ArrayLike, y: Tensor | ArrayLike) -> Split:
    """Images and labels as a split on the CPU. ValueError, in one line, for anything else."""
    images, labels = _tensor("x", x), _tensor("y", y)
    if images.ndim != 4 or not len(images):
        raise ValueError(f"Expected `x` as images (n, c, h, w), got shape {tuple(images.shape)}")
    if not images.dtype.is_floating_point:
        raise ValueError(f"Expected `x` as floats in [0, 1], got {images.dtype}: divide bytes by 255")
    images = images.to(torch.float32)
    if torch.isnan(images).any():
        raise ValueError(f"Expected `x` in [0, 1], got NaN in {int(torch.isnan(images).flatten(1).any(dim=1).sum())} images")
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        remedy = "divide by 255, or undo" if low >= 0 and high <= 255 else "undo"
        raise ValueError(
            f"Expected `x` in [0, 1], got [{low:g}, {high:g}]: {remedy} the normalisation, and give it as `mean` and `std`"
        )
    if labels.shape != (len(images),) or labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise ValueError(f"Expected `y` as whole numbers ({len(images)},), got {labels.dtype} {tuple(labels.shape)}")
    if int(labels.min()) < 0:
        raise ValueError(f"Expected `y` >= 0, got {int(labels.min())}")
    return Split.of(images.contiguous(), labels.to(torch.int64))


def _tensor(name: str, values: Tensor | ArrayLike) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu().clone()
    try:
        return torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:
        raise ValueError(f"Expected `{name}` as a tensor or an array of numbers, got {error}") from None


def shape_of(split: Split) -> tuple[int, int, int]:
    """The shape (c, h, w) of an image."""
    c, h, w = split.x.shape[1:]
    return c, h, w


def data_set_of(test: Split, validation: Split | None, name: str = "images") -> DataSet:
    """A data set of a name, without training images; its classes are those up to the largest label of `test`."""
    nothing = test.select(slice(0))
    classes = int(test.y.max()) + 1
    return DataSet(name, nothing, validation if validation is not None else nothing, test, classes, {})


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter or buffer, the CPU where it has none. ValueError if it is not a module."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"Expected an nn.Module, got {type(model).__name__}")
    state: Tensor | None = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if state is None else state.device


@contextmanager
def as_it_came(model: nn.Module) -> Iterator[None]:
    """Restore the model's modes, flags and buffers, after an exception too."""
    buffers = {name: (buffer, buffer.detach().clone()) for name, buffer in model.named_buffers()}
    try:
        with outside_inference_mode(model), frozen(model):
            yield
    finally:
        for buffer, before in buffers.values():
            if not torch.equal(buffer, before):
                buffer.copy_(before)


@contextmanager
def folder_of(out: str | Path | None) -> Iterator[Path]:
    """The folder `out`, or a temporary one while the block runs if it is None."""
    if out is not None:
        yield Path(out)
        return
    with temporary_folder() as folder:
        yield folder
