"""The commands that work on records alone: reports, sites and the gate. Nothing is run, and torch is not needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from advbench.cli.choices import GateFormat, ReportFormat
from advbench.cli.terminal import refuse


def report(
    folders: Annotated[list[Path], typer.Argument(help="Output directories of runs, or archives of records (.tar.xz).")],
    to: Annotated[
        Path | None,
        typer.Option(
            help="Output directory, or FILE.tar.xz to archive the records. \\[default: the directory, if there is only one]"
        ),
    ] = None,
    format: Annotated[
        ReportFormat | None,
        typer.Option(
            help="Instead of the reports, write all figures (svg, png, pdf), all cells (csv), or robustbench entries."
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Use all records in a directory, not only those of its last run.")
    ] = False,
) -> None:
    """Rebuild the reports of output directories from their records. Nothing is run, and torch is not needed.

    Several runs share a leaderboard if all ranked models faced the same attacks; otherwise each gets its own.
    """
    try:
        from advbench.records import reporting

        paths = reporting.report(*folders, every=every, to=to, format=format.value if format else None)
    except (ValueError, OSError) as error:
        refuse(error)
    for path in paths:
        print(path)


def publish(
    folders: Annotated[list[Path], typer.Argument(help="Output directories of runs, or archives of records (.tar.xz).")],
    to: Annotated[Path, typer.Option(help="The site's directory; an earlier publication there is replaced.")],
    title: Annotated[str | None, typer.Option(help="The site's title.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Use all records in a directory, not only those of its last run.")
    ] = False,
) -> None:
    """Write a static site: the leaderboards, a page for each model, and the data. Open index.html or serve the directory."""
    try:
        from advbench.records import reporting

        paths = reporting.publish(*folders, to=to, title=title, every=every)
    except (ValueError, OSError) as error:
        refuse(error)
    for path in paths:
        print(path)


def check(
    out: Annotated[list[Path], typer.Argument(help="The output directory of a run, or several, such as one per seed.")],
    baseline: Annotated[
        Path, typer.Option(help="A file written by `advbench baseline`, or the output directory of another run.")
    ],
    alpha: Annotated[float, typer.Option(help="The nominal probability of any false alarm.")] = 0.01,
    tolerance: Annotated[float, typer.Option(help="Ignore changes up to this size (0.01 = one percentage point).")] = 0.0,
    format: Annotated[GateFormat, typer.Option(help="Output format of the verdicts.")] = GateFormat.text,
    checkpoints_only: Annotated[
        bool, typer.Option("--checkpoints-only", help="Compare these checkpoints directly, ignoring training seeds.")
    ] = False,
    time_bound: Annotated[
        float | None, typer.Option(help="Fail if attacks take more than this many times as long on the same device.")
    ] = None,
    across_versions: Annotated[
        bool,
        typer.Option("--across-versions", help="Allow comparing different versions of advbench or of an attack's source."),
    ] = False,
    fail_on_flags: Annotated[
        bool, typer.Option("--fail-on-flags", help="Fail if a target has a flag that the baseline lacks.")
    ] = False,
) -> None:
    """Compare a run with a baseline: is any target significantly less robust or less accurate?

    If $GITHUB_STEP_SUMMARY is set, the verdicts are also appended to that file as Markdown.

    Exit codes: 0 no regression, 1 a regression or a missing target, 2 not comparable or bad input.
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
        first, *others = found.incomparable
        several = f", for {len(found.incomparable)} reasons:\n- " + "\n- ".join((first, *others))
        print(f"advbench: not comparable{several if others else f': {first}'}", file=sys.stderr)
    raise typer.Exit(found.exit_code)


def baseline(
    out: Annotated[list[Path], typer.Argument(help="The output directory of a run, or several, such as one per seed.")],
    to: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
) -> None:
    """Write a small file, in a stable order, that later runs are checked against.

    Re-trained targets are compared across training seeds, so a baseline needs five: `advbench run --seed 0,1,2,3,4`.
    """
    try:
        from advbench.records import gating

        path = gating.write_baseline(out, to)
    except (ValueError, OSError) as error:
        refuse(error)
    print(path)


def gc(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The output folder of a run.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, and remove nothing.")] = False,
) -> None:
    """Remove stored results that no record and no setting of the last run in OUT needs.

    Records stay, and so do the adversarial images that they name. Trained models lie in the cache, which other runs share,
    and stay too.

    Exit codes: 0 done, 2 bad input, or somebody works in OUT.
    """
    try:
        from advbench.records.garbage import garbage, remove

        found = garbage(out)
        if not dry_run:
            remove(found)
    except (ValueError, OSError) as error:
        refuse(error)
    for path in found.files if dry_run else ():
        print(path)
    print(f"{len(found.files)} results, {found.bytes / 2**20:.1f} MiB, {'would go' if dry_run else 'removed'}")
