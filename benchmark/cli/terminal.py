"""What the command line shows: progress, plans, results, and why an input was refused. Heavy imports are inside."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

import typer

from advbench.cli.choices import TableFormat
from advbench.errors import debugging, reason

if TYPE_CHECKING:
    from rich.console import Console

    from advbench.api import RunResult
    from advbench.conformance import Verdict
    from advbench.engine.scheduler import Status, Watcher
    from advbench.plan.plan import Plan

_SELDOM = 30.0
"""Seconds between two plain lines about one craft."""


def print_verdicts(components: Sequence[Sequence[Verdict]], format: TableFormat) -> None:
    """The table of what holds, one for each kind of component, and a line for every check that does not.

    components: the verdicts on each.
    """
    from dataclasses import asdict
    from json import dumps

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
    from tabulate import tabulate

    from advbench.conformance import lines, tables

    verdicts = [verdict for component in components for verdict in component]
    if format is TableFormat.json:
        print(dumps([asdict(verdict) for verdict in verdicts], indent=1))
        return
    console = Console()
    for columns, rows in tables(components):
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


def say(line: str) -> None:
    """Show a line at once."""
    print(line, flush=True)


def refuse(error: Exception) -> NoReturn:
    """End with one line and exit code 2."""
    if isinstance(error, typer.Exit):
        raise error
    raise typer.Exit(fail(error)) from None


def fail(error: Exception) -> int:
    """Say in one line what was wrong; of an error that nobody foresaw its kind too. Returns exit code 2.

    With ``--debug`` the traceback comes first.
    """
    if debugging():
        traceback.print_exception(error)
    foreseen = isinstance(error, ValueError | OSError)
    return complain(message_of(error) if foreseen else f"{reason(error)} (--debug shows all)")


def message_of(error: Exception) -> str:
    """What is said of an error."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.strerror}: {error.filename}" if error.filename else error.strerror


def complain(message: str) -> int:
    """Say why the program ends in one line, unless there is nothing to say or nowhere to say it; returns exit code 2.

    What stdout has not taken so far is dropped, since it may be stdout that is full.
    """
    from advbench.reading import seen

    with suppress(OSError):
        if message:
            print(f"advbench: {seen(' '.join(message.split()))}", file=sys.stderr, flush=True)
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 2


@contextmanager
def watcher(console: Console, total: int | None = None) -> Iterator[Watcher]:
    """Live progress on a terminal, a plain line per finished task elsewhere."""
    if not console.is_terminal:
        yield plain_lines()
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


def plain_lines(clock: Callable[[], float] = time.monotonic) -> Watcher:
    """A line for every tenth of the tasks, and one for each craft that takes long, every `_SELDOM` seconds.

    When nothing else was said for as long, a line says what is at work.
    """
    last, spoken = -1, clock()
    told: dict[str, float] = {}

    def watch(status: Status) -> None:
        nonlocal last, spoken
        for key, standing in status.crafts.items():
            if standing.seconds >= told.get(key, 0.0) + _SELDOM:
                told[key], spoken = standing.seconds, clock()
                print(f"{standing.label}: {standing}", flush=True)
        tenth = 10 * status.done // max(1, status.total)
        silent = clock() - spoken >= _SELDOM
        if (tenth != last and status.done) or silent:
            last, spoken = tenth, clock()
            left = f", about {status.seconds_left:.0f} s left" if status.seconds_left and status.done < status.total else ""
            running = f"; at work: {'; '.join(status.running[:2])}" if silent and status.running else ""
            print(f"{status.done} of {status.total} tasks done{left}{running}", flush=True)

    return watch


def print_plan(plan: Plan) -> None:
    """What a run would do, and how much of it is already there."""
    from advbench.tasks.artefacts import KINDS
    from advbench.tasks.execution import Listing

    lying = Listing(plan.config.out)
    waiting = Counter(task.kind for task in plan.pending(lying))
    names = {
        "train": "models to train",
        "substitute": "substitutes to train",
        "clean": "models to check on clean images",
        "diagnose": "models to check for gradients",
        "unit-test": "attacks to unit-test",
        "known-noise": "attacks that know the draws",
        "calibrate": "attacks to calibrate on held-out images",
        "craft": "attacks to craft",
        "score": "cells to score",
    }
    tasks = Counter(task.kind for task in plan.tasks.values())
    there = Counter(task.kind for task in plan.tasks.values() if lying.finished(task))
    for kind in KINDS:
        print(f"{names[kind]:40}{tasks[kind]:6}  already done {there[kind]:6}  to do {waiting[kind]:6}")


def print_result(plan: Plan, result: RunResult, console: Console) -> None:
    """The leaderboard, what failed, and the files that were written."""
    from advbench.reports.terminal import print_leaderboard

    print_leaderboard(result.out, result.cells, console)
    if not plan.config.clip or plan.data.box is None:
        print("without a pixel range: these cells stand on no leaderboard")
    for key, why in list(result.failures.items())[:20]:
        print(f"failed: {plan.tasks[key].label}: {why}")
    if result.interrupted:
        print("interrupted: what is finished is kept; the same command continues")
    for path in result.reports:
        print(path)
