"""Train: a defense fitted, its checkpoint in the cache."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from advbench.clocks import device_name, stopwatch
from advbench.defenses.defended import Defended
from advbench.tasks.artefacts import Kind, checkpoint
from advbench.tasks.components import Component, defense_of
from advbench.tasks.context import Context, data_of
from advbench.tasks.epochs import TrainingWatch, takes_progress
from advbench.tasks.models import load_defended, network_of
from advbench.tasks.time_limit import TimeIsUp
from advbench.zoo import checkpoints, training
from advbench.zoo.training import Budget, History


@dataclass(frozen=True, slots=True)
class TrainContent:
    """What a training depends on.

    defense: with its radius filled in. architecture: None for a part that is made for none. fingerprint: of the data set.
    budget, seed: of the training. inputs: (name, key of its training) of the models that it is built on, sorted. answers:
    of a network of the user's to fixed images (`advbench.tasks.answers`); empty for a registered architecture.
    """

    kind: ClassVar[Kind] = "train"

    defense: Component
    architecture: Component | None
    fingerprint: str
    budget: Budget
    seed: int
    inputs: tuple[tuple[str, str], ...]
    answers: str = ""

    @property
    def needs(self) -> tuple[str, ...]:
        """The trainings of its inputs."""
        return tuple(key for _, key in self.inputs)

    def label(self, defense: str, architecture: str) -> str:
        """For people: the defense and the architecture as the user names them."""
        return f"train {defense}" + ("" if self.architecture is None else f" on {architecture}")


def run(key: str, content: TrainContent, label: str, context: Context, device: torch.device) -> None:
    """Fit the defense on top of its inputs' checkpoints, and write its own."""
    with training.GENERATORS, stopwatch(device) as measured:
        standing = TrainingWatch(key, content.budget.epochs, keep=context.keep_epochs)
        try:
            fitted = _fitted(content, context, device, standing)
        except TimeIsUp as error:
            error.stood = standing.so_far
            raise
    metadata = {"seconds": f"{measured.seconds:.3f}", "device": device_name(device), "label": label}
    if fitted.history is not None:
        metadata["history"] = json.dumps(dataclasses.asdict(fitted.history))
    checkpoints.save(checkpoint(key), fitted.modules(), metadata | {"facts": json.dumps(dict(fitted.facts))})


def _fitted(content: TrainContent, context: Context, device: torch.device, standing: TrainingWatch) -> Defended:
    data = data_of(context)
    inputs = {name: load_defended(key, context.trainings, data, device) for name, key in content.inputs}
    with training.seeded(content.seed):
        defense, make = defense_of(content.defense), standing.watched(network_of(content, data))
        followed = {"progress": standing.note} if takes_progress(defense) else {}
        return defense.fit(make, data, inputs=inputs, seed=content.seed, device=device, budget=content.budget, **followed)


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """The contents of a training's checkpoint beside the weights.

    seconds: of the training. facts: numbers that it found, by name. history: what happened in each epoch; None if there was
    no one training of the whole.
    """

    seconds: float
    facts: Mapping[str, float]
    history: History | None


def read_training(key: str) -> TrainingFacts:
    """The contents of a finished training's checkpoint beside the weights."""
    found = checkpoints.metadata(checkpoint(key))
    history = json.loads(found["history"]) if "history" in found else None
    return TrainingFacts(
        seconds=float(found["seconds"]),
        facts=json.loads(found.get("facts", "{}")),
        history=None
        if history is None
        else History(
            terms=tuple(history["terms"]),
            validation_loss=tuple(history["validation_loss"]),
            validation_accuracy=tuple(history["validation_accuracy"]),
            seconds=tuple(history["seconds"]),
            kept_epoch=history["kept_epoch"],
        ),
    )
