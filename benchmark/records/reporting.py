"""Reports from the records of a folder. Never imports torch."""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from advbench.files import write_atomically
from advbench.reading import json_of, seen, text_of
from advbench.records.entries import kept, read_entries
from advbench.results.archive import is_archive, pack, source_of
from advbench.results.entries import ModelEntry, joined
from advbench.results.parts import check_key
from advbench.results.store import Store

_LOG = logging.getLogger("advbench")
_MANIFEST = "run.json"
_LARGEST_MANIFEST = 2**25


FORMATS = ("svg", "png", "pdf", "csv", "robustbench", "latex")


def report(
    *outs: str | Path,
    every: bool = False,
    to: str | Path | None = None,
    format: str | None = None,
    entries: str | Path | None = None,
) -> list[Path]:
    """Rebuild the reports of output folders from their records; no model is loaded and nothing is run.

    every: all records in the folders, not only the cells of their last runs. to: where the files go, by default the folder
    itself where there is one; several make one report there. format: in place of the reports, every figure as ``svg``,
    ``png`` or ``pdf``, all cells as ``csv``, or the model_info of ``robustbench``; these need `to`, as an archive of records
    (``.tar.xz``, `advbench.results.archive`) does in place of a folder. Where `to` is an archive, the records of the one
    folder are packed into it, and no report is written. entries: a TOML file of papers, authors, venues and links of models
    (`advbench.results.entries`), for ``robustbench`` and ``latex``. Returns the files. Raises ValueError if there are no
    records, or no `to` where it is needed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sorted(path.name for path in report("advbench-out", to=folder))  # "advbench-out": the folder of a finished run
    ['leaderboard.html', 'leaderboard.md', 'results.csv']
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"Expected `format` to be one of {', '.join(FORMATS)}, got {format!r}")
    if to is not None and is_archive(to):
        return [_packed(outs, Path(to), every, format)]
    if to is None:
        packed = any(is_archive(out) for out in outs)
        if format is not None or len(set(outs)) > 1 or packed:
            what = f"the format {format}" if format else "an archive" if packed else "a report of several folders"
            raise ValueError(f"Expected a folder for {what}, got none: give --to DIR")
        to = next(iter(outs), "")
    folders = _folders(outs, every)
    if format is None:
        from advbench.reports.write import write_merged

        return write_merged(folders, Path(to))
    from advbench.reports.export import export

    return export(folders, Path(to), format, _entries(folders, entries))


def publish(
    *outs: str | Path,
    to: str | Path,
    every: bool = False,
    title: str | None = None,
    history: str | Path | Sequence[str | Path] | None = None,
    entries: str | Path | None = None,
) -> list[Path]:
    """Write a static site of the leaderboards of output folders, fit for any web server and for the file system.

    to: its folder; files that an earlier publication left there and this one does not write are removed. every: as in
    `report`. title: of the site. history: a baseline file in git, or several runs in order, as `advbench.history` takes
    them, for a page of every number by version, with verdicts across versions of advbench. entries: as in `report`, for the
    models' pages too. Returns the files. Raises ValueError if there are no records.
    """
    from advbench.reports.site import write_site

    folders = _folders(outs, every)
    past = None
    if history is not None:
        from advbench.records import versions

        sources = [history] if isinstance(history, str | Path) else history
        past = versions.history(*sources, across_versions=True)
    settings = {folder: read_settings(folder) for folder in folders}
    facts = _entries(folders, entries)
    return write_site(folders, Path(to), title=title, settings=settings, history=past, entries=facts)


def _entries(folders: Iterable[Path], file: str | Path | None) -> dict[str, ModelEntry]:
    """What the user's file says of models, and beside that what the runs have kept of them.

    A name in the file that is no model's is logged in one line: one file may serve several reports.
    """
    folders, found = list(folders), read_entries(file)
    if found:
        known = _names(folders)
        for name in sorted(set(found) - known):
            close = difflib.get_close_matches(name, known, n=1)
            meant = f": did you mean {close[0]}?" if close else f", which are of {', '.join(sorted(known)[:8])}"
            _LOG.warning("%s: no model or attack of these records is called %s%s", file, name, meant)
    for folder in folders:
        found = joined(found, kept(_manifest(folder).get("entries")))
    return found


def _names(folders: Iterable[Path]) -> set[str]:
    """What an entry may be called: the labels of models, their defenses, and ``attack NAME``."""
    sources = map(source_of, folders)
    found = (source.outcomes(key) for source in sources for key in source.keys())  # noqa: SIM118 - no mapping
    records = [each[0] for each in found if each is not None]
    models = {name for one in records for name in (one.target["label"], one.target["defense"]["name"])}
    return models | {f"attack {one.attack['name']}" for one in records}


def _packed(outs: Sequence[str | Path], to: Path, every: bool, format: str | None) -> Path:
    """The archive `to` of a folder's records."""
    if format is not None or len(set(outs)) != 1:
        what = f"the format {format}" if format else f"{len(set(outs))} folders"
        raise ValueError(f"Expected one folder and no format for an archive of records, got {what}")
    for folder, keys in _folders(outs, every).items():
        pack(source_of(folder), to, keys)
    return to


def _folders(outs: Sequence[str | Path], every: bool) -> dict[Path, list[str] | None]:
    """The cells to report by folder or archive, each once; all of an archive."""
    if not outs:
        raise ValueError("Expected at least one folder of records, got none")
    folders = list(dict.fromkeys(map(Path, outs)))
    for folder in folders:
        if not is_archive(folder) and not Store(folder).keys():
            raise ValueError(
                f"Expected a folder with records, as `advbench run --out {folder}` leaves it, got none at {folder}"
            )
    return {folder: None if every or is_archive(folder) else read_manifest(folder) for folder in folders}


def read_manifest(out: Path) -> list[str] | None:
    """The cells of the last run in a folder; None if it is not known."""
    cells = _manifest(out).get("cells")
    if not isinstance(cells, list):
        return None
    try:
        return [check_key(key) for key in cells]
    except ValueError as error:
        _LOG.warning("damaged %s, all records are taken: %s", out / _MANIFEST, error)
        return None


def read_settings(out: Path) -> str:
    """The settings of the last run in a folder as TOML, which `advbench run` reads; empty if they are not known."""
    settings = _manifest(out).get("settings")
    return seen(settings) if isinstance(settings, str) else ""


def _manifest(out: Path) -> dict[str, object]:
    """What `write_manifest` wrote; nothing if there is no such file, or if it is damaged (logged as one line)."""
    try:
        content = json_of(text_of(out / _MANIFEST, _LARGEST_MANIFEST))
    except OSError:
        return {}
    except ValueError as error:
        _LOG.warning("damaged %s, all records are taken: %s", out / _MANIFEST, error)
        return {}
    return content if isinstance(content, dict) else {}


def write_manifest(
    out: Path, cells: Sequence[str], settings: str = "", entries: Mapping[str, ModelEntry] | None = None
) -> None:
    """Name the cells of the run that is about to start, so that a report can show those that are missing.

    settings: of the run, as TOML, to repeat it. entries: what is known of its models, by label or defense.
    """
    known = {name: entry.described() for name, entry in entries.items()} if entries else {}
    manifest = {"cells": list(cells), "settings": settings} | ({"entries": known} if known else {})
    write_atomically(out / _MANIFEST, json.dumps(manifest, indent=1) + "\n")
