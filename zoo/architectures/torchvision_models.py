"""torchvision's classification networks, without weights and with standardisation inside."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from advbench.zoo.architectures import Factory, Shape
from advbench.zoo.preprocessing import Standardise

PREFIX = "torchvision/"
_AUXILIARY = {"googlenet", "inception_v3"}
"""Networks that return auxiliary logits in training mode unless told otherwise."""


def resolve(name: str) -> Factory:
    """The factory of ``torchvision/NAME``."""
    return partial(build, name.removeprefix(PREFIX))


def build(name: str, shape: Shape, n_classes: int) -> nn.Sequential:
    """The network that torchvision calls `name`, such as ``resnet18``, on images standardised per channel.

    Raises ValueError for an unknown name, fewer than two classes, images without three channels, or of a size that it cannot
    take.
    """
    from torchvision import models

    if n_classes < 2:
        raise ValueError(f"Expected `n_classes` >= 2, got {n_classes}")
    if name not in models.list_models(module=models):
        raise ValueError(f"Expected a classification model of torchvision such as torchvision/resnet18, got {name!r}")
    if shape[0] != 3:
        raise ValueError(f"Expected images with 3 channels for torchvision/{name}, got {shape[0]}: choose another network")
    extra: dict[str, Any] = {"aux_logits": False, "init_weights": True} if name in _AUXILIARY else {}
    network = nn.Sequential(Standardise(3), models.get_model(name, weights=None, num_classes=n_classes, **extra))
    _check_size(network, shape, name)
    return network


def _check_size(network: nn.Module, shape: Shape, name: str) -> None:
    network.eval()
    try:
        with torch.no_grad():
            network(torch.zeros(1, *shape))
    except (RuntimeError, AssertionError):
        size = "x".join(map(str, shape))
        raise ValueError(f"Expected another image size for torchvision/{name}, got {size}: choose another network") from None
    network.train()
