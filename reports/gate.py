"""The gate's verdicts as text, Markdown, JSON and JUnit XML."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from xml.etree import ElementTree

from advbench.reports import formatting
from advbench.reports.markdown import escape
from advbench.results.boards import BoardThreat
from advbench.results.gate.verdicts import TIME, CellChange, GateRow, Verdicts

_COLUMNS = ("Target", "Number", "Baseline", "Candidate", "Change", "p (Holm)", "Verdict", "Test", "Note")
_VERDICT = _COLUMNS.index("Verdict")
_LINES = 12
_NOT_XML = re.compile(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")


def to_text(verdicts: Verdicts) -> str:
    """A table for a terminal, failures first, and what they rest on."""
    if verdicts.incomparable:
        return "\n".join(["not comparable:", *(f"  {line}" for line in verdicts.incomparable)]) + "\n"
    from tabulate import tabulate

    parts = []
    for title, rows in _by_threat(verdicts).items():
        table = [_cells(row)[:-1] for row in rows]
        parts.append(f"{title}\n{tabulate(table, headers=_COLUMNS[:-1], tablefmt='simple', disable_numparse=True)}")
        notes = [f"  {row.target}, {row.quantity}: {row.note}" for row in rows if row.note]
        parts += ["\n".join(notes)] if notes else []
    changes = [f"  {_place(change)}: {_move(change.baseline, change.candidate)}" for change in _telling(verdicts)]
    parts += ["\n".join(["cells of what fails, for information:", *changes])] if changes else []
    return "\n\n".join([*parts, "\n".join([*verdicts.caveats, conclusion(verdicts)])]) + "\n"


def to_markdown(verdicts: Verdicts) -> str:
    """The same for a job's summary."""
    head = f"## Robustness gate: {'failed' if verdicts.exit_code else 'passed'}"
    if verdicts.incomparable:
        return "\n".join([head, "", "Not comparable:", "", *(f"- {escape(line)}" for line in verdicts.incomparable)]) + "\n"
    from tabulate import tabulate

    parts = [head, escape(conclusion(verdicts))]
    for title, rows in _by_threat(verdicts).items():
        table = [_marked([escape(text) for text in _cells(row)], row.fails) for row in rows]
        parts.append(f"**{escape(title)}**\n\n{tabulate(table, headers=_COLUMNS, tablefmt='pipe', disable_numparse=True)}")
    changes = [f"- {escape(_place(change))}: {_move(change.baseline, change.candidate)}" for change in _telling(verdicts)]
    if changes:
        listed = "\n".join(changes)
        parts.append(f"<details><summary>Cells of what fails, for information</summary>\n\n{listed}\n\n</details>")
    return "\n\n".join([*parts, *(escape(line) for line in verdicts.caveats)]) + "\n"


def to_json(verdicts: Verdicts) -> str:
    """Everything, for programs: terms, rows with their differences, single cells, and the exit code."""
    return json.dumps(described(verdicts), indent=1, allow_nan=False) + "\n"


def described(verdicts: Verdicts) -> dict[str, object]:
    """What `to_json` writes."""
    return {
        "exit_code": verdicts.exit_code,
        "terms": asdict(verdicts.terms),
        "incomparable": list(verdicts.incomparable),
        "rows": [{**_plain(row), "difference": row.difference} for row in verdicts.rows],
        "cells": [_plain(change) for change in verdicts.cells],
        "caveats": list(verdicts.caveats),
    }


def to_junit(verdicts: Verdicts) -> str:
    """One test case for each gated number, as continuous integration reads it."""
    errors = len(verdicts.incomparable)
    suite = ElementTree.Element(
        "testsuite",
        name="advbench check",
        tests=str(len(verdicts.rows) + errors),
        failures=str(len(verdicts.failures)),
        errors=str(errors),
    )
    for line in verdicts.incomparable:
        case = ElementTree.SubElement(suite, "testcase", classname="advbench.check", name="comparable")
        ElementTree.SubElement(case, "error", message=line)
    for row in verdicts.rows:
        case = ElementTree.SubElement(suite, "testcase", classname=f"{row.threat}.{row.target}", name=row.quantity)
        said = ", ".join(f"{name.lower()} {text}" for name, text in zip(_COLUMNS[2:], _cells(row)[2:], strict=True) if text)
        if row.fails:
            ElementTree.SubElement(case, "failure", message=f"{row.verdict}: {row.note or row.test}").text = said
        else:
            ElementTree.SubElement(case, "system-out").text = said
    for element in suite.iter():
        element.attrib.update({name: _NOT_XML.sub("?", value) for name, value in element.attrib.items()})
        element.text = _NOT_XML.sub("?", element.text) if element.text else element.text
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


FORMATS: Mapping[str, Callable[[Verdicts], str]] = {
    "text": to_text,
    "markdown": to_markdown,
    "json": to_json,
    "junit": to_junit,
}


def conclusion(verdicts: Verdicts) -> str:
    """The gate's answer in a line."""
    tested = sum(row.p_value is not None for row in verdicts.rows)
    level = (
        f"{formatting.plural(tested, 'number')} tested, nominal chance of any false alarm {verdicts.terms.alpha:g} (Holm)"
    )
    if not verdicts.failures:
        return f"passed: nothing is worse than the baseline; {level}"
    names = ", ".join(f"{row.target} ({row.quantity} {row.verdict})" for row in verdicts.failures[:_LINES])
    return f"failed: {names}; {level}"


def _by_threat(verdicts: Verdicts) -> dict[str, list[GateRow]]:
    """The rows of each threat, failures first."""
    titles = {row.threat: formatting.board_title(row.threat) for row in verdicts.rows}
    rows = sorted(verdicts.rows, key=lambda row: (not row.fails, row.target))
    return {title: [row for row in rows if row.threat == threat] for threat, title in titles.items()}


def _cells(row: GateRow) -> list[str]:
    """A row as its columns show it."""
    time = row.quantity == TIME
    shown = formatting.seconds if time else formatting.percent
    change = formatting.NONE
    if row.difference is not None:
        change = f"x {row.difference:.2f}" if time else f"{100 * row.difference:+.1f}"
    p_value = formatting.NONE if row.p_value is None else f"{row.p_value:.2g}"
    verdict = f"{row.verdict}, FAILS" if row.fails else row.verdict
    test = f"{row.test}, {row.question}" if row.test else ""
    return [row.target, row.quantity, shown(row.baseline), shown(row.candidate), change, p_value, verdict, test, row.note]


def _marked(texts: list[str], fails: bool) -> list[str]:
    return [f"**{text}**" if fails and i == _VERDICT else text for i, text in enumerate(texts)]


def _telling(verdicts: Verdicts) -> Sequence[CellChange]:
    """The cells of the targets that fail, the largest changes first."""
    failing = {(row.threat, row.target) for row in verdicts.failures}
    changes = [change for change in verdicts.cells if (change.threat, change.target) in failing]
    return sorted(changes, key=lambda change: -abs(change.candidate - change.baseline))[:_LINES]


def _place(change: CellChange) -> str:
    return f"{change.target}, {change.attacker}"


def _move(before: float, after: float) -> str:
    return f"{formatting.percent(before)} to {formatting.percent(after)} ({100 * (after - before):+.1f})"


def described_threat(threat: BoardThreat) -> dict[str, object]:
    """A threat as JSON names it."""
    return {name: getattr(threat, name) for name in ("dataset", "split", "norm", "epsilon")}


def _plain(item: GateRow | CellChange) -> dict[str, object]:
    content: dict[str, object] = asdict(item)
    content["threat"] = described_threat(item.threat)
    if isinstance(item, CellChange):
        content["attacker"] = item.attacker._asdict()
    return content
