"""Run the studies of a paper through the harness, compare, and write what came out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from advbench.config import make_config
from advbench.engine.scheduler import Watcher, run_plan
from advbench.plan.plan import Plan, make_plan
from advbench.records.reporting import write_manifest
from advbench.reproduction.findings import Findings, RunFindings, ScoredCell
from advbench.reproduction.studies import choose
from advbench.reproduction.study import SCALES, Comparison, Scale, Settings, Study
from advbench.zoo.data import DataSet

Announce = Callable[[str], None]


@dataclass(frozen=True, slots=True, eq=False)
class StudyOutcome:
    """What became of a study.

    comparisons: empty where it is not complete. problem: why it is not, one line; empty where it is. failures: the reason of
    every cell without numbers, by its label. seconds: wall-clock time of this call, next to nothing where all was there.
    """

    study: Study
    comparisons: tuple[Comparison, ...]
    problem: str
    failures: dict[str, str]
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Reproduction:
    """What a call of `reproduce` did. reports: the files that were written."""

    scale: Scale
    seeds: tuple[int, ...]
    outcomes: tuple[StudyOutcome, ...]
    reports: tuple[Path, ...]
    interrupted: bool

    @property
    def exit_code(self) -> int:
        """0 every study is complete, 1 at least one is not, 130 interrupted. A claim that fails does not count."""
        return 130 if self.interrupted else 1 if any(one.problem for one in self.outcomes) else 0


def reproduce(
    name: str | None = None,
    *,
    scale: Scale = "small",
    out: str | Path = "advbench-reproduction",
    seeds: Sequence[int] = (0, 1, 2),
    watch: Watcher | None = None,
    announce: Announce | None = None,
    data_dir: str | Path | None = None,
    device: str | None = None,
    jobs: int | None = None,
    backend: str | None = None,
) -> Reproduction:
    """Run a paper's experiments and put its tables beside ours.

    name: PAPER, PAPER.TABLE, or None for all. scale: `smoke` (digits), `small` (MNIST, short trainings)
    or `full` (the papers' budgets, for a GPU). seeds: of the trainings; claims need at least three. watch, announce: called
    with the scheduler's status, and with the name of each run as it starts. data_dir, device, jobs,
    backend: as for `advbench.run`.

    Finished work in `out` and in the model cache is kept. Raises ValueError, in one line, for bad input.
    """
    from advbench.reproduction.rendering import write

    if scale not in SCALES:
        raise ValueError(f"Expected `scale` among {', '.join(SCALES)}, got {scale!r}")
    folder, outcomes, keys, interrupted = Path(out), [], [], False
    chosen = choose(name, scale)
    settings = {"data_dir": data_dir, "device": device, "jobs": jobs, "backend": backend}
    loaded: _Loaded = {}
    plans = [_plans(study, scale, tuple(seeds), folder, settings, loaded) for study in chosen]
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder, list(dict.fromkeys(key for each in plans for plan in each.values() for key in plan.cells)))
    for study, each in zip(chosen, plans, strict=True):
        outcome, interrupted = _run(study, tuple(seeds), each, watch, announce or (lambda _: None))
        outcomes.append(outcome)
        keys += [key for plan in each.values() for key in plan.cells]
        if interrupted:
            break
    reports = write(folder, scale, tuple(seeds), outcomes)
    return Reproduction(scale, tuple(seeds), tuple(outcomes), tuple(reports), interrupted)


_Loaded: TypeAlias = dict[tuple[str, Path | None], DataSet]
"""Data sets by name and folder: the plans of a reproduction, dozens of them, share one copy of each."""


def _plans(
    study: Study, scale: Scale, seeds: tuple[int, ...], out: Path, settings: Settings, loaded: _Loaded
) -> dict[str, Plan]:
    plans: dict[str, Plan] = {}
    for run, own in study.runs(scale).items():
        config = make_config(**{"out": out, "seed": seeds, **own, **settings})
        place = (config.dataset, config.data_dir)
        plans[run] = make_plan(config, data=loaded.get(place))
        loaded[place] = plans[run].data
    return plans


def _run(
    study: Study, seeds: tuple[int, ...], plans: dict[str, Plan], watch: Watcher | None, announce: Announce
) -> tuple[StudyOutcome, bool]:
    """The outcome of a study, and whether it was interrupted."""
    start, failures = time.monotonic(), dict[str, str]()
    for run, plan in plans.items():
        announce(f"{study.name} ({run})")
        result = run_plan(plan, watch)
        failures |= {plan.tasks[key].label: reason for key, reason in result.failures.items()}
        if result.interrupted:
            return StudyOutcome(study, (), "interrupted", failures, time.monotonic() - start), True
    findings = Findings({run: _findings(plan) for run, plan in plans.items()}, seeds)
    comparisons: tuple[Comparison, ...] = ()
    problem = "; ".join(f"{label}: {reason}" for label, reason in list(failures.items())[:3])
    try:
        comparisons = tuple(study.compare(findings))
    except ValueError as error:
        problem = problem or str(error)
    except KeyboardInterrupt:
        return StudyOutcome(study, (), "interrupted", failures, time.monotonic() - start), True
    return StudyOutcome(study, comparisons, problem, failures, time.monotonic() - start), False


def _findings(plan: Plan) -> RunFindings:
    store = plan.store
    found = [store.load(key) for key in plan.cells]
    return RunFindings(plan, tuple(ScoredCell(one[0], one[1]) for one in found if one and one[1] is not None))
