"""Networks of the papers, one file per paper: each factory maps (shape, n_classes) to a network with logits as output."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TypeAlias

from torch import nn

from advbench.zoo import ARCHITECTURES
from advbench.zoo.architectures import torchvision_models

Shape: TypeAlias = tuple[int, int, int]
"""Channels, height, width."""

Factory: TypeAlias = Callable[[Shape, int], nn.Module]
"""(shape, n_classes) -> a fresh network: images (n, c, h, w) in [0, 1] -> logits (n, n_classes)."""


def resolve(name: str) -> Factory:
    """The factory of a registered architecture.

    Raises ValueError for an unknown name.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"Expected an architecture among {', '.join(sorted(ARCHITECTURES))}, got {name!r}")
    module, _, attribute = ARCHITECTURES[name].partition(":")
    factory: Factory = getattr(importlib.import_module(module), attribute)
    return factory


def build(name: str, shape: Shape, n_classes: int) -> nn.Module:
    """A fresh network by name, registered or ``torchvision/NAME``: images (n, *shape) in [0, 1] -> logits (n, n_classes).

    Its weights come from torch's global generator: build inside `advbench.zoo.training.seeded`.
    Raises ValueError for an unknown name, fewer than two classes, or images too small for the network.
    """
    if n_classes < 2:
        raise ValueError(f"Expected `n_classes` >= 2, got {n_classes}")
    family, _, member = name.partition("/")
    if family == "torchvision":
        return torchvision_models.build(member, shape, n_classes)
    return resolve(name)(shape, n_classes)
