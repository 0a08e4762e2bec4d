"""Parts of a report as files of their own: figures for a paper, a table of all cells, RobustBench's JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from advbench.files import write_atomically
from advbench.reports.cells import Cells
from advbench.reports.robustbench import NO_ENTRIES, NORMS, model_infos
from advbench.reports.section import Section, drawings
from advbench.reports.standings import ranked_boards
from advbench.reports.write import read
from advbench.results.entries import ModelEntry


def export(
    folders: Mapping[Path, Sequence[str] | None],
    to: Path,
    format: str,
    entries: Mapping[str, ModelEntry] = NO_ENTRIES,
) -> list[Path]:
    """Write all figures as ``svg``, ``png`` or ``pdf``, all cells as ``csv``, ``robustbench`` or ``latex``, into `to`.

    folders: output folders and their cells, all if None. entries: of models, by label or defense, for the last two.
    Returns the files. Raises ValueError if there is nothing to write: no figure, or no board whose norm RobustBench has.
    """
    cells = read(folders)
    files: Mapping[str, str | bytes]
    if format == "csv":
        files = {"results.csv": csv(cells)}
    elif format == "robustbench":
        files = _robustbench(cells, entries)
    elif format == "latex":
        from advbench.reports.latex import latex

        files = latex(cells, entries)
    else:
        from advbench.reports.sections import sections

        files = figures(sections(cells), format)
        if not files:
            raise ValueError("Expected figures to write, got records without any: score some cells first")
    paths = [to / name for name in files]
    for path, content in zip(paths, files.values(), strict=True):
        write_atomically(path, content)
    return paths


def csv(cells: Cells) -> str:
    """A row for every cell, as `results.csv` has it."""
    from advbench.reports.data_frame import report_frame
    from advbench.reports.spreadsheets import frame_csv

    return frame_csv(report_frame(cells))


def figures(sections: Sequence[Section], format: str) -> dict[str, bytes]:
    """The drawings of sections as files, by name."""
    return {
        f"{name}.{format}": drawing.file(format) for name, drawing in drawings(sections).items() if drawing.file is not None
    }


def _robustbench(cells: Cells, entries: Mapping[str, ModelEntry]) -> dict[str, str]:
    boards = ranked_boards(cells)
    fitting = [board for board in boards if board.threat.norm in NORMS and board.threat.epsilon is not None]
    if not fitting:
        got = ", ".join(board.title for board in boards) or "none"
        raise ValueError(f"Expected a linf or l2 board with an epsilon for RobustBench, got {got}")
    return {f"model_info/{path}": info for board in fitting for path, info in model_infos(board, entries).items()}
