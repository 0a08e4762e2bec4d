"""The three matrices of a board: robust accuracy by target and attacker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from advbench.reports import figures, formatting
from advbench.reports.section import LONGEST_BOARD, Column, Drawing, Entry, Section, Table
from advbench.reports.standings import RankedBoard
from advbench.results.boards import Attacker, seen_attacker
from advbench.results.cells import Cell
from advbench.results.matrices import RANKED, RankedMatrix
from advbench.results.record import Record
from advbench.results.statistics import OverSeeds, over_seeds, robust


@dataclass(frozen=True, slots=True, eq=False)
class _Grid:
    """Rates by target and attacker; a cell without one has the reason in its place."""

    rates: Mapping[tuple[str, Attacker], OverSeeds | str]

    def value(self, target: str, attacker: Attacker) -> float:
        """Robust accuracy, NaN if there is none."""
        rate = self.rates.get((target, attacker))
        return rate.estimate.value if isinstance(rate, OverSeeds) else np.nan

    def entry(self, target: str, attacker: Attacker) -> Entry:
        """The cell of a table."""
        rate = self.rates.get((target, attacker))
        if isinstance(rate, OverSeeds):
            return formatting.share_entry(rate.estimate)
        return Entry(rate, tone="warning") if rate else Entry(formatting.NONE, tone="muted")

    def word(self, target: str, attacker: Attacker) -> str:
        """What stands in a cell without a number."""
        rate = self.rates.get((target, attacker))
        return rate if isinstance(rate, str) else ""


def matrix_sections(board: RankedBoard) -> list[Section]:
    """The sections of those matrices that the board has, in the order of knowledge."""
    grid = _grid(board)
    builders: dict[RankedMatrix, Callable[[RankedBoard, _Grid], Section]] = {
        "white-box": _white_box,
        "black-box": _black_box,
        "transfer": _transfer,
    }
    run = {cell.record.matrix for cell in board.cells}
    return [builders[matrix](board, grid) for matrix in RANKED if matrix in run]


def _grid(board: RankedBoard) -> _Grid:
    groups: dict[tuple[str, Attacker], list[Cell]] = {}
    for cell in board.cells:
        groups.setdefault((cell.record.target["label"], seen_attacker(cell.record)), []).append(cell)
    return _Grid({place: _rate(group, board.threat.epsilon) for place, group in groups.items()})


def _rate(cells: Sequence[Cell], epsilon: float | None) -> OverSeeds | str:
    """The mean over seeds; the status of a seed that has no numbers, since a mean over fewer seeds is another quantity."""
    values = []
    for cell in cells:
        if cell.examples is None:
            return "failed" if cell.record.status == "error" else "skipped"
        values.append(robust(cell.record, cell.examples, epsilon))
    return over_seeds(values) if len({len(value) for value in values}) == 1 else "misaligned"


def _targets(board: RankedBoard) -> list[str]:
    return [standing.label for standing in board.standings]


def _attackers(board: RankedBoard, matrix: str) -> list[Attacker]:
    attackers = {seen_attacker(cell.record) for cell in board.cells if cell.record.matrix == matrix}
    return sorted(attackers)


def _white_box(board: RankedBoard, grid: _Grid) -> Section:
    attackers = _attackers(board, "white-box")
    labels = [attacker.attack for attacker in attackers]
    return Section(
        title="White-box",
        context=board.title,
        anchor=formatting.anchor(f"white box {board.title}"),
        text="The attacker differentiates the target itself. Robust accuracy with its 95% interval, targets from the top of "
        "the leaderboard.",
        tables=(_table(board, grid, attackers, labels, "White-box robust accuracy"),),
        figures=(_heat_map(board, grid, attackers, labels, "White-box robust accuracy"),),
    )


def _black_box(board: RankedBoard, grid: _Grid) -> Section:
    attackers = _attackers(board, "black-box")
    origins = {attacker.source for attacker in attackers}
    asked = {formatting.source(cell.record) for cell in board.cells if _queried(cell.record)}
    handed = sorted(origins - asked)
    labels = [name.attack if len(origins) == 1 else f"{name.attack} from {name.source}" for name in attackers]
    return Section(
        title="Black-box",
        context=board.title,
        anchor=formatting.anchor(f"black box {board.title}"),
        text=" ".join(
            [
                *([f"{_HANDED} Substitutes: {', '.join(handed)}."] if handed else []),
                *([f"{_ASKED} These are the attacks from {' and '.join(sorted(asked))}."] if asked else []),
            ]
        ),
        tables=(_table(board, grid, attackers, labels, "Black-box robust accuracy"), *_substitutes(board)),
        figures=(_heat_map(board, grid, attackers, labels, "Black-box robust accuracy"),),
    )


_HANDED = (
    "The attacker trains a substitute on the target's answers, attacks the substitute, and hands the images to the target."
)
_ASKED = "An attack that needs no gradients asks the target itself, without a substitute."


def _queried(record: Record) -> bool:
    """Whether the attacker asked the target itself for labels or scores."""
    return record.matrix == "black-box" and record.source is not None and record.source["kind"] == "queries"


def _table(board: RankedBoard, grid: _Grid, attackers: Sequence[Attacker], labels: Sequence[str], caption: str) -> Table:
    columns = (Column("Target", heading=True), *(Column(label, numeric=True) for label in labels))
    rows = tuple(
        (formatting.text_entry(target), *(grid.entry(target, attacker) for attacker in attackers))
        for target in _targets(board)
    )
    return Table(f"{caption}, {board.title}", columns, rows, longest=LONGEST_BOARD)


def _heat_map(
    board: RankedBoard, grid: _Grid, attackers: Sequence[Attacker], labels: Sequence[str], caption: str
) -> Drawing:
    targets = _targets(board)
    return figures.heat_map(
        np.array([[grid.value(target, attacker) for attacker in attackers] for target in targets]),
        rows=targets,
        columns=labels,
        words=[[grid.word(target, attacker) for attacker in attackers] for target in targets],
        caption=f"{caption}, {board.title}",
        alt=f"Heat map of the table {caption}: {len(targets)} targets by {formatting.plural(len(labels), 'attack')}",
    )


def _substitutes(board: RankedBoard) -> list[Table]:
    """Fidelity, queries and training time of the substitutes, if the records hold them."""
    rows: dict[tuple[str, str, int], tuple[Entry, ...]] = {}
    for cell in board.cells:
        record, facts = cell.record, cell.record.details.get("substitute")
        if record.matrix != "black-box" or not isinstance(facts, dict):
            continue
        fidelity, queries, seconds = (_real(facts.get(name)) for name in ("fidelity", "queries", "seconds"))
        rows[record.target["label"], formatting.source(record), record.seed] = (
            formatting.text_entry(record.target["label"]),
            formatting.text_entry(formatting.source(record)),
            Entry(str(record.seed), order=record.seed),
            formatting.number_entry(fidelity, formatting.percent(fidelity)),
            formatting.number_entry(queries, formatting.number(queries)),
            formatting.number_entry(seconds, formatting.seconds(seconds)),
        )
    columns = (
        Column("Target", heading=True),
        Column("Substitute"),
        Column("Seed", numeric=True),
        Column("Fidelity", "Share of held-out images on which substitute and target agree", numeric=True),
        Column("Queries", "Labels that the attacker asked the target for", numeric=True),
        Column("Training time", numeric=True),
    )
    return [Table(f"Substitutes, {board.title}", columns, tuple(rows.values()))] if rows else []


def _real(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _transfer(board: RankedBoard, grid: _Grid) -> Section:
    attacks = sorted({attacker.attack for attacker in _attackers(board, "transfer")})
    return Section(
        title="Transfer",
        context=board.title,
        anchor=formatting.anchor(f"transfer {board.title}"),
        text="Images that were crafted on a source (rows) are shown to a target (columns). Robust accuracy of the target; "
        "where both are the same model it is marked, by † in a table and a frame in a figure. The mean leaves these out. "
        "The white-box row repeats the same attack with full knowledge of the target. Figures order the models by a "
        "hierarchical clustering of their rows and columns.",
        tables=tuple(_transfer_table(board, grid, attack) for attack in attacks),
        figures=tuple(_transfer_map(board, grid, attack) for attack in attacks),
    )


def _sources(board: RankedBoard, attack: str) -> list[str]:
    """The sources of an attack: first those that are targets too, in the same order, then the others."""
    sources = {
        str(cell.record.source["label"])
        for cell in board.cells
        if cell.record.source and cell.record.matrix == "transfer" and cell.record.attack["label"] == attack
    }
    targets = [target for target in _targets(board) if target in sources]
    return targets + sorted(sources - set(targets))


def _pair(source: str, target: str, attack: str) -> Attacker:
    return Attacker("transfer", attack, "itself" if source == target else source)


def _transfer_means(board: RankedBoard, grid: _Grid, attack: str) -> list[float]:
    """The mean over the other sources, by target; NaN if one of them has no number."""
    means = []
    sources = _sources(board, attack)
    for target in _targets(board):
        others = [source for source in sources if source != target]
        values = [grid.value(target, _pair(source, target, attack)) for source in others]
        means.append(float(np.mean(values)) if values else np.nan)
    return means


def _transfer_table(board: RankedBoard, grid: _Grid, attack: str) -> Table:
    targets = _targets(board)
    rows = [
        (formatting.text_entry(source), *(_transfer_entry(grid, source, target, attack) for target in targets))
        for source in _sources(board, attack)
    ]
    means = [formatting.number_entry(mean, formatting.percent(mean)) for mean in _transfer_means(board, grid, attack)]
    rows.append((Entry("mean of other sources"), *means))
    white_box = Attacker("white-box", attack, "")
    if any((target, white_box) in grid.rates for target in targets):
        rows.append((Entry("white-box"), *(grid.entry(target, white_box) for target in targets)))
    columns = (Column("Source", heading=True), *(Column(target, numeric=True) for target in targets))
    return Table(f"Transfer of {attack}, {board.title}", columns, tuple(rows))


def _transfer_entry(grid: _Grid, source: str, target: str, attack: str) -> Entry:
    entry = grid.entry(target, _pair(source, target, attack))
    if source != target:
        return entry
    return Entry(f"{entry.text} †", entry.note, entry.order, tone=entry.tone or "muted")


def _clustered(grid: _Grid, targets: list[str], sources: list[str], attack: str) -> tuple[list[str], list[str]]:
    """Targets and sources in the order of a hierarchical clustering; models that are both stand in one order.

    A model is described by its column as a target and its row as a source, numbers that are missing by the mean.
    """
    values = np.array([[grid.value(target, _pair(source, target, attack)) for target in targets] for source in sources])
    filled = np.where(np.isnan(values), np.nanmean(values) if np.isfinite(values).any() else 0.0, values)
    order = _leaves(np.hstack([filled.T, _rows_of(filled, targets, sources)]))
    ordered = [targets[i] for i in order]
    others = [source for source in sources if source not in targets]
    rows = _leaves(np.array([filled[sources.index(source)] for source in others])) if others else []
    return ordered, [target for target in ordered if target in sources] + [others[i] for i in rows]


def _rows_of(values: NDArray[np.float64], targets: Sequence[str], sources: Sequence[str]) -> NDArray[np.float64]:
    """What each target does as a source, (targets, targets); the mean row if it is not a source."""
    mean = values.mean(axis=0)
    return np.array([values[sources.index(target)] if target in sources else mean for target in targets])


def _leaves(vectors: NDArray[np.float64]) -> list[int]:
    """The order of the leaves of an average-linkage tree whose neighbours are as near as the tree allows."""
    if len(vectors) < 3:
        return list(range(len(vectors)))
    from scipy.cluster.hierarchy import leaves_list, linkage

    return [int(i) for i in leaves_list(linkage(vectors, method="average", optimal_ordering=True))]


def _transfer_map(board: RankedBoard, grid: _Grid, attack: str) -> Drawing:
    targets, sources = _clustered(grid, _targets(board), _sources(board, attack), attack)
    values = [[grid.value(target, _pair(source, target, attack)) for target in targets] for source in sources]
    words = [[grid.word(target, _pair(source, target, attack)) for target in targets] for source in sources]
    means = dict(zip(_targets(board), _transfer_means(board, grid, attack), strict=True))
    extra = [("mean, others", [means[target] for target in targets], [""] * len(targets))]
    white_box = Attacker("white-box", attack, "")
    if any((target, white_box) in grid.rates for target in targets):
        white = [grid.value(target, white_box) for target in targets]
        extra.append(("white-box", white, [grid.word(target, white_box) for target in targets]))
    return figures.heat_map(
        np.array(values + [row for _, row, _ in extra]),
        rows=[*sources, *(name for name, _, _ in extra)],
        columns=targets,
        words=words + [row for _, _, row in extra],
        framed=[(sources.index(target), column) for column, target in enumerate(targets) if target in sources],
        divider=len(sources),
        caption=f"Transfer of {attack}, {board.title}: sources by targets",
        alt=f"Heat map of the table Transfer of {attack}: {len(sources)} sources by {len(targets)} targets",
    )
