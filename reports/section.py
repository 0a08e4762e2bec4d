"""What a report is made of: sections with text, tables and figures, which every renderer can draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal

from advbench.results.statistics import Estimate

Tone = Literal["", "best", "muted", "warning"]
LONGEST = 1000
"""A table with more rows than this is long."""
LONGEST_BOARD = 200
"""A table of targets with more rows than this is long."""
FIRST = 100
"""How many rows of a long table are shown at first, and at most how many of the marked ones."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    name: its heading. help: what the heading means, in a sentence. numeric: right-aligned, sorted as numbers. heading:
    whether it names the row. choice: whether a reader may filter by its values.
    """

    name: str
    help: str = ""
    numeric: bool = False
    heading: bool = False
    choice: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """A cell of a table.

    text: what it says. note: more of it, in smaller type. order: what it is sorted by, None for what has no value (last,
    in either direction). interval: drawn as a bar if the renderer can, a share in [0, 1]. link: where its
    text leads, on a page that has such a place.
    """

    text: str
    note: str = ""
    order: float | str | None = None
    interval: Estimate | None = None
    tone: Tone = ""
    link: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of entries, one entry per column.

    filterable: whether a reader may search its rows. selectable: whether a reader may choose its columns. longest: of more
    rows than this, renderers show the first ones and those that are marked, and a reader can search the others.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    filterable: bool = False
    selectable: bool = False
    longest: int = LONGEST

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"Expected rows of {len(self.columns)} entries, got {len(row)} in {self.caption!r}")


def first(caveats: Sequence[str], others: str) -> list[str]:
    """All caveats of a kind, or of very many the first ones and how many `others` there are.

    >>> first(["a", "b"], "more")
    ['a', 'b']
    >>> first([str(i) for i in range(FIRST + 2)], "more of this kind")[-1]
    '2 more of this kind.'
    """
    if len(caveats) <= FIRST:
        return list(caveats)
    return [*caveats[:FIRST], f"{len(caveats) - FIRST:,} {others}."]


def shown(table: Table) -> list[int] | None:
    """The rows of a long table that renderers show: the first ones, and of the others the marked; None if it shows all.

    >>> rows = tuple((Entry(str(i), tone="warning" if i == 700 else ""),) for i in range(1001))
    >>> found = shown(Table("", (Column("Place"),), rows))
    >>> len(found), found[-2:]
    (101, [99, 700])
    """
    if len(table.rows) <= table.longest:
        return None
    first = min(FIRST, len(table.rows))
    others = range(first, len(table.rows))
    marked = (i for i in others if any(entry.tone in ("best", "warning") for entry in table.rows[i]))
    return [*range(first), *islice(marked, FIRST)]


def drop_constant(table: Table, names: Sequence[str]) -> Table:
    """The table without those columns, among `names`, that say the same in every row; the caption says it instead."""
    constant = [
        i for i, column in enumerate(table.columns) if column.name in names and len({row[i].text for row in table.rows}) == 1
    ]
    if not constant:
        return table
    said = ", ".join(f"{table.columns[i].name.lower()} {table.rows[0][i].text}" for i in constant)
    kept = [i for i in range(len(table.columns)) if i not in constant]
    return replace(
        table,
        caption=f"{table.caption}: {said}",
        columns=tuple(table.columns[i] for i in kept),
        rows=tuple(tuple(row[i] for i in kept) for row in table.rows),
    )


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure as SVG markup, drawn in the page's own text colour.

    alt: what it shows, for those who cannot see it. file: the same as a file of a format (svg, png or pdf) on white paper.
    """

    svg: str
    alt: str
    caption: str
    file: Callable[[str], bytes] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ImageGrid:
    """Rows of images as one PNG.

    rows: a name for each row. columns: a line under each column. group: grids of one group are shown together.
    """

    png: bytes
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    alt: str
    caption: str
    group: str


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report.

    anchor: its name in links, lower-case letters, digits and hyphens. context: the data set and threat that it speaks of,
    if there is one. The i-th figure belongs beside the i-th table; None stands for a table without one.
    """

    title: str
    anchor: str
    text: str
    context: str = ""
    tables: tuple[Table, ...] = ()
    figures: tuple[Drawing | ImageGrid | None, ...] = ()
    caveats: tuple[str, ...] = ()


def drawings(sections: Sequence[Section]) -> dict[str, Drawing]:
    """All drawings by a name for their files: the section's anchor, numbered if it has several."""
    by_name = {}
    for section in sections:
        own = [figure for figure in section.figures if isinstance(figure, Drawing)]
        for place, drawing in enumerate(own, start=1):
            by_name[f"{section.anchor}-{place}" if len(own) > 1 else section.anchor] = drawing
    return by_name
