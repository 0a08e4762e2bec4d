"""What an engine's worker does with a task."""

from __future__ import annotations

from collections.abc import Callable

from advbench.tasks.context import Context
from advbench.tasks.execution import TaskOutcome
from advbench.tasks.task import Task

Work = Callable[[Task, Context, str], TaskOutcome]
"""What a worker does with a task on a device."""


def attempt(work: Work, task: Task, context: Context, device: str) -> TaskOutcome:
    """Run a task. One that asks to end the program has failed: the others go on."""
    try:
        return work(task, context, device)
    except SystemExit as error:
        return TaskOutcome(task.key, 0.0, f"SystemExit: {error}")
