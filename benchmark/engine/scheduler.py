"""The scheduler: pending tasks in waves by depth, the longest first, on the slots of an engine.

A task that fails takes only those with it that need its result; a worker that dies takes only its own task; an interrupt
keeps what is finished.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from advbench.engine.engine import Engine
from advbench.engine.local import engine_of, slots
from advbench.plan.plan import Plan
from advbench.tasks import progress
from advbench.tasks.context import Context
from advbench.tasks.progress import CraftProgress
from advbench.tasks.score import failed_record
from advbench.tasks.task import Task


@dataclass(slots=True)
class Status:
    """The state of a run, for progress displays.

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


MakeEngine = Callable[[Plan, Context], Engine]
"""Makes the engine that runs a plan's tasks."""


def run_plan(plan: Plan, watch: Watcher | None = None, engine_for: MakeEngine = engine_of) -> Result:
    """Run what is pending, and write an error record for every cell that failed.

    engine_for: what makes the engine, by default one of this machine, as the configuration says.
    """
    pending = plan.pending()
    status = Status(len(pending), remaining=sum(task.cost for task in pending))
    with _following(status, watch) as (folder, watched):
        run = _Run(plan, engine_for(plan, _context(plan, folder)), status, watched)
        interrupted = run.waves(_waves(pending))
    cells = {key: run.reasons[key] for key in plan.cells if key in run.reasons}
    for key, reason in cells.items():
        cell = plan.cell(key)
        plan.store.write(failed_record(key, cell.content, cell.facts, reason))
    return Result(status.done, cells, interrupted)


@contextmanager
def _following(status: Status, watch: Watcher | None) -> Iterator[tuple[Path | None, Watcher]]:
    """A folder where crafts say how they stand, and a watcher for one thread at a time; a thread reads the folder.

    Without a watcher nothing is shown.
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

    def __init__(self, plan: Plan, engine: Engine, status: Status, watch: Watcher) -> None:
        self.plan = plan
        self.engine = engine
        self.status = status
        self.watch = watch
        self.reasons: dict[str, str] = {}

    def waves(self, waves: Sequence[Sequence[Task]]) -> bool:
        """Run wave after wave, and close the engine; whether Ctrl-C ended it. Other errors come through."""
        finished = interrupted = False
        try:
            for wave in waves:
                self._wave(wave)
            finished = True
        except KeyboardInterrupt:
            interrupted = True
        finally:
            self.engine.close(kill=not finished)
        return interrupted

    def _wave(self, tasks: Sequence[Task]) -> None:
        """Run the tasks whose needs are there, as many at a time as the engine has slots."""
        waiting = deque(task for task in tasks if self._ready(task))
        running = 0
        while waiting or running:
            while waiting and running < self.engine.slots:
                self._start(waiting.popleft())
                running += 1
            outcome = self.engine.wait()
            running -= 1
            self._finish(self.plan.tasks[outcome.key], outcome.reason)

    def _ready(self, task: Task) -> bool:
        lost = next((need for need in task.needs if need in self.reasons), None)
        if lost is not None:
            label = self.plan.tasks[lost].label
            reason = self.reasons[lost]
            self._finish(task, reason if reason.startswith("needs ") else f"needs {label}, which failed: {reason}")
        return lost is None

    def _start(self, task: Task) -> None:
        self.status.running.append(task.label)
        self.watch(self.status)
        self.engine.submit(task)

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
