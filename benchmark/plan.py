"""The plan: the registry crossed into tasks, each named by what it computes.

A task's key is the SHA-256 of its canonical content, so that a changed hyper-parameter, seed, data set or source file is
another task, and a finished one is never done twice (DESIGN, sections 2 and 3).
"""

from __future__ import annotations

from advbench import matrices, registry
from advbench.clocks import resolve_devices
from advbench.compiling import check_compiler
from advbench.config import Config
from advbench.graph import Plan, Task, artefact, scored_split
from advbench.planner import Planner, by_gradients
from advbench.suite import suite_of
from advbench.zoo.data import DataSet

__all__ = ["Plan", "Task", "artefact", "make_plan", "scored_split"]


def make_plan(config: Config, *, measure: bool = True, data: DataSet | None = None) -> Plan:
    """Cross the components of `config` into tasks. ValueError, in one line, for anything that does not fit.

    measure: whether to measure a compute batch that is not yet known on this machine (a dry run does not). data: the data
    set of `config`, where it is loaded already.
    """
    registry.check_name("datasets", config.dataset)
    if config.compile:
        check_compiler(resolve_devices(config.device)[0])
    planner, suite = Planner(config, measure, data), suite_of(config)
    for seed in config.seed:
        targets = [
            planner.target(defense, architecture, seed, alone=len(suite.architectures) == 1)
            for architecture in suite.architectures
            for defense in suite.defenses
        ]
        if "white-box" in config.matrix:
            for target in targets:
                matrices.white_box(planner, target)
        if {"white-box", "black-box"} & set(config.matrix):
            for target in targets:
                matrices.queries(planner, target)
        if "black-box" in config.matrix and any(map(by_gradients, planner.attacks)):
            for target in targets:
                for substitute in suite.substitutes:
                    matrices.black_box(planner, target, substitute)
        if "transfer" in config.matrix:
            matrices.transfer(planner, targets)
    return Plan(config, planner.data, planner.devices, planner.tasks, tuple(planner.cells))
