"""The scheduler: pending tasks in waves by depth on joblib, longest first, devices as slots.

A task that fails takes only those with it that need its result; a worker that dies takes only its own task; an interrupt
keeps what is finished.
"""

from __future__ import annotations

import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import joblib
import torch
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import BrokenProcessPool

from advbench.clocks import usable_cores
from advbench.plan.plan import Plan
from advbench.tasks import progress
from advbench.tasks.context import Context
from advbench.tasks.execution import TaskOutcome, execute
from advbench.tasks.progress import CraftProgress
from advbench.tasks.score import failed_record
from advbench.tasks.task import Task


@dataclass(slots=True)
class Status:
    """Where a run stands, for whoever draws it.

    total, done: tasks of this run. running: labels of the tasks at work. crafts: where those of them stand that craft, by
    key. failed: labels of those that failed. spent, remaining: estimated cost done and left, for the time that is left.
    """

    total: int
    done: int = 0
    running: list[str] = field(default_factory=list)
    crafts: dict[str, CraftProgress] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    spent: float = 0.0
    remaining: float = 0.0

    @property
    def seconds_left(self) -> float | None:
        """The time left by the costs done so far; None until something is done."""
        if not self.spent:
            return None
        return (time.monotonic() - self.started) * self.remaining / self.spent


Watcher = Callable[[Status], None]


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended. failures: the reason of every cell that has no numbers, by key. interrupted: by Ctrl-C."""

    ran: int
    failures: dict[str, str]
    interrupted: bool


def run_plan(plan: Plan, watch: Watcher | None = None) -> Result:
    """Run what is pending, and write an error record for every cell that failed."""
    pending = plan.pending()
    status = Status(len(pending), remaining=sum(task.cost for task in pending))
    interrupted = False
    with _following(status, watch) as (folder, watched):
        context = _context(plan, folder)
        run = _Run(plan, context, status, watched)
        try:
            for wave in _waves(pending):
                run.wave(wave)
        except KeyboardInterrupt:
            interrupted = True
            if context.tasks_beside and plan.config.backend == "loky":
                get_reusable_executor().shutdown(wait=False, kill_workers=True)
    cells = {key: run.reasons[key] for key in plan.cells if key in run.reasons}
    for key, reason in cells.items():
        cell = plan.cell(key)
        plan.store.write(failed_record(key, cell.content, cell.facts, reason))
    return Result(status.done, cells, interrupted)


@contextmanager
def _following(status: Status, watch: Watcher | None) -> Iterator[tuple[Path | None, Watcher]]:
    """A folder where crafts say how they stand, and a watcher for one thread at a time; a thread reads the folder.

    Nobody says anything where nobody watches.
    """
    if watch is None:
        yield None, lambda _: None
        return
    turn, ended = threading.Lock(), threading.Event()

    def watched(status: Status) -> None:
        with turn:
            watch(status)

    def follow(folder: Path) -> None:
        while not ended.wait(progress.EVERY):
            standings = progress.read(folder)
            if standings or status.crafts:
                status.crafts = standings
                watched(status)

    with tempfile.TemporaryDirectory(prefix="advbench-", ignore_cleanup_errors=True) as name:
        thread = threading.Thread(target=follow, args=(Path(name),), daemon=True)
        thread.start()
        try:
            yield Path(name), watched
        finally:
            ended.set()
            thread.join()


def slots(plan: Plan) -> int:
    """How many tasks run side by side: one per core on the CPU, one per GPU, unless the configuration says."""
    if plan.config.jobs:
        return plan.config.jobs
    return usable_cores() if plan.devices[0].type == "cpu" else len(plan.devices)


def _context(plan: Plan, folder: Path | None) -> Context:
    config = plan.config
    return Context(
        out=config.out,
        dataset=config.dataset,
        data_dir=config.data_dir,
        trainings=plan.trainings,
        substitutes=plan.substitutes,
        tasks_beside=slots(plan) - 1,
        progress=folder,
        every=progress.EVERY,
    )


def _waves(tasks: Sequence[Task]) -> list[list[Task]]:
    """The tasks by depth among themselves, the most costly first; `tasks` has needs before those who need them."""
    depth: dict[str, int] = {}
    for task in tasks:
        depth[task.key] = 1 + max((depth.get(need, -1) for need in task.needs), default=-1)
    waves: list[list[Task]] = [[] for _ in range(1 + max(depth.values(), default=-1))]
    for task in tasks:
        waves[depth[task.key]].append(task)
    return [sorted(wave, key=lambda task: -task.cost) for wave in waves]


class _Run:
    """The state of one run: what failed, and what is drawn."""

    def __init__(self, plan: Plan, context: Context, status: Status, watch: Watcher) -> None:
        self.plan = plan
        self.context = context
        self.status = status
        self.watch = watch
        self.jobs = context.tasks_beside + 1
        self.reasons: dict[str, str] = {}

    def wave(self, tasks: list[Task]) -> None:
        """Run the tasks whose needs are there; those left over by a dead worker run again, one at a time."""
        waiting = {task.key: task for task in tasks if self._ready(task)}
        try:
            self._parallel(waiting, self.jobs)
        except BrokenProcessPool:
            for key in list(waiting):
                self._alone(waiting, key)

    def _ready(self, task: Task) -> bool:
        lost = next((need for need in task.needs if need in self.reasons), None)
        if lost is not None:
            label = self.plan.tasks[lost].label
            reason = self.reasons[lost]
            self._finish(task, reason if reason.startswith("needs ") else f"needs {label}, which failed: {reason}")
        return lost is None

    def _alone(self, waiting: dict[str, Task], key: str) -> None:
        try:
            self._parallel({key: waiting[key]}, 2)
        except BrokenProcessPool as error:
            # loky's text goes on with guesses and tracebacks; its first sentence says what happened.
            self._finish(waiting[key], f"the worker died: {' '.join(str(error).split()).partition('. ')[0]}")

    def _parallel(self, waiting: dict[str, Task], jobs: int) -> None:
        """Run tasks side by side; each leaves `waiting` as it ends."""
        if not waiting:
            return
        if self.jobs == 1 or self.plan.config.backend == "threading":
            backend, parallel = (
                "threading",
                joblib.Parallel(
                    n_jobs=self.jobs,
                    backend="threading",
                    return_as="generator_unordered",
                    pre_dispatch="n_jobs",
                    batch_size=1,
                ),
            )
        else:
            backend, parallel = (
                "loky",
                joblib.Parallel(
                    n_jobs=jobs, backend="loky", return_as="generator_unordered", pre_dispatch="n_jobs", batch_size=1
                ),
            )
        for outcome in parallel(self._calls(list(waiting.values()), backend)):
            self._finish(waiting.pop(outcome.key), outcome.reason)

    def _calls(self, tasks: list[Task], backend: str) -> Iterator[Callable[[], TaskOutcome]]:
        """The calls of a wave; joblib takes the next one when a slot is free, so that what it took is running."""
        for position, task in enumerate(tasks):
            device = self.plan.devices[position % len(self.plan.devices)]
            self.status.running.append(task.label)
            self.watch(self.status)
            yield joblib.delayed(_work)(task, self.context, str(device), backend == "loky")

    def _finish(self, task: Task, reason: str) -> None:
        self.status.done += 1
        self.status.spent += task.cost
        self.status.remaining -= task.cost
        if task.label in self.status.running:
            self.status.running.remove(task.label)
        if reason:
            self.reasons[task.key] = reason
            self.status.failed.append(task.label)
        self.watch(self.status)


def _work(task: Task, context: Context, device: str, own_process: bool) -> TaskOutcome:
    """Run a task in a worker. In a process of its own, Ctrl-C is left to the parent, which ends the workers."""
    if own_process:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        torch.set_num_threads(1)
    return execute(task, context, device)
