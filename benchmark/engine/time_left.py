"""The time that a run still takes, learnt from the tasks that ended."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable

from advbench.tasks.clean import CleanContent
from advbench.tasks.craft import CraftContent
from advbench.tasks.diagnose import DiagnoseContent
from advbench.tasks.known_noise import KnownNoiseContent
from advbench.tasks.score import ScoreContent
from advbench.tasks.task import Task
from advbench.tasks.unit_test import UnitTestContent


class TimeLeft:
    """Seconds that the waiting and running tasks of a run take, on a number of slots.

    A task's cost says how it compares with others of its kind on the same model: seconds per unit of cost are learnt from
    those that ended, first of the same kind and model, then of the same kind, then of all. Before the first task ends
    nothing is known. slots: how many tasks run side by side, which may change.
    """

    def __init__(self, tasks: Iterable[Task], slots: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.slots, self._clock = slots, clock
        self._waiting: dict[tuple[str, str], float] = defaultdict(float)
        self._running: dict[str, tuple[Task, float]] = {}
        self._seconds: dict[Hashable, float] = defaultdict(float)
        self._costs: dict[Hashable, float] = defaultdict(float)
        for task in tasks:
            self._waiting[_group(task)] += task.cost

    def starts(self, task: Task) -> None:
        """A waiting task has a slot."""
        self._waiting[_group(task)] -= task.cost
        self._running[task.key] = task, self._clock()

    def ends(self, task: Task) -> None:
        """A task has ended, or will never start."""
        if task.key not in self._running:
            self._waiting[_group(task)] -= task.cost
            return
        _, started = self._running.pop(task.key)
        for level in _levels(_group(task)):
            self._seconds[level] += self._clock() - started
            self._costs[level] += task.cost

    def returns(self, task: Task) -> None:
        """A task that ran waits again; what it has done so far is lost."""
        del self._running[task.key]
        self._waiting[_group(task)] += task.cost

    def forget(self, task: Task, cost: float) -> None:
        """So much of a waiting task's cost is done already, or will never be."""
        self._waiting[_group(task)] -= cost

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the last task ends, if all slots stay busy; None until the first task has ended."""
        if not self._costs[()]:
            return None
        now = self._clock()
        work = sum(cost * self._rate(group) for group, cost in self._waiting.items())
        for task, started in self._running.values():
            work += max(0.0, task.cost * self._rate(_group(task)) - (now - started))
        return work / max(1, self.slots)

    def seconds(self, task: Task) -> float:
        """Seconds that a task takes, as learnt so far; before the first one has ended its cost."""
        return task.cost * (self._rate(_group(task)) if self._costs[()] else 1.0)

    def _rate(self, group: tuple[str, str]) -> float:
        """Seconds per unit of cost, of the nearest tasks that ended."""
        level = next(level for level in _levels(group) if self._costs[level])
        return self._seconds[level] / self._costs[level]


def _group(task: Task) -> tuple[str, str]:
    """The kind of a task, and the model that it asks, if any."""
    content = task.content
    if isinstance(content, CraftContent):
        return task.kind, content.attacked.model
    if isinstance(content, CleanContent | DiagnoseContent | UnitTestContent | KnownNoiseContent | ScoreContent):
        return task.kind, content.target
    return task.kind, ""


def _levels(group: tuple[str, str]) -> tuple[Hashable, ...]:
    """What a rate is learnt of: kind and model, the kind, all."""
    return group, group[0], ()
