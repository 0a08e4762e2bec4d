"""What a worker does with a task: it gets keys and contents, never live objects, and writes the result in its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from advbench.clocks import single_thread, stopwatch
from advbench.tasks import calibrate, clean, craft, diagnose, score, substitute, train
from advbench.tasks.context import Context
from advbench.tasks.task import Task


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """How a task ended: `reason` is empty where it finished. seconds: wall-clock of the whole task."""

    key: str
    seconds: float
    reason: str = ""


def execute(task: Task, context: Context, device: str) -> TaskOutcome:
    """Run one task on one thread, and write its result. Whatever goes wrong comes back as the outcome's reason."""
    place = torch.device(device)
    with stopwatch(place) as measured:
        try:
            with single_thread():
                _ACTIONS[task.kind](task, context, place)
            reason = ""
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    return TaskOutcome(task.key, measured.seconds, reason)


_ACTIONS: dict[str, Callable[[Task, Context, torch.device], None]] = {
    "train": train.run,
    "substitute": substitute.run,
    "clean": clean.run,
    "diagnose": diagnose.run,
    "calibrate": calibrate.run,
    "craft": craft.run,
    "score": score.run,
}
