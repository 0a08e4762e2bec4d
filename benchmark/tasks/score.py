"""Score: a cell of a matrix, its record, its outcomes and its gallery."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advbench.attacks.access import NoGradientError
from advbench.clocks import environment
from advbench.results.record import Examples, Gallery, Record
from advbench.results.store import Store
from advbench.tasks.calibrate import read_values
from advbench.tasks.clean import read_clean
from advbench.tasks.context import Context, checkpoint, data_of, defended_of
from advbench.tasks.craft import read_craft
from advbench.tasks.evaluation import score
from advbench.tasks.task import Task, artefact, scored_split
from advbench.zoo import checkpoints
from advbench.zoo.data import Split


def failed_record(task: Task, reason: str) -> Record:
    """The row of a cell that has no numbers, and why."""
    return _record(task, status="error", reason=reason)


def run(task: Task, context: Context, device: torch.device) -> None:
    """Score the candidates of a cell and write its record."""
    content = task.content
    split = scored_split(data_of(context), content["n"])
    clean, weights = read_clean(artefact("clean", content["clean"], context.out))
    read = [read_craft(artefact("craft", key, context.out)) for key in content["crafts"]]
    named = {name: one for name, one in zip(task.facts["candidates"], read, strict=True) if one is not None}
    crafts = list(named.values())
    if not crafts:
        raise NoGradientError("Expected a surrogate whose logits depend on the images differentiably, got none")
    found = score(
        defended_of(content["target"], context, device),
        split,
        clean,
        [one.x_adv for one in crafts],
        norm=content["threat"]["norm"],
        minimal_norm=content["minimal_norm"],
        epsilon=content["threat"]["epsilon"],
        seed=content["seed"],
        batch=content["batch"],
        device=device,
    )
    accuracies = dict.fromkeys(task.facts["candidates"]) | dict(zip(named, found.accuracies, strict=True))
    record = _record(
        task,
        weights_sha256=weights,
        counts={
            "examples": len(split),
            **{
                field: sum(int(getattr(one.ledger, field).sum()) for one in crafts)
                for field in ("forwards", "backwards", "queries")
            },
        },
        details={**_details(task, context), "candidates": accuracies},
        measured={
            "seconds": sum(one.measured.seconds for one in crafts),
            "peak_memory_bytes": max(one.measured.peak_memory_bytes for one in crafts),
            "device": content["device"],
            "threads": 1,
            "tasks_beside": context.tasks_beside,
            "environment": environment(),
        },
    )
    Store(context.out).write(record, found.examples, _gallery(found.examples, split, found.x_adv, found.prediction))


_SHOWN = 32
"""The most numbers of a calibrated value that a record shows."""


def _record(task: Task, **fields: Any) -> Record:
    content = task.content
    values: dict[str, Any] = {
        "status": "ok",
        "weights_sha256": "",
        "counts": {},
        "details": {},
        "measured": {"device": content["device"], "environment": environment()},
    }
    return Record(
        key=task.key,
        matrix=content["matrix"],
        dataset={"name": content["dataset"], "split": "test", "fingerprint": content["fingerprint"], "n": content["n"]},
        target=dict(task.facts["target"]),
        source=task.facts["source"],
        attack=dict(task.facts["attack"]),
        threat=dict(content["threat"]),
        seed=content["seed"],
        **(values | fields),
    )


def _details(task: Task, context: Context) -> dict[str, Any]:
    content = task.content
    details: dict[str, Any] = {
        "compute_batch": content["batch"],
        "model_key": content["target"],
        "crafts": list(content["crafts"]),
        "train": dict(context.contents[content["target"]]["budget"]),
    }
    calibrations = {key: read_values(key, context) for key in task.facts["calibrations"]}
    if calibrations:
        # What a person can read: a constant, an order; not a covariance.
        details["calibration"] = [
            {name: value.tolist() for name, value in values.items() if value.numel() <= _SHOWN}
            for values in calibrations.values()
        ]
    if task.facts["preparations"]:
        details["preparation"] = {
            name: {what: _finite(value.tolist()) for what, value in read_values(key, context).items()}
            for name, key in task.facts["preparations"].items()
        }
    prepared = details.get("preparation", {})
    details["draws"] = {name: given or prepared.get(name, {}).get("draws", 1) for name, given in task.facts["draws"].items()}
    if task.facts["diagnosis"]:
        with np.load(artefact("diagnose", task.facts["diagnosis"], context.out), allow_pickle=False) as file:
            details["diagnosis"] = {name: int(file[name]) for name in file.files}
    trained = checkpoints.metadata(checkpoint(content["target"]))
    details["train_seconds"] = float(trained["seconds"])
    facts = json.loads(trained.get("facts", "{}"))
    if facts:
        details["train_facts"] = {name: value if math.isfinite(value) else None for name, value in facts.items()}
    if content["substitute"]:
        found = checkpoints.metadata(artefact("substitute", content["substitute"], context.out))
        details["substitute"] = {
            "queries": int(found["queries"]),
            "fidelity": float(found["fidelity"]) if found["fidelity"] != "nan" else None,
            "sizes": [int(size) for size in found["sizes"].split(",")],
            "seconds": float(found["seconds"]),
        }
    return details


def _finite(value: Any) -> Any:
    """A number or a list of numbers for JSON, None where one is not finite."""
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return value if math.isfinite(value) else None


def _gallery(examples: Examples, split: Split, x_adv: Tensor, prediction: Tensor) -> Gallery:
    """The first image of each class, ten at most, the same ones in every cell of a data set."""
    firsts = {int(label): row for row, label in reversed(list(enumerate(split.y.tolist())))}
    rows = sorted(firsts.values())[:10]
    return Gallery(
        clean=split.x[rows].numpy(),
        adversarial=x_adv[rows].numpy(),
        index=examples.index[rows],
        label=split.y[rows].numpy(),
        prediction=prediction[rows].numpy(),
    )
