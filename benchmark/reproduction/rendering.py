"""A reproduction as Markdown, HTML and CSV, and its verdicts as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from advbench.files import write_atomically
from advbench.reports import figures
from advbench.reports.html import to_html
from advbench.reports.markdown import to_markdown
from advbench.reports.section import Column, Drawing, Entry, Section, Table
from advbench.reports.spreadsheets import inert
from advbench.reproduction.claim_tables import claim_table, claims_csv, counts, deciding_run, number_text, verdicts
from advbench.reproduction.claim_verdicts import ClaimVerdict
from advbench.reproduction.study import Comparison, Ours, Pair, Plot, Scale
from advbench.results.papers import load

if TYPE_CHECKING:
    from advbench.reproduction.engine import StudyOutcome

FILES = ("reproduction.md", "reproduction.html", "reproduction.csv", "claims.csv")
_MARKED = 12
"""Up to so many points of a curve are marked."""


def write(out: Path, scale: Scale, seeds: Sequence[int], outcomes: Sequence[StudyOutcome]) -> list[Path]:
    """Write the four files into `out` and return their paths."""
    judged = verdicts(outcomes, scale, seeds)
    found = [section(outcome, scale, judged[outcome.study.name]) for outcome in outcomes]
    papers = dict.fromkeys(load(outcome.study.paper).short for outcome in outcomes)
    title = f"{', '.join(papers)}: the papers beside advbench"
    summary = [("Scale", scale), ("Training seeds", ", ".join(map(str, seeds))), *counts(judged)]
    contents = (
        to_markdown(found, title=title, page=FILES[1]),
        to_html(found, title=title, summary=summary),
        to_csv(outcomes),
        claims_csv(judged),
    )
    paths = [out / name for name in FILES]
    for path, content in zip(paths, contents, strict=True):
        write_atomically(path, content)
    return paths


def section(outcome: StudyOutcome, scale: Scale, claims: Sequence[ClaimVerdict] = ()) -> Section:
    """A study as a section of the report, with the verdicts of its claims."""
    study, paper = outcome.study, load(outcome.study.paper)
    tables, drawings = list[Table](), list[Drawing | None]()
    for comparison in outcome.comparisons:
        if comparison.rows:
            tables.append(comparison_table(comparison))
            drawings.append(None)
        tables += [plot_table(plot) for plot in comparison.plots]
        drawings += [drawing(plot) for plot in comparison.plots]
    tables += [claim_table(claims)] if claims else []
    caveats = [f"Other than in the paper: {text}" for text in study.differs(scale)]
    caveats += [note for comparison in outcome.comparisons for note in comparison.notes]
    caveats += [deciding_run(one, one.power) for one in claims if one.power is not None]
    caveats += [f"{one.claim.id}: {one.claim.withheld.reason}" for one in claims if one.claim.withheld is not None]
    if outcome.problem:
        caveats.insert(0, f"Incomplete: {outcome.problem}")
    return Section(
        title=f"{paper.short}, {study.title}",
        anchor=study.name.replace(".", "-").replace("_", "-"),
        text=f"{paper.title} ({paper.source}). Ours: the {_centre(_all_ours(outcome.comparisons))} over training seeds, and "
        "the lowest and highest of them.",
        tables=tuple(tables),
        figures=(*drawings, *(grid for comparison in outcome.comparisons for grid in comparison.images)),
        caveats=tuple(caveats),
    )


def _all_ours(comparisons: Sequence[Comparison]) -> Iterator[Ours]:
    for comparison in comparisons:
        yield from (pair.ours for _, pairs in comparison.rows for pair in pairs if pair.ours is not None)
        yield from (each for plot in comparison.plots for one in plot.series for each in one.ours)


def _centre(found: Iterable[Ours]) -> str:
    return " or ".join(dict.fromkeys(each.shown for each in found)) or "mean"


def comparison_table(comparison: Comparison) -> Table:
    """The paper's cells beside ours; columns that the paper does not have come without it."""
    columns, picks = [Column("", heading=True)], []
    for i, (name, unit) in enumerate(comparison.columns):
        heading = f"{name} ({unit})" if unit else name
        if any(pairs[i].paper is not None for _, pairs in comparison.rows):
            columns.append(Column(f"{heading}, paper", numeric=True))
            picks.append((i, "paper"))
        if any(pairs[i].ours is not None for _, pairs in comparison.rows):
            columns.append(Column(f"{heading}, ours", numeric=True))
            picks.append((i, "ours"))
    rows = tuple(
        (Entry(label, order=label), *(_paper(pairs[i]) if side == "paper" else _ours(pairs[i]) for i, side in picks))
        for label, pairs in comparison.rows
    )
    return Table(comparison.caption, tuple(columns), rows)


def plot_table(plot: Plot) -> Table:
    """The numbers of a plot, a row for each position."""
    columns = (Column(plot.x_label, heading=True, numeric=True), *(Column(one.name, numeric=True) for one in plot.series))
    found = [dict(zip(one.x, one.ours, strict=True)) for one in plot.series]
    rows = tuple(
        (Entry(f"{x:g}", order=x), *(_ours(Pair(None, by_x.get(x))) for by_x in found))
        for x in sorted({x for one in plot.series for x in one.x})
    )
    return Table(f"{plot.caption}: {plot.y_label}", columns, rows)


def drawing(plot: Plot) -> Drawing:
    """A plot as a figure: the means, in a band from the lowest to the highest seed."""
    curves = [
        figures.Curve(
            one.name,
            np.array(one.x),
            np.array([each.centre for each in one.ours]),
            marked=len(one.x) <= _MARKED,
            low=np.array([min(each.values) for each in one.ours]),
            high=np.array([max(each.values) for each in one.ours]),
        )
        for one in plot.series
    ]
    found = [each for one in plot.series for each in one.ours]
    spread = f": {_centre(found)} over training seeds, and the lowest and highest of them"
    return figures.line_plots(
        [figures.Panel("", tuple(curves))],
        x_label=plot.x_label,
        y_label=plot.y_label,
        caption=plot.caption + (spread if any(len(each.values) > 1 for each in found) else ""),
        alt=f"Curves of {plot.y_label} over {plot.x_label}, the numbers of the table beside it",
        shares=False,
    )


def long_table(comparison: Comparison) -> Table:
    """The same numbers with a line for each, for narrow places."""
    columns = (Column("", heading=True), Column("figure"), Column("paper", numeric=True), Column("ours", numeric=True))
    rows = tuple(
        (Entry(label if first else ""), Entry(f"{name} ({unit})" if unit else name), _paper(pair), _ours(pair))
        for label, pairs in comparison.rows
        for first, (name, unit), pair in zip((True, *(False for _ in pairs[1:])), comparison.columns, pairs, strict=True)
    )
    return Table(comparison.caption, columns, rows)


def to_csv(outcomes: Sequence[StudyOutcome]) -> str:
    """A line per cell and per point of a plot: what it is, the paper's number, our mean, lowest and highest, each seed's."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("study", "table", "row", "column", "unit", "paper", "ours", "lowest", "highest", "by_seed"))
    for outcome in outcomes:
        for comparison in outcome.comparisons:
            for label, pairs in comparison.rows:
                for (name, unit), pair in zip(comparison.columns, pairs, strict=True):
                    head = (outcome.study.name, comparison.caption, label, name, unit)
                    writer.writerow((*map(inert, head), *_numbers(pair)))
            for plot in comparison.plots:
                for series in plot.series:
                    for x, ours in zip(series.x, series.ours, strict=True):
                        head = (outcome.study.name, plot.caption, f"{plot.x_label} {x:g}", series.name, plot.y_label)
                        writer.writerow((*map(inert, head), *_numbers(Pair(None, ours))))
    return text.getvalue()


def _paper(pair: Pair) -> Entry:
    return Entry("–") if pair.paper is None else Entry(f"{pair.paper:g}", order=pair.paper)


def _ours(pair: Pair) -> Entry:
    if pair.ours is None:
        return Entry("–")
    centre = pair.ours.centre
    spread = (
        "" if len(pair.ours.values) < 2 else f"{number_text(min(pair.ours.values))}–{number_text(max(pair.ours.values))}"
    )
    return Entry(number_text(centre), note=spread, order=centre)


def _numbers(pair: Pair) -> tuple[object, ...]:
    paper = "" if pair.paper is None else f"{pair.paper:g}"
    if pair.ours is None:
        return paper, "", "", "", ""
    values = pair.ours.values
    return (
        paper,
        f"{pair.ours.centre:.6g}",
        f"{min(values):.6g}",
        f"{max(values):.6g}",
        " ".join(f"{one:.6g}" for one in values),
    )
