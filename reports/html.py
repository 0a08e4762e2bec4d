"""Sections as HTML pages that need no network and run nothing but their own script."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from itertools import groupby, zip_longest
from typing import TYPE_CHECKING

from advbench.reading import seen
from advbench.reports.section import Drawing, Entry, ImageGrid, Section, Table, shown

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

PAGED = 4000
"""Of a report with more cells than this, most sections are pages of their own."""
_ON_THE_FIRST_PAGE = (
    "Leaderboard",
    "Robust accuracy",
    "Test-time defenses",
    "Incomplete evaluations",
    "Cells without numbers",
)
_BAR = 100.0
_JOINTS = re.compile(r"(\(|,(?! )|/(?=\w))")


def to_html(
    sections: Sequence[Section],
    *,
    title: str,
    summary: Sequence[tuple[str, str]] = (),
    elsewhere: Sequence[tuple[Section, str]] = (),
) -> str:
    """The report as HTML.

    summary: facts (name, value) under the title. elsewhere: further sections, with the pages on which they are. Every text
    is escaped; the Content-Security-Policy allows this file's own style and script, by their hashes, and images from within.
    """
    named = [*sections, *(section for section, _ in elsewhere)]
    several = {section.title for section in named if _count(named, section.title) > 1}
    scripts = with_long("tables.js", sections=sections)
    return render(
        "report.html", scripts, title=title, summary=summary, sections=sections, several=several, elsewhere=elsewhere
    )


def to_pages(
    sections: Sequence[Section], *, title: str, summary: Sequence[tuple[str, str]], page: str, cells: int
) -> dict[str, str]:
    """The report as HTML files by path: the file `page`, and of very many `cells` a file for most sections beside it.

    The leaderboards and what has no numbers stay in `page`, which links the others, in a folder of its name.
    """
    folder = page.removesuffix(".html")
    first = [section for section in sections if cells <= PAGED or section.title in _ON_THE_FIRST_PAGE]
    others = [(section, f"{folder}/{section.anchor}.html") for section in sections if section not in first]
    pages = {page: to_html(first, title=title, summary=summary, elsewhere=others)}
    for section, path in others:
        scripts = with_long("tables.js", sections=[section])
        pages[path] = render("page.html", scripts, title=section.title, site=title, back=f"../{page}", section=section)
    return pages


def with_long(*scripts: str, sections: Sequence[Section]) -> tuple[str, ...]:
    """The scripts of a page, with that for long tables if one of its sections has any."""
    long = any(shown(table) for section in sections for table in section.tables)
    return (*scripts, "long.js") if long else scripts


def render(template: str, scripts: Sequence[str] = ("tables.js",), **content: object) -> str:
    """A page of `template`, with `content` and the texts of the `scripts`. Every text but drawings is escaped."""
    style, script = _template("style.css"), "\n".join(map(_template, scripts))
    own = {"style": style, "script": script, "policy": _policy(style, script)}
    return seen(_environment().get_template(template).render(**own, **content))


@cache
def _environment() -> Environment:
    """The templates, each compiled once."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_template), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters |= {"base64": _base64, "bar": _bar, "order": _order, "breakable": _breakable}
    environment.globals |= {"pairs": _pairs, "grids": _grids, "zip": zip}
    environment.globals |= {"shown": shown, "chosen": _chosen, "rows_as_json": rows_as_json}
    return environment


@cache
def _template(name: str) -> str:
    return (resources.files("advbench.reports.templates") / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _count(sections: Sequence[Section], title: str) -> int:
    return sum(section.title == title for section in sections)


def _pairs(section: Section) -> list[tuple[Table | None, Drawing | None]]:
    """Tables with the drawings that belong beside them."""
    return list(zip_longest(section.tables, [figure for figure in section.figures if not isinstance(figure, ImageGrid)]))


def _grids(section: Section) -> list[tuple[str, list[ImageGrid]]]:
    """Image grids by group, groups in the order in which they first come."""
    grids = [figure for figure in section.figures if isinstance(figure, ImageGrid)]
    order = list(dict.fromkeys(grid.group for grid in grids))
    ordered = sorted(grids, key=lambda grid: order.index(grid.group))
    return [(name, list(group)) for name, group in groupby(ordered, key=lambda grid: grid.group)]


def _chosen(table: Table, places: Sequence[int] | None) -> Sequence[tuple[Entry, ...]]:
    """The rows of a table at these places, all if None."""
    return table.rows if places is None else [table.rows[place] for place in places]


def rows_as_json(table: Table, places: Sequence[int]) -> Markup:
    """All rows of a long table for the script that searches them: of each column the distinct entries, and each row's.

    An entry is its text, note, order, tone, link and the three lengths of its bar, without the empty ones at the end.
    places: of the rows that the page shows.
    """
    from markupsafe import Markup

    columns = []
    for i, column in enumerate(table.columns):
        entries: dict[Entry, int] = {}
        rows = [entries.setdefault(row[i], len(entries)) for row in table.rows]
        kind = {"number": column.numeric, "heading": column.heading, "choice": column.choice}
        columns.append({**kind, "entries": [_listed(entry) for entry in entries], "rows": rows})
    text = json.dumps({"columns": columns, "shown": list(places)}, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def _listed(entry: Entry) -> list[object]:
    found: list[object] = [entry.text, entry.note, _order(entry), entry.tone, entry.link, list(_bar(entry).values())]
    while found and not found[-1]:
        found.pop()
    return found


def _breakable(text: str) -> str:
    """`text`, escaped, that may be broken after brackets, commas and slashes."""
    from markupsafe import Markup, escape

    return Markup(_JOINTS.sub("\\1<wbr>", str(escape(text))))


def _bar(entry: Entry) -> dict[str, str]:
    """Lengths of an interval's bar, on a scale of 0 to 100."""
    if entry.interval is None:
        return {}
    shares = {"value": entry.interval.value, "low": entry.interval.low, "high": entry.interval.high}
    return {name: f"{_BAR * share:.2f}" for name, share in shares.items()}


def _order(entry: Entry) -> str:
    """What the script sorts by."""
    if entry.order is None:
        return ""
    return entry.order if isinstance(entry.order, str) else repr(float(entry.order)).replace("inf", "Infinity")
