"""Sections as HTML pages that need no network and run nothing but their own script."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib import resources
from itertools import groupby, zip_longest

from advbench.reading import seen
from advbench.reports.section import Drawing, Entry, ImageGrid, Section, Table

_BAR = 100.0
_JOINTS = re.compile(r"(\(|,(?! )|/(?=\w))")


def to_html(sections: Sequence[Section], *, title: str, summary: Sequence[tuple[str, str]] = ()) -> str:
    """The report as HTML.

    summary: facts (name, value) under the title. Every text is escaped; the Content-Security-Policy allows this file's own
    style and script, by their hashes, and images from within.
    """
    several = {section.title for section in sections if _count(sections, section.title) > 1}
    return render("report.html", title=title, summary=summary, sections=sections, several=several)


def render(template: str, scripts: Sequence[str] = ("tables.js",), **content: object) -> str:
    """A page of `template`, with `content` and the texts of the `scripts`. Every text but drawings is escaped."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    style, script = _template("style.css"), "\n".join(map(_template, scripts))
    environment = Environment(
        loader=FunctionLoader(_template), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters |= {"base64": _base64, "bar": _bar, "order": _order, "breakable": _breakable}
    environment.globals |= {"pairs": _pairs, "grids": _grids, "zip": zip}
    own = {"style": style, "script": script, "policy": _policy(style, script)}
    return seen(environment.get_template(template).render(**own, **content))


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
