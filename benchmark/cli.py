"""The command line. Heavy imports happen inside the commands, so that ``--help`` answers at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from advbench import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from advbench.api import RunResult
    from advbench.conformance import Verdict
    from advbench.plan import Plan
    from advbench.scheduler import Status, Watcher

app = typer.Typer(
    name="advbench",
    help="Benchmark and leaderboard harness for adversarial robustness.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


_SELDOM = 30.0
"""Seconds between two plain lines about one craft."""


class ListKind(StrEnum):
    """What can be listed."""

    attacks = "attacks"
    defenses = "defenses"
    parts = "parts"
    architectures = "architectures"
    datasets = "datasets"


class Scale(StrEnum):
    """How large a reproduction is."""

    smoke = "smoke"
    small = "small"
    full = "full"


class ReportFormat(StrEnum):
    """What a report can be in place of its usual files."""

    svg = "svg"
    png = "png"
    pdf = "pdf"
    csv = "csv"
    robustbench = "robustbench"


class GateFormat(StrEnum):
    """What the gate's verdicts can be printed as."""

    text = "text"
    markdown = "markdown"
    json = "json"
    junit = "junit"


class TableFormat(StrEnum):
    """What the table of conformance can be printed as."""

    text = "text"
    markdown = "markdown"
    json = "json"


class BenchName(StrEnum):
    """What can be measured."""

    jacobian = "jacobian"
    covariance = "covariance"
    training = "training"
    purifiers = "purifiers"


def main() -> None:
    """Run the command line; bad input ends with one clear line and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        if error.format_message():
            print(f"advbench: {error.format_message()}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"advbench {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    config: Annotated[Path | None, typer.Argument(help="A TOML file that sets the same things; flags override it.")] = None,
    matrix: Annotated[str | None, typer.Option(help="white-box, black-box, transfer or all. [default: all]")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="A data set's name, npz:PATH or folder:PATH. [default: digits]")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the data sets lie. [default: $ADVBENCH_DATA]")] = None,
    architecture: Annotated[
        str | None, typer.Option(help="Architectures, such as gu2014/convnet,sgr2018/mnist-cnn.")
    ] = None,
    defense: Annotated[str | None, typer.Option(help="Defenses, such as none,pgd-linf(steps=10).")] = None,
    attack: Annotated[str | None, typer.Option(help="Attacks, such as fgsm,pgd(steps=100).")] = None,
    substitute: Annotated[str | None, typer.Option(help="Architectures of the black-box attacker's substitute.")] = None,
    norm: Annotated[str | None, typer.Option(help="linf, l2 or l1, or none for corruptions. [default: linf]")] = None,
    epsilon: Annotated[
        str | None, typer.Option(help="One radius or several, such as 8/255 or 0.1,0.2. [default: the data set's usual one]")
    ] = None,
    clip: Annotated[
        bool | None, typer.Option("--clip/--no-clip", help="Whether images keep to the pixel range. [default: clip]")
    ] = None,
    seed: Annotated[str | None, typer.Option(help="Training seeds, such as 0,1,2. [default: 0]")] = None,
    n_examples: Annotated[int | None, typer.Option(help="Test images to score. [default: all]")] = None,
    train_examples: Annotated[int | None, typer.Option(help="Training images. [default: all]")] = None,
    epochs: Annotated[int | None, typer.Option(help="Training epochs. [default: the data set's]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, or cuda:0,cuda:1. [default: auto]")] = None,
    jobs: Annotated[int | None, typer.Option(help="Tasks side by side. [default: one per core, or per GPU]")] = None,
    backend: Annotated[str | None, typer.Option(help="Processes (loky) or threads (threading). [default: loky]")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the results go. [default: advbench-out]")] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Attack compiled models; scores always take the model as it is.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do everything again, whatever is there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and run nothing.")] = False,
) -> None:
    """Cross defenses and attacks into the matrices and publish a leaderboard.

    With no argument: all three matrices on the embedded digits with the default suite. Finished work is kept, so the same
    command after an interruption continues.

    Exit codes: 0 all cells scored, 1 some cell failed (the table says which), 2 bad input, 130 interrupted.
    """
    settings = {name: value for name, value in locals().items() if name not in ("config", "compile", "dry_run", "fresh")}
    try:
        from advbench.config import make_config
        from advbench.plan import make_plan

        plan = make_plan(make_config(config, compile=compile or None, fresh=fresh or None, **settings), measure=not dry_run)
    except (ValueError, OSError) as error:
        _refuse(error)
    if dry_run:
        _print_plan(plan)
        return
    raise typer.Exit(_run(plan))


@app.command()
def evaluate(
    target: Annotated[
        str, typer.Argument(help="file.py:factory, package.module:factory, file.onnx or torchvision/NAME.", metavar="TARGET")
    ],
    dataset: Annotated[str, typer.Option(help="A data set's name, npz:PATH or folder:PATH.")],
    data_dir: Annotated[Path | None, typer.Option(help="Where the data sets lie. [default: $ADVBENCH_DATA]")] = None,
    norm: Annotated[str | None, typer.Option(help="linf, l2 or l1, or none for corruptions. [default: linf]")] = None,
    epsilon: Annotated[
        str | None, typer.Option(help="The radius, such as 8/255. [default: the data set's usual one]")
    ] = None,
    attack: Annotated[
        str | None, typer.Option(help="Attacks, such as auto,pgd(steps=100),foolbox/LinfPGD. [default: auto]")
    ] = None,
    n_examples: Annotated[int | None, typer.Option(help="Test images to score. [default: all]")] = None,
    weights: Annotated[
        str | None, typer.Option(help="safetensors, a state dict, or torchvision's own such as DEFAULT.", metavar="FILE")
    ] = None,
    mean: Annotated[str | None, typer.Option(help="Of the normalisation that the model expects, by channel.")] = None,
    std: Annotated[str | None, typer.Option(help="Of the normalisation that the model expects, by channel.")] = None,
    stochastic: Annotated[bool, typer.Option("--stochastic", help="The model draws random numbers.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of the attacks' random numbers. [default: 0]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N. [default: auto]")] = None,
    jobs: Annotated[int | None, typer.Option(help="Attacks side by side. [default: one per core, or per GPU]")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the results go. [default: advbench-out]")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the numbers, of every example too, to this file.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do everything again, whatever is there.")] = False,
) -> None:
    """Attack a model of your own and publish what it withstands.

    TARGET's factory returns an nn.Module: images in [0, 1] -> logits. It runs the attack `auto`, or those named, and one of
    minimal norm for the curve. Weights are loaded without pickle. Finished work is kept, as by `advbench run`.

    Exit codes: 0 all attacks scored, 1 some failed (the table says which), 2 bad input, 130 interrupted.
    """
    settings = {name: value for name, value in locals().items() if name not in ("target", "json", "fresh")}
    try:
        from advbench.evaluating import plan_target, run_target

        plan = plan_target(target, fresh=fresh or None, **settings)
    except (ValueError, OSError) as error:
        _refuse(error)
    from rich.console import Console

    with _watcher(Console(), len(plan.pending())) as watch:
        result = run_target(plan, watch)
    print(f"\n{result}\n")
    try:
        if json is not None:
            json.parent.mkdir(parents=True, exist_ok=True)
            json.write_text(result.to_json() + "\n", encoding="utf-8")
    except OSError as error:
        _refuse(error)
    if result.interrupted:
        print("interrupted: what is finished is kept; the same command continues")
    for path in (*result.reports, *([json] if json is not None else [])):
        print(path)
    raise typer.Exit(result.exit_code)


@app.command()
def conformance(
    attack: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ATTACK]...", help="Such as pgd, torchattacks/CW(steps=50); all of the registry where absent."
        ),
    ] = None,
    format: Annotated[TableFormat, typer.Option(help="What to print.")] = TableFormat.text,
) -> None:
    """Check that attacks do what an attack has to: budget, batches, seeds, few classes, pixels at 0 and 1 and more.

    They run on a small random network, with their iterations cut down unless you set them. A check that fails names the norm
    and what went wrong; one that says nothing about an attack is n/a.

    Exit codes: 0 nothing fails, 1 something does, 2 bad input.
    """
    from rich.console import Console

    try:
        from advbench import clocks
        from advbench import conformance as checks

        console, verdicts = Console(stderr=True), []
        specs = checks.specs_of(attack)
        with clocks.single_thread(), console.status("") as status:
            for number, spec in enumerate(specs, 1):
                status.update(f"{spec} ({number} of {len(specs)})")
                found = checks.examine(spec)
                verdicts += found
                if not console.is_terminal:
                    holds = sum(verdict.status == "holds" for verdict in found)
                    print(f"{spec}: {holds} of {len(found)} hold", file=sys.stderr, flush=True)
    except (ValueError, OSError) as error:
        _refuse(error)
    _print_verdicts(verdicts, format)
    raise typer.Exit(1 if checks.lines(verdicts) else 0)


@app.command("list")
def list_components(
    kind: Annotated[ListKind | None, typer.Argument(help="Which components; all where absent.")] = None,
) -> None:
    """List the registered components, one line each, with the paper that they come from."""
    from advbench import registry

    kinds = registry.KINDS if kind is None else (kind.value,)
    for each in kinds:
        names = registry.names(each)
        if len(kinds) > 1:
            print(f"{each}:")
        for name in names:
            print(f"{name:{max(map(len, names), default=0)}}  {registry.describe(each, name)}")
        if each in registry.OPEN_NAMES:
            print(f"and {registry.OPEN_NAMES[each]}")
        if each != kinds[-1]:
            print()


@app.command()
def reproduce(
    name: Annotated[
        str | None, typer.Argument(metavar="[PAPER[.TABLE]]", help="Such as gu2014 or gu2014.table1; all where absent.")
    ] = None,
    scale: Annotated[
        Scale, typer.Option(help="smoke: digits; small: MNIST, short trainings; full: the papers' budgets, for a GPU.")
    ] = Scale.small,
    seed: Annotated[str, typer.Option(help="Training seeds; a claim takes at least three.")] = "0,1,2",
    data_dir: Annotated[Path | None, typer.Option(help="Where the data sets lie. [default: $ADVBENCH_DATA]")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, or cuda:0,cuda:1. [default: auto]")] = None,
    jobs: Annotated[int | None, typer.Option(help="Tasks side by side. [default: one per core, or per GPU]")] = None,
    out: Annotated[Path, typer.Option(help="Where the results go.")] = Path("advbench-reproduction"),
) -> None:
    """Run a paper's experiments and put its tables beside ours.

    Every claim gets a verdict over the training seeds: holds, fails, or undecided. Finished work is kept, so the same
    command after an interruption continues.

    Exit codes: 0 complete, whatever the verdicts; 1 some part could not be run, 2 bad input, 130 interrupted.
    """
    from rich.console import Console

    console = Console()
    try:
        from advbench.config import make_config
        from advbench.reproduction.engine import reproduce as run_studies
        from advbench.reproduction.terminal import print_reproduction

        seeds = make_config(seed=seed).seed
        with _watcher(console) as watch:
            result = run_studies(
                name,
                scale=scale.value,
                out=out,
                seeds=seeds,
                watch=watch,
                announce=lambda run: console.print(f"running {run}", highlight=False),
                data_dir=data_dir,
                device=device,
                jobs=jobs,
            )
    except (ValueError, OSError) as error:
        _refuse(error)
    print_reproduction(result, console)
    raise typer.Exit(result.exit_code)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Output folders of runs, or archives of records (.tar.xz).")],
    to: Annotated[
        Path | None,
        typer.Option(help="Where the files go; FILE.tar.xz gets the records. [default: the folder, where there is one]"),
    ] = None,
    format: Annotated[
        ReportFormat | None,
        typer.Option(help="In place of the reports: all figures as svg, png or pdf, all cells as csv, or robustbench."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All records in a folder, not only those of its last run.")] = False,
) -> None:
    """Rebuild the reports of output folders from their records. Nothing is run, and torch is not needed.

    Several runs share a board where all that it ranks were attacked by the same attacks; else each has its own.
    """
    try:
        from advbench import reporting

        paths = reporting.report(*folders, every=every, to=to, format=format.value if format else None)
    except (ValueError, OSError) as error:
        _refuse(error)
    for path in paths:
        print(path)


@app.command()
def publish(
    folders: Annotated[list[Path], typer.Argument(help="Output folders of runs, or archives of records (.tar.xz).")],
    to: Annotated[Path, typer.Option(help="The site's folder; what an earlier publication left there is replaced.")],
    title: Annotated[str | None, typer.Option(help="The site's title.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All records in a folder, not only those of its last run.")] = False,
) -> None:
    """Write a static site: the leaderboards, a page for each model, and the data. Open index.html, or serve the folder."""
    try:
        from advbench import reporting

        paths = reporting.publish(*folders, to=to, title=title, every=every)
    except (ValueError, OSError) as error:
        _refuse(error)
    for path in paths:
        print(path)


@app.command()
def check(
    out: Annotated[list[Path], typer.Argument(help="The output folder of a run, or several, such as one for each seed.")],
    baseline: Annotated[Path, typer.Option(help="A file of `advbench baseline`, or the output folder of another run.")],
    alpha: Annotated[float, typer.Option(help="The nominal chance of any false alarm.")] = 0.01,
    tolerance: Annotated[float, typer.Option(help="A change of at most so much, such as 0.01 for a point, is none.")] = 0.0,
    format: Annotated[GateFormat, typer.Option(help="How the verdicts are printed.")] = GateFormat.text,
    checkpoints_only: Annotated[
        bool, typer.Option("--checkpoints-only", help="Compare the very models at hand, whatever seed they are of.")
    ] = False,
    time_bound: Annotated[
        float | None, typer.Option(help="Fail where attacks take more than so many times as long on the same device.")
    ] = None,
    across_versions: Annotated[
        bool, typer.Option("--across-versions", help="Compare runs of other versions of advbench or of an attack's source.")
    ] = False,
    fail_on_flags: Annotated[
        bool, typer.Option("--fail-on-flags", help="Fail where a target has a flag that the baseline has not.")
    ] = False,
) -> None:
    """Hold a run against a baseline: is any target less robust, or less accurate, by more than chance would have it?

    Where $GITHUB_STEP_SUMMARY is set, the verdicts are added to that file as Markdown too.

    Exit codes: 0 nothing worse, 1 a regression or a target that is missing, 2 not comparable or bad input.
    """
    from advbench import gating
    from advbench.reports.gate import FORMATS

    refused = None
    try:
        found = gating.check(
            out,
            baseline,
            alpha=alpha,
            tolerance=tolerance,
            checkpoints_only=checkpoints_only,
            time_bound=time_bound,
            across_versions=across_versions,
            fail_on_flags=fail_on_flags,
        )
    except (ValueError, OSError) as error:
        found, refused = gating.refusal(error), error
    gating.add_to_summary(found)
    if not found.incomparable or format is not GateFormat.text:
        print(FORMATS[format.value](found), end="")
    if refused is not None:
        _refuse(refused)
    if found.incomparable:
        print(f"advbench: not comparable: {'; '.join(found.incomparable)}", file=sys.stderr)
    raise typer.Exit(found.exit_code)


@app.command()
def baseline(
    out: Annotated[list[Path], typer.Argument(help="The output folder of a run, or several, such as one for each seed.")],
    to: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
) -> None:
    """Write the baseline that later runs are checked against: small, and in a stable order.

    A re-trained target is compared over training seeds, which takes five of them here: `advbench run --seed 0,1,2,3,4`.
    """
    try:
        from advbench import gating

        path = gating.write_baseline(out, to)
    except (ValueError, OSError) as error:
        _refuse(error)
    print(path)


@app.command()
def bench(
    name: Annotated[BenchName | None, typer.Argument(help="Which kernels; all where absent.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Measure the defenses' kernels and trainings against their limits, on one thread of the CPU or on a GPU.

    Prints a table of ratios. For figures worth keeping, nothing else should be running.

    Exit codes: 0 all bars hold, 1 some bar was missed, 2 bad input.
    """
    try:
        from advbench import benches, clocks

        chosen = clocks.resolve_devices(device)[0]
        rows = []
        with clocks.single_thread():
            for each in BenchName if name is None else [name]:
                for row in benches.run(each.value, chosen):
                    print(f"{row.case}, {row.measure}: {row.ratio:.3g} x {row.against}", file=sys.stderr, flush=True)
                    rows.append(row)
    except (ValueError, OSError) as error:
        _refuse(error)
    print(f"{clocks.device_name(chosen)}\n\n{benches.table(rows)}")
    raise typer.Exit(0 if all(row.holds for row in rows) else 1)


def _run(plan: Plan) -> int:
    """Run a plan with progress, print the leaderboard, and return the exit code."""
    from rich.console import Console

    from advbench.api import finish

    console = Console()
    with _watcher(console, len(plan.pending())) as watch:
        result = finish(plan, watch)
    _print_result(plan, result, console)
    return result.exit_code


def _print_verdicts(verdicts: Sequence[Verdict], format: TableFormat) -> None:
    """The table of what holds, and a line for every check that does not."""
    from dataclasses import asdict
    from json import dumps

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
    from tabulate import tabulate

    from advbench.conformance import lines, table

    columns, rows = table(verdicts)
    if format is TableFormat.json:
        print(dumps([asdict(verdict) for verdict in verdicts], indent=1))
        return
    console = Console()
    if format is TableFormat.text and console.is_terminal:
        grid, colours = Table(*columns), {"holds": "green", "fails": "bold red", "n/a": "dim"}
        for row in rows:
            grid.add_row(*(Text(cell, style=colours.get(cell, "")) for cell in row))
        console.print(grid)
    else:
        print(tabulate(rows, columns, tablefmt="pipe" if format is TableFormat.markdown else "simple"))
    bullet = "- " if format is TableFormat.markdown else ""
    failures = lines(verdicts)
    if failures:
        print("\nfails:\n" if bullet else "\nfails:")
        print("\n".join(f"{bullet}{line}" for line in failures))


def _refuse(error: Exception) -> NoReturn:
    message = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.strerror else str(error)
    print(f"advbench: {' '.join(message.split())}", file=sys.stderr)
    raise typer.Exit(2) from None


@contextmanager
def _watcher(console: Console, total: int | None = None) -> Iterator[Watcher]:
    """Live progress on a terminal, a plain line per finished task elsewhere."""
    if not console.is_terminal:
        yield _plain_lines()
        return
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("[dim]{task.fields[running]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("tasks", total=total, left="", running="")
        crafts: dict[str, TaskID] = {}

        def watch(status: Status) -> None:
            left = status.seconds_left
            for key in [key for key in crafts if key not in status.crafts]:
                progress.remove_task(crafts.pop(key))
            for key, standing in status.crafts.items():
                if key not in crafts:
                    crafts[key] = progress.add_task("", total=standing.images, left="", running="")
                progress.update(
                    crafts[key],
                    completed=round(standing.share * standing.images),
                    running=escape(f"{standing.label}: {standing}"),
                )
            progress.update(
                bar,
                completed=status.done,
                total=status.total,
                left="" if left is None else f"about {left:.0f} s left",
                running=escape("; ".join(status.running[:2])),
            )

        yield watch


def _plain_lines() -> Watcher:
    """A line for every tenth of the tasks, and one for each craft that takes long, every `_SELDOM` seconds."""
    last = -1
    told: dict[str, float] = {}

    def watch(status: Status) -> None:
        nonlocal last
        for key, standing in status.crafts.items():
            if standing.seconds >= told.get(key, 0.0) + _SELDOM:
                told[key] = standing.seconds
                print(f"{standing.label}: {standing}", flush=True)
        tenth = 10 * status.done // max(1, status.total)
        if tenth != last and status.done:
            last = tenth
            left = f", about {status.seconds_left:.0f} s left" if status.seconds_left and status.done < status.total else ""
            print(f"{status.done} of {status.total} tasks done{left}", flush=True)

    return watch


def _print_plan(plan: Plan) -> None:
    """What a run would do, and how much of it is already there."""
    pending = {task.key for task in plan.pending()}
    names = {
        "train": "models to train",
        "substitute": "substitutes to train",
        "clean": "models to check on clean images",
        "diagnose": "models to check for gradients",
        "calibrate": "attacks to calibrate on held-out images",
        "craft": "attacks to craft",
        "score": "cells to score",
    }
    for kind, name in names.items():
        tasks = [task for task in plan.tasks.values() if task.kind == kind]
        waiting = sum(task.key in pending for task in tasks)
        there = sum(plan.done(task) for task in tasks)
        print(f"{name:40}{len(tasks):6}  already done {there:6}  to do {waiting:6}")


def _print_result(plan: Plan, result: RunResult, console: Console) -> None:
    from advbench.reports.terminal import print_leaderboard

    print_leaderboard(result.out, result.cells, console)
    if not plan.config.clip or plan.data.box is None:
        print("without a pixel range: these cells stand on no leaderboard")
    for key, reason in list(result.failures.items())[:20]:
        print(f"failed: {plan.tasks[key].label}: {reason}")
    if result.interrupted:
        print("interrupted: what is finished is kept; the same command continues")
    for path in result.reports:
        print(path)
