"""The public functions: what the command line does, from Python."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar, Unpack

from advbench.config import Config, RunSettings, make_config, to_toml
from advbench.engine.claims import SharedClaims
from advbench.engine.engine import Engine
from advbench.engine.scheduler import Watcher, run_plan
from advbench.plan.plan import Plan, make_plan
from advbench.records.entries import declared
from advbench.records.reporting import write_manifest
from advbench.results.store import Store

if TYPE_CHECKING:
    import pandas as pd

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run left behind.

    out: the output folder. cells: keys of the cells. failures: the reason of every cell without numbers, by key.
    reports: the files that were written. ran: tasks that were executed, the rest was there. interrupted: by Ctrl-C.

    >>> result = RunResult(Path("advbench-out"), cells=("a", "b"), failures={"b": "out of memory"}, reports=(), ran=2,
    ...                    interrupted=False)
    >>> result.exit_code
    1
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
        """0 all cells scored, 1 at least one cell failed, 130 interrupted."""
        return 130 if self.interrupted else 1 if self.failures else 0

    def _repr_html_(self) -> str:
        return str(self.frame.to_html(index=False))


def _spelled_out(function: Callable[P, R]) -> Callable[P, R]:
    """The function with every setting of a run in its signature, for `help` and notebooks; type checkers see them anyway."""
    own = inspect.signature(function)
    settings = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind.__forward_arg__)
        for name, kind in RunSettings.__annotations__.items()
    ]
    named = [one for one in own.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    function.__signature__ = own.replace(parameters=[*named, *settings])  # type: ignore[attr-defined]
    return function


@_spelled_out
def run(
    config_file: str | Path | None = None, *, watch: Watcher | None = None, **settings: Unpack[RunSettings]
) -> RunResult:
    """Cross defenses and attacks into the matrices, and publish a leaderboard.

    config_file: a TOML file of settings; those given here override it.
    watch: called with the scheduler's `Status` as it changes.

    What is crossed (None: the default suite)
    matrix: ``all``, or some of ``white-box``, ``black-box`` and ``transfer``.
    dataset: a registered name, ``npz:PATH`` or ``folder:PATH``. data_dir: its folder.
    outputs: what networks of yours, architectures ``own:TARGET``, return: ``logits``, ``probabilities`` or
    ``log-probabilities``.
    architecture, defense, attack: ``"pgd(steps=100)"``, a list of such, or mappings with a `name`.
    substitute: architectures of the black-box attacker's substitutes.
    seed: one training seed or several.
    n_examples: scored test images, all if None.

    The threat
    norm: ``linf``, ``l2``, ``l1``, or ``none`` for corruptions.
    epsilon: one or several, in pixel units of [0, 1], such as ``"8/255"``; the data set's usual one if None.
    clip: whether adversarial images keep to the range of pixels.

    Training (None: the data set's usual budget, `advbench.zoo.training.Budget`)
    train_examples, epochs, batch_size, learning_rate, optimizer, momentum, nesterov, weight_decay, schedule, augmentation.
    keep_epochs: whether weights after every epoch are kept in the model cache.

    Attacking
    draws: passes averaged per question to a stochastic defense, calibrated if None.
    score_draws: passes that choose the worst candidate of a stochastic defense, and again as many that score it.
    substitute_rounds, substitute_step, substitute_seeds: rounds and step of the augmentation, and held-out images at first.
    calibration_examples: held-out images on which attacks are calibrated.
    batch: images per compute batch, measured if None.
    compile: whether deterministic models are compiled to be attacked.
    precision: ``float32``, ``tf32`` or ``bfloat16`` while models are attacked; scores are always of float32.
    unit_test: whether attacks are tested on models with planted adversarial images. unit_test_images: on how many images.
    budget: passes through the model for each image in each attack, forwards and backwards together, then it is ended.
    known_noise: whether random models are also attacked by one who knows the draws that they are scored under.
    visited: whether the best image that an attack asked about stands in the records beside what it returned.

    Where it runs
    device: ``auto``, ``cpu``, ``cuda``, ``xpu``, ``mps``, or several such as ``cuda:0,cuda:1``.
    jobs: parallel tasks, one per core or GPU if None. backend: ``loky`` (processes) or ``threading``.
    slots_per_device: parallel tasks on each device, in place of `jobs`.
    engine: ``local``, or ``dask``, ``pilots`` or ``slurm`` for several machines. address: of a running dask scheduler.
    pilots, slurm: how many jobs, and their parameters, such as ``"partition=gpu,gpus_per_node=1"``.
    time_limit: seconds that one task may take; one that takes longer is a row that says so.
    out: the output folder. fresh: whether finished work in it is done again.

    Finished work in `out` and in the model cache is kept and not done again. Raises ValueError, in one line, for bad input.

    >>> result = run(dataset="digits", matrix="transfer", architecture="gu2014/n100-100-10", defense="none,weight-decay",
    ...              attack="fgm", train_examples=300, epochs=2, n_examples=50, batch=50, device="cpu", jobs=1)
    >>> result.exit_code, len(result.cells)
    (0, 4)
    """
    config = make_config(Path(config_file) if config_file is not None else None, **settings)
    return run_config(config, watch)


def run_config(config: Config, watch: Watcher | None = None, say: Callable[[str], None] = print) -> RunResult:
    """Run a checked configuration: plan, schedule, report. say: called with lines about workers of other processes."""
    if config.engine in ("pilots", "slurm"):
        return finish(*coordinated(config, say), watch=watch)
    return finish(make_plan(config), watch=watch)


def coordinated(config: Config, say: Callable[[str], None]) -> tuple[Plan, Engine]:
    """The plan of a run that pilots do, whom this starts or asks the user for, and what watches them."""
    from advbench.engine import pilots, slurm

    def by_hand(out: Path) -> Engine:
        say(f"start workers, here or on any machine that sees this folder: advbench work {out}")
        return pilots.Watching()

    def as_jobs(out: Path) -> Engine:
        given: dict[str, object] = {"--device": config.device, "--data-dir": config.data_dir, "--jobs": config.jobs}
        given |= {"--slots-per-device": config.slots_per_device, "--time-limit": config.time_limit}
        arguments = [str(part) for flag, value in given.items() if value is not None for part in (flag, value)]
        return slurm.submit(out, config.pilots or 1, config.slurm or {}, arguments, say)

    return pilots.coordinate(config, as_jobs if config.engine == "slurm" else by_hand, say)


def finish(plan: Plan, engine: Engine | None = None, *, watch: Watcher | None = None) -> RunResult:
    """Run what a plan still needs, and write the reports of all its cells.

    engine: where it runs, and has begun; by default what the configuration says.
    """
    from advbench.reports.write import write_reports

    config = plan.config
    if config.fresh:
        plan.forget()
    config.out.mkdir(parents=True, exist_ok=True)
    names = ([spec.name for spec in components or ()] for components in (config.defense, config.attack))
    write_manifest(config.out, plan.cells, to_toml(config), declared(*names))
    result = run_plan(plan, watch) if engine is None else run_plan(plan, watch, lambda *_: engine, SharedClaims(config.out))
    reports = write_reports(config.out, plan.cells)
    return RunResult(config.out, plan.cells, result.failures, tuple(reports), result.ran, result.interrupted)
