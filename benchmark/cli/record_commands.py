"""The commands that work on records alone: reports, sites and the gate. Nothing is run, and torch is not needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from advbench.cli.choices import GateFormat, ReportFormat
from advbench.cli.terminal import refuse


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
        from advbench.records import reporting

        paths = reporting.report(*folders, every=every, to=to, format=format.value if format else None)
    except (ValueError, OSError) as error:
        refuse(error)
    for path in paths:
        print(path)


def publish(
    folders: Annotated[list[Path], typer.Argument(help="Output folders of runs, or archives of records (.tar.xz).")],
    to: Annotated[Path, typer.Option(help="The site's folder; what an earlier publication left there is replaced.")],
    title: Annotated[str | None, typer.Option(help="The site's title.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All records in a folder, not only those of its last run.")] = False,
) -> None:
    """Write a static site: the leaderboards, a page for each model, and the data. Open index.html, or serve the folder."""
    try:
        from advbench.records import reporting

        paths = reporting.publish(*folders, to=to, title=title, every=every)
    except (ValueError, OSError) as error:
        refuse(error)
    for path in paths:
        print(path)


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
    from advbench.records import gating
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
        refuse(refused)
    if found.incomparable:
        print(f"advbench: not comparable: {'; '.join(found.incomparable)}", file=sys.stderr)
    raise typer.Exit(found.exit_code)


def baseline(
    out: Annotated[list[Path], typer.Argument(help="The output folder of a run, or several, such as one for each seed.")],
    to: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
) -> None:
    """Write the baseline that later runs are checked against: small, and in a stable order.

    A re-trained target is compared over training seeds, which takes five of them here: `advbench run --seed 0,1,2,3,4`.
    """
    try:
        from advbench.records import gating

        path = gating.write_baseline(out, to)
    except (ValueError, OSError) as error:
        refuse(error)
    print(path)
