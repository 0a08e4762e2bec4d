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

from advbench import errors
from advbench.engine.claims import EVERY, Claims, Others, SharedClaims, Taken, Unclaimed
from advbench.engine.ending import as_ctrl_c
from advbench.engine.engine import Engine
from advbench.engine.local import engine_of, slots
from advbench.engine.time_left import TimeLeft
from advbench.files import NO_ROOM, temporary_folder
from advbench.plan.plan import Plan
from advbench.plan.saved import Saved
from advbench.tasks import blocks, progress
from advbench.tasks.artefacts import sweep
from advbench.tasks.blocks import blocks_of, missing
from advbench.tasks.context import Context
from advbench.tasks.craft import CraftContent
from advbench.tasks.execution import TaskOutcome
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

_SILENT = 5
"""Looks at the crafts after which a watcher is called even if none of them says anything."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended. failures: the reason of every cell that has no numbers, by key. interrupted: from outside."""

    ran: int
    failures: dict[str, str]
    interrupted: bool


MakeEngine = Callable[[Plan, Context], Engine]
"""Makes the engine that runs a plan's tasks."""


def run_plan(
    plan: Plan, watch: Watcher | None = None, engine_for: MakeEngine = engine_of, claims: Claims | None = None
) -> Result:
    """Run what is pending, and write an error record for every cell that failed.

    engine_for: what makes the engine, by default one of this machine, as the configuration says. claims: which tasks are
    taken here; by default those that no other process has, if others can work on this plan at all. Ctrl-C, SIGTERM and
    SIGHUP end what runs and keep what is finished. Raises OSError, in one line, if the disk is full or read-only: what could
    not be written is pending in the next run.
    """
    sweep(plan.config.out)
    blocks.sweep(plan.config.out)
    plan.store.sweep()
    if claims is None:
        claims = Unclaimed() if plan.live else _begun(plan)
    run, interrupted = work_on(plan, plan.pending(), watch, engine_for, claims)
    cells = {key: run.reasons[key] for key in plan.cells if key in run.reasons}
    for key, reason in cells.items():
        cell = plan.cell(key)
        plan.store.write(failed_record(key, cell.content, cell.facts, reason))
    return Result(run.status.done, cells, interrupted)


def _begun(plan: Plan) -> SharedClaims:
    """A new start of a run that others may help with: its plan lies in its folder."""
    shared = SharedClaims(plan.config.out)
    shared.begin()
    Saved.of(plan.config).planned(plan).write(plan.config.out)
    return shared


def work_on(
    plan: Plan, tasks: Sequence[Task], watch: Watcher | None, engine_for: MakeEngine, claims: Claims
) -> tuple[Run, bool]:
    """Run those of a plan's tasks that others leave, and wait for the rest; what became of them, and whether it was
    interrupted. No record of a cell that failed is written."""
    status = Status(len(tasks))
    with as_ctrl_c(), _following(status, watch) as (folder, watched):
        run = Run(plan, tasks, engine_for(plan, _context(plan, folder)), status, watched, claims)
        return run, run.all()


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
        ticks = 0
        while not ended.wait(progress.EVERY):
            ticks += 1
            standings = progress.read(folder)
            if standings or status.crafts or ticks % _SILENT == 0:
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
        tasks_beside=max(0, slots(plan) - 1),
        progress=folder,
        every=progress.EVERY,
        time_limit=config.time_limit,
        prepare=plan.prepare,
        keep_epochs=config.keep_epochs,
    )


def longest_paths(tasks: Sequence[Task], length: Callable[[Task], float] = lambda task: task.cost) -> dict[str, float]:
    """The length of each task and of the longest chain of tasks that need it, by key; `tasks` has needs first."""
    ahead: dict[str, float] = defaultdict(float)
    paths: dict[str, float] = {}
    for task in reversed(tasks):
        paths[task.key] = length(task) + ahead[task.key]
        for need in task.needs:
            ahead[need] = max(ahead[need], paths[task.key])
    return paths


class Run:
    """The state of one run: what waits for what, what is ready, what others do, what failed, and what is drawn.

    tasks: what is to be done, needs first; a need that is not among them lies there already. reasons: why tasks failed. ran:
    how many tasks, or blocks of them, ended here.
    """

    def __init__(
        self, plan: Plan, tasks: Sequence[Task], engine: Engine, status: Status, watch: Watcher, claims: Claims
    ) -> None:
        self.plan = plan
        self.engine = engine
        self.status = status
        self.watch = watch
        self.claims = claims
        self.ran = 0
        self._no_room, self._left = "", False
        self._running: dict[str, Task] = {}
        self._elsewhere: dict[str, Task] = {}
        self.time_left = status.time_left = TimeLeft(tasks, engine.slots)
        self.reasons: dict[str, str] = {}
        self._divided: dict[str, int] = {}
        self._all, self._tasks = tasks, {task.key: task for task in tasks}
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
            with self.claims.working():
                try:
                    self._loop()
                    finished = True
                finally:
                    self.engine.close(kill=not finished)
        except KeyboardInterrupt:
            interrupted = True
        return interrupted

    def _loop(self) -> None:
        """Keep every slot busy as long as a task is ready. OSError if a disk is full: no more tasks are started."""
        while self._running or ((self._ready or self._elsewhere) and not self._no_room and not self._left):
            self._fill()
            outcome = self._wait()
            if outcome is not None:
                task = self._running.pop(outcome.key)
                self.ran += 1
                here_alone = outcome.no_room or outcome.refused  # another worker may be able to do it
                self.claims.end(task, "" if here_alone else outcome.reason)
                self._end(task, outcome.reason)
                if self.ran.bit_count() == 1:  # a power of two
                    self._measure_anew()
                if outcome.no_room:  # what still runs may fit
                    self._no_room = self._no_room or outcome.reason
            if self._elsewhere or not self.engine.slots:
                self._follow()
        if self._no_room:
            raise OSError(f"{self._no_room}: what is finished is kept; the same command goes on when there is room")

    def _fill(self) -> None:
        """Start ready tasks in the free slots, those that nobody else has."""
        while self._ready and not self._no_room and len(self._running) < self.engine.slots:
            task = heapq.heappop(self._ready)[-1]
            if isinstance(task, BlockTask) and task.craft in self.reasons:
                self._leave(task)
                continue
            taken = self._take(task)
            if taken.ended:
                self._end(task, taken.reason)
                continue
            self._start(task)
            (self._running if taken.mine else self._elsewhere)[task.key] = task
            if taken.mine:
                self.engine.submit(task)

    def _take(self, task: Task) -> Taken:
        try:
            return self.claims.take(task)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self._no_room = errors.reason(error)
            return Taken(mine=False)

    def _wait(self) -> TaskOutcome | None:
        """The next task that ends here; None if others may have gone on meanwhile."""
        if self._running or not self.engine.slots:
            return self.engine.wait(EVERY if self._elsewhere or not self.engine.slots else None)
        if self._elsewhere:
            self._left = not self.claims.pause()
        return None

    def _follow(self) -> None:
        """Take note of what others have finished or given up; a run that only watches, of what they take, too."""
        others = self.claims.look()
        self.time_left.slots = self.engine.slots + len(others.held)
        for task in list(self._elsewhere.values()):
            if task.key in others.failed or not others.works_on(task):
                del self._elsewhere[task.key]
                if task.key in others.failed or self.claims.finished(task):
                    self._end(task, others.failed.get(task.key, ""))
                else:  # its worker was lost, or told to end
                    self._return(task)
        if not self.engine.slots:
            self._watch_ready(others)

    def _watch_ready(self, others: Others) -> None:
        ready, self._ready = self._ready, []
        for entry in sorted(ready):
            task = entry[-1]
            if others.works_on(task):
                self._elsewhere[task.key] = task
                self._start(task)
            elif task.key in others.failed or self.claims.finished(task):
                self._end(task, others.failed.get(task.key, ""))
            else:
                heapq.heappush(self._ready, entry)

    def _return(self, task: Task) -> None:
        """A task that others had is ready again."""
        self.time_left.returns(task)
        self.status.running.remove(task.label)
        self._queue(task)

    def _push(self, task: Task) -> None:
        """A task is ready: a craft as its blocks that are missing, if several slots could divide them."""
        content = task.content
        several = self.engine.slots > 1 or (self.claims.divides and self.engine.slots == 1)
        if not several or not isinstance(content, CraftContent) or len(blocks_of(content.images)) == 1:
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

    def _measure_anew(self) -> None:
        """Order what is ready by seconds, as learnt so far: costs compare only tasks of one kind on one model."""
        self._paths = longest_paths(self._all, self.time_left.seconds)
        waiting, self._ready = self._ready, []
        for entry in waiting:
            self._queue(entry[-1])

    def _start(self, task: Task) -> None:
        self.time_left.starts(task)
        self.status.running.append(task.label)
        self.watch(self.status)

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
