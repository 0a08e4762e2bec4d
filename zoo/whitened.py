"""Data sets of ZCA-whitened images, on which attacks and defenses count in whitened units."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from advbench.zoo import torchvision_sets
from advbench.zoo.data import DataSet, Split
from advbench.zoo.preprocessing import Whiten

PREFIX = "zca:"
_CHUNK = 2048
_EPSILON = 0.1


def whitened(data: DataSet) -> DataSet:
    """`data` with all images ZCA-whitened by the mean and the covariance of its training images.

    As in Mosca and Magoulas 2018 (doi:10.1007/s00500-017-2998-4), whose code adds 0.1 to the covariance's eigenvalues.
    Whitened images have no range, so that there is no box, and radii are in whitened units; the usual one is the paper's
    0.1 in linf, between those at which its networks lose nothing and half. Worked in float64. The fingerprint is derived
    from that of `data`, for the last bits of the images may differ between machines.
    """
    whiten = Whiten(data.shape, epsilon=_EPSILON).double()
    whiten.fit_statistics(data.train.x)
    train, validation, test = (
        replace(split, x=_mapped(whiten, split)) for split in (data.train, data.validation, data.test)
    )
    fingerprint = hashlib.sha256(f"zca {_EPSILON} {data.fingerprint}".encode()).hexdigest()
    name = f"{PREFIX}{data.name}"
    return DataSet(name, train, validation, test, data.n_classes, {"linf": 0.1}, fingerprint=fingerprint, box=None)


@torch.no_grad()
def _mapped(whiten: Whiten, split: Split) -> Tensor:
    return torch.cat([whiten(x.double()).float() for x in torch.split(split.x, _CHUNK)])


def cifar10_zca(data_dir: Path | None = None) -> DataSet:
    """CIFAR-10, ZCA-whitened as in Mosca & Magoulas 2018, without a pixel range (Krizhevsky 2009)."""
    return replace(whitened(torchvision_sets.cifar10(data_dir)), name="cifar10-zca")


def cifar100_zca(data_dir: Path | None = None) -> DataSet:
    """CIFAR-100, ZCA-whitened as in Mosca & Magoulas 2018, without a pixel range (Krizhevsky 2009)."""
    return replace(whitened(torchvision_sets.cifar100(data_dir)), name="cifar100-zca")
