"""Where an evaluation is incomplete: the flags of every target, with their numbers and what to run next."""

from __future__ import annotations

from collections.abc import Sequence

from advbench.reports import formatting
from advbench.reports.section import Column, Section, Table
from advbench.reports.standings import RankedBoard, Standing

_COLUMNS = (
    Column("Target", heading=True),
    Column("Finding"),
    Column("Measured"),
    Column("Images", numeric=True),
    Column("Why it matters"),
    Column("Run next"),
)


def masking_section(board: RankedBoard) -> Section | None:
    """A row for each flag of a board; None if nothing is flagged."""
    table = flag_table(f"Flags, {board.title}", board.standings)
    if not table.rows:
        return None
    return Section(
        title="Incomplete evaluations",
        context=board.title,
        anchor=formatting.anchor(f"flags {board.title}"),
        text="Symptoms of gradients that mislead an attack, and of robustness that a detector alone upholds. A flag does "
        "not say that a model is weak: it says that its robust accuracy here is an upper bound, until attacks that fit the "
        "model have been run.",
        tables=(table,),
    )


def flag_table(caption: str, standings: Sequence[Standing]) -> Table:
    """A row for each flag of the standings."""
    rows = tuple(
        (
            formatting.text_entry(standing.label),
            formatting.text_entry(flag.finding, tone="warning"),
            formatting.text_entry(flag.measured),
            formatting.number_entry(flag.n, f"{flag.n:,}"),
            formatting.text_entry(f"{flag.why} ({flag.paper})"),
            formatting.text_entry(flag.remedy),
        )
        for standing in standings
        for flag in standing.flags
    )
    return Table(caption, _COLUMNS, rows)
