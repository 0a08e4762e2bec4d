"""Robust accuracy against epsilon: from the distances of minimal-norm attacks, and from runs at several epsilons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from advbench.reports import figures, formatting
from advbench.reports.section import Column, Drawing, Section, Table
from advbench.reports.standings import RankedBoard
from advbench.results.boards import BoardThreat, seen_attacker, threat_of
from advbench.results.cells import Cell
from advbench.results.statistics import Estimate, Values, distance, robust_curve, wilson

_POINTS = 120
_TABULATED = (0.25, 0.5, 0.75, 1.0, 1.5)


def curve_sections(boards: Sequence[RankedBoard], cells: Sequence[Cell]) -> list[Section]:
    """One section for each data set and norm that has minimal-norm attacks or several epsilons.

    boards: all boards of the report. cells: the scored cells.
    """
    families = {board.threat.family: None for board in boards if board.threat.norm != "none"}
    families |= {threat_of(cell).family: None for cell in cells if cell.record.attack["minimal_norm"]}
    sections = (_section(family, boards, cells) for family in families)
    return [section for section in sections if section is not None]


def _section(family: BoardThreat, boards: Sequence[RankedBoard], cells: Sequence[Cell]) -> Section | None:
    siblings = [board for board in boards if board.threat.family == family]
    minimal = [cell for cell in cells if cell.record.attack["minimal_norm"] and threat_of(cell).family == family]
    epsilons = sorted(board.threat.epsilon for board in siblings if board.threat.epsilon is not None)
    groups = _by_attack(minimal)
    panels = [_minimal_panel(name, group, epsilons) for name, group in groups]
    if len(epsilons) > 1:
        panels.append(_worst_panel(siblings))
    if not panels:
        return None
    tables = [_minimal_table(name, group, epsilons) for name, group in groups]
    return Section(
        title="Accuracy against epsilon",
        anchor=formatting.anchor(f"epsilon {family.norm} on {family.dataset} {family.run}"),
        context=formatting.family_title(family),
        text="Robust accuracy at every epsilon. Curves of a minimal-norm attack follow from its distances; points are worst "
        "cases over all attacks that were run at that epsilon. Bands and whiskers are 95% intervals over the images. Dotted "
        "lines mark the epsilons of the leaderboards.",
        tables=(*tables, *([_worst_table(siblings)] if len(epsilons) > 1 else [])),
        figures=(_drawing(panels, family),),
    )


def _drawing(panels: Sequence[figures.Panel], family: BoardThreat) -> Drawing:
    return figures.line_plots(
        panels,
        x_label=f"{family.norm} distance",
        y_label="robust accuracy",
        caption=f"Robust accuracy against the {family.norm} epsilon on {family.dataset}",
        alt=f"Falling curves of robust accuracy over the {family.norm} epsilon, the numbers of the tables of this section",
    )


def _by_attack(cells: Sequence[Cell]) -> list[tuple[str, list[Cell]]]:
    """Cells of one matrix, attack and source together, and of one epsilon each, since distances do not depend on it."""

    def name(cell: Cell) -> str:
        return str(seen_attacker(cell.record))

    first = {(name(cell), cell.record.target["label"], cell.record.seed): cell for cell in reversed(cells)}
    return [(key, list(group)) for key, group in groupby(sorted(first.values(), key=name), key=name)]


def _by_target(cells: Sequence[Cell], epsilons: Values) -> dict[str, Values]:
    """Curves of shape (m,) by target, the mean over seeds."""
    curves: dict[str, list[Values]] = {}
    for cell in cells:
        if cell.examples is not None:
            curves.setdefault(cell.record.target["label"], []).append(robust_curve(cell.record, cell.examples, epsilons))
    return {target: np.mean(values, axis=0) for target, values in sorted(curves.items())}


def _reach(cells: Sequence[Cell], epsilons: Sequence[float]) -> float:
    """How far the axis goes: half as far again as the largest epsilon, or to where nearly all examples are broken."""
    if epsilons:
        return 1.5 * max(epsilons)
    distances = np.concatenate([distance(cell.record, cell.examples) for cell in cells if cell.examples is not None])
    finite = distances[np.isfinite(distances)]
    return float(np.quantile(finite, 0.95)) if len(finite) and finite.max() > 0 else 1.0


def _minimal_panel(name: str, cells: Sequence[Cell], epsilons: Sequence[float]) -> figures.Panel:
    x = np.linspace(0, _reach(cells, epsilons), _POINTS)
    n = min((len(cell.examples) for cell in cells if cell.examples is not None), default=1)
    lines = tuple(with_interval(figures.Curve(target, x, y), n) for target, y in _by_target(cells, x).items())
    return figures.Panel(name, lines, tuple(epsilons))


def with_interval(curve: figures.Curve, n: int) -> figures.Curve:
    """A curve of shares of `n` images with Wilson's 95% interval at each point, a wide one for a mean over seeds."""
    ends = [wilson(float(share) * n, n) for share in curve.y]
    return replace(curve, low=np.array([end.low for end in ends]), high=np.array([end.high for end in ends]))


def _minimal_table(name: str, cells: Sequence[Cell], epsilons: Sequence[float]) -> Table:
    largest = max(epsilons) if epsilons else _reach(cells, epsilons) / 1.5
    x = np.unique(np.concatenate((largest * np.array(_TABULATED), epsilons)))
    curves = _by_target(cells, x)
    columns = (
        Column("Target", heading=True),
        *(Column(f"at {formatting.epsilon_text(float(value))}", numeric=True) for value in x),
    )
    rows = tuple(
        (
            formatting.text_entry(target),
            *(formatting.number_entry(float(value), formatting.percent(float(value))) for value in y),
        )
        for target, y in curves.items()
    )
    return Table(f"Robust accuracy against {name} by epsilon", columns, rows)


def _worst_panel(boards: Sequence[RankedBoard]) -> figures.Panel:
    lines = []
    for target, values in _worst_by_target(boards).items():
        x = np.array([epsilon for epsilon, rate in values if rate is not None])
        y = np.array([rate.value for _, rate in values if rate is not None])
        ends = [rate for _, rate in values if rate is not None]
        low, high = np.array([rate.low for rate in ends]), np.array([rate.high for rate in ends])
        lines.append(figures.Curve(target, x, y, marked=True, low=low, high=high))
    return figures.Panel("worst case over all attacks", tuple(lines))


def _worst_by_target(boards: Sequence[RankedBoard]) -> dict[str, list[tuple[float, Estimate | None]]]:
    """Worst-case robust accuracy by target and epsilon; None if the target is incomplete there."""
    ordered = sorted((board.threat.epsilon, board) for board in boards if board.threat.epsilon is not None)
    targets = sorted({standing.label for _, board in ordered for standing in board.standings})
    by_target: dict[str, list[tuple[float, Estimate | None]]] = {target: [] for target in targets}
    for epsilon, board in ordered:
        complete = {standing.label: standing.robust for standing in board.standings if standing.rank is not None}
        for target, values in by_target.items():
            rate = complete.get(target)
            values.append((epsilon, rate.estimate if rate else None))
    return by_target


def _worst_table(boards: Sequence[RankedBoard]) -> Table:
    by_target = _worst_by_target(boards)
    epsilons = sorted({epsilon for values in by_target.values() for epsilon, _ in values})
    columns = (
        Column("Target", heading=True),
        *(Column(f"at {formatting.epsilon_text(value)}", numeric=True) for value in epsilons),
    )
    rows = tuple(
        (formatting.text_entry(target), *(formatting.share_entry(rate) for _, rate in values))
        for target, values in by_target.items()
    )
    return Table("Worst-case robust accuracy of complete targets by epsilon", columns, rows)
