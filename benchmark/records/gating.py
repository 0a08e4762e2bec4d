"""The gate on folders and files: compare a run with a baseline, and write one. Never imports torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from advbench.files import write_atomically
from advbench.reading import read_text
from advbench.records.reporting import read_manifest
from advbench.results.cells import Cell
from advbench.results.gate import baseline as baselines
from advbench.results.gate.baseline import Snapshot
from advbench.results.gate.compare import compare_runs
from advbench.results.gate.verdicts import Terms, Verdicts
from advbench.results.store import Store

LARGEST_BASELINE = 2**28
"""Bytes that a baseline may have."""


def check(
    out: str | Path | Sequence[str | Path],
    baseline: str | Path,
    *,
    alpha: float = 0.01,
    tolerance: float = 0.0,
    checkpoints_only: bool = False,
    time_bound: float | None = None,
    across_versions: bool = False,
    fail_on_flags: bool = False,
) -> Verdicts:
    """Compare the last run in `out`, or those of several folders together, with a baseline.

    baseline: a file of `write_baseline`, the output folder of another run, or the name of a baseline that ships with
    advbench, such as ``digits``.

    alpha: the nominal chance of any false alarm. tolerance: ignore changes up to this size (0.01 = one percentage point).
    The other terms are those of `advbench.results.gate.verdicts.Terms`. The verdicts' `exit_code` is 0 if no number is
    worse than the baseline, 1 for a regression, 2 if the runs cannot be compared. Raises ValueError, in one line, for a file
    or a folder that cannot be read.

    >>> verdicts = check("advbench-out", "advbench-out")  # a finished run against itself
    >>> verdicts.exit_code
    0
    """
    terms = Terms(
        alpha=alpha,
        tolerance=tolerance,
        checkpoints_only=checkpoints_only,
        time_bound=time_bound,
        across_versions=across_versions,
        fail_on_flags=fail_on_flags,
    )
    return compare_runs(read_baseline(Path(baseline)), read_runs(_folders(out)), terms)


def write_baseline(out: str | Path | Sequence[str | Path], path: str | Path) -> Path:
    """Write the baseline of the last run in `out`, or of those of several folders together, such as a training seed each.

    Raises ValueError if at least one cell has no numbers.

    >>> write_baseline("advbench-out", "baseline.json").name  # "advbench-out": the folder of a finished run
    'baseline.json'
    """
    text = baselines.to_text(read_runs(_folders(out)))
    return write_atomically(Path(path), text)


def refusal(error: Exception) -> Verdicts:
    """Verdicts that say why there are none, for programs that read them."""
    return Verdicts(terms=Terms(), incomparable=(" ".join(str(error).split()),))


def add_to_summary(found: Verdicts) -> None:
    """Append the verdicts as Markdown to the file that $GITHUB_STEP_SUMMARY names, where it is set."""
    from advbench.reports.gate import to_markdown

    append_to_summary(to_markdown(found))


def append_to_summary(markdown: str) -> None:
    """Append Markdown to the file that $GITHUB_STEP_SUMMARY names, where it is set."""
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(markdown + "\n")


def read_baseline(path: Path) -> Snapshot:
    """A baseline from its file, from the output folder of a run, or by the name of one that ships with advbench."""
    if path.is_dir():
        return read_runs([path])
    shipped = resources.files("advbench.results.baselines") / f"{path}.json"
    if len(path.parts) == 1 and not path.exists() and shipped.is_file():
        return baselines.from_text(shipped.read_text(encoding="utf-8"))
    try:
        with path.open("rb") as file:
            text = read_text(file, LARGEST_BASELINE)
    except FileNotFoundError:
        raise ValueError(
            f"Expected a baseline at {path}, got no such file: `advbench baseline OUT -o {path}` writes one"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path}: Expected a baseline as JSON, got a bad file: {error}") from None
    try:
        return baselines.from_text(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_runs(folders: Sequence[Path]) -> Snapshot:
    """The last run of each output folder as one; all records of a folder where it is not known which those are."""
    try:
        return baselines.snapshot([cell for folder in folders for cell in _cells(folder)])
    except ValueError as error:
        raise ValueError(f"{', '.join(map(str, folders))}: {error}") from None


def _folders(out: str | Path | Sequence[str | Path]) -> list[Path]:
    return [Path(out)] if isinstance(out, str | Path) else [Path(folder) for folder in out]


def _cells(out: Path) -> list[Cell]:
    store = Store(out)
    keys = read_manifest(out) or store.keys()
    if not keys:
        raise ValueError(f"Expected a folder with records, as `advbench run --out {out}` leaves it, got none")
    found = {key: store.load(key) for key in keys}
    missing = [key for key, parts in found.items() if parts is None]
    if missing:
        raise ValueError(
            f"Expected a finished run in {out}, got {len(missing)} of {len(keys)} cells without a readable record: "
            "the same `advbench run` continues it"
        )
    return [Cell(parts[0], parts[1]) for parts in found.values() if parts is not None]
