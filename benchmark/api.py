"""The public functions: what the command line does, from Python."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advbench.config import Config, make_config, to_toml
from advbench.engine.scheduler import Watcher, run_plan
from advbench.plan.plan import Plan, make_plan
from advbench.records.reporting import write_manifest
from advbench.results.store import Store
from advbench.tasks.artefacts import artefact

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run left behind.

    out: the output folder. cells: keys of the cells. failures: the reason of every cell without numbers, by key.
    reports: the files that were written. ran: tasks that were executed, the rest was there. interrupted: by Ctrl-C.
    """

    out: Path
    cells: tuple[str, ...]
    failures: dict[str, str]
    reports: tuple[Path, ...]
    ran: int
    interrupted: bool

    @property
    def frame(self) -> pd.DataFrame:
        """A pandas DataFrame with a row per cell, failed ones among them."""
        from advbench.reports.data_frame import frame

        store = Store(self.out)
        return frame([store.read(key) for key in self.cells if store.path(key).is_dir()], store)

    @property
    def exit_code(self) -> int:
        """0 all cells scored, 1 some cell failed, 130 interrupted."""
        return 130 if self.interrupted else 1 if self.failures else 0

    def _repr_html_(self) -> str:
        return str(self.frame.to_html(index=False))


def run(config_file: str | Path | None = None, *, watch: Watcher | None = None, **settings: Any) -> RunResult:
    """Cross defenses and attacks into the matrices, and publish a leaderboard.

    config_file: a TOML file. settings: the same names as the command line's flags with ``_`` (`matrix`, `dataset`,
    `defense`, `attack`, `norm`, `epsilon`, `seed`, `n_examples`, `out`, ...), which override the file; components are names,
    ``"pgd(steps=100)"``, or mappings with a `name`. watch: called with the scheduler's `Status` as it changes.

    Finished work in `out` and in the model cache is kept and not done again. Raises ValueError, in one line, for bad input.
    """
    config = make_config(Path(config_file) if config_file is not None else None, **settings)
    return run_config(config, watch)


def run_config(config: Config, watch: Watcher | None = None) -> RunResult:
    """Run a checked configuration: plan, schedule, report."""
    plan = make_plan(config)
    return finish(plan, watch)


def finish(plan: Plan, watch: Watcher | None = None) -> RunResult:
    """Run what a plan still needs, and write the reports of all its cells."""
    from advbench.reports.write import write_reports

    config = plan.config
    if config.fresh:
        forget(plan)
    config.out.mkdir(parents=True, exist_ok=True)
    write_manifest(config.out, plan.cells, to_toml(config))
    result = run_plan(plan, watch)
    reports = write_reports(config.out, plan.cells)
    return RunResult(config.out, plan.cells, result.failures, tuple(reports), result.ran, result.interrupted)


def forget(plan: Plan) -> None:
    """Delete the results of a plan's tasks, so that all of them run again."""
    for task in plan.tasks.values():
        place = artefact(task.kind, task.key, plan.config.out)
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
