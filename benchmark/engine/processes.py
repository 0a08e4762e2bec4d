"""The engine of this machine that runs tasks in processes of their own."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for
from contextlib import ExitStack
from dataclasses import replace

import torch
from joblib.externals.loky import ProcessPoolExecutor, get_reusable_executor
from joblib.externals.loky.process_executor import BrokenProcessPool

from advbench.engine import ending
from advbench.engine.places import Slots
from advbench.engine.sharing import Handle, share, shared
from advbench.engine.suspects import Suspects
from advbench.engine.work import Work, attempt
from advbench.errors import DEBUG
from advbench.files import temporary_folder
from advbench.tasks import progress
from advbench.tasks.artefacts import leave_telling_to_parent
from advbench.tasks.context import Context
from advbench.tasks.execution import TaskOutcome, execute
from advbench.tasks.task import BlockTask, Task
from advbench.tasks.time_limit import said

_IDLE = 300
"""Seconds until idle processes end; those of one run are reused by the next."""
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""Variables that bound the threads of a numerical library: one per process, unless the user says."""
_OURS = ("ADVBENCH_CACHE", "ADVBENCH_DATA", DEBUG)
"""Variables that say where files lie and what is shown."""


def executor(workers: int) -> ProcessPoolExecutor:
    """So many processes, those of the last call if they still live, which end with this one.

    Processes that began with other variables of advbench's, such as another cache folder, are replaced.
    """
    env = {name: os.environ.get(name, "1") for name in _THREADS}
    env |= {name: os.environ[name] for name in _OURS if name in os.environ}
    return get_reusable_executor(
        max_workers=workers, timeout=_IDLE, env=env, initializer=ending.end_with_parent, initargs=(os.getpid(),)
    )


class ProcessEngine:
    """Tasks in processes of their own, which outlive the engine for the next one.

    They end when this process is gone, even if it was killed. What all tasks share reaches each process once. A process that
    dies breaks the whole pool. The tasks that were running then run again, one at a time, which finds the one that kills its
    process; tasks that are submitted meanwhile start afterwards.
    """

    def __init__(self, context: Context, places: Slots, work: Work = execute) -> None:
        self._context = context
        self._places = places
        self._work = work
        self._held = ExitStack()
        self._handle: Handle | None = None
        self._running: dict[Future[TaskOutcome], tuple[Task, ProcessPoolExecutor]] = {}
        self._stopped: set[ProcessPoolExecutor] = set()
        self._suspects = Suspects()

    @property
    def slots(self) -> int:
        """How many tasks run side by side."""
        return self._places.count

    def submit(self, task: Task) -> None:
        """Start the task in a free process."""
        self._places.take(task)
        if self._suspects.admit(task):
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
            executor(self.slots).shutdown(wait=False, kill_workers=True)
        self._held.close()
        self._handle = None

    def _shared(self) -> Handle:
        """The handle of what all tasks share, in a folder that goes with the engine."""
        if self._handle is None:
            folder = self._held.enter_context(temporary_folder())
            self._context = replace(self._context, last_words=folder)
            self._handle = share((self._work, self._context), folder)
        return self._handle

    def _start(self, task: Task) -> None:
        arguments = (self._shared(), task, self._places.taken[task.key])
        try:
            pool = executor(self.slots)
            future = pool.submit(_in_process, *arguments)
        except BrokenProcessPool:  # another task's process has died since the last look; the next pool is whole
            pool = executor(self.slots)
            future = pool.submit(_in_process, *arguments)
        self._running[future] = task, pool

    def _next(self, timeout: float | None) -> TaskOutcome | None:
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            self._go_on()
            left = None if until is None else max(0.0, until - time.monotonic())
            ended = wait_for(self._running, left, FIRST_COMPLETED).done
            if not ended:
                return None
            outcome = self._outcome(next(iter(ended)))
            if outcome is not None:
                return outcome

    def _go_on(self) -> None:
        """Start what waited for others to end."""
        for task in self._suspects.next(busy=bool(self._running)):
            self._start(task)

    def _outcome(self, future: Future[TaskOutcome]) -> TaskOutcome | None:
        """How a task ended; None if a process died beside it, so that it must run again."""
        task, pool = self._running.pop(future)
        outcome: TaskOutcome | None
        try:
            outcome = future.result()
        except BrokenProcessPool as error:
            outcome = self._after_a_death(task, pool, error)
        if outcome is not None:
            self._suspects.ended(task)
            self._go_on()
        return outcome

    def _after_a_death(self, task: Task, pool: ProcessPoolExecutor, error: BrokenProcessPool) -> TaskOutcome | None:
        """How a task of a broken pool ended; None if it must run again: alone, unless it is known whose process died."""
        if self._did_not_stop(task):
            self._stopped.add(pool)
            return TaskOutcome(task.key, 0.0, self._out_of_time(task))
        beside = (other for other, its in self._running.values() if its is pool)
        if pool in self._stopped or any(map(self._did_not_stop, beside)):
            self._suspects.acquit(task)
            return None
        if not self._suspects.accuse(task):
            return None
        # loky's text goes on with guesses and tracebacks; its first sentence says what happened.
        reason = " ".join(str(error).split()).partition(". ")[0]
        return TaskOutcome(task.key, 0.0, f"the worker died: {reason}")

    def _did_not_stop(self, task: Task) -> bool:
        """Whether the task's process has ended itself, as the task went on beyond its time."""
        folder = self._context.last_words
        try:
            return folder is not None and (folder / task.key).stat().st_size > 0
        except OSError:
            return False

    def _out_of_time(self, task: Task) -> str:
        standing = progress.read(self._context.progress).get(task.key) if self._context.progress is not None else None
        so_far = f"{standing.so_far}; " if standing is not None else ""
        part = str(task.block) if isinstance(task, BlockTask) else ""
        return said(self._context.time_limit or 0.0, part, f"{so_far}its code did not stop, so its process was ended")


def _in_process(handle: Handle, task: Task, device: str) -> TaskOutcome:
    """Run a task in a process of its own, where Ctrl-C is left to the parent, which ends the processes."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    ending.remove_with_parent(handle.path.parent)
    leave_telling_to_parent()
    torch.set_num_threads(1)
    work, context = shared(handle)
    if context.progress is not None:
        ending.remove_with_parent(context.progress)
    if context.prepare is not None:
        context.prepare()
    return attempt(work, task, context, device)
