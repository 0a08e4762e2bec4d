"""Records of any number, made from one: the same cell for other models and attacks, each with outcomes of its own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from advbench.results.record import Examples, Gallery, Record
from advbench.results.store import Store

Cell = tuple[Record, Examples, Gallery | None]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large a run is.

    models, attacks: of the board. matrix: ``white-box``, a cell for each model and attack, or ``transfer``, a cell for each
    source, target and attack. images: scored ones. pictures: the side of the images of a cell's gallery, none if 0.
    """

    models: int
    attacks: int
    matrix: str = "white-box"
    images: int = 359
    pictures: int = 8

    @property
    def cells(self) -> int:
        """How many records there are."""
        return self.models * self.attacks * (self.models if self.matrix == "transfer" else 1)


def the_one(images: int, pictures: int) -> Cell:
    """One scored cell, as a run on digits writes it. pictures: the side of its gallery's images, none if 0."""
    record = Record(
        key="0" * 64,
        status="ok",
        matrix="white-box",
        dataset={"name": "digits", "split": "test", "fingerprint": "3f" * 32, "n": images},
        target=_target("model"),
        source=None,
        attack={
            "label": "pgd(steps=10)",
            "name": "pgd",
            "arguments": {"steps": 10, "step_size": 0.1, "restarts": 1, "random_start": True},
            "minimal_norm": False,
            "gradients": True,
            "source_hash": "5a" * 32,
        },
        weights_sha256="7b" * 32,
        threat={"norm": "linf", "epsilon": 0.125, "box": [0.0, 1.0]},
        seed=0,
        counts={"examples": images, "forwards": 11 * images, "backwards": 10 * images, "queries": 0},
        details={"compute_batch": 128, "model_key": "9c" * 32, "crafts": ["d1" * 32], "draws": {"itself": 1}},
        measured={
            "seconds": 0.25,
            "peak_memory_bytes": 412_000_000,
            "device": "Example CPU 3000",
            "threads": 1,
            "tasks_beside": 1,
            "environment": {"advbench": "0.1.0", "torch": "2.14.0", "python": "3.11.7", "commit": "c0ffee" * 6},
        },
    )
    return record, _outcomes(record, images, np.ones(images), np.zeros(images)), _gallery(pictures)


def multiplied(one: Cell, scale: Scale) -> Iterator[Cell]:
    """A cell for each model and attack of `scale`, all from `one`: models and attacks differ in how strong they are."""
    models = [f"defense-{place:04d}(strength={place})" for place in range(scale.models)]
    attacks = [f"attack-{place:03d}(steps={place + 1})" for place in range(scale.attacks)]
    sources: Sequence[int | None] = range(scale.models) if scale.matrix == "transfer" else [None]
    hardness = np.random.default_rng(1).random(scale.images)
    for source, (i, model), (j, attack) in product(sources, enumerate(models), enumerate(attacks)):
        record = _varied(one[0], scale.matrix, model, attack, j, None if source is None else models[source])
        known = 1.0 if source is None or source == i else 0.4
        margin = i / max(1, scale.models) + hardness - known * (0.4 + 0.6 * j / max(1, scale.attacks))
        yield record, _outcomes(record, scale.images, hardness + 0.97, margin), one[2]


def write(store: Store, scale: Scale) -> list[str]:
    """Write the records of `scale` into a store, without waiting for the disk; returns their keys."""
    keys = []
    with _without_waiting():
        for record, examples, gallery in multiplied(the_one(scale.images, scale.pictures), scale):
            store.write(record, examples, gallery)
            keys.append(record.key)
    return keys


def folder(place: Path, scale: Scale) -> Path:
    """The output folder of a run of `scale` below `place`, written where it is not there yet."""
    found = place / f"{scale.matrix}-{scale.models}-{scale.attacks}-{scale.images}-{scale.pictures}"
    if not (found / "whole").exists():
        write(Store(found), scale)
        (found / "whole").touch()
    return found


@contextmanager
def _without_waiting() -> Iterator[None]:
    """Files that nobody will miss need not be on the disk."""
    with mock.patch.object(os, "fsync"):
        yield


def _target(label: str) -> dict[str, Any]:
    return {
        "label": label,
        "defense": {"name": label.partition("(")[0], "arguments": {"strength": 1.0, "steps": 10}},
        "architecture": {"name": "gu2014/n200-200-10", "arguments": {"widths": [200, 200]}},
        "stochastic": False,
    }


def _varied(record: Record, matrix: str, model: str, attack: str, steps: int, source: str | None) -> Record:
    key = hashlib.sha256(f"{matrix} {model} {attack} {source}".encode()).hexdigest()
    named = record.attack | {"label": attack, "arguments": record.attack["arguments"] | {"steps": steps + 1}}
    return replace(
        record,
        key=key,
        matrix=matrix,
        target=_target(model),
        source=None if source is None else {**_target(source), "kind": "model"},
        attack=named,
        weights_sha256=hashlib.sha256(model.encode()).hexdigest(),
        measured=record.measured | {"seconds": 0.01 * (steps + 1)},
    )


def _outcomes(record: Record, n: int, clean: Any, margin: Any) -> Examples:
    """An image is right where its clean margin is above 1, and stays so where the margin under attack, with noise, is."""
    rng = np.random.default_rng(int(record.key[:12], 16))
    label = np.arange(n) % 10
    right = clean >= 1.0
    kept = (right & (margin + 0.1 * rng.standard_normal(n) > 0.5)).astype(int)
    distance = np.full(n, 0.125) * (0.9 + 0.1 * rng.random(n))
    return Examples(
        index=np.arange(n),
        label=label,
        clean_prediction=np.where(right, label, (label + 1) % 10),
        draws=1,
        clean_correct=right.astype(int),
        select_correct=kept,
        report_correct=kept,
        distance_l0=np.full(n, 64.0),
        distance_l1=distance * 50,
        distance_l2=distance * 8,
        distance_linf=distance,
        rms=distance,
        image_l2=np.full(n, 4.6),
    )


def _gallery(side: int) -> Gallery | None:
    if not side:
        return None
    rng = np.random.default_rng(0)
    clean = rng.random((10, 1, side, side)).astype(np.float32)
    noise = np.float32(0.125) * rng.choice(np.array([-1, 1], np.float32), clean.shape)
    return Gallery(
        clean=clean,
        adversarial=np.clip(clean + noise, 0, 1),
        index=np.arange(10),
        label=np.arange(10),
        prediction=(np.arange(10) + 1) % 10,
    )
