"""The reports of one output folder or of several, written from their records alone."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from importlib.metadata import version
from pathlib import Path

from advbench.files import write_atomically
from advbench.reading import json_of, text_of
from advbench.reports.cells import Cells, load
from advbench.results.archive import source_of

REPORTS = ("leaderboard.md", "leaderboard.html", "results.csv")
_SIDECAR = ".reports.json"
_FIGURES = "figures"
_PAGES = "leaderboard"
_LIBRARIES = ("numpy", "pandas", "matplotlib", "seaborn", "jinja2", "tabulate")


def write_reports(out: Path, keys: Sequence[str] | None = None) -> list[Path]:
    """Write leaderboard.md, leaderboard.html and results.csv into `out` from the records in ``out/records``.

    keys: the cells to report, all records if None; a key without a record becomes a row that says so. The figures of
    leaderboard.md lie beside it in ``figures/``. Nothing is drawn again if neither records, renderers nor reports have
    changed. Returns the three files.
    """
    return write_merged({Path(out): keys}, Path(out))


def write_merged(folders: Mapping[Path, Sequence[str] | None], to: Path) -> list[Path]:
    """Write one report of several output folders or archives into `to`; the cells of each as in `write_reports`."""
    sources = {folder: source_of(folder) for folder in folders}
    wanted = {folder: sources[folder].keys() if keys is None else sorted(set(keys)) for folder, keys in folders.items()}
    paths = [to / name for name in REPORTS]
    digest = _renderers()
    for folder, keys in wanted.items():
        digest.update(f"{folder} {sources[folder].digest(keys)}\n".encode(errors="surrogateescape"))
    inputs = digest.hexdigest()
    before = _recorded(to)
    if before != {"inputs": inputs, **_digests(to, before)} or not all(path.is_file() for path in paths):
        contents = _render(_merged({folder: load(sources[folder], keys) for folder, keys in wanted.items()}))
        for name in set(before) - {"inputs"} - set(contents):
            (to / name).unlink(missing_ok=True)
        for name, content in contents.items():
            write_atomically(to / name, content)
        write_atomically(to / _SIDECAR, json.dumps({"inputs": inputs, **_digests(to, contents)}, indent=1) + "\n")
    return paths


def read(folders: Mapping[Path, Sequence[str] | None]) -> Cells:
    """The cells of one output folder or archive or of several, merged; all cells of a folder if None."""
    return _merged({folder: load(source_of(folder), keys) for folder, keys in folders.items()})


def _merged(loaded: Mapping[Path, Cells]) -> Cells:
    from advbench.reports.merge import merge, run_names

    if len(loaded) == 1:
        return next(iter(loaded.values()))
    return merge(dict(zip(run_names(map(str, loaded)), loaded.values(), strict=True)))


def _render(cells: Cells) -> dict[str, str]:
    """The contents of the reports, of further pages, and of the figures of the first, by path."""
    from advbench.reports.data_frame import report_frame
    from advbench.reports.figures import on_paper
    from advbench.reports.html import to_pages
    from advbench.reports.markdown import to_markdown
    from advbench.reports.section import drawings
    from advbench.reports.sections import heading, sections, summary
    from advbench.reports.spreadsheets import frame_csv

    report_sections = sections(cells)
    title = heading(cells)
    markdown, page, table = REPORTS
    return {
        markdown: to_markdown(report_sections, title=title, folder=_FIGURES),
        **to_pages(report_sections, title=title, summary=summary(cells), page=page, cells=len(cells.cells)),
        table: frame_csv(report_frame(cells)),
        **{f"{_FIGURES}/{name}.svg": on_paper(drawing.svg) for name, drawing in drawings(report_sections).items()},
    }


def _renderers() -> hashlib._Hash:
    """SHA-256 over the code and the libraries that make reports."""
    digest = hashlib.sha256(sys.version.encode())
    for library in _LIBRARIES:
        digest.update(f"{library} {version(library)}\n".encode())
    for package in ("advbench.results", "advbench.reports", "advbench.reports.templates"):
        for source in sorted(resources.files(package).iterdir(), key=lambda source: source.name):
            if source.name.endswith((".py", ".html", ".css", ".js")):
                digest.update(f"{source.name}\n".encode() + source.read_bytes())
    return digest


def _digests(to: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the files of `names` that exist."""
    paths = {name: to / name for name in names}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items() if path.is_file()}


def _recorded(to: Path) -> dict[str, str]:
    """What the last writing left in the sidecar: the inputs' digest, and that of each file that it wrote."""
    try:
        digests = json_of(text_of(to / _SIDECAR))
    except (OSError, ValueError):
        return {}
    return {name: str(value) for name, value in digests.items() if _is_ours(name)} if isinstance(digests, dict) else {}


def _is_ours(name: str) -> bool:
    """Whether a name in a sidecar, which anything may have written, is a file of a report."""
    folder, _, file = name.rpartition("/")
    inside = "\\" not in file and (
        (folder == _FIGURES and file.endswith(".svg")) or (folder == _PAGES and file.endswith(".html"))
    )
    return name in (*REPORTS, "inputs") or inside
