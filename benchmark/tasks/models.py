"""Models from the contents of their trainings: built, and loaded with their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

import torch
from torch import nn

from advbench.defenses.defended import Architecture, Defended
from advbench.modes import evaluate
from advbench.registry.schemes import OWN
from advbench.tasks.answers import alike, answers
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
    """The trained model of a training task, from its checkpoint.

    Raises ValueError for a network of the user's that answers otherwise than when the run was planned.
    """
    content = trainings[key]
    defended = build_defended(content, trainings, data)
    if content.answers and not alike(content.answers, answers_of(content, defended, data, slopes=False)):
        raise ValueError(
            "Expected the model that the run was planned for, got one that answers otherwise: do not change its code, what "
            "that reads or the environment meanwhile"
        )
    modules = defended.modules()
    checkpoints.load(checkpoint(key), modules)
    modules.to(device)
    evaluate(modules)
    return defended


def answers_of(content: TrainContent, defended: Defended, data: DataSet, *, slopes: bool = True) -> str:
    """What a training's network answers to fixed images, where it is the user's; else an empty text.

    defended: what the training builds. slopes: whether with gradients, as in a key. A finished model answers as it is, a
    network that is still to be trained with the weights that its factory draws from a fixed seed.
    """
    architecture = content.architecture
    if architecture is None or not architecture.name.startswith(OWN):
        return ""
    if isinstance(defended, HandedIn):
        return answers(defended.network, data, slopes=slopes)
    with training.seeded(0):
        network = architecture_of(architecture, data)
    return answers(network, data, slopes=slopes)


@runtime_checkable
class HandedIn(Protocol):
    """A defended model that came with its weights."""

    @property
    def network(self) -> nn.Module:
        """Images -> logits, with weights and normalisation; its own random numbers come from torch's generators."""
        ...


def network_of(content: TrainContent, data: DataSet) -> Architecture:
    """What makes the networks of a training; it raises RuntimeError if the part is made for no architecture."""
    architecture = content.architecture
    return _no_architecture if architecture is None else lambda: architecture_of(architecture, data)


def _no_architecture() -> nn.Module:
    raise RuntimeError("Expected a part that is made for no architecture not to ask for one")
