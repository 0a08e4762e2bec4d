"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

DataDir: TypeAlias = Annotated[
    Path | None, typer.Option(help="Directory containing the data sets. \\[default: $ADVBENCH_DATA]")
]
Jobs: TypeAlias = Annotated[int | None, typer.Option(help="Number of parallel tasks. \\[default: one per core, or per GPU]")]
SlotsPerDevice: TypeAlias = Annotated[
    int | None, typer.Option(help="Number of parallel tasks on each device, instead of --jobs.")
]
Address: TypeAlias = Annotated[
    str | None, typer.Option(help="A running dask scheduler, such as tcp://host:8786; only with --engine dask.")
]
TimeLimit: TypeAlias = Annotated[
    float | None, typer.Option(help="Seconds that one task may take; one that takes longer fails. \\[default: no limit]")
]
UnitTest: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--unit-test", help="Also test whether the attacks find adversarial images that are planted and known to exist."
    ),
]
UnitTestImages: TypeAlias = Annotated[
    int | None, typer.Option(help="Number of images that the unit test plants one for. \\[default: 64]")
]
Budget: TypeAlias = Annotated[
    int | None,
    typer.Option(
        help="Passes per image and attack, forwards and backwards together; then the best image asked about counts. "
        "\\[default: no limit]"
    ),
]
Visited: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--visited", help="Also record the best image each attack asked about, whatever it returned; not for random models."
    ),
]
KnownNoise: TypeAlias = Annotated[
    bool,
    typer.Option("--known-noise", help="Also attack random models at draws that are known: a diagnostic, not ranked."),
]
Fresh: TypeAlias = Annotated[bool, typer.Option("--fresh", help="Recompute everything, ignoring finished results.")]
Alpha: TypeAlias = Annotated[float, typer.Option(help="The nominal probability of any false alarm.")]
Tolerance: TypeAlias = Annotated[float, typer.Option(help="Ignore changes up to this size (0.01 = one percentage point).")]
CheckpointsOnly: TypeAlias = Annotated[
    bool, typer.Option("--checkpoints-only", help="Compare these checkpoints directly, ignoring training seeds.")
]
AcrossVersions: TypeAlias = Annotated[
    bool,
    typer.Option("--across-versions", help="Allow comparing different versions of advbench or of an attack's source."),
]
FailOnFlags: TypeAlias = Annotated[
    bool, typer.Option("--fail-on-flags", help="Fail if a target has a flag that the baseline lacks.")
]
Entries: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="A TOML file with a table for each model: paper, authors, venue, link, additional_data, parameters."),
]
