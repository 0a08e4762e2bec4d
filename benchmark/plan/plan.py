"""The plan: the registry crossed into tasks, each named by what it computes, so that a finished one is never done twice."""

from __future__ import annotations

import dataclasses
import gc
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from advbench.clocks import resolve_devices
from advbench.config import Config
from advbench.plan import matrices
from advbench.plan.place import Place
from advbench.plan.planner import Planner
from advbench.plan.suite import suite_of
from advbench.registry import registry
from advbench.registry.schemes import HELD
from advbench.results.store import Store
from advbench.tasks import blocks
from advbench.tasks.artefacts import artefact
from advbench.tasks.compiling import check_compiler
from advbench.tasks.execution import Listing, lies_there
from advbench.tasks.substitute import SubstituteContent
from advbench.tasks.task import ScoreTask, Task
from advbench.tasks.train import TrainContent
from advbench.zoo.data import DataSet


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Everything that a run computes.

    devices: of this machine, none if the plan is for another. place: the kind of device that it is for. tasks: by key, needs
    before those who need them. trainings, substitutes: the contents of such tasks, by key. cells: the keys of the scores.
    prepare: what another process does before the first task, as it cannot reach live models of this one.
    """

    config: Config
    data: DataSet
    devices: list[torch.device]
    tasks: Mapping[str, Task]
    trainings: Mapping[str, TrainContent]
    substitutes: Mapping[str, SubstituteContent]
    cells: tuple[str, ...]
    place: Place | None = None
    prepare: Callable[[], None] | None = None

    @property
    def store(self) -> Store:
        """Where the records go."""
        return Store(self.config.out)

    @property
    def live(self) -> bool:
        """Whether it is about a model of this process, which no other process can plan again."""
        return self.config.dataset.startswith(HELD)

    def cell(self, key: str) -> ScoreTask:
        """The task of a cell. Raises KeyError for an unknown key."""
        task = self.tasks[key]
        if not isinstance(task, ScoreTask):
            raise KeyError(f"Expected the key of a cell, got that of {task.label!r}")
        return task

    def done(self, task: Task) -> bool:
        """Whether the task's result lies finished in its place; a damaged one does not, and is named in the log."""
        return lies_there(task, self.config.out)

    def forget(self) -> None:
        """Delete the results of all tasks, so that they run again."""
        for task in self.tasks.values():
            blocks.forget(task.key, self.config.out)
            place = artefact(task.kind, task.key, self.config.out)
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)

    def pending(self, lying: Listing | None = None) -> list[Task]:
        """The tasks that must run, in order: the cells without a result, and what they need that is not there.

        lying: what lies there, if it is known.
        """
        wanted: set[str] = set()
        lying = lying or Listing(self.config.out)
        waiting = [key for key in self.cells if not lying.finished(self.tasks[key])]
        while waiting:
            key = waiting.pop()
            if key not in wanted:
                wanted.add(key)
                waiting.extend(need for need in self.tasks[key].needs if not lying.finished(self.tasks[need]))
        return [task for key, task in self.tasks.items() if key in wanted]


@contextmanager
def _long_lived() -> Iterator[None]:
    """Without passes of the garbage collector over all objects: tasks stay, and what is dropped was young."""
    before = gc.get_threshold()
    gc.set_threshold(before[0], before[1], 2**31 - 1)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def make_plan(config: Config, *, measure: bool = True, data: DataSet | None = None, place: Place | None = None) -> Plan:
    """Cross the components of `config` into tasks. ValueError, in one line, for anything that does not fit.

    measure: whether to measure a compute batch that is not yet known on this machine (a dry run does not). data: the data
    set of `config`, where it is loaded already. place: the place of a plan that another machine has made.
    """
    registry.datasets.check(config.dataset)
    if config.compile and place is None:
        check_compiler(resolve_devices(config.device)[0])
    if config.precision == "tf32" and config.backend == "threading" and config.jobs != 1:
        raise ValueError(
            "Expected `backend` loky or one job for `precision` tf32, got threads, which share torch's switch for it"
        )
    planner, suite = Planner(config, measure, data, place), suite_of(config)
    with _long_lived():
        for seed in config.seed:
            targets = [
                planner.target(defense, architecture, seed, alone=len(suite.architectures) == 1)
                for architecture in suite.architectures
                for defense in suite.defenses
            ]
            matrices.cross(planner, targets, suite.substitutes)
    return Plan(
        config,
        planner.data,
        planner.devices,
        planner.tasks,
        planner.trainings,
        planner.substitutes,
        tuple(planner.cells),
        dataclasses.replace(planner.place, batches=planner.batches, answers=tuple(planner.answered)),
    )
