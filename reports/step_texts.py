"""A baseline's history as text, Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict

from advbench.reports import formatting
from advbench.reports.gate import described, described_threat
from advbench.reports.markdown import escape
from advbench.reports.steps import against_anchor, caveats, outcome, reasons
from advbench.results.gate.steps import Number, Transition, Version, VersionHistory, numbers, single_attacks, threats

FORMAT = "advbench history"
SCHEMA_VERSION = 1
_COLUMNS = ("Version", "Date", "Change", "Version before", "Anchor")
_LONGEST = 44


def to_text(history: VersionHistory) -> str:
    """A table for a terminal, the newest version last, then what fails and what the verdicts rest on."""
    from tabulate import tabulate

    rows = [_cells(history, step) for step in history.steps]
    table = tabulate(rows, headers=_COLUMNS, tablefmt="simple", disable_numparse=True)
    told = [line for step in history.steps for line in _told(step)]
    parts = [table, *(["\n".join(told)] if told else []), "\n".join([*caveats(history), conclusion(history)])]
    return "\n\n".join(parts) + "\n"


def to_markdown(history: VersionHistory) -> str:
    """The same for a job's summary."""
    from tabulate import tabulate

    rows = [[escape(text) for text in _cells(history, step)] for step in history.steps]
    table = tabulate(rows, headers=_COLUMNS, tablefmt="pipe", disable_numparse=True)
    head = f"## Robustness by version: {'failed' if history.exit_code else 'passed'}"
    told = [f"- {escape(line)}" for step in history.steps for line in _told(step)]
    parts = [head, escape(conclusion(history)), table, *(["\n".join(told)] if told else [])]
    return "\n\n".join([*parts, *map(escape, caveats(history))]) + "\n"


def to_json(history: VersionHistory) -> str:
    """Everything, for programs: each version's numbers, single attacks and both verdicts, the anchor and the exit code."""
    content = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "exit_code": history.exit_code,
        "terms": asdict(history.terms),
        "anchor": _version(history.anchor),
        "steps": [
            {
                **_version(step.version),
                "numbers": [] if step.version.run is None else [_number(each) for each in numbers(step.version.run)],
                "attacks": _attacks(step.version),
                "against_before": None if step.change is None else described(step.change),
                "against_anchor": None if step.drift is None else described(step.drift),
            }
            for step in history.steps
        ],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


FORMATS: Mapping[str, Callable[[VersionHistory], str]] = {"text": to_text, "markdown": to_markdown, "json": to_json}


def conclusion(history: VersionHistory) -> str:
    """What the exit code says, in a line."""
    last, anchor = history.steps[-1], history.anchor
    if last.version.run is None:
        return f"not comparable: {last.version.name} cannot be read"
    asked = {"the version before": last.change, f"the anchor {anchor.name}": last.drift}
    answers = [f"{outcome(verdicts)} against {name}" for name, verdicts in asked.items() if verdicts is not None]
    if not answers:
        return f"{last.version.name} is the only version so far: nothing to compare"
    moved = "; `--anchor` names another" if last.drift is not None and last.drift.exit_code else ""
    return f"{last.version.name}: {', '.join(answers)}{moved}"


def _cells(history: VersionHistory, step: Transition) -> list[str]:
    version = step.version
    subject = version.subject if len(version.subject) <= _LONGEST else version.subject[: _LONGEST - 1] + "…"
    before = outcome(step.change) or ("cannot be read" if version.run is None else formatting.NONE)
    return [version.name, version.date, subject, before, against_anchor(history, step)]


def _told(step: Transition) -> list[str]:
    """What did not pass, and why."""
    if step.version.run is None:
        return [f"{step.version.name}: {step.version.problem}"]
    asked = {"the version before": step.change, "the anchor": step.drift}
    return [
        f"{step.version.name}, {outcome(verdicts)} against {name}: {reasons(verdicts)}"
        for name, verdicts in asked.items()
        if verdicts is not None and verdicts.exit_code
    ]


def _version(version: Version) -> dict[str, object]:
    content: dict[str, object] = {name: getattr(version, name) for name in ("name", "commit", "date", "subject", "problem")}
    return content | {"advbench": None if version.run is None else version.run.version}


def _number(number: Number) -> dict[str, object]:
    estimate = number.rate.estimate
    return {
        "threat": described_threat(number.threat),
        "target": number.target,
        "quantity": number.quantity,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "by_seed": list(number.rate.by_seed),
    }


def _attacks(version: Version) -> list[dict[str, object]]:
    """The accuracy that each attack alone leaves, by threat and target."""
    if version.run is None:
        return []
    return [
        {"threat": described_threat(threat), "target": target, "attacker": attacker._asdict(), "accuracy": accuracy}
        for threat in threats([version])
        for (target, attacker), accuracy in single_attacks(version.run, threat).items()
    ]
