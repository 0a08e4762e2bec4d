"""What a worker does with a task: it gets keys and contents, never live objects, and writes the result in its place."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from advbench.clocks import single_thread, stopwatch
from advbench.errors import debugging, reason
from advbench.files import NO_ROOM, names_in
from advbench.process_state import ChangedStateError, checked, signals
from advbench.results.store import Store
from advbench.tasks import agreement, calibrate, clean, craft, diagnose, known_noise, score, substitute, train, unit_test
from advbench.tasks.agreement import RefusedError
from advbench.tasks.artefacts import Kind, artefact, finished, whole
from advbench.tasks.blocks import forget, place_of
from advbench.tasks.clean import CleanContent
from advbench.tasks.context import Context
from advbench.tasks.craft import CraftContent
from advbench.tasks.diagnose import DiagnoseContent
from advbench.tasks.known_noise import KnownNoiseContent
from advbench.tasks.precision import products
from advbench.tasks.score import ScoreContent
from advbench.tasks.substitute import SubstituteContent
from advbench.tasks.task import BlockTask, ScoreTask, Task
from advbench.tasks.time_limit import TimeIsUp, limited, said
from advbench.tasks.train import TrainContent
from advbench.tasks.unit_test import UnitTestContent


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """How a task ended: `reason` is empty if it finished.

    seconds: wall-clock of the whole task. no_room: whether it failed because a disk is full or read-only. refused: whether
    the worker did not take it, as its device, data or networks are not the plan's (`advbench.tasks.agreement`).
    """

    key: str
    seconds: float
    reason: str = ""
    no_room: bool = False
    refused: bool = False


Perform = Callable[[Task, Context, torch.device], None]
"""What does a task and writes its result."""


def execute(task: Task, context: Context, device: str, perform: Perform | None = None) -> TaskOutcome:
    """Run one task on one thread, and write its result, unless another start of the same run has done so by now.

    perform: what does it in place of the task's own code, as a bench may want. Whatever the task's code raises comes back
    as the outcome's reason, SystemExit and KeyboardInterrupt too, and so does a change of the process's global state, which
    is put back. Raises what a signal from outside causes, so that a Ctrl-C stops the run.
    """
    place, no_room, refused = torch.device(device), False, False
    with stopwatch(place) as measured, signals() as seen:
        try:
            # Trainings are as torch's defaults make them; what is scored is never rounded to TF32.
            with single_thread(), nullcontext() if task.kind in ("train", "substitute") else products("float32"):
                (perform or _perform_alone)(task, context, place)
            why = ""
        except BaseException as error:
            if seen.caused(error):
                raise
            no_room, refused, why = _wants_room(error), isinstance(error, RefusedError), _reason(error, context)
            if isinstance(error, FileNotFoundError) and lies_there(task, context.out):
                why = ""  # another start has packed the blocks that were about to be read
            elif debugging():
                traceback.print_exception(error)
    if seen.told:  # and the task's code went on all the same
        raise KeyboardInterrupt
    return TaskOutcome(task.key, measured.seconds, why, no_room, refused)


def lies_there(task: Task, out: Path) -> bool:
    """Whether the task's result lies finished in its place; a damaged one does not, and is named in the log."""
    if isinstance(task, BlockTask):  # a finished craft has packed its blocks
        there = whole(place_of(task.craft, task.block, out), len(task.block))
        return there or finished(task.kind, task.craft, out, task.content.images.n)
    if task.kind == "score":
        return Store(out).status(task.key) == "ok"
    rows = task.content.images.n if isinstance(task.content, CleanContent | CraftContent) else None
    return finished(task.kind, task.key, out, rows)


class Listing:
    """The results that lie in a run's folder and in the cache, at one moment: each folder is listed once.

    A question for a file costs a network disk a round trip; of ten thousand tasks most are often not there.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._names: dict[Kind, tuple[set[str], str]] = {}
        self._found: dict[str, bool] = {}

    def finished(self, task: Task) -> bool:
        """Whether the result of a task, any but a block, lay finished in its place; damage is named in the log."""
        names, suffix = self._listed(task.kind)
        if not names:
            return False
        if task.key not in self._found:
            self._found[task.key] = f"{task.key}{suffix}" in names and lies_there(task, self._out)
        return self._found[task.key]

    def _listed(self, kind: Kind) -> tuple[set[str], str]:
        """The names in the folder of a kind of task, and what follows the key in them."""
        if kind not in self._names:
            place = artefact(kind, "0", self._out)
            self._names[kind] = names_in(place.parent), place.name.removeprefix("0")
        return self._names[kind]


def _wants_room(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, is that of a disk that is full or read-only."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return True
        error = error.__cause__
    return False


def _reason(error: BaseException, context: Context) -> str:
    if isinstance(error, TimeIsUp) and context.time_limit is not None:
        return said(context.time_limit, error.part, error.stood)
    if isinstance(error, RefusedError):
        return str(error)
    return reason(error, 500)


def _perform_alone(task: Task, context: Context, device: torch.device) -> None:
    """Do what the content asks for, unless another start of the run has done it meanwhile.

    What code that changes global state has computed is not kept.
    """
    if lies_there(task, context.out):
        return
    last_words = None if context.last_words is None else context.last_words / task.key
    try:
        with checked(), limited(context.time_limit, last_words):
            agreement.check(task, context, device)
            _perform(task, context, device)
    except ChangedStateError:
        _remove(task, context)
        raise


def _remove(task: Task, context: Context) -> None:
    """Remove what a task has written; a score's record is replaced by that of the error."""
    if isinstance(task, BlockTask):
        place_of(task.craft, task.block, context.out).unlink(missing_ok=True)
    elif task.kind != "score":
        artefact(task.kind, task.key, context.out).unlink(missing_ok=True)
        forget(task.key, context.out)


def _perform(task: Task, context: Context, device: torch.device) -> None:
    """Do what the content asks for."""
    key, content = task.key, task.content
    if isinstance(task, ScoreTask):
        score.run(key, task.content, task.facts, context, device)
    elif isinstance(task, BlockTask):
        craft.run_block(task.craft, task.content, task.block, task.label, context, device)
    elif isinstance(content, TrainContent):
        train.run(key, content, task.label, context, device)
    elif isinstance(content, SubstituteContent):
        substitute.run(key, content, context, device)
    elif isinstance(content, CleanContent):
        clean.run(key, content, context, device)
    elif isinstance(content, DiagnoseContent):
        diagnose.run(key, content, context, device)
    elif isinstance(content, UnitTestContent):
        unit_test.run(key, content, context, device)
    elif isinstance(content, KnownNoiseContent):
        known_noise.run(key, content, context, device)
    elif isinstance(content, CraftContent):
        craft.run(key, content, task.label, context, device)
    elif not isinstance(content, ScoreContent):
        calibrate.run(key, content, context, device)
