"""What a dask worker does: it looks whether it can compute what a run plans, and performs tasks."""

from __future__ import annotations

import pickle
import socket
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from distributed import get_worker

from advbench.engine.places import Slots
from advbench.engine.work import Work, attempt
from advbench.tasks.artefacts import leave_telling_to_parent
from advbench.tasks.context import Context
from advbench.tasks.execution import TaskOutcome
from advbench.tasks.task import BlockTask, Task
from advbench.tasks.time_limit import said
from advbench.zoo.checkpoints import cache_dir


@dataclass(frozen=True, slots=True)
class Seen:
    """What a worker sees. out, models: whether the run's folders are there. cache: where it keeps models."""

    host: str
    out: bool
    models: bool
    cache: str
    versions: str


def versions() -> str:
    """The versions that numbers depend on."""
    return f"advbench {metadata.version('advbench')} and torch {torch.__version__}"


def look(out: Path, name: str) -> Seen:
    """What this worker sees. name: of a file that lies in both folders of the run."""
    models = cache_dir() / "models"
    return Seen(socket.gethostname(), (out / name).exists(), (models / name).exists(), str(cache_dir()), versions())


def unpacked(content: bytes) -> Any:
    """What all tasks share; a worker keeps it as long as the run lasts."""
    return pickle.loads(zlib.decompress(content))  # noqa: S301 - from dask's scheduler, which sends code anyway


def perform(shared: tuple[Work, Context], task: Task, device: str) -> TaskOutcome:
    """Run a task in a thread of this worker. Another worker may have died of it."""
    work, context = shared
    leave_telling_to_parent()
    torch.set_num_threads(1)
    if not context.out.is_dir():
        why = f"Expected a worker that sees the folder {context.out}, got one on {socket.gethostname()} that does not"
        return TaskOutcome(task.key, 0.0, why, refused=True)
    if _did_not_stop(task, context):
        part = str(task.block) if isinstance(task, BlockTask) else ""
        why = said(context.time_limit or 0.0, part, "its code did not stop, so its process was ended")
        return TaskOutcome(task.key, 0.0, why)
    worker = get_worker()
    if worker.state.nthreads > 1:  # the others go on
        context = replace(context, last_words=None)
    with _lent(device, task, worker.state.total_resources.get("GPU", 0)) as place:
        return attempt(work, task, context, place)


def _did_not_stop(task: Task, context: Context) -> bool:
    """Whether a worker has ended itself, as the task went on beyond its time in this run."""
    if context.last_words is None:
        return False
    path = context.last_words / task.key
    try:
        found = path.stat().st_size > 0
    except OSError:
        return False
    if found:
        path.unlink(missing_ok=True)
    return found


_turn = threading.Lock()
_places: Slots | None = None


@contextmanager
def _lent(device: str, task: Task, gpus: float) -> Iterator[str]:
    """A device for the task: that which was named, or of a kind of which this worker has several, an idle one."""
    global _places
    if ":" in device or device == "cpu":
        yield device
        return
    with _turn:
        if _places is None:
            count = max(1, int(gpus))
            _places = Slots.of(count, [f"{device}:{number}" for number in range(min(count, torch.cuda.device_count() or 1))])
        place = _places.take(task)
    try:
        yield place
    finally:
        with _turn:
            _places.give_back(task.key)
