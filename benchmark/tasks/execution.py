"""What a worker does with a task: it gets keys and contents, never live objects, and writes the result in its place."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from advbench.clocks import single_thread, stopwatch
from advbench.tasks import calibrate, clean, craft, diagnose, score, substitute, train, unit_test
from advbench.tasks.clean import CleanContent
from advbench.tasks.context import Context
from advbench.tasks.craft import CraftContent
from advbench.tasks.diagnose import DiagnoseContent
from advbench.tasks.score import ScoreContent
from advbench.tasks.substitute import SubstituteContent
from advbench.tasks.task import ScoreTask, Task
from advbench.tasks.train import TrainContent
from advbench.tasks.unit_test import UnitTestContent


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """How a task ended: `reason` is empty if it finished. seconds: wall-clock of the whole task."""

    key: str
    seconds: float
    reason: str = ""


def execute(task: Task, context: Context, device: str) -> TaskOutcome:
    """Run one task on one thread, and write its result. Any exception comes back as the outcome's reason."""
    place = torch.device(device)
    with stopwatch(place) as measured:
        try:
            with single_thread():
                _perform(task, context, place)
            reason = ""
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    return TaskOutcome(task.key, measured.seconds, reason)


def _perform(task: Task, context: Context, device: torch.device) -> None:
    """Do what the content asks for."""
    key, content = task.key, task.content
    if isinstance(task, ScoreTask):
        score.run(key, task.content, task.facts, context, device)
    elif isinstance(content, TrainContent):
        train.run(key, content, task.label, context, device)
    elif isinstance(content, SubstituteContent):
        substitute.run(key, content, context, device)
    elif isinstance(content, CleanContent):
        clean.run(key, content, context, device)
    elif isinstance(content, DiagnoseContent):
        diagnose.run(key, content, context, device)
    elif isinstance(content, UnitTestContent):
        unit_test.run(key, content, context, device)
    elif isinstance(content, CraftContent):
        craft.run(key, content, task.label, context, device)
    elif not isinstance(content, ScoreContent):
        calibrate.run(key, content, context, device)
