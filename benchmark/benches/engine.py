"""The engine: what a task costs beside its own work, from the scheduler's loop to its worker and back.

Tasks compute nothing and write nothing, and share a context that knows a training for each of them. The same processes of
loky also take as many calls of a function that does nothing, all handed over at once: what lies between is advbench's own.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import wait
from functools import partial
from pathlib import Path

import torch

from advbench.benches.bench import BenchRow
from advbench.clocks import device_name
from advbench.config import make_config
from advbench.engine.places import Slots
from advbench.engine.processes import ProcessEngine, executor
from advbench.engine.scheduler import run_plan
from advbench.plan.plan import Plan
from advbench.registry import registry
from advbench.tasks.components import Component
from advbench.tasks.context import Context
from advbench.tasks.execution import execute
from advbench.tasks.task import Task
from advbench.tasks.train import TrainContent
from advbench.zoo import datasets

TASKS = 5000
WORKERS = 2
ALLOWED = 2e-3
"""Seconds of a task at most, beyond loky's own."""
_ROUNDS = 2


def rows(device: torch.device, tasks: int = TASKS) -> Iterator[BenchRow]:  # noqa: ARG001
    """A row for a task of the engine beside one of loky alone, and one for the difference beside what is allowed."""
    ours = alone = math.inf
    for _ in range(_ROUNDS):
        ours, alone = min(ours, _engine(tasks)), min(alone, _loky(tasks))
    case = f"{tasks} tasks that do nothing, {WORKERS} workers"
    name = device_name(torch.device("cpu"))
    yield BenchRow(
        case=case,
        measure=f"a task, {1e3 * ours:.3g} ms",
        device=name,
        against=f"loky alone, {1e3 * alone:.3g} ms",
        seconds=ours,
        reference_seconds=alone,
    )
    yield BenchRow(
        case=case,
        measure="a task beyond loky alone",
        device=name,
        against=f"{1e3 * ALLOWED:g} ms",
        seconds=max(0.0, ours - alone),
        reference_seconds=ALLOWED,
        bar=1.0,
    )


def _engine(tasks: int) -> float:
    """Seconds of a task in a run of so many, the workers there already."""
    with tempfile.TemporaryDirectory() as folder:
        _run(_plan(Path(folder), 10 * WORKERS))
        plan = _plan(Path(folder), tasks)
        start = time.perf_counter()
        _run(plan)
        return (time.perf_counter() - start) / tasks


def _run(plan: Plan) -> None:
    """Run a plan. KeyError if a task fails: no record can say so, as its tasks are no cells."""
    run_plan(plan, engine_for=_process_engine)


def _process_engine(plan: Plan, context: Context) -> ProcessEngine:
    return ProcessEngine(context, Slots.of(WORKERS, [str(plan.devices[0])]), partial(execute, perform=_no_work))


def _no_work(task: Task, context: Context, device: torch.device) -> None:
    """Compute nothing, write nothing."""


def _plan(out: Path, count: int) -> Plan:
    """So many trainings, none of which has been done."""
    data = registry.load_dataset("digits", None)
    defense, architecture = (Component(name, (), "") for name in ("none", "gu2014/n100-100-10"))
    budget = datasets.default_budget("digits")
    contents = [TrainContent(defense, architecture, data.fingerprint, budget, seed, ()) for seed in range(count)]
    trainings = {hashlib.sha256(f"bench {content.seed}".encode()).hexdigest(): content for content in contents}
    tasks = {key: Task(key, content, f"task {content.seed}", 1.0) for key, content in trainings.items()}
    config = make_config(out=out, jobs=WORKERS)
    return Plan(config, data, [torch.device("cpu")], tasks, trainings, {}, tuple(tasks))


def _loky(tasks: int) -> float:
    """Seconds of a call of loky alone, in the same processes."""
    pool = executor(WORKERS)
    start = time.perf_counter()
    wait([pool.submit(_nothing, number) for number in range(tasks)])
    return (time.perf_counter() - start) / tasks


def _nothing(number: int) -> int:
    return number
