"""The leaderboards on a terminal, wide or narrow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from advbench.reports.attackers import attackers_section
from advbench.reports.cells import load
from advbench.reports.leaderboard import leaderboard_section
from advbench.reports.section import Column, Entry, Section
from advbench.reports.standings import ranked_boards
from advbench.results.store import Store

if TYPE_CHECKING:
    from rich.console import Console

_ATTACKERS = ("Ignores the defense", "Adaptive white-box", "Substitute black-box")
_NARROW = ("Rank", "Defense", "Robust accuracy", *_ATTACKERS)
_MEDIUM = (*_NARROW, "Clean", "White-box", "Black-box", "Transfer", "Queries", "Minimum of white-box and substitute")
_WIDE = (*_MEDIUM, "Weakest cell", "Time per image", "Architecture")
_NOTED = "Robust accuracy"
_MEDIUM_FROM, _WIDE_FROM = 80, 120


def print_leaderboard(out: Path, keys: Sequence[str] | None = None, console: Console | None = None) -> None:
    """Print the leaderboards of an output folder, with as many columns as the console has room for.

    keys: the cells to report, all records if None.
    """
    from rich.console import Console

    console = console or Console()
    cells = load(Store(out), keys)
    for board in ranked_boards(cells):
        _print_section(leaderboard_section(board, missing=len(cells.missing)), console)
        attackers = attackers_section(board)
        if attackers is not None:
            _print_section(replace(attackers, tables=attackers.tables[:1]), console)


def _print_section(section: Section, console: Console) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    wanted = _WIDE if console.width >= _WIDE_FROM else _MEDIUM if console.width >= _MEDIUM_FROM else _NARROW
    for table in section.tables:
        shown = [i for i, column in enumerate(table.columns) if column.name in wanted]
        grid = Table(title=Text(table.caption), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for i in shown:
            column = table.columns[i]
            grid.add_column(Text(column.name), justify="right" if column.numeric else "left", overflow="fold")
        for row in table.rows:
            style = "bold" if any(entry.tone == "best" for entry in row) else None
            grid.add_row(*(Text(_text(row[i], table.columns[i])) for i in shown), style=style)
        console.print(grid)
    for caveat in section.caveats:
        console.print(Text(caveat), highlight=False)


def _text(entry: Entry, column: Column) -> str:
    return f"{entry.text} ({entry.note})" if entry.note and column.name == _NOTED else entry.text
