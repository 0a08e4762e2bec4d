"""Trainings watched: the same training once more, measured at the end of every epoch.

A run keeps the weights that a training ends with. Where a paper shows what happened on the way, the training is repeated,
which gives the same bits, and looked at from epoch to epoch; what was seen is kept beside the run's results.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import torch
from torch import Tensor, nn

from advbench.attacks.threat import ThreatModel
from advbench.clocks import single_thread
from advbench.defenses.defended import Defended, Surrogate
from advbench.defenses.training.smooth_gradient import Followed, SmoothGradient, follow
from advbench.engine.scheduler import slots
from advbench.files import write_atomically
from advbench.registry import registry
from advbench.reproduction.findings import RunFindings, ScoredCell
from advbench.tasks.calibration import threat_of
from advbench.tasks.evaluation import count, craft
from advbench.tasks.models import architecture_of, defense_of
from advbench.tasks.task import scored_split
from advbench.zoo import checkpoints
from advbench.zoo.data import DataSet, Split
from advbench.zoo.training import Budget, evaluating, seeded


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
    missing = [each for each in work if not each.path.exists()]
    joblib.Parallel(n_jobs=min(slots(run.plan), max(1, len(missing))))(joblib.delayed(_watch)(each) for each in missing)
    return [_read(each.path) for each in work]


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """A training to watch, as a worker takes it: names and numbers."""

    path: Path
    content: Mapping[str, Any]
    dataset: str
    data_dir: Path | None
    attack: Mapping[str, Any]
    threat: Mapping[str, Any]
    n: int | None
    batch: int
    weights: str
    device: str

    @staticmethod
    def of(run: RunFindings, cell: ScoredCell) -> _Work:
        record, config = cell.record, run.plan.config
        content = run.plan.tasks[record.details["model_key"]].content
        if content["inputs"] or record.target["stochastic"] or "calibration" in record.details:
            raise ValueError(f"Expected one training from scratch and a plain attack to watch, got {record.target['label']}")
        return _Work(
            path=config.out / "store" / "watched" / f"{record.key}.json",
            content=content,
            dataset=config.dataset,
            data_dir=config.data_dir,
            attack=record.attack,
            threat=record.threat,
            n=config.n_examples,
            batch=record.details["compute_batch"],
            weights=record.weights_sha256,
            device=str(run.plan.devices[0]),
        )


def _read(path: Path) -> Course:
    found = json.loads(path.read_text())
    return Course(tuple(found["clean"]), tuple(found["attacked"]))


def _watch(work: _Work) -> None:
    with single_thread():
        found = _course(work, registry.load_dataset(work.dataset, work.data_dir))
    write_atomically(work.path, json.dumps(found))


def _course(work: _Work, data: DataSet) -> dict[str, list[float]]:
    """The accuracies by epoch, in percent."""
    made: list[nn.Module] = []
    found: dict[str, list[float]] = {"clean": [], "attacked": []}
    split, budget = scored_split(data, work.n), Budget(**work.content["budget"])
    attack, threat = registry.restore("attacks", work.attack), threat_of(work.threat)

    def architecture() -> nn.Module:
        described = work.content["architecture"]
        made.append(architecture_of(described["name"], described["arguments"], data))
        return made[-1]

    def note(done: int, steps: int) -> None:
        if done % (steps // budget.epochs) == 0:
            if len(made) != 1:
                raise ValueError(f"Expected a defense that trains one network, got one that made {len(made)}")
            for name, accuracy in _accuracies(made[0], split, attack, threat, work).items():
                found[name].append(accuracy)

    seed = int(work.content["seed"])
    with seeded(seed):
        fitted = defense_of(work.content).fit(
            architecture, data, inputs={}, seed=seed, device=torch.device(work.device), budget=budget, progress=note
        )
    _check_same(fitted, work.weights)
    return found


def _accuracies(model: nn.Module, split: Split, attack: Any, threat: ThreatModel, work: _Work) -> dict[str, float]:
    where: dict[str, Any] = {"seed": int(work.content["seed"]), "batch": work.batch, "device": torch.device(work.device)}
    with evaluating(model):
        crafted = craft(attack, Surrogate(model), split, threat, draws=1, **where)
        pictures = {"clean": split, "attacked": Split(crafted.x_adv, split.y, split.index)}
        counts = {name: count(Defended(model), each, draws=1, **where) for name, each in pictures.items()}
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
    content = plan.tasks[record.details["model_key"]].content
    defense, described = defense_of(content), content["architecture"]
    if not isinstance(defense, SmoothGradient):
        raise ValueError(f"Expected a cell of smooth-gradient, got {record.target['label']}")
    with single_thread(), seeded(int(content["seed"])):
        found = follow(
            defense,
            lambda: architecture_of(described["name"], described["arguments"], plan.data),
            plan.data,
            rows,
            seed=int(content["seed"]),
            device=plan.devices[0],
            budget=Budget(**content["budget"]),
        )
    _check_same(found.defended, record.weights_sha256)
    return found
