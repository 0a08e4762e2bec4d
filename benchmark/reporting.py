"""Reports from the records of a folder. Never imports torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from advbench.results.store import Store

_MANIFEST = "run.json"


def report(out: str | Path, *, every: bool = False) -> list[Path]:
    """Rebuild the reports of an output folder from its records; no model is loaded and nothing is run.

    every: all records in the folder, not only the cells of its last run. Returns the files.
    Raises ValueError where there are no records.
    """
    from advbench.reports.write import write_reports

    folder = Path(out)
    if not Store(folder).keys():
        raise ValueError(f"Expected a folder with records, as `advbench run --out {folder}` leaves it, got none at {folder}")
    return write_reports(folder, None if every else read_manifest(folder))


def read_manifest(out: Path) -> list[str] | None:
    """The cells of the last run in a folder; None where it is not known."""
    try:
        cells = json.loads((out / _MANIFEST).read_text())["cells"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return [str(key) for key in cells]


def write_manifest(out: Path, cells: Sequence[str]) -> None:
    """Name the cells of the run that is about to start, so that a report can show those that are missing."""
    temporary = out / f".{_MANIFEST}.tmp"
    temporary.write_text(json.dumps({"cells": list(cells)}, indent=1) + "\n")
    temporary.replace(out / _MANIFEST)
