"""What a site says about one model: how it stands, why to doubt it, its curve, every attack on it, and its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from advbench.reports import distortion, figures, formatting
from advbench.reports.curves import with_interval
from advbench.reports.images import image_section
from advbench.reports.leaderboard import robust_entry
from advbench.reports.masking import flag_table
from advbench.reports.section import Column, Drawing, Entry, Section, Table, drop_constant
from advbench.reports.standings import RankedBoard, Standing, by_label
from advbench.results.boards import BoardThreat, seen_attacker, threat_of
from advbench.results.cells import Cell
from advbench.results.statistics import Estimate, Values, distance, robust_curve

_POINTS = 120
_COMPARED = 3
"""How many attacks there must be before their table is worth a search field and a choice of columns."""
_TABULATED = (0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """One model of a report. cells: all in which it is the target. places: the boards that it stands on, and how."""

    label: str
    cells: tuple[Cell, ...]
    places: tuple[tuple[RankedBoard, Standing], ...]

    @property
    def scored(self) -> tuple[Cell, ...]:
        """The cells with numbers."""
        return tuple(cell for cell in self.cells if cell.examples is not None)


def models(boards: Sequence[RankedBoard], cells: Sequence[Cell]) -> list[Model]:
    """The models of a report, those on boards first, from the top."""
    places: dict[str, list[tuple[RankedBoard, Standing]]] = {}
    for board in boards:
        for standing in board.standings:
            places.setdefault(standing.label, []).append((board, standing))
    own = by_label(cells)
    return [Model(label, tuple(own[label]), tuple(places.get(label, ()))) for label in dict.fromkeys((*places, *own))]


def model_sections(model: Model, caveats: Sequence[str] = ()) -> list[Section]:
    """All that the records say about one model. caveats: what else to know of its standing."""
    families = dict.fromkeys(threat_of(cell).family for cell in model.scored)
    curves = (_curve_section(model, family) for family in families if family.norm != "none")
    sections = [
        _standing_section(model, caveats),
        _flag_section(model),
        *curves,
        _attack_section(model),
        _distance_section(model),
    ]
    return [section for section in (*sections, image_section(model.scored)) if section is not None]


def _standing_section(model: Model, caveats: Sequence[str]) -> Section | None:
    if not model.places:
        return None
    alone = all(len(board.standings) == 1 for board, _ in model.places)
    columns = (
        Column("Threat", heading=True),
        *(() if alone else (Column("Rank", numeric=True),)),
        Column("Robust accuracy", "Worst case over every attack of every matrix, with its 95% interval", numeric=True),
        Column("Clean", numeric=True),
        Column("Weakest cell", "The single attack that leaves the least robust accuracy"),
    )
    rows = tuple(
        (
            formatting.text_entry(board.title),
            *(() if alone else (_rank_entry(board, standing),)),
            robust_entry(standing),
            formatting.share_entry(standing.clean.estimate if standing.clean else None),
            formatting.text_entry(str(standing.weakest or "")),
        )
        for board, standing in model.places
    )
    lacks = [
        f"{board.title}: unranked, without {', '.join(standing.lacks[:4])}"
        + (f" and {len(standing.lacks) - 4} more." if len(standing.lacks) > 4 else ".")
        for board, standing in model.places
        if standing.lacks
    ]
    return Section(
        title="Robust accuracy" if alone else "Standing",
        anchor="standing",
        text="Images that the model gets wrong without an attack count as not robust.",
        tables=(Table("Worst-case robust accuracy", columns, rows),),
        caveats=(*lacks, *caveats),
    )


def _rank_entry(board: RankedBoard, standing: Standing) -> Entry:
    return Entry(f"{standing.rank_text or formatting.NONE} of {len(board.standings)}", order=standing.rank)


def _flag_section(model: Model) -> Section:
    tables = [
        drop_constant(flag_table(f"Flags, {board.title}", [standing]), ("Target",))
        for board, standing in model.places
        if standing.flags
    ]
    text = (
        "Symptoms of gradients that mislead an attack, or of robustness that a detector alone upholds, were found: the "
        "robust accuracy above is an upper bound, until attacks that fit the model have been run."
        if tables
        else "No symptom of masked gradients was found. A check needs the cells that it compares, and is silent without."
    )
    return Section(title="Masking checks", anchor="flags", text=text, tables=tuple(tables))


def _curve_section(model: Model, family: BoardThreat) -> Section | None:
    """Robust accuracy against epsilon: minimal-norm attacks as curves, worst cases as points."""
    cells = [cell for cell in model.scored if threat_of(cell).family == family]
    minimal: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.record.attack["minimal_norm"]:
            minimal.setdefault(str(seen_attacker(cell.record)), []).append(cell)
    worst = [
        (board.threat.epsilon, standing.robust.estimate)
        for board, standing in model.places
        if board.threat.family == family and board.threat.epsilon is not None and standing.robust is not None
    ]
    if not minimal and len(worst) < 2:
        return None
    reach = _reach([epsilon for epsilon, _ in worst], [cell for group in minimal.values() for cell in group])
    curves = [_curve(name, group, np.linspace(0, reach, _POINTS)) for name, group in minimal.items()]
    curves += [_worst_curve(worst)] if worst else []
    context = formatting.family_title(family)
    points = np.unique(np.concatenate((reach * np.array(_TABULATED), [epsilon for epsilon, _ in worst])))
    rows = [_curve(name, group, points) for name, group in minimal.items()]
    return Section(
        title="Security curve",
        anchor=formatting.anchor(f"curve {context}"),
        context=context,
        text="Robust accuracy at every epsilon. Bands and whiskers are 95% intervals over the images.",
        tables=(_epsilon_table(points, rows),) if rows else (),
        figures=(
            figures.line_plots(
                [figures.Panel(model.label, tuple(curves), tuple(epsilon for epsilon, _ in worst))],
                x_label=f"{family.norm} distance",
                y_label="robust accuracy",
                caption=f"Robust accuracy of {model.label} against the {family.norm} epsilon",
                alt=f"Falling curves of the robust accuracy of {model.label} over the {family.norm} epsilon",
            ),
        ),
    )


def _worst_curve(worst: Sequence[tuple[float, Estimate]]) -> figures.Curve:
    """The worst cases at several epsilons, with their intervals."""
    points = [(epsilon, rate.value, rate.low, rate.high) for epsilon, rate in sorted(worst, key=lambda point: point[0])]
    x, y, low, high = np.array(points).T
    return figures.Curve("worst case over all attacks", x, y, marked=True, low=low, high=high)


def _epsilon_table(epsilons: Values, curves: Sequence[figures.Curve]) -> Table:
    """Curves at a few epsilons, a row for each."""
    columns = (Column("Radius", numeric=True), *(Column(curve.name, numeric=True) for curve in curves))
    rows = []
    for i, epsilon in enumerate(epsilons):
        ends = [(curve.y, curve.low, curve.high) for curve in curves]
        rates = [Estimate(*(float(values[i]) for values in each if values is not None)) for each in ends]
        rows.append((Entry(formatting.number(float(epsilon)), order=float(epsilon)), *map(formatting.share_entry, rates)))
    return Table("Robust accuracy by epsilon", columns, tuple(rows))


def _curve(name: str, cells: Sequence[Cell], x: Values) -> figures.Curve:
    once = {cell.record.seed: cell for cell in cells}.values()
    shares = [robust_curve(cell.record, cell.examples, x) for cell in once if cell.examples is not None]
    n = min(len(cell.examples) for cell in once if cell.examples is not None)
    return with_interval(figures.Curve(name, x, np.mean(shares, axis=0)), n)


def _reach(epsilons: Sequence[float], cells: Sequence[Cell]) -> float:
    """As far as nearly all images are broken, and half as far again as the largest epsilon."""
    distances = [distance(cell.record, cell.examples) for cell in cells if cell.examples is not None]
    finite = np.concatenate([values[np.isfinite(values)] for values in distances] or [np.empty(0)])
    far = float(np.quantile(finite, 0.95)) if len(finite) else 0.0
    return max(far, 1.5 * max(epsilons, default=0.0)) or 1.0


def _attack_section(model: Model) -> Section:
    columns = (
        Column("Attack", heading=True),
        Column("Robust accuracy", "At the threat's epsilon, with its 95% interval", numeric=True),
        Column("Matrix", choice=True),
        Column("Source", "Where the adversarials were crafted, if not on the model itself", choice=True),
        Column("Data and threat", choice=True),
        Column("Seed", numeric=True),
        Column("Success", "Share of the clean-correct images that the attack made wrong", numeric=True),
        Column("Median distance", "Of minimal-norm attacks, failures at infinity", numeric=True),
        Column("Device"),
        Column("Time per image", numeric=True),
        Column("Forwards", "Per image", numeric=True),
        Column("Queries", "Per image", numeric=True),
    )
    cells = sorted(model.cells, key=_left)
    long = len(cells) >= _COMPARED
    table = Table("Every attack on this model", columns, tuple(map(_attack_row, cells)), long, long)
    return Section(
        title="Attacks",
        anchor="attacks",
        text="This model's rows of the matrices, from the strongest attack. Times of different devices are not comparable.",
        tables=(drop_constant(table, ("Data and threat", "Seed", "Device")),),
    )


def _left(cell: Cell) -> float:
    """The robust accuracy that an attack leaves; last without one."""
    rate = cell.statistics.robust_accuracy if cell.statistics else None
    return rate.value if rate else 2.0


def _attack_row(cell: Cell) -> tuple[Entry, ...]:
    record, statistics = cell.record, cell.statistics
    threat = f"{record.dataset['name']}, {formatting.threat(record.threat['norm'], record.threat['epsilon'])}"
    attack = formatting.text_entry(record.attack["label"])
    place = (
        formatting.text_entry(record.matrix),
        formatting.text_entry(formatting.source(record)),
        formatting.text_entry(threat),
        Entry(str(record.seed), order=record.seed),
    )
    device = formatting.text_entry(str(record.measured.get("device", "")))
    nothing = Entry(formatting.NONE, tone="muted")
    if statistics is None:
        failed = Entry("failed" if record.status == "error" else record.status, record.reason[:80], tone="warning")
        return (attack, failed, *place, *[nothing] * 2, device, *[nothing] * 3)
    median = statistics.distortion.median if statistics.distortion else None
    return (
        attack,
        formatting.share_entry(statistics.robust_accuracy, bar=statistics.robust_accuracy is not None),
        *place,
        formatting.share_entry(statistics.success_clean_correct),
        nothing if median is None else Entry(formatting.number(median.value), order=median.value),
        device,
        formatting.number_entry(statistics.seconds, formatting.seconds(statistics.seconds)),
        formatting.number_entry(statistics.forwards, formatting.number(statistics.forwards)),
        formatting.number_entry(statistics.queries, formatting.number(statistics.queries)),
    )


def _distance_section(model: Model) -> Section | None:
    sections = distortion.distortion_sections(model.scored)
    drawings: list[Drawing] = [figure for section in sections for figure in section.figures if isinstance(figure, Drawing)]
    tables = tuple(table for section in sections for table in section.tables)
    if not sections:
        return None
    return Section(title="Distances", anchor="distances", text=sections[0].text, tables=tables, figures=tuple(drawings))
