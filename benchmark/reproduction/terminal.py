"""A reproduction on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table as Grid
from rich.text import Text

from advbench.reproduction.claim_tables import verdict_lines
from advbench.reproduction.engine import Reproduction
from advbench.reproduction.rendering import comparison_table, long_table, plot_table, section

if TYPE_CHECKING:
    from rich.console import Console

    from advbench.reports.section import Entry, Table

_LONGEST = 30
"""Rows of a curve's table that a terminal is given; a longer one is left to the files."""


def print_reproduction(result: Reproduction, console: Console) -> None:
    """Print the tables, what differs from the paper, the verdicts, and where the reports are.

    A table with more columns than the console has room for is printed with a line per number.
    """
    for outcome in result.outcomes:
        drawn = section(outcome, result.scale)
        console.print(Text(drawn.title, style="bold"))
        for comparison in outcome.comparisons:
            if comparison.rows:
                table = comparison_table(comparison)
                wide = sum(len(column.name) + 2 for column in table.columns) > 2 * console.width
                console.print(_grid(long_table(comparison) if wide else table))
            for plot in comparison.plots:
                table = plot_table(plot)
                console.print(_grid(table) if len(table.rows) <= _LONGEST else Text(f"{table.caption}: see the reports"))
        for caveat in drawn.caveats:
            console.print(Text(f"- {caveat}"), highlight=False)
        console.print()
    for line in verdict_lines(result.outcomes, result.scale, result.seeds):
        console.print(Text(line), highlight=False)
    for path in result.reports:
        print(path)


def _grid(table: Table) -> Grid:
    grid = Grid(title=Text(table.caption), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        grid.add_column(Text(column.name), justify="right" if column.numeric else "left", overflow="fold")
    for row in table.rows:
        grid.add_row(*(Text(_text(entry)) for entry in row))
    return grid


def _text(entry: Entry) -> str:
    return f"{entry.text} ({entry.note})" if entry.note else entry.text
