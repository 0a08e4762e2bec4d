"""Numbers and names as reports write them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from advbench.reports.section import Entry, Tone
from advbench.results.boards import BoardThreat, seen_attacker
from advbench.results.record import Record
from advbench.results.statistics import Estimate

NONE = "–"


def percent(share: float | None) -> str:
    """A share in [0, 1] as a percentage with one decimal."""
    return NONE if share is None or math.isnan(share) else f"{100 * share:.1f}%"


def interval(estimate: Estimate) -> str:
    """The 95% interval of a share, as ``45.1–49.3``, in percent."""
    return NONE if math.isnan(estimate.low) else f"{100 * estimate.low:.1f}–{100 * estimate.high:.1f}"


def number(value: float | None) -> str:
    """Three significant digits; ``∞`` for infinity."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def seconds(value: float | None) -> str:
    """A time with its unit, from µs to hours."""
    if value is None:
        return NONE
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if value >= size * (2 if size > 1 else 1):
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def megabytes(value: float | None) -> str:
    """A number of bytes in MB."""
    return NONE if value is None else f"{value / 1e6:,.0f} MB"


def epsilon_text(epsilon: float | None) -> str:
    """An epsilon, as a fraction of 255 if it is one."""
    if epsilon is None:
        return "any"
    steps = epsilon * 255
    if 0.5 <= steps <= 64 and abs(steps - round(steps)) < 1e-6:
        return f"{round(steps)}/255"
    return f"{epsilon:g}"


def threat(norm: str, epsilon: float | None) -> str:
    """A threat model, as ``linf ≤ 8/255``."""
    if norm == "none":
        return "no norm"
    return f"{norm}, any distance" if epsilon is None else f"{norm} ≤ {epsilon_text(epsilon)}"


def arguments(values: Mapping[str, object]) -> str:
    """The arguments of a component, as ``steps=40, step_size=0.1``."""
    return ", ".join(f"{name}={value!r}" if isinstance(value, str) else f"{name}={value}" for name, value in values.items())


def component(name: str, values: Mapping[str, object]) -> str:
    """A component with its arguments, as ``pgd(steps=40)``."""
    return f"{name}({arguments(values)})"


def names(record: Record) -> tuple[str, str]:
    """The defense and the architecture of a record's target, as its label spells them."""
    label, architecture = record.target["label"], record.target["architecture"]["name"]
    defense, divider, spelled = label.partition(" / ")
    return (defense, spelled) if divider else (label, architecture)


def source(record: Record) -> str:
    """Where the adversarials come from: nothing for the white-box matrix, ``itself`` for the diagonal of transfers."""
    return seen_attacker(record).source


def board_title(threat_of_board: BoardThreat) -> str:
    """The threat of a board in words, as ``linf ≤ 0.3 on mnist``, with the runs that it is made of."""
    norm, epsilon, run = threat_of_board.norm, threat_of_board.epsilon, threat_of_board.run
    return f"{threat(norm, epsilon)} on {threat_of_board.dataset}" + (f" ({run})" if run else "")


def family_title(family: BoardThreat) -> str:
    """A norm on a data set, as ``linf on mnist``, with the runs that share its boards."""
    return f"{family.norm} on {family.dataset}" + (f" ({family.run})" if family.run else "")


def anchor(text: str) -> str:
    """`text` as the name of a link's target."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"


def slugs(texts: Iterable[str]) -> list[str]:
    """Names of files or links, one for each text, numbered if they would be equal."""
    taken: list[str] = []
    for text in texts:
        name, place = anchor(text), 2
        while name in taken:
            name, place = f"{anchor(text)}-{place}", place + 1
        taken.append(name)
    return taken


def plural(count: int, noun: str) -> str:
    """``1 cell``, ``2 cells``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def share_entry(estimate: Estimate | None, *, bar: bool = False, tone: Tone = "") -> Entry:
    """An entry for a rate with its interval."""
    if estimate is None or math.isnan(estimate.value):
        return Entry(NONE, tone="muted")
    shown = estimate if bar else None
    return Entry(percent(estimate.value), interval(estimate), estimate.value, interval=shown, tone=tone)


def number_entry(value: float | None, text: str) -> Entry:
    """An entry that shows `text` and is sorted by `value`."""
    missing = value is None or math.isnan(value)
    return Entry(NONE, tone="muted") if missing else Entry(text, order=value)


def text_entry(text: str, tone: Tone = "") -> Entry:
    """An entry that is sorted by what it says."""
    return Entry(text, order=text.lower(), tone=tone) if text else Entry(NONE, tone="muted")
