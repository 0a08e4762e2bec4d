"""Models from the contents of their trainings: built, and loaded with their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import nn

from advbench.defenses.defended import Architecture, Defended
from advbench.tasks.artefacts import checkpoint
from advbench.tasks.components import architecture_of, defense_of
from advbench.zoo import checkpoints, training
from advbench.zoo.data import DataSet

if TYPE_CHECKING:
    from advbench.tasks.train import TrainContent

Trainings: TypeAlias = "Mapping[str, TrainContent]"
"""The contents of training tasks, by key."""


def build_defended(content: TrainContent, trainings: Trainings, data: DataSet) -> Defended:
    """The untrained structure of a training, with those of its inputs; no random state is left changed."""
    inputs = {name: build_defended(trainings[key], trainings, data) for name, key in content.inputs}
    with training.seeded(0):
        return defense_of(content.defense).build(network_of(content, data), data, inputs)


def load_defended(key: str, trainings: Trainings, data: DataSet, device: torch.device) -> Defended:
    """The trained model of a training task, from its checkpoint."""
    defended = build_defended(trainings[key], trainings, data)
    modules = defended.modules()
    checkpoints.load(checkpoint(key), modules)
    modules.to(device).eval()
    return defended


def network_of(content: TrainContent, data: DataSet) -> Architecture:
    """What makes the networks of a training; it raises RuntimeError if the part is made for no architecture."""
    architecture = content.architecture
    return _no_architecture if architecture is None else lambda: architecture_of(architecture, data)


def _no_architecture() -> nn.Module:
    raise RuntimeError("Expected a part that is made for no architecture not to ask for one")
