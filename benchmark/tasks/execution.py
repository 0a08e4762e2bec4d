"""What a worker does with a task: it gets keys and contents, never live objects, and writes the result in its place."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advbench.attacks.access import Access, Ledger, NoGradientError
from advbench.attacks.ensemble import with_stop
from advbench.attacks.progress import expected_forwards
from advbench.attacks.transfer import for_transfer
from advbench.clocks import Measured, device_name, environment, single_thread, stopwatch
from advbench.defenses.defended import Defended, Surrogate
from advbench.registry import registry
from advbench.results.record import Examples, Gallery, Record
from advbench.results.store import Store
from advbench.tasks import progress
from advbench.tasks.calibration import calibrate, prepare, threat_of
from advbench.tasks.compiling import compiled
from advbench.tasks.diagnosis import diagnose
from advbench.tasks.evaluation import Counts, Craft, count, craft, score
from advbench.tasks.models import architecture_of, fit_defended, load_defended
from advbench.tasks.progress import EVERY, Reporter
from advbench.tasks.substitutes import fit_substitute
from advbench.tasks.task import Task, artefact, scored_split
from advbench.zoo import checkpoints, training
from advbench.zoo.data import DataSet, Split


@dataclass(frozen=True, slots=True)
class Context:
    """What all tasks of a run share.

    out: the output folder. dataset, data_dir: what to load. contents: of all model tasks, by key. tasks_beside: how many
    other tasks may run on the machine at the same time. progress: where crafts say how they stand, nowhere where None;
    every: at most once in so many seconds.
    """

    out: Path
    dataset: str
    data_dir: Path | None
    contents: Mapping[str, Mapping[str, Any]]
    tasks_beside: int
    progress: Path | None = None
    every: float = EVERY


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a task ended: `reason` is empty where it finished. seconds: wall-clock of the whole task."""

    key: str
    seconds: float
    reason: str = ""


def execute(task: Task, context: Context, device: str) -> Outcome:
    """Run one task on one thread, and write its result. Whatever goes wrong comes back as the outcome's reason."""
    place = torch.device(device)
    with stopwatch(place) as measured:
        try:
            with single_thread():
                _ACTIONS[task.kind](task, context, place)
            reason = ""
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    return Outcome(task.key, measured.seconds, reason)


def failed_record(task: Task, reason: str) -> Record:
    """The row of a cell that has no numbers, and why."""
    return _record(task, status="error", reason=reason)


def _train(task: Task, context: Context, device: torch.device) -> None:
    with _RANDOM, stopwatch(device) as measured:
        fitted = fit_defended(task.key, context.contents, _data(context), _checkpoint, device)
    metadata = {"seconds": f"{measured.seconds:.3f}", "device": device_name(device), "label": task.label}
    if fitted.history is not None:
        metadata["history"] = json.dumps(dataclasses.asdict(fitted.history))
    checkpoints.save(_checkpoint(task.key), fitted.modules(), metadata | {"facts": json.dumps(dict(fitted.facts))})


def _substitute(task: Task, context: Context, device: torch.device) -> None:
    target = _defended(task.content["target"], context, device)
    with _RANDOM, stopwatch(device) as measured:
        found = fit_substitute(task.content, target, _data(context), device)
    metadata = {
        "seconds": f"{measured.seconds:.3f}",
        "queries": str(found.queries),
        "fidelity": f"{found.fidelity:.6f}",
        "sizes": ",".join(map(str, found.sizes)),
    }
    checkpoints.save(artefact("substitute", task.key, context.out), found.model, metadata)


def _clean(task: Task, context: Context, device: torch.device) -> None:
    content = task.content
    defended = _defended(content["target"], context, device)
    split = scored_split(_data(context), content["n"])
    found = count(defended, split, seed=content["seed"], draws=content["draws"], batch=content["batch"], device=device)
    _save(
        artefact("clean", task.key, context.out),
        **{name: getattr(found, name).numpy() for name in _COUNTED},
        draws=np.array(found.draws),
        weights_sha256=np.array(checkpoints.fingerprint(defended.model)),
    )


def _diagnose(task: Task, context: Context, device: torch.device) -> None:
    content = task.content
    found = diagnose(
        _defended(content["target"], context, device),
        scored_split(_data(context), content["n"]),
        threat_of(content["threat"]),
        seed=content["seed"],
        draws=content["draws"],
        device=device,
    )
    _save(artefact("diagnose", task.key, context.out), **{name: np.array(count) for name, count in found.items()})


def _calibrate(task: Task, context: Context, device: torch.device) -> None:
    content = task.content
    with stopwatch(device) as measured:
        try:
            values = _values(content, context, device)
        except NoGradientError:
            values = {_BLIND: torch.tensor(True)}
    _save(
        artefact("calibrate", task.key, context.out),
        seconds=np.array(measured.seconds),
        **{f"value_{name}": value.cpu().numpy() for name, value in values.items()},
    )


def _values(content: Mapping[str, Any], context: Context, device: torch.device) -> dict[str, Tensor]:
    """What a calibration's content asks for."""
    split = getattr(_data(context), content["split"])
    if content["source"] is None:
        return calibrate(content, None, split, device)
    source = _source(content, context, device)
    if content["kind"] == "surrogate":
        return prepare(content, source, split, device)
    return calibrate(content, source, split, device, **_prepared(content, context))


def _craft(task: Task, context: Context, device: torch.device) -> None:
    content = task.content
    attack = registry.restore("attacks", content["attack"])
    threat = threat_of(content["threat"])
    if content["transfer"]:
        attack = with_stop(attack, "never")
    values = _read_values(content["calibration"], context) if content["calibration"] else {}
    place = artefact("craft", task.key, context.out)
    if _BLIND in values:
        return _save(place, blind=np.array(True))
    attack = attack.calibrated(values) if values else attack
    attack = for_transfer(attack) if content["transfer"] else attack
    source = _source(content, context, device)
    prepared = _prepared(content, context)
    with _followed(task, context, prepared["draws"] * expected_forwards(attack, threat)) as around:
        try:
            found = craft(
                attack,
                source,
                scored_split(_data(context), content["n"]),
                threat,
                seed=content["seed"],
                batch=content["batch"],
                device=device,
                around=around,
                **prepared,
            )
        except NoGradientError:
            return _save(place, blind=np.array(True))
    return _save(
        place,
        x_adv=found.x_adv.numpy(),
        **{field: getattr(found.ledger, field).numpy() for field in ("forwards", "backwards", "queries")},
        seconds=np.array(found.measured.seconds),
        peak_memory_bytes=np.array(found.measured.peak_memory_bytes),
    )


def _prepared(content: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """The draws that a question averages and what a detector's score is worth, as given or as found on held-out images."""
    values = _read_values(content["preparation"], context) if content["preparation"] else {}
    draws = content["draws"] or int(values.get("draws", torch.tensor(1)))
    return {"draws": draws, "scale": float(values.get("scale", torch.tensor(1.0)))}


@contextmanager
def _followed(task: Task, context: Context, forwards: float) -> Iterator[Callable[[Access], AbstractContextManager[object]]]:
    """What the batches of a craft are attacked in, so that it says where it stands, if anybody wants to know."""
    if context.progress is None:
        yield nullcontext
        return
    folder = context.progress
    images, every = task.content["n"], context.every
    reporter = Reporter(lambda standing: progress.write(folder, task.key, standing), task.label, images, forwards, every)
    try:
        yield reporter.block
    finally:
        progress.forget(folder, task.key)


def _score(task: Task, context: Context, device: torch.device) -> None:
    content = task.content
    split = scored_split(_data(context), content["n"])
    clean, weights = _read_clean(artefact("clean", content["clean"], context.out))
    read = [_read_craft(artefact("craft", key, context.out)) for key in content["crafts"]]
    named = {name: one for name, one in zip(task.facts["candidates"], read, strict=True) if one is not None}
    crafts = list(named.values())
    if not crafts:
        raise NoGradientError("Expected a surrogate whose logits depend on the images differentiably, got none")
    found = score(
        _defended(content["target"], context, device),
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


_BLIND = "no_gradient"
"""What a calibration holds where the source gave no gradient."""

_COUNTED = ("prediction", "select", "report", "select_rejected", "report_rejected", "wrong", "fooled", "score")
"""The arrays of `Counts`, in order."""

_SHOWN = 32
"""The most numbers of a calibrated value that a record shows."""

_RANDOM = threading.RLock()
"""Held where torch's global generator is used (initialisation, training), so that threads do not share a sequence."""

_ACTIONS: dict[str, Callable[[Task, Context, torch.device], None]] = {
    "train": _train,
    "substitute": _substitute,
    "clean": _clean,
    "diagnose": _diagnose,
    "calibrate": _calibrate,
    "craft": _craft,
    "score": _score,
}


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
    calibrations = {key: _read_values(key, context) for key in task.facts["calibrations"]}
    if calibrations:
        # What a person can read: a constant, an order; not a covariance.
        details["calibration"] = [
            {name: value.tolist() for name, value in values.items() if value.numel() <= _SHOWN}
            for values in calibrations.values()
        ]
    if task.facts["preparations"]:
        details["preparation"] = {
            name: {what: _finite(value.tolist()) for what, value in _read_values(key, context).items()}
            for name, key in task.facts["preparations"].items()
        }
    prepared = details.get("preparation", {})
    details["draws"] = {name: given or prepared.get(name, {}).get("draws", 1) for name, given in task.facts["draws"].items()}
    if task.facts["diagnosis"]:
        with np.load(artefact("diagnose", task.facts["diagnosis"], context.out), allow_pickle=False) as file:
            details["diagnosis"] = {name: int(file[name]) for name in file.files}
    trained = checkpoints.metadata(_checkpoint(content["target"]))
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


def _source(content: Mapping[str, Any], context: Context, device: torch.device) -> Surrogate:
    """What a craft differentiates: a surrogate of a defended model, or a black-box substitute."""
    found = _plain_source(content, context, device)
    return compiled(found) if content["compile"] else found


def _plain_source(content: Mapping[str, Any], context: Context, device: torch.device) -> Surrogate:
    source = context.contents[content["source"]]
    if source["task"] == "train":
        defended = _defended(content["source"], context, device)
        if content["surrogate"] is None:
            return Surrogate(defended.model, defended.stochastic, defended.detector)
        return defended.surrogates[content["surrogate"]]
    with _RANDOM, training.seeded(0):
        model = architecture_of(source["architecture"]["name"], source["architecture"]["arguments"], _data(context))
    checkpoints.load(artefact("substitute", content["source"], context.out), model)
    return Surrogate(model.to(device).eval())


def _defended(key: str, context: Context, device: torch.device) -> Defended:
    with _RANDOM:
        return load_defended(key, context.contents, _data(context), _checkpoint, device)


def _checkpoint(key: str) -> Path:
    return artefact("train", key, Path())


def _data(context: Context) -> DataSet:
    return _load(context.dataset, context.data_dir)


@lru_cache(maxsize=2)
def _load(name: str, data_dir: Path | None) -> DataSet:
    return registry.load_dataset(name, data_dir)


def _read_clean(path: Path) -> tuple[Counts, str]:
    with np.load(path, allow_pickle=False) as file:
        counts = Counts.of((torch.from_numpy(file[name]) for name in _COUNTED), int(file["draws"]))
        return counts, str(file["weights_sha256"])


def _read_craft(path: Path) -> Craft | None:
    """A finished craft; None where there was no gradient to craft with."""
    with np.load(path, allow_pickle=False) as file:
        if "blind" in file.files:
            return None
        ledger = Ledger(*(torch.from_numpy(file[name]) for name in ("forwards", "backwards", "queries")))
        measured = Measured(float(file["seconds"]), int(file["peak_memory_bytes"]))
        return Craft(torch.from_numpy(file["x_adv"]), ledger, measured)


def _read_values(key: str, context: Context) -> dict[str, Tensor]:
    """The values that a calibration found, by name."""
    with np.load(artefact("calibrate", key, context.out), allow_pickle=False) as file:
        return {name.removeprefix("value_"): torch.from_numpy(file[name]) for name in file.files if name != "seconds"}


def _save(path: Path, **arrays: Any) -> None:
    """Write an npz file as a whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    checkpoints.write_atomically(path, buffer.getvalue())
