"""Networks of the papers, one file per paper: each factory maps (shape, n_classes) to a network with logits as output."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import nn

Shape: TypeAlias = tuple[int, int, int]
"""Channels, height, width."""

Factory: TypeAlias = Callable[[Shape, int], nn.Module]
"""(shape, n_classes) -> a fresh network: images (n, c, h, w) in [0, 1] -> logits (n, n_classes)."""
