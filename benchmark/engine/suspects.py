"""Which tasks may start after a worker has died and nobody knows by which of the tasks that it may have had."""

from __future__ import annotations

from collections import deque

from advbench.tasks.task import Task


class Suspects:
    """Tasks that a worker may have died of: each runs again alone, and tasks that come meanwhile start afterwards."""

    def __init__(self) -> None:
        self._suspects: deque[Task] = deque()
        self._later: deque[Task] = deque()
        self._alone: Task | None = None

    def admit(self, task: Task) -> bool:
        """Whether a new task may start at once; else it waits."""
        if not self._suspects and self._alone is None:
            return True
        self._later.append(task)
        return False

    def accuse(self, task: Task) -> bool:
        """A worker of the task has died: whether the task was alone, so that it is its doing; else it runs again alone."""
        if task is self._alone:
            return True
        self._suspects.append(task)
        return False

    def acquit(self, task: Task) -> None:
        """The task runs again as if it were new: it is known what its worker died of."""
        self._later.append(task)

    def ended(self, task: Task) -> None:
        """A task has ended."""
        if task is self._alone:
            self._alone = None

    def next(self, busy: bool) -> list[Task]:
        """The tasks that start now: a suspect if no worker is busy, or, if there is no suspect, all that wait."""
        if self._suspects:
            if busy:
                return []
            self._alone = self._suspects.popleft()
            return [self._alone]
        if self._alone is not None:
            return []
        waiting = list(self._later)
        self._later.clear()
        return waiting
