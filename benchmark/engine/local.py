"""The engine that a configuration asks for, and those that run tasks in this process: inline, or in threads."""

from __future__ import annotations

import queue
from collections import deque
from importlib.util import find_spec
from multiprocessing.pool import ThreadPool

from advbench.clocks import usable_cores
from advbench.engine.engine import Engine
from advbench.engine.places import Slots
from advbench.engine.processes import ProcessEngine
from advbench.engine.work import Work, attempt
from advbench.plan.plan import Plan
from advbench.tasks.context import Context
from advbench.tasks.execution import TaskOutcome, execute
from advbench.tasks.task import Task


def slots(plan: Plan) -> int:
    """How many tasks run side by side: one per core on the CPU, one per GPU, unless the configuration says.

    None run here if the plan is for devices of other machines.
    """
    if not plan.devices:
        return 0
    if plan.config.jobs:
        return plan.config.jobs
    if plan.config.slots_per_device:
        return plan.config.slots_per_device * len(plan.devices)
    return usable_cores() if plan.devices[0].type == "cpu" else len(plan.devices)


def engine_of(plan: Plan, context: Context) -> Engine:
    """The engine that the configuration of a plan asks for.

    ValueError, in one line, if it is not there, or if its workers are not as they must be.
    """
    places = Slots.of(slots(plan), [str(device) for device in plan.devices])
    if plan.config.engine == "dask":
        return _dask(plan, context, places)
    if plan.config.engine != "local":
        raise ValueError(
            f"Expected the `engine` local or dask here, got {plan.config.engine}: begin with one of them, and let workers "
            f"help with `advbench work {plan.config.out}`"
        )
    if places.count == 1:
        return InlineEngine(context, places)
    if plan.config.backend == "threading":
        return ThreadEngine(context, places)
    return ProcessEngine(context, places)


def _dask(plan: Plan, context: Context, places: Slots) -> Engine:
    if find_spec("distributed") is None:
        raise ValueError("Expected dask's distributed for the engine dask, got none: pip install 'advbench[dask]'")
    from advbench.engine.dask_engine import Cluster, DaskEngine

    return DaskEngine(context, Cluster.of(plan, places))


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
        outcome = attempt(self._work, task, self._context, device)
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
        self._pool.apply_async(attempt, arguments, callback=self._ended.put, error_callback=self._ended.put)

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
