"""The reports of one output folder or of several, written from their records alone."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from advbench.results.store import Store

if TYPE_CHECKING:
    from advbench.reports.cells import Cells

REPORTS = ("leaderboard.md", "leaderboard.html", "results.csv")
_SIDECAR = ".reports.json"
_LIBRARIES = ("numpy", "pandas", "matplotlib", "seaborn", "jinja2", "tabulate")


def write_reports(out: Path, keys: Sequence[str] | None = None) -> list[Path]:
    """Write leaderboard.md, leaderboard.html and results.csv into `out` from the records in ``out/records``.

    keys: the cells to report, all records where None; a key without a record becomes a row that says so. Nothing is drawn
    again where neither records, renderers nor reports have changed. Returns the files.
    """
    return write_merged({Path(out): keys}, Path(out))


def write_merged(folders: Mapping[Path, Sequence[str] | None], to: Path) -> list[Path]:
    """Write one report of several output folders into `to`; the cells of each folder as in `write_reports`."""
    stores = {folder: Store(folder) for folder in folders}
    wanted = {folder: stores[folder].keys() if keys is None else sorted(set(keys)) for folder, keys in folders.items()}
    paths = [to / name for name in REPORTS]
    inputs = hashlib.sha256(
        "\n".join(f"{folder} {_inputs_digest(stores[folder], keys)}" for folder, keys in wanted.items()).encode()
    ).hexdigest()
    if _recorded(to) != {"inputs": inputs, **_digests(paths)}:
        for path, content in zip(paths, _render(read(wanted)), strict=True):
            replace_file(path, content)
        replace_file(to / _SIDECAR, json.dumps({"inputs": inputs, **_digests(paths)}, indent=1) + "\n")
    return paths


def read(folders: Mapping[Path, Sequence[str] | None]) -> Cells:
    """The cells of one output folder or of several, merged."""
    from advbench.reports.cells import load
    from advbench.reports.merge import merge, run_names

    loaded = [load(Store(folder), keys) for folder, keys in folders.items()]
    if len(loaded) == 1:
        return loaded[0]
    return merge(dict(zip(run_names(map(str, folders)), loaded, strict=True)))


def _render(cells: Cells) -> list[str]:
    """The contents of the reports, in the order of their names."""
    from advbench.reports.frame import cell_frame
    from advbench.reports.html import to_html
    from advbench.reports.markdown import to_markdown
    from advbench.reports.sections import sections, summary

    found = sections(cells)
    title = "Adversarial robustness leaderboard"
    return [
        to_markdown(found, title=title),
        to_html(found, title=title, summary=summary(cells)),
        cell_frame(cells.cells, cells.missing).to_csv(index=False, lineterminator="\n"),
    ]


def _inputs_digest(store: Store, keys: Sequence[str]) -> str:
    """SHA-256 over everything that the reports are made of."""
    digest = hashlib.sha256(sys.version.encode())
    for library in _LIBRARIES:
        digest.update(f"{library} {version(library)}\n".encode())
    for package in ("advbench.results", "advbench.reports", "advbench.reports.templates"):
        for source in sorted(resources.files(package).iterdir(), key=lambda source: source.name):
            if source.name.endswith((".py", ".html", ".css", ".js")):
                digest.update(f"{source.name}\n".encode() + source.read_bytes())
    for key in keys:
        digest.update(f"{key}\n".encode())
        folder = store.path(key)
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            digest.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _digests(paths: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of the files that exist, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}


def _recorded(out: Path) -> object:
    """What the last writing left in the sidecar; None where there is none."""
    try:
        return json.loads((out / _SIDECAR).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
