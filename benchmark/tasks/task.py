"""The nodes of a plan: tasks, named by what they compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from advbench.tasks.artefacts import Kind
from advbench.tasks.blocks import Block
from advbench.tasks.calibrate import CalibrateContent
from advbench.tasks.clean import CleanContent
from advbench.tasks.craft import CraftContent
from advbench.tasks.diagnose import DiagnoseContent
from advbench.tasks.known_noise import KnownNoiseContent
from advbench.tasks.score import ScoreContent, ScoreFacts
from advbench.tasks.substitute import SubstituteContent
from advbench.tasks.train import TrainContent
from advbench.tasks.unit_test import UnitTestContent

TaskContent: TypeAlias = (
    TrainContent
    | SubstituteContent
    | CleanContent
    | DiagnoseContent
    | UnitTestContent
    | KnownNoiseContent
    | CalibrateContent
    | CraftContent
)
"""What a task computes, except for scores."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One node of the plan.

    key: SHA-256 of the content, of the code that runs it and, if numbers depend on them, of the versions of libraries.
    label: for people. cost: a rough measure, for running the longest first.
    """

    key: str
    content: TaskContent | ScoreContent
    label: str
    cost: float

    @property
    def kind(self) -> Kind:
        """What it does."""
        return self.content.kind

    @property
    def needs(self) -> tuple[str, ...]:
        """The keys of the tasks whose results it reads."""
        return self.content.needs


@dataclass(frozen=True, slots=True, eq=False)
class BlockTask(Task):
    """A block of a craft, which an engine may run beside others. key: of the block. craft: the key of the whole."""

    content: CraftContent
    craft: str
    block: Block

    @staticmethod
    def of(task: Task, block: Block) -> BlockTask:
        """A block of the task of a craft."""
        content = task.content
        if not isinstance(content, CraftContent):
            raise TypeError(f"Expected the task of a craft, got {task.label!r}")
        key, cost = f"{task.key}-{block.start}", task.cost * len(block) / content.images.n
        return BlockTask(key, content, f"{task.label}, {block}", cost, task.key, block)


@dataclass(frozen=True, slots=True, eq=False)
class ScoreTask(Task):
    """The node of a cell. facts: what its record shows beside the content; no part of the key."""

    content: ScoreContent
    facts: ScoreFacts
