"""What the tasks of a run share: folders, data, trained models, and how a result is written."""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advbench.defenses.defended import Defended
from advbench.files import write_atomically
from advbench.registry import registry
from advbench.tasks.models import load_defended
from advbench.tasks.task import artefact
from advbench.zoo.data import DataSet


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
    every: float = 1.0


GENERATORS = threading.RLock()
"""Held where torch's global generator is used (initialisation, training), so that threads do not share a sequence."""


def data_of(context: Context) -> DataSet:
    """The data set of a run, loaded once in each worker."""
    return _load(context.dataset, context.data_dir)


@lru_cache(maxsize=2)
def _load(name: str, data_dir: Path | None) -> DataSet:
    return registry.load_dataset(name, data_dir)


def defended_of(key: str, context: Context, device: torch.device) -> Defended:
    """The trained model of a training task, on `device`."""
    with GENERATORS:
        return load_defended(key, context.contents, data_of(context), checkpoint, device)


def checkpoint(key: str) -> Path:
    """The file of the weights of a training task."""
    return artefact("train", key, Path())


def save(path: Path, **arrays: Any) -> None:
    """Write an npz file as a whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getvalue())
