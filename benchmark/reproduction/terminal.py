"""A reproduction on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table as Grid
from rich.text import Text

from advbench.reproduction.engine import Reproduction
from advbench.reproduction.rendering import comparison_table, long_table, section, verdict_lines

if TYPE_CHECKING:
    from rich.console import Console

    from advbench.reports.section import Entry


def print_reproduction(result: Reproduction, console: Console) -> None:
    """Print the tables, what differs from the paper, the verdicts, and where the reports are.

    A table with more columns than the console has room for is printed with a line per number.
    """
    for outcome in result.outcomes:
        drawn = section(outcome, result.scale)
        console.print(Text(drawn.title, style="bold"))
        for comparison in outcome.comparisons:
            table = comparison_table(comparison)
            if sum(len(column.name) + 2 for column in table.columns) > 2 * console.width:
                table = long_table(comparison)
            grid = Grid(title=Text(table.caption), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
            for column in table.columns:
                grid.add_column(Text(column.name), justify="right" if column.numeric else "left", overflow="fold")
            for row in table.rows:
                grid.add_row(*(Text(_text(entry)) for entry in row))
            console.print(grid)
        for caveat in drawn.caveats:
            console.print(Text(f"- {caveat}"), highlight=False)
        console.print()
    for line in verdict_lines(result.outcomes):
        console.print(Text(line), highlight=False)
    for path in result.reports:
        print(path)


def _text(entry: Entry) -> str:
    return f"{entry.text} ({entry.note})" if entry.note else entry.text
