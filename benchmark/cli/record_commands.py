"""The commands that work on records: reports, sites, entries and the gate. Nothing is run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from advbench.cli.choices import GateFormat, ReportFormat, TableFormat
from advbench.cli.options import AcrossVersions, Alpha, CheckpointsOnly, DataDir, Entries, FailOnFlags, Tolerance
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
            help="Instead of the reports, write all figures (svg, png, pdf), all cells (csv), robustbench entries, "
            "or tables for a paper (latex, with BibTeX)."
        ),
    ] = None,
    entries: Entries = None,
    every: Annotated[
        bool, typer.Option("--all", help="Use all records in a directory, not only those of its last run.")
    ] = False,
) -> None:
    """Rebuild the reports of output directories from their records. Nothing is run, and torch is not needed.

    Several runs share a leaderboard if all ranked models faced the same attacks; otherwise each gets its own.
    """
    try:
        from advbench.records import reporting

        paths = reporting.report(*folders, every=every, to=to, format=format.value if format else None, entries=entries)
    except (ValueError, OSError) as error:
        refuse(error)
    for path in paths:
        print(path)


def publish(
    folders: Annotated[list[Path], typer.Argument(help="Output directories of runs, or archives of records (.tar.xz).")],
    to: Annotated[Path, typer.Option(help="The site's directory; an earlier publication there is replaced.")],
    title: Annotated[str | None, typer.Option(help="The site's title.")] = None,
    history: Annotated[
        list[Path] | None,
        typer.Option(help="Add a page of every number by version: a baseline file in git, or runs, an option each."),
    ] = None,
    entries: Entries = None,
    every: Annotated[
        bool, typer.Option("--all", help="Use all records in a directory, not only those of its last run.")
    ] = False,
) -> None:
    """Write a static site: the leaderboards, a page for each model, and the data. Open index.html or serve the directory."""
    try:
        from advbench.records import reporting

        paths = reporting.publish(*folders, to=to, title=title, every=every, history=history or None, entries=entries)
    except (ValueError, OSError) as error:
        refuse(error)
    for path in paths:
        print(path)


def evidence(
    out: Annotated[Path, typer.Argument(help="The output directory of a run.")],
    to: Annotated[Path, typer.Option(help="Directory for evidence.json, evidence.npz and verify.py.")],
    target: Annotated[str | None, typer.Option(help="The model's label on the leaderboard.")] = None,
    norm: Annotated[str | None, typer.Option(help="The norm of the board, if there are several.")] = None,
    epsilon: Annotated[str | None, typer.Option(help="Its radius, such as 8/255, if there are several.")] = None,
    seed: Annotated[int | None, typer.Option(help="The training seed, if there are several.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Write a model's number with the images that show it, and a script that checks it without advbench.

    evidence.npz holds the clean images and, of each, the adversarial image of the first attack that broke the model;
    verify.py needs PyTorch and NumPy alone: python verify.py model.py:factory. For deterministic models without a detector.
    """
    try:
        from advbench.config import fraction
        from advbench.records.evidence import write_evidence

        radius = None if epsilon is None else fraction(epsilon)
        paths = write_evidence(out, to, target=target, norm=norm, epsilon=radius, seed=seed, data_dir=data_dir)
    except (ValueError, OSError) as error:
        refuse(error)
    for path in paths:
        print(path)


def check(
    out: Annotated[list[Path], typer.Argument(help="The output directory of a run, or several, such as one per seed.")],
    baseline: Annotated[
        Path, typer.Option(help="A file written by `advbench baseline`, or the output directory of another run.")
    ],
    alpha: Alpha = 0.01,
    tolerance: Tolerance = 0.0,
    format: Annotated[GateFormat, typer.Option(help="Output format of the verdicts.")] = GateFormat.text,
    checkpoints_only: CheckpointsOnly = False,
    time_bound: Annotated[
        float | None, typer.Option(help="Fail if attacks take more than this many times as long on the same device.")
    ] = None,
    across_versions: AcrossVersions = False,
    fail_on_flags: FailOnFlags = False,
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


def history(
    sources: Annotated[
        list[Path], typer.Argument(help="A baseline file in git, for its commits, or several runs in order, or both.")
    ],
    anchor: Annotated[
        str | None,
        typer.Option(help="The version that all later ones are tested against: a commit or a run. \\[default: the first]"),
    ] = None,
    last: Annotated[int | None, typer.Option(help="Show only so many of the newest versions. \\[default: all]")] = None,
    to: Annotated[Path | None, typer.Option(help="Also write history.html and history.json into this directory.")] = None,
    format: Annotated[TableFormat, typer.Option(help="Output format.")] = TableFormat.text,
    alpha: Alpha = 0.01,
    tolerance: Tolerance = 0.0,
    checkpoints_only: CheckpointsOnly = False,
    across_versions: AcrossVersions = False,
    fail_on_flags: FailOnFlags = False,
) -> None:
    """Follow a baseline through its versions: each is checked against the one before and against a fixed anchor.

    A SOURCE is a baseline file that git tracks, which stands for the commits of the main line that changed it, or a run: an
    output directory or a baseline file. Drops that --tolerance ignores cannot add up beyond it unnoticed. If
    $GITHUB_STEP_SUMMARY is set, the verdicts are also appended to that file as Markdown.

    Exit codes, of the last version: 0 no regression since the version before or the anchor, 1 a regression or a missing
    target, 2 not comparable or bad input.
    """
    terms = {name: value for name, value in locals().items() if name not in ("sources", "to", "format")}
    try:
        from advbench.records import versions
        from advbench.reports.step_texts import FORMATS

        found = versions.history(*sources, **terms)
        paths = versions.write_history(found, to) if to is not None else []
    except (ValueError, OSError) as error:
        refuse(error)
    versions.add_to_summary(found)
    print(FORMATS[format.value](found), end="")
    for path in paths if format is TableFormat.text else ():
        print(path)
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
