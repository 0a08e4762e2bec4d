"""Trainings watched: what a model was at the end of every epoch.

A run keeps the weights that a training ends with, and with `keep_epochs` those of every epoch, which are looked at here.
Where they were not kept, the training is repeated, which gives the same bits. What was seen is kept beside the results.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import torch
from torch import Tensor, nn

from advbench.attacks.attack import Attack
from advbench.attacks.threat import ThreatModel
from advbench.clocks import single_thread
from advbench.defenses.defended import Defended, Surrogate
from advbench.defenses.training.smooth_gradient import Followed, SmoothGradient, follow
from advbench.engine.ending import end_with_parent
from advbench.engine.local import slots
from advbench.modes import evaluating
from advbench.registry import registry
from advbench.reproduction.findings import RunFindings, ScoredCell
from advbench.tasks.artefacts import read, save, whole
from advbench.tasks.components import Component, attack_of, defense_of
from advbench.tasks.epochs import weights_after
from advbench.tasks.evaluation import count, craft
from advbench.tasks.images import scored_split
from advbench.tasks.models import network_of
from advbench.tasks.train import TrainContent
from advbench.zoo import checkpoints
from advbench.zoo.data import DataSet, Split
from advbench.zoo.training import seeded


@dataclass(frozen=True, slots=True)
class Course:
    """Accuracies at the end of each epoch, in percent, on the scored test images: clean, and under the cell's attack."""

    clean: tuple[float, ...]
    attacked: tuple[float, ...]


def courses(run: RunFindings, cells: Sequence[ScoredCell]) -> list[Course]:
    """How the targets of white-box cells became what they are; the last epoch's accuracies are those of the cells.

    For deterministic models that are one training from scratch, under attacks without calibration, whose every step is
    taken anew on the model of each epoch. Runs as many trainings side by side as the run did.
    Raises ValueError for a model of another kind.
    """
    work = [_Work.of(run, cell) for cell in cells]
    missing = [each for each in work if not whole(each.path)]
    joblib.Parallel(n_jobs=min(slots(run.plan), max(1, len(missing))))(joblib.delayed(_watch)(each) for each in missing)
    return [_read(each.path) for each in work]


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """A training to watch, as a worker takes it: names and numbers. parent: the process that asks for it."""

    path: Path
    key: str
    content: TrainContent
    dataset: str
    data_dir: Path | None
    attack: Component
    threat: ThreatModel
    n: int | None
    batch: int
    weights: str
    device: str
    parent: int

    @staticmethod
    def of(run: RunFindings, cell: ScoredCell) -> _Work:
        record, config = cell.record, run.plan.config
        content = run.plan.trainings[record.details["model_key"]]
        if content.inputs or record.target["stochastic"] or "calibration" in record.details:
            raise ValueError(f"Expected one training from scratch and a plain attack to watch, got {record.target['label']}")
        return _Work(
            path=config.out / "store" / "watched" / f"{record.key}.npz",
            key=record.details["model_key"],
            content=content,
            dataset=config.dataset,
            data_dir=config.data_dir,
            attack=Component.read(record.attack),
            threat=run.plan.cell(record.key).content.threat,
            n=config.n_examples,
            batch=record.details["compute_batch"],
            weights=record.weights_sha256,
            device=str(run.plan.devices[0]),
            parent=os.getpid(),
        )


def _read(path: Path) -> Course:
    found = read(path)
    return Course(tuple(found["clean"].tolist()), tuple(found["attacked"].tolist()))


def _watch(work: _Work) -> None:
    if os.getpid() != work.parent:
        end_with_parent(work.parent)
    with single_thread():
        found = _course(work, registry.load_dataset(work.dataset, work.data_dir))
    save(work.path, **{name: np.array(accuracies) for name, accuracies in found.items()})


def _course(work: _Work, data: DataSet) -> dict[str, list[float]]:
    """The accuracies by epoch, in percent."""
    kept = weights_after(work.key, work.content.budget.epochs)
    return _of_training(work, data) if kept is None else _of_weights(work, data, kept)


def _of_weights(work: _Work, data: DataSet, kept: Sequence[Path]) -> dict[str, list[float]]:
    """Of the weights that the training kept."""
    split, attack = scored_split(data, work.n), attack_of(work.attack)
    with seeded(0):
        model = network_of(work.content, data)().to(work.device)
    found = []
    for path in kept:
        checkpoints.load(path, model)
        found.append(_accuracies(model, split, attack, work))
    return {name: [each[name] for each in found] for name in found[0]}


def _of_training(work: _Work, data: DataSet) -> dict[str, list[float]]:
    """Of the training, done once more."""
    made: list[nn.Module] = []
    found: dict[str, list[float]] = {"clean": [], "attacked": []}
    content, split, attack = work.content, scored_split(data, work.n), attack_of(work.attack)
    make = network_of(content, data)

    def architecture() -> nn.Module:
        made.append(make())
        return made[-1]

    def note(done: int, steps: int) -> None:
        if done % (steps // content.budget.epochs) == 0:
            if len(made) != 1:
                raise ValueError(f"Expected a defense that trains one network, got one that made {len(made)}")
            for name, accuracy in _accuracies(made[0], split, attack, work).items():
                found[name].append(accuracy)

    with seeded(content.seed):
        fitted = defense_of(content.defense).fit(
            architecture,
            data,
            inputs={},
            seed=content.seed,
            device=torch.device(work.device),
            budget=content.budget,
            progress=note,
        )
    _check_same(fitted, work.weights)
    return found


def _accuracies(model: nn.Module, split: Split, attack: Attack, work: _Work) -> dict[str, float]:
    seed, batch, device = work.content.seed, work.batch, torch.device(work.device)
    with evaluating(model):
        crafted = craft(attack, Surrogate(model), split, work.threat, seed=seed, draws=1, batch=batch, device=device)
        pictures = {"clean": split, "attacked": Split(crafted.x_adv, split.y, split.index)}
        counts = {
            name: count(Defended(model), each, seed=seed, draws=1, batch=batch, device=device)
            for name, each in pictures.items()
        }
    right = counts["clean"].report, counts["clean"].report * counts["attacked"].report
    shares = (float(each.double().mean()) for each in right)
    return dict(zip(pictures, (100.0 * share for share in shares), strict=True))


def _check_same(fitted: Defended, weights: str) -> None:
    if checkpoints.fingerprint(fitted.model) != weights:
        raise ValueError("Expected the training to give the same weights again, got others: its curves are not this model's")


def input_updates(run: RunFindings, cell: ScoredCell, rows: Tensor) -> Followed:
    """What the smooth gradient method had added to the training images at `rows`, (m,), at the end of each epoch.

    The `defended` of what comes back is the network of `cell`, a cell of that method, at its last epoch.
    """
    record, plan = cell.record, run.plan
    content = plan.trainings[record.details["model_key"]]
    defense = defense_of(content.defense)
    if not isinstance(defense, SmoothGradient):
        raise ValueError(f"Expected a cell of smooth-gradient, got {record.target['label']}")
    with single_thread(), seeded(content.seed):
        found = follow(
            defense,
            network_of(content, plan.data),
            plan.data,
            rows,
            seed=content.seed,
            device=plan.devices[0],
            budget=content.budget,
        )
    _check_same(found.defended, record.weights_sha256)
    return found
