"""The engines of this machine: tasks in the calling thread, in threads, or in processes; its devices as slots."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool

import torch
from joblib.externals.loky import ProcessPoolExecutor, get_reusable_executor
from joblib.externals.loky.process_executor import BrokenProcessPool

from advbench.clocks import usable_cores
from advbench.engine import ending
from advbench.engine.engine import Engine
from advbench.plan.plan import Plan
from advbench.tasks.artefacts import leave_telling_to_parent
from advbench.tasks.context import Context
from advbench.tasks.execution import TaskOutcome, execute
from advbench.tasks.task import Task

Work = Callable[[Task, Context, str], TaskOutcome]
"""What a worker does with a task on a device."""

_IDLE = 300
"""Seconds until idle processes end; those of one run are reused by the next."""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""Variables that bound the threads of a numerical library: one per process, unless the user says."""


def slots(plan: Plan) -> int:
    """How many tasks run side by side: one per core on the CPU, one per GPU, unless the configuration says."""
    if plan.config.jobs:
        return plan.config.jobs
    if plan.config.slots_per_device:
        return plan.config.slots_per_device * len(plan.devices)
    return usable_cores() if plan.devices[0].type == "cpu" else len(plan.devices)


def engine_of(plan: Plan, context: Context) -> Engine:
    """The engine that the configuration of a plan asks for. ValueError if it is none of this machine."""
    if plan.config.engine != "local":
        raise ValueError(f"Expected the `engine` local, got {plan.config.engine}, which is not there yet")
    places = Slots.of(slots(plan), [str(device) for device in plan.devices])
    if places.count == 1:
        return InlineEngine(context, places)
    if plan.config.backend == "threading":
        return ThreadEngine(context, places)
    return ProcessEngine(context, places)


@dataclass(slots=True)
class Slots:
    """Slots, each on a device. free: the devices of those that are free; taken: of the others, by the key of their task."""

    count: int
    free: deque[str]
    taken: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(count: int, devices: Sequence[str]) -> Slots:
        """`count` slots, spread over the devices in turn."""
        return Slots(count, deque(devices[slot % len(devices)] for slot in range(count)))

    def take(self, task: Task) -> str:
        """A device with a free slot, which the task takes: the one with the fewest tasks. RuntimeError if none is free."""
        if not self.free:
            raise RuntimeError(f"Expected at most {self.count} tasks at a time, got another one: {task.label}")
        busy = Counter(self.taken.values())
        device = self.taken[task.key] = min(self.free, key=busy.__getitem__)
        self.free.remove(device)
        return device

    def give_back(self, key: str) -> None:
        """Free the slot of a task."""
        self.free.append(self.taken.pop(key))

    def check(self) -> None:
        """Raise RuntimeError if no task has a slot, so that none can be waited for."""
        if not self.taken:
            raise RuntimeError("Expected a submitted task to wait for, got none")


class InlineEngine:
    """One task at a time, in the thread that waits for it, where live models of this process can be reached."""

    def __init__(self, context: Context, places: Slots, work: Work = execute) -> None:
        self._context = context
        self._places = places
        self._work = work
        self._submitted: deque[tuple[Task, str]] = deque()

    @property
    def slots(self) -> int:
        """How many tasks can be submitted; they run one after the other."""
        return self._places.count

    def submit(self, task: Task) -> None:
        """Keep the task until it is waited for."""
        self._submitted.append((task, self._places.take(task)))

    def wait(self, timeout: float | None = None) -> TaskOutcome:  # noqa: ARG002
        """Run the first task that was submitted, however long it takes."""
        self._places.check()
        task, device = self._submitted.popleft()
        outcome = _attempt(self._work, task, self._context, device)
        self._places.give_back(task.key)
        return outcome

    def close(self, *, kill: bool = False) -> None:  # noqa: ARG002
        """Forget what was submitted and not waited for."""
        self._submitted.clear()


class ThreadEngine:
    """Tasks in threads of this process."""

    def __init__(self, context: Context, places: Slots, work: Work = execute) -> None:
        self._context = context
        self._places = places
        self._work = work
        self._pool = ThreadPool(places.count)
        self._ended: queue.SimpleQueue[TaskOutcome | BaseException] = queue.SimpleQueue()

    @property
    def slots(self) -> int:
        """How many tasks run side by side."""
        return self._places.count

    def submit(self, task: Task) -> None:
        """Start the task in a free thread."""
        device = self._places.take(task)
        arguments = (self._work, task, self._context, device)
        self._pool.apply_async(_attempt, arguments, callback=self._ended.put, error_callback=self._ended.put)

    def wait(self, timeout: float | None = None) -> TaskOutcome | None:
        """Wait for a thread. What a task did not catch is raised here."""
        self._places.check()
        try:
            outcome = self._ended.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(outcome, BaseException):
            raise outcome
        self._places.give_back(outcome.key)
        return outcome

    def close(self, *, kill: bool = False) -> None:  # noqa: ARG002
        """Take no more tasks. A thread cannot be ended: with `kill` it is left behind, and does not keep Python alive."""
        self._pool.terminate()


class ProcessEngine:
    """Tasks in processes of their own, which outlive the engine for the next one.

    They end when this process is gone, even if it was killed. A process that dies breaks the whole pool. The tasks that were
    running then run again, one at a time, which finds the one that kills its process; tasks that are submitted meanwhile
    start afterwards.
    """

    def __init__(self, context: Context, places: Slots, work: Work = execute) -> None:
        self._context = context
        self._places = places
        self._work = work
        self._running: dict[Future[TaskOutcome], Task] = {}
        self._suspects: deque[Task] = deque()
        self._later: deque[Task] = deque()
        self._alone: Task | None = None

    @property
    def slots(self) -> int:
        """How many tasks run side by side."""
        return self._places.count

    def submit(self, task: Task) -> None:
        """Start the task in a free process."""
        self._places.take(task)
        if self._suspects or self._alone is not None:
            self._later.append(task)
        else:
            self._start(task)

    def wait(self, timeout: float | None = None) -> TaskOutcome | None:
        """Wait for a process."""
        self._places.check()
        outcome = self._next(timeout)
        if outcome is not None:
            self._places.give_back(outcome.key)
        return outcome

    def close(self, *, kill: bool = False) -> None:
        """With `kill` end the processes; else leave them to the next engine, idle ones for `_IDLE` seconds."""
        if kill:
            self._executor().shutdown(wait=False, kill_workers=True)

    def _executor(self) -> ProcessPoolExecutor:
        env = {name: os.environ.get(name, "1") for name in _THREADS}
        return get_reusable_executor(
            max_workers=self.slots, timeout=_IDLE, env=env, initializer=ending.end_with_parent, initargs=(os.getpid(),)
        )

    def _start(self, task: Task) -> None:
        arguments = (self._work, task, self._context, self._places.taken[task.key])
        try:
            future = self._executor().submit(_in_process, *arguments)
        except BrokenProcessPool:  # another task's process has died since the last look; the next pool is whole
            future = self._executor().submit(_in_process, *arguments)
        self._running[future] = task

    def _next(self, timeout: float | None) -> TaskOutcome | None:
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            if not self._running:
                self._alone = self._suspects.popleft()
                self._start(self._alone)
            left = None if until is None else max(0.0, until - time.monotonic())
            ended = wait_for(self._running, left, FIRST_COMPLETED).done
            if not ended:
                return None
            outcome = self._outcome(next(iter(ended)))
            if outcome is not None:
                return outcome

    def _outcome(self, future: Future[TaskOutcome]) -> TaskOutcome | None:
        """How a task ended; None if a process died beside it, so that it must run again."""
        task = self._running.pop(future)
        try:
            outcome = future.result()
        except BrokenProcessPool as error:
            if task is not self._alone:
                self._suspects.append(task)
                return None
            # loky's text goes on with guesses and tracebacks; its first sentence says what happened.
            reason = " ".join(str(error).split()).partition(". ")[0]
            outcome = TaskOutcome(task.key, 0.0, f"the worker died: {reason}")
        self._alone = None
        while self._later and not self._suspects:
            self._start(self._later.popleft())
        return outcome


def _attempt(work: Work, task: Task, context: Context, device: str) -> TaskOutcome:
    """Run a task. One that asks to end the program has failed: the others go on."""
    try:
        return work(task, context, device)
    except SystemExit as error:
        return TaskOutcome(task.key, 0.0, f"SystemExit: {error}")


def _in_process(work: Work, task: Task, context: Context, device: str) -> TaskOutcome:
    """Run a task in a process of its own, where Ctrl-C is left to the parent, which ends the processes."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if context.progress is not None:
        ending.remove_with_parent(context.progress)
    leave_telling_to_parent()
    torch.set_num_threads(1)
    return _attempt(work, task, context, device)
