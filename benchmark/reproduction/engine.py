"""Run the studies of a paper through the harness, compare, and write what came out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from advbench.config import make_config
from advbench.engine.scheduler import Watcher, run_plan
from advbench.plan.plan import Plan, make_plan
from advbench.records.reporting import write_manifest
from advbench.reproduction.findings import Findings, RunFindings, ScoredCell
from advbench.reproduction.studies import choose
from advbench.reproduction.study import EVERY_SCALE, FIRST_SEEDS, Comparison, Scale, Settings, Study
from advbench.reproduction.tuning import Selection, Tuned, Tuning, ValidationSearch, first, following, measure, trainings
from advbench.zoo.data import DataSet

Announce = Callable[[str], None]
_INTERRUPTED = "interrupted"


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

    name: PAPER, PAPER.TABLE, or None for all. scale: `smoke` (digits), `small` (MNIST, short trainings), `medium` (hours on
    a CPU, of some studies) or `full` (the papers' budgets, for a GPU). seeds: of the trainings; claims need at least three.
    watch, announce: called with the scheduler's status, and with the name of each run as it starts. data_dir, device, jobs,
    backend: as for `advbench.run`. Strengths that a study chooses by validation are trained first, on seeds of their own.

    Finished work in `out` and in the model cache is kept. Raises ValueError, in one line, for bad input.
    """
    from advbench.reproduction.rendering import write

    if scale not in EVERY_SCALE:
        raise ValueError(f"Expected `scale` among {', '.join(EVERY_SCALE)}, got {scale!r}")
    folder, outcomes, interrupted = Path(out), list[StudyOutcome](), False
    chosen = choose(name, scale)
    settings = {"data_dir": data_dir, "device": device, "jobs": jobs, "backend": backend}
    loaded: _Loaded = {}

    def planned(tuned: _TunedBy) -> list[dict[str, Plan]]:
        return [_plans(study, scale, tuple(seeds), folder, settings, loaded, tuned.get(study.tuning)) for study in chosen]

    def plan(own: Settings, of: tuple[int, ...]) -> Plan:
        return _plan(own, of, folder, settings, loaded)

    plans, announced = planned({}), announce or (lambda _: None)  # what cannot be planned is said before anything runs
    folder.mkdir(parents=True, exist_ok=True)
    tuned, problems = _tune_all(chosen, scale, tuple(seeds), plan, watch, announced)
    plans = planned(tuned) if tuned else plans
    write_manifest(folder, list(dict.fromkeys(key for each in plans for one in each.values() for key in one.cells)))
    for study, each in zip(chosen, plans, strict=True):
        if study.tuning in problems:
            outcome = StudyOutcome(study, (), problems[study.tuning], {}, 0.0)
            interrupted = outcome.problem == _INTERRUPTED
        else:
            outcome, interrupted = _run(study, study.seeds(seeds, scale), each, watch, announced, tuned.get(study.tuning))
        outcomes.append(outcome)
        if interrupted:
            break
    reports = write(folder, scale, tuple(seeds), outcomes)
    return Reproduction(scale, tuple(seeds), tuple(outcomes), tuple(reports), interrupted)


_Loaded: TypeAlias = dict[tuple[str, Path | None], DataSet]
"""Data sets by name and folder: the plans of a reproduction, dozens of them, share one copy of each."""


_TunedBy: TypeAlias = dict["Selection | None", Tuned]


def _plans(
    study: Study,
    scale: Scale,
    seeds: tuple[int, ...],
    out: Path,
    settings: Settings,
    loaded: _Loaded,
    tuned: Tuned | None = None,
) -> dict[str, Plan]:
    runs = study.runs(scale) if tuned is None or study.tuned_runs is None else study.tuned_runs(scale, tuned)
    return {run: _plan(own, study.seeds(seeds, scale), out, settings, loaded) for run, own in runs.items()}


def _plan(own: Settings, seeds: tuple[int, ...], out: Path, settings: Settings, loaded: _Loaded) -> Plan:
    few = own.get(FIRST_SEEDS)
    given = {name: value for name, value in own.items() if name != FIRST_SEEDS}
    judged = seeds[:few] if isinstance(few, int) else seeds
    config = make_config(**{"out": out, "seed": judged, **given, **settings})
    place = (config.dataset, config.data_dir)
    plan = make_plan(config, data=loaded.get(place))
    loaded[place] = plan.data
    return plan


def _tune_all(
    studies: Sequence[Study],
    scale: Scale,
    asked: tuple[int, ...],
    planned: Callable[[Settings, tuple[int, ...]], Plan],
    watch: Watcher | None,
    announce: Announce,
) -> tuple[_TunedBy, dict[Selection | None, str]]:
    """What the tunings of the studies found, and why some found nothing; none follows one that was interrupted."""
    tuned, problems = _TunedBy(), dict[Selection | None, str]()
    for tuning in dict.fromkeys(study.tuning for study in studies):
        if tuning is None or scale not in tuning.scales:
            continue
        if _INTERRUPTED in problems.values():
            problems[tuning] = _INTERRUPTED
            continue
        judged = {seed for study in studies if study.tuning is tuning for seed in study.seeds(asked, scale)}
        try:
            if shared := sorted(judged & {*tuning.seeds}):
                raise ValueError(
                    f"Expected other `seeds` than those that strengths are chosen by, got {shared[0]} among both"
                )
            if isinstance(tuning, ValidationSearch):
                found = _search(tuning, scale, planned, watch, announce)
            else:
                found = _tune(tuning, scale, planned, watch, announce)
        except ValueError as error:
            problems[tuning] = str(error)
            continue
        if found is None:
            problems[tuning] = _INTERRUPTED
        else:
            tuned[tuning] = found
    return tuned, problems


def _tune(
    tuning: Tuning,
    scale: Scale,
    planned: Callable[[Settings, tuple[int, ...]], Plan],
    watch: Watcher | None,
    announce: Announce,
) -> Tuned | None:
    """The strengths that the rule chooses, trained until no grid is to be extended; None if it was interrupted.

    Raises ValueError, in one line, where a training failed.
    """
    strengths = first(tuning)
    while True:
        plan = planned(tuning.run(scale, trainings(tuning, strengths)), tuning.seeds)
        announce(f"{tuning.name}: {sum(map(len, strengths.values()))} strengths of {len(strengths)} methods")
        run = _whole(plan, watch)
        if run is None:
            return None
        found = measure(tuning, Findings({tuning.name: run}, tuning.seeds), strengths)
        further = following(tuning, found)
        if {name: {*each} for name, each in further.items()} == {name: {*each} for name, each in strengths.items()}:
            return found
        strengths = further


def _search(
    search: ValidationSearch,
    scale: Scale,
    planned: Callable[[Settings, tuple[int, ...]], Plan],
    watch: Watcher | None,
    announce: Announce,
) -> Tuned | None:
    """What a search chooses from its trainings; None if it was interrupted. Raises ValueError as `_tune`."""
    runs = dict[str, RunFindings]()
    for name, own in search.runs(scale).items():
        announce(f"{search.name} ({name})")
        run = _whole(planned(own, search.seeds), watch)
        if run is None:
            return None
        runs[name] = run
    try:
        return search.find(Findings(runs, search.seeds), scale)
    except KeyboardInterrupt:
        return None


def _whole(plan: Plan, watch: Watcher | None) -> RunFindings | None:
    """The findings of a run without failures; None if it was interrupted. Raises ValueError, in one line, for a failure."""
    result = run_plan(plan, watch)
    if result.interrupted:
        return None
    for key, reason in result.failures.items():
        raise ValueError(f"{plan.tasks[key].label}: {reason}")
    return _findings(plan)


def _run(
    study: Study,
    seeds: tuple[int, ...],
    plans: dict[str, Plan],
    watch: Watcher | None,
    announce: Announce,
    tuned: Tuned | None = None,
) -> tuple[StudyOutcome, bool]:
    """The outcome of a study, and whether it was interrupted."""
    start, failures = time.monotonic(), dict[str, str]()
    for run, plan in plans.items():
        announce(f"{study.name} ({run})")
        result = run_plan(plan, watch)
        failures |= {plan.tasks[key].label: reason for key, reason in result.failures.items()}
        if result.interrupted:
            return StudyOutcome(study, (), _INTERRUPTED, failures, time.monotonic() - start), True
    findings = Findings(
        {run: _findings(plan) for run, plan in plans.items()}, most_seeds(plans.values()) or seeds, tuned=tuned
    )
    comparisons: tuple[Comparison, ...] = ()
    problem = "; ".join(f"{label}: {reason}" for label, reason in list(failures.items())[:3])
    try:
        comparisons = tuple(study.compare(findings))
    except ValueError as error:
        problem = problem or str(error)
    except KeyboardInterrupt:
        return StudyOutcome(study, (), _INTERRUPTED, failures, time.monotonic() - start), True
    return StudyOutcome(study, comparisons, problem, failures, time.monotonic() - start), False


def most_seeds(plans: Iterable[Plan]) -> tuple[int, ...]:
    """The training seeds of the run that has most; those of the others are the first of them."""
    return max((tuple(plan.config.seed) for plan in plans), key=len, default=())


def _findings(plan: Plan) -> RunFindings:
    store = plan.store
    found = [store.load(key) for key in plan.cells]
    return RunFindings(plan, tuple(ScoredCell(one[0], one[1]) for one in found if one and one[1] is not None))
