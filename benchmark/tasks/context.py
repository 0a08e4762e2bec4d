"""What the tasks of a run share: folders, data, and trained models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from advbench.defenses.defended import Defended
from advbench.registry import registry
from advbench.tasks.models import Trainings, load_defended
from advbench.zoo.data import DataSet
from advbench.zoo.training import GENERATORS

if TYPE_CHECKING:  # a training is keyed by no code of substitutes
    from advbench.tasks.substitute import SubstituteContent


@dataclass(frozen=True, slots=True)
class Context:
    """What all tasks of a run share.

    out: the output folder. dataset, data_dir: what to load. trainings, substitutes: the contents of all tasks that train
    models, by key. tasks_beside: how many other tasks may run on the machine at the same time. progress: where crafts say
    how they stand, nowhere if None; every: at most once in so many seconds. time_limit: seconds that a task may take, or a
    block of a craft. last_words: where a process whose task does not stop writes where it was, before it ends; None in a
    process that must not end. prepare: what another process does before the first task that it gets with this context.
    keep_epochs: whether trainings keep their weights after every epoch.
    """

    out: Path
    dataset: str
    data_dir: Path | None
    trainings: Trainings
    substitutes: Mapping[str, SubstituteContent]
    tasks_beside: int
    progress: Path | None = None
    every: float = 1.0
    time_limit: float | None = None
    last_words: Path | None = None
    prepare: Callable[[], None] | None = None
    keep_epochs: bool = False


def data_of(context: Context) -> DataSet:
    """The data set of a run, loaded once in each worker."""
    return _load(context.dataset, context.data_dir)


@lru_cache(maxsize=2)
def _load(name: str, data_dir: Path | None) -> DataSet:
    return registry.load_dataset(name, data_dir)


def defended_of(key: str, context: Context, device: torch.device) -> Defended:
    """The trained model of a training task, on `device`."""
    with GENERATORS:
        return load_defended(key, context.trainings, data_of(context), device)
