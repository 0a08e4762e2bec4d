"""A baseline's history as a page: every number by version, with the gate's verdicts on the step and against the anchor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from advbench.reports import figures, formatting
from advbench.reports.html import render, with_long
from advbench.reports.section import Column, Drawing, Entry, Section, Table, Tone
from advbench.results.boards import BoardThreat
from advbench.results.gate.baseline import Snapshot
from advbench.results.gate.steps import Number, Transition, VersionHistory, numbers, single_attacks, threats
from advbench.results.gate.verdicts import CLEAN, WORST, GateRow, Verdicts

TITLE = "Robustness by version"
FILES = ("history.html", "history.json")
_COLUMNS = 12
"""How many versions the table of accuracies has columns for."""
_FEW = 5
"""Of more versions than this a reader may choose the columns."""
_NAMED = 3
"""How many numbers a line names."""


def history_page(history: VersionHistory, *, site: str = "", data: str = FILES[1]) -> str:
    """The page of a history. site: the title of the site that it is part of, if any. data: where the same is as JSON."""
    shown = threats(step.version for step in history.steps)
    sections = [_steps_section(history), *(_numbers_section(history, threat) for threat in shown)]
    scripts = with_long("tables.js", sections=sections)
    summary = _summary(history)
    return render("history.html", scripts, title=TITLE, site=site, data=data, summary=summary, sections=sections)


def outcome(verdicts: Verdicts | None) -> str:
    """A gate's answer in two words at most; empty if it was not asked."""
    return "" if verdicts is None else ("passed", "failed", "not comparable")[verdicts.exit_code]


def reasons(verdicts: Verdicts | None) -> str:
    """What a gate's answer rests on, in a line: what fails, what is better or new, or why there is no answer."""
    if verdicts is None:
        return ""
    if verdicts.incomparable:
        first, *others = verdicts.incomparable
        return f"{first} (and {formatting.plural(len(others), 'reason')} more)" if others else first
    changed = verdicts.failures or [row for row in verdicts.rows if row.verdict in ("better", "new")]
    told = [f"{row.target}, {row.quantity} {row.verdict}" for row in changed]
    return "; ".join([*told[:_NAMED], *([f"and {len(told) - _NAMED} more"] if len(told) > _NAMED else [])])


def against_anchor(history: VersionHistory, step: Transition) -> str:
    """The answer of the gate against the anchor, or why it was not asked."""
    if step.version is history.anchor:
        return "the anchor"
    if step.version.run is None:
        return "cannot be read"
    return outcome(step.drift) or "before the anchor"


def caveats(history: VersionHistory) -> list[str]:
    """The scope of the verdicts."""
    terms = history.terms
    lines = [
        f"Each verdict is a gate of its own: the nominal chance of any false alarm, {terms.alpha:g}, holds for one gate, "
        "not for all together."
    ]
    if terms.tolerance:
        lines.append(
            f"Changes up to {100 * terms.tolerance:g}% are ignored, from one version to the next and from the anchor alike."
        )
    asked = [verdicts for step in history.steps for verdicts in (step.change, step.drift) if verdicts is not None]
    return [*lines, *dict.fromkeys(line for verdicts in asked for line in verdicts.caveats)]


def _summary(history: VersionHistory) -> list[tuple[str, str]]:
    last, anchor = history.steps[-1], history.anchor
    answers = {"Against the version before": outcome(last.change), "Against the anchor": outcome(last.drift)}
    return [
        ("Versions", str(len(history.steps))),
        ("Newest", " ".join(filter(None, (last.version.name, last.version.date)))),
        ("Anchor", " ".join(filter(None, (anchor.name, anchor.date)))),
        *((f"Newest {name[0].lower()}{name[1:]}", answer) for name, answer in answers.items() if answer),
    ]


def _steps_section(history: VersionHistory) -> Section:
    columns = (
        Column("Version", heading=True),
        Column("Date"),
        Column("Change", "The commit's first line"),
        Column("Against the version before", "The verdict of `advbench check`", choice=True),
        Column("Against the anchor", "The verdict of `advbench check` with the anchor as the baseline", choice=True),
        Column("advbench", "The version that made the run"),
    )
    rows = tuple(_step_row(history, step) for step in reversed(history.steps))
    return Section(
        title="Versions",
        anchor="versions",
        text="The newest first. A version is tested as a candidate against the version before as its baseline, and against "
        "the anchor in the same way.",
        tables=(Table("Versions and verdicts", columns, rows, filterable=len(rows) > _COLUMNS),),
        caveats=tuple(caveats(history)),
    )


def _step_row(history: VersionHistory, step: Transition) -> tuple[Entry, ...]:
    version = step.version
    before = outcome(step.change) or ("cannot be read" if version.run is None else "the first")
    told = version.problem if version.run is None else reasons(step.change)
    return (
        formatting.text_entry(version.name),
        formatting.text_entry(version.date),
        formatting.text_entry(version.subject),
        _answer(before, told),
        _answer(against_anchor(history, step), reasons(step.drift)),
        formatting.text_entry(version.run.version if version.run is not None else ""),
    )


def _answer(answer: str, told: str) -> Entry:
    tones: dict[str, Tone] = {"passed": "", "failed": "warning", "not comparable": "warning", "cannot be read": "warning"}
    return Entry(answer, told, answer, tone=tones.get(answer, "muted"))


# --- the numbers of a threat


@dataclass(frozen=True, slots=True, eq=False)
class _At:
    """A target's number at a step: its value, None if it is missing there, and its rows against either."""

    step: Transition
    target: str
    quantity: str
    number: Number | None
    change: GateRow | None
    drift: GateRow | None


def _numbers_section(history: VersionHistory, threat: BoardThreat) -> Section:
    places = [each for step in history.steps for each in _at(step, threat)]
    context = formatting.board_title(threat)
    return Section(
        title="Numbers",
        anchor=formatting.anchor(f"numbers {context}"),
        context=context,
        text="Robust accuracy is the worst case, image by image, over all attacks of a version. A number is the mean over "
        "training seeds, with its 95% interval over the images; marks that fail are named.",
        tables=(_accuracy_table(history, threat), _numbers_table(history, places)),
        figures=(_drawing(history, places, context),),
    )


def _at(step: Transition, threat: BoardThreat) -> list[_At]:
    """The numbers of a step at a threat, and those that it lacks."""
    if step.version.run is None:
        return []
    own = {
        (each.target, each.quantity): each
        for each in numbers(step.version.run)
        if each.threat.on_any_images == threat.on_any_images
    }
    change, drift = _rows(step.change, threat), _rows(step.drift, threat)
    found = dict.fromkeys([*own, *sorted(set(change) | set(drift))])
    return [_At(step, *place, number=own.get(place), change=change.get(place), drift=drift.get(place)) for place in found]


def _rows(verdicts: Verdicts | None, threat: BoardThreat) -> dict[tuple[str, str], GateRow]:
    rows = () if verdicts is None else verdicts.rows
    return {(row.target, row.quantity): row for row in rows if row.threat.on_any_images == threat.on_any_images}


def _drawing(history: VersionHistory, places: Sequence[_At], context: str) -> Drawing:
    """A panel of worst cases and one of clean accuracies, a curve for each target, over the versions."""
    names = [step.version.name for step in history.steps]
    fixed = tuple(float(i) for i, step in enumerate(history.steps) if step.version is history.anchor)
    panels = [
        figures.Panel(
            quantity, tuple(_curve(history, target, group) for target, group in _by_target(places, quantity)), fixed
        )
        for quantity in (WORST, CLEAN)
    ]
    return figures.line_plots(
        panels,
        x_label="",
        x_names=names,
        y_label="accuracy",
        caption=f"Accuracy by version, {context}; the dotted line marks the anchor",
        alt="Curves of robust and clean accuracy over the versions, the numbers of the tables of this section",
    )


def _by_target(places: Sequence[_At], quantity: str) -> list[tuple[str, list[_At]]]:
    wanted = [each for each in places if each.quantity == quantity and each.number is not None]
    return [(name, [each for each in wanted if each.target == name]) for name in sorted({each.target for each in wanted})]


def _curve(history: VersionHistory, target: str, places: Sequence[_At]) -> figures.Curve:
    """A target's number at every version, NaN where it is missing."""
    at = {id(each.step): each for each in places}
    found = [at.get(id(step)) for step in history.steps]
    rates = [each.number.rate.estimate if each is not None and each.number is not None else None for each in found]
    ends = np.array([(rate.value, rate.low, rate.high) if rate is not None else (math.nan,) * 3 for rate in rates])
    x = np.arange(len(found), dtype=float)
    return figures.Curve(target, x, ends[:, 0], True, ends[:, 1], ends[:, 2], _marks(found))


def _fails(place: _At | None, *, anchor: bool) -> bool:
    row = None if place is None else place.drift if anchor else place.change
    return row is not None and row.fails


def _marks(places: Sequence[_At | None]) -> tuple[str, ...]:
    """A word at each number that fails: against the version before, or for the first time in a row against the anchor."""
    steps = [_fails(place, anchor=False) for place in places]
    drifts = [_fails(place, anchor=True) for place in places]
    began = [now and not before for before, now in zip([False, *drifts], drifts, strict=False)]
    return tuple("fails" if step else "below anchor" if drift else "" for step, drift in zip(steps, began, strict=True))


def _numbers_table(history: VersionHistory, places: Sequence[_At]) -> Table:
    columns = (
        Column("Version", heading=True),
        Column("Target", choice=True),
        Column("Number", choice=True),
        Column("Accuracy", "The mean over training seeds with its 95% interval over the images", numeric=True),
        Column("Change", "In points, from the version before, on the attackers that both have", numeric=True),
        Column("p (Holm)", numeric=True),
        Column("Verdict", choice=True),
        Column("Since the anchor", "In points, on the attackers that both have", numeric=True),
        Column("p (Holm), anchor", numeric=True),
        Column("Verdict, anchor", choice=True),
    )
    rows = tuple(
        (
            formatting.text_entry(each.step.version.name),
            formatting.text_entry(each.target),
            formatting.text_entry(each.quantity),
            formatting.share_entry(each.number.rate.estimate if each.number is not None else None),
            *_verdict_entries(each.change),
            *_verdict_entries(each.drift),
        )
        for each in sorted(places, key=lambda place: -history.steps.index(place.step))
    )
    return Table("Every number and its verdicts, the newest version first", columns, rows, filterable=True)


def _verdict_entries(row: GateRow | None) -> tuple[Entry, Entry, Entry]:
    """The change, the p-value and the verdict of a row."""
    if row is None:
        return (Entry(formatting.NONE, tone="muted"),) * 3
    points = None if row.difference is None else 100 * row.difference
    return (
        formatting.number_entry(points, "" if points is None else f"{points:+.1f}"),
        formatting.number_entry(row.p_value, "" if row.p_value is None else f"{row.p_value:.2g}"),
        Entry(row.verdict, row.note, row.verdict, tone="warning" if row.fails else ""),
    )


def _accuracy_table(history: VersionHistory, threat: BoardThreat) -> Table:
    """Each target's worst case, its clean accuracy and what each attack alone leaves, by version, the newest first."""
    steps = [step for step in reversed(history.steps) if step.version.run is not None][:_COLUMNS]
    by_step = [_accuracies(step.version.run, threat) for step in steps if step.version.run is not None]
    places = sorted({place for found in by_step for place in found})
    columns = (
        Column("Target", heading=True),
        Column("Attack", choice=True),
        *(Column(step.version.name, step.version.subject, numeric=True) for step in steps),
    )
    rows = tuple(
        (
            formatting.text_entry(target),
            formatting.text_entry(attack),
            *(formatting.number_entry(found.get(place), formatting.percent(found.get(place))) for found in by_step),
        )
        for place in places
        for target, _, attack in [place]
    )
    of = f", the newest {_COLUMNS} versions" if len(history.steps) > _COLUMNS else ""
    return Table(f"Accuracy by version, the newest first{of}", columns, rows, len(rows) > _COLUMNS, len(steps) > _FEW)


def _accuracies(run: Snapshot, threat: BoardThreat) -> dict[tuple[str, int, str], float]:
    """Accuracies by target, place in the table, and attack."""
    words = {WORST: (0, "worst case"), CLEAN: (1, "none: clean images")}
    found = {
        (each.target, *words[each.quantity]): each.rate.estimate.value
        for each in numbers(run)
        if each.threat.on_any_images == threat.on_any_images
    }
    alone = single_attacks(run, threat)
    return found | {(target, 2, str(attacker.seen_by(target))): value for (target, attacker), value in alone.items()}
