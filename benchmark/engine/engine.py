"""What an engine is: where tasks run. The scheduler says which and when; an engine for other machines is one more class."""

from __future__ import annotations

from typing import Protocol

from advbench.tasks.execution import TaskOutcome
from advbench.tasks.task import Task


class Engine(Protocol):
    """Runs tasks side by side: in this process, on this machine, or on others.

    A worker gets a task's key and content, never a live object, and writes the result in its place, so that a task that runs
    twice does no harm. An engine knows no plan: it is handed tasks whose needs are there, at most `slots` at a time, by one
    thread.
    """

    @property
    def slots(self) -> int:
        """How many tasks run side by side; 0 if workers that come by themselves do all of them."""
        ...

    def submit(self, task: Task) -> None:
        """Start a task on a free slot. RuntimeError if none is free."""
        ...

    def wait(self, timeout: float | None = None) -> TaskOutcome | None:
        """Wait for the next task that ends, in any order, and free its slot.

        timeout: seconds after which None comes back if none has ended; without it a task is waited for. A task that fails,
        or whose worker dies, is an outcome with a reason; a worker that dies costs no other task its result. RuntimeError if
        nothing was submitted.
        """
        ...

    def close(self, *, kill: bool = False) -> None:
        """Give back what the engine holds. kill: end the tasks that still run; else none may."""
        ...
