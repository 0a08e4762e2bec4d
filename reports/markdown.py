"""Sections as Markdown, for a repository or a terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from advbench.reading import seen
from advbench.reports.section import Drawing, Entry, Section, Table, drawings, shown

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~$#])")


def to_markdown(
    sections: Sequence[Section], *, title: str, page: str = "leaderboard.html", folder: str | None = None
) -> str:
    """The report as Markdown.

    folder: where the drawings lie as SVG files, under the names that `advbench.reports.section.drawings` gives; they are
    shown. Without it they, and grids of images always, are left to the HTML report, the file `page`.
    """
    files = {id(drawing): f"{folder}/{name}.svg" for name, drawing in drawings(sections).items()} if folder else {}
    parts = [f"# {escape(title)}", *(_section(section, page, files) for section in sections)]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """`text` so that Markdown shows it as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(seen(text).split())).replace("&", "&amp;")


def _section(section: Section, page: str, files: Mapping[int, str]) -> str:
    title = f"{section.title}: {section.context}" if section.context else section.title
    parts = [f"## {escape(title)}", escape(section.text)]
    parts += [f"> **Note:** {escape(caveat)}" for caveat in section.caveats]
    parts += [_table(table, page) for table in section.tables]
    shown = [drawing for drawing in section.figures if isinstance(drawing, Drawing) and id(drawing) in files]
    parts += [f"![{escape(drawing.alt)}]({files[id(drawing)]})" for drawing in shown]
    count = sum(figure is not None and id(figure) not in files for figure in section.figures)
    if count:
        figures = "1 figure" if count == 1 else f"{count} figures"
        parts.append(f"[{figures}]({page}#{section.anchor})")
    return "\n\n".join(parts)


def _table(table: Table, page: str) -> str:
    from tabulate import tabulate

    places = shown(table)
    rows = table.rows if places is None else [table.rows[place] for place in places]
    body = tabulate(
        [[_entry(entry) for entry in row] for row in rows],
        headers=[escape(column.name) for column in table.columns],
        tablefmt="pipe",
        colalign=["right" if column.numeric else "left" for column in table.columns] if table.rows else None,
        disable_numparse=True,
    )
    rest = len(table.rows) - len(rows)
    more = f"\n\n{rest:,} more rows: [{page}]({page})" if rest else ""
    return f"**{escape(table.caption)}**\n\n{body}{more}"


def _entry(entry: Entry) -> str:
    text = escape(entry.text) + (f" ({escape(entry.note)})" if entry.note else "")
    return f"**{text}**" if entry.tone == "best" else text
