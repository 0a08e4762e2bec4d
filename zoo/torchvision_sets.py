"""MNIST, its relatives and CIFAR, read by torchvision from files on the disk or downloaded once."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advbench.zoo.checkpoints import cache_dir
from advbench.zoo.data import DataSet
from advbench.zoo.splits import with_validation


def mnist(data_dir: Path | None = None) -> DataSet:
    """MNIST handwritten digits, 28 x 28 grey, 10 classes (LeCun et al. 1998)."""
    return _load("mnist", "MNIST", 10, data_dir)


def fashion_mnist(data_dir: Path | None = None) -> DataSet:
    """Fashion-MNIST clothes, 28 x 28 grey, 10 classes (Xiao et al. 2017, arXiv:1708.07747)."""
    return _load("fashion-mnist", "FashionMNIST", 10, data_dir)


def kmnist(data_dir: Path | None = None) -> DataSet:
    """Kuzushiji-MNIST cursive Japanese, 28 x 28 grey, 10 classes (Clanuwat et al. 2018, arXiv:1812.01718)."""
    return _load("kmnist", "KMNIST", 10, data_dir)


def cifar10(data_dir: Path | None = None) -> DataSet:
    """CIFAR-10 tiny photographs, 32 x 32 colour, 10 classes (Krizhevsky 2009)."""
    return _load("cifar10", "CIFAR10", 10, data_dir)


def cifar100(data_dir: Path | None = None) -> DataSet:
    """CIFAR-100 tiny photographs, 32 x 32 colour, 100 classes (Krizhevsky 2009)."""
    return _load("cifar100", "CIFAR100", 100, data_dir)


def _load(name: str, torchvision_name: str, n_classes: int, data_dir: Path | None) -> DataSet:
    """Read both splits from `data_dir`, else from $ADVBENCH_DATA, else from the cache folder with a download.

    Raises FileNotFoundError in one line that says where the files were sought and what to do, ValueError for damaged files.
    """
    from torchvision import datasets

    chosen = data_dir or os.environ.get("ADVBENCH_DATA")
    root = Path(chosen).expanduser() if chosen else cache_dir() / "data"
    make = getattr(datasets, torchvision_name)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            train, test = (_tensors(make(root, train=part, download=not chosen), n_classes) for part in (True, False))
    except (AssertionError, EOFError, LookupError, MemoryError, TypeError, ValueError) as error:
        raise ValueError(f"Expected {name} under {root}, got damaged files ({error!s:.120}): fetch them again") from error
    except (OSError, RuntimeError) as error:
        layout = f"torchvision.datasets.{torchvision_name} stores it"
        if chosen:
            raise FileNotFoundError(
                f"Expected {name} under {root} as {layout}, got no such files: name another folder"
            ) from error
        problem = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0].rstrip(':. ')}"
        raise FileNotFoundError(
            f"Expected to download {name} to {root}, got {problem}: connect to the network, "
            f"or name a folder (data_dir or $ADVBENCH_DATA) with the files as {layout}"
        ) from error
    return with_validation(name, train, test, n_classes)


def _tensors(dataset: Any, n_classes: int) -> tuple[Tensor, Tensor]:
    """Images (n, c, h, w) in [0, 1] and labels (n,) of a torchvision data set that holds (n, h, w) or (n, h, w, c) bytes."""
    labels = torch.as_tensor(dataset.targets, dtype=torch.int64)
    if (
        labels.shape != (len(dataset.data),)
        or not len(labels)
        or not 0 <= int(labels.min()) <= int(labels.max()) < n_classes
    ):
        raise ValueError(f"labels below {n_classes}, one for each of {len(dataset.data)} images, are missing")
    pixels = torch.as_tensor(np.asarray(dataset.data))
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    return pixels.contiguous().float().div_(255), labels
