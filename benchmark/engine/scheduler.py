"""The scheduler: one loop that gives every slot of an engine that becomes free the ready task with the longest path ahead.

A task that fails takes only those with it that need its result; a worker that dies takes only its own task; an interrupt
keeps what is finished.
"""

from __future__ import annotations

import dataclasses
import heapq
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from advbench.engine.ending import as_ctrl_c
from advbench.engine.engine import Engine
from advbench.engine.local import engine_of, slots
from advbench.engine.time_left import TimeLeft
from advbench.files import temporary_folder
from advbench.plan.plan import Plan
from advbench.tasks import blocks, progress
from advbench.tasks.artefacts import sweep
from advbench.tasks.blocks import blocks_of, missing
from advbench.tasks.context import Context
from advbench.tasks.craft import CraftContent
from advbench.tasks.progress import CraftProgress
from advbench.tasks.score import failed_record
from advbench.tasks.task import BlockTask, Task


@dataclass(slots=True)
class Status:
    """The state of a run, for progress displays.

    total, done: tasks of this run. running: labels of the tasks at work. crafts: where those of them stand that craft, by
    key. failed: labels of those that failed. time_left: its estimate, None if nobody makes one.
    """

    total: int
    done: int = 0
    running: list[str] = field(default_factory=list)
    crafts: dict[str, CraftProgress] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    time_left: TimeLeft | None = None

    @property
    def seconds_left(self) -> float | None:
        """The time left by the tasks that ended; None until one has."""
        return None if self.time_left is None else self.time_left.seconds_left


Watcher = Callable[[Status], None]


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended. failures: the reason of every cell that has no numbers, by key. interrupted: from outside."""

    ran: int
    failures: dict[str, str]
    interrupted: bool


MakeEngine = Callable[[Plan, Context], Engine]
"""Makes the engine that runs a plan's tasks."""


def run_plan(plan: Plan, watch: Watcher | None = None, engine_for: MakeEngine = engine_of) -> Result:
    """Run what is pending, and write an error record for every cell that failed.

    engine_for: what makes the engine, by default one of this machine, as the configuration says. Ctrl-C, SIGTERM and SIGHUP
    end what runs and keep what is finished. Raises OSError, in one line, if the disk is full or read-only: what could not be
    written is pending in the next run.
    """
    sweep(plan.config.out)
    blocks.sweep(plan.config.out)
    plan.store.sweep()
    pending = plan.pending()
    status = Status(len(pending))
    with as_ctrl_c(), _following(status, watch) as (folder, watched):
        run = _Run(plan, pending, engine_for(plan, _context(plan, folder)), status, watched)
        interrupted = run.all()
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
                try:
                    watched(status)
                except OSError:  # nowhere to show it; the scheduler's own thread finds out and says so
                    return

    with temporary_folder() as folder:
        thread = threading.Thread(target=follow, args=(folder,), daemon=True)
        thread.start()
        try:
            yield folder, watched
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
        time_limit=config.time_limit,
    )


def longest_paths(tasks: Sequence[Task]) -> dict[str, float]:
    """The cost of each task and of the longest chain of tasks that need it, by key; `tasks` has needs first."""
    ahead: dict[str, float] = defaultdict(float)
    paths: dict[str, float] = {}
    for task in reversed(tasks):
        paths[task.key] = task.cost + ahead[task.key]
        for need in task.needs:
            ahead[need] = max(ahead[need], paths[task.key])
    return paths


class _Run:
    """The state of one run: what waits for what, what is ready, what failed, and what is drawn.

    tasks: what is to be done, needs first; a need that is not among them lies there already.
    """

    def __init__(self, plan: Plan, tasks: Sequence[Task], engine: Engine, status: Status, watch: Watcher) -> None:
        self.plan = plan
        self.engine = engine
        self.status = status
        self.watch = watch
        self.time_left = status.time_left = TimeLeft(tasks, engine.slots)
        self.reasons: dict[str, str] = {}
        self._divided: dict[str, int] = {}
        self._tasks = {task.key: task for task in tasks}
        self._paths = longest_paths(tasks)
        self._order = {task.key: number for number, task in enumerate(tasks)}
        self._missing = {task.key: sum(need in self._paths for need in task.needs) for task in tasks}
        self._after: dict[str, list[Task]] = defaultdict(list)
        for task in tasks:
            for need in task.needs:
                self._after[need].append(task)
        self._ready: list[tuple[float, int, int, Task]] = []
        for task in tasks:
            if not self._missing[task.key]:
                self._push(task)

    def all(self) -> bool:
        """Run all tasks, and close the engine; whether Ctrl-C ended it. Other errors come through."""
        finished = interrupted = False
        try:
            self._loop()
            finished = True
        except KeyboardInterrupt:
            interrupted = True
        finally:
            self.engine.close(kill=not finished)
        return interrupted

    def _loop(self) -> None:
        """Keep every slot busy as long as a task is ready. OSError if a disk is full: no more tasks are started."""
        running: dict[str, Task] = {}
        no_room = ""
        while (self._ready and not no_room) or running:
            while self._ready and not no_room and len(running) < self.engine.slots:
                task = heapq.heappop(self._ready)[-1]
                if isinstance(task, BlockTask) and task.craft in self.reasons:
                    self._leave(task)
                else:
                    running[task.key] = task
                    self._start(task)
            if running:
                outcome = self.engine.wait()
                if outcome is None:
                    continue
                self._end(running.pop(outcome.key), outcome.reason)
                if outcome.no_room:  # what still runs may fit
                    no_room = no_room or outcome.reason
        if no_room:
            raise OSError(f"{no_room}: what is finished is kept; the same command goes on when there is room")

    def _push(self, task: Task) -> None:
        """A task is ready: a craft as its blocks that are missing, if several slots could divide them."""
        content = task.content
        if self.engine.slots == 1 or not isinstance(content, CraftContent) or len(blocks_of(content.images)) == 1:
            self._queue(task)
            return
        cut = [BlockTask.of(task, block) for block in missing(task.key, content.images, self.plan.config.out)]
        # What is left of the craft is to pack its blocks.
        self.time_left.forget(task, task.cost - sum(block.cost for block in cut))
        self._tasks[task.key] = packing = dataclasses.replace(task, cost=0.0)
        self._divided[task.key] = len(cut)
        for block in cut:
            self._queue(block)
        if not cut:
            self._queue(packing)

    def _queue(self, task: Task) -> None:
        craft, start = (task.craft, task.block.start) if isinstance(task, BlockTask) else (task.key, 0)
        heapq.heappush(self._ready, (-self._paths[craft], self._order[craft], start, task))

    def _start(self, task: Task) -> None:
        self.time_left.starts(task)
        self.status.running.append(task.label)
        self.watch(self.status)
        self.engine.submit(task)

    def _end(self, task: Task, reason: str) -> None:
        """A task has ended: a craft fails with its first block that fails, and is packed after the last."""
        if not isinstance(task, BlockTask):
            self._finish(task, reason)
            return
        self._leave(task)
        craft = self._tasks[task.craft]
        self._divided[craft.key] -= 1
        if craft.key in self.reasons:
            self.watch(self.status)
        elif reason:
            self._finish(craft, reason)
        elif not self._divided[craft.key]:
            self._queue(craft)

    def _finish(self, task: Task, reason: str) -> None:
        """Take note of a task that ended; of those that need it push what is ready, and end at once what cannot run."""
        ended = [(task, reason)]
        while ended:
            task, reason = ended.pop()
            self._note(task, reason)
            for later in self._after[task.key]:
                self._missing[later.key] -= 1
                if not self._missing[later.key]:
                    lost = self._lost(later)
                    if lost:
                        ended.append((later, lost))
                    else:
                        self._push(later)

    def _lost(self, task: Task) -> str:
        """Why a task whose needs have all ended cannot run; empty if it can."""
        need = next((need for need in task.needs if need in self.reasons), None)
        if need is None:
            return ""
        reason = self.reasons[need]
        return reason if reason.startswith("needs ") else f"needs {self.plan.tasks[need].label}, which failed: {reason}"

    def _note(self, task: Task, reason: str) -> None:
        self.status.done += 1
        self._leave(task)
        if reason:
            self.reasons[task.key] = reason
            self.status.failed.append(task.label)
        self.watch(self.status)

    def _leave(self, task: Task) -> None:
        """A task no longer runs, or never will."""
        self.time_left.ends(task)
        if task.label in self.status.running:
            self.status.running.remove(task.label)
