"""The leaderboards: one section for each board."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from advbench.reports import formatting
from advbench.reports.section import LONGEST_BOARD, Column, Entry, Section, Table, first
from advbench.reports.standings import RankedBoard, Standing
from advbench.results.matrices import RANKED
from advbench.results.seeds import split_variance


def leaderboard_section(board: RankedBoard, *, missing: int = 0) -> Section:
    """The ranking of a board. missing: cells of the run that have no record at all."""
    columns = _columns(board)
    rows = tuple(tuple(column.entry(standing) for column in columns) for standing in board.standings)
    threat = board.threat
    images = f"{formatting.plural(threat.n, 'image')} of the {threat.split} split of {threat.dataset}"
    return Section(
        title="Leaderboard",
        anchor=formatting.anchor(f"leaderboard {board.title}"),
        text=(
            f"Targets ranked by robust accuracy under {formatting.threat(threat.norm, threat.epsilon)} on the same {images}."
            " An image counts as robust only if every attack of every matrix leaves it correct; images that the model "
            f"gets wrong without an attack count as not robust. {_ranking_text(board)}"
        ),
        context=board.title,
        tables=(
            Table(
                f"Worst-case robust accuracy, {board.title}",
                tuple(column.column for column in columns),
                rows,
                filterable=len(rows) > 8,
                longest=LONGEST_BOARD,
            ),
        ),
        caveats=(
            *_claim(board),
            *_first(_incomplete(board, missing)),
            *_first(_flagged(board)),
            *_devices(board),
            *_first(board.caveats),
        ),
    )


def _first(caveats: Sequence[str]) -> list[str]:
    return first(caveats, "more remarks of this kind: each is marked in its model's row")


@dataclass(frozen=True, slots=True)
class _Column:
    """A column and how its entries follow from a standing."""

    column: Column
    entry: Callable[[Standing], Entry]


def _columns(board: RankedBoard) -> list[_Column]:
    """The columns of a board: only the matrices that it has, and seeds and distances if it has any."""
    matrices = [matrix for matrix in RANKED if any(cell.record.matrix == matrix for cell in board.cells)]
    distances = any(standing.distortion for standing in board.standings)
    several_seeds = any(len(standing.seeds) > 1 for standing in board.standings)
    columns = [*_FIRST, *(_matrix_column(matrix) for matrix in matrices), _WEAKEST]
    times = _time_columns(board)
    return [*columns, *([_DISTANCE] if distances else []), *times, *([_SEEDS] if several_seeds else []), _ARCHITECTURE]


def _matrix_column(matrix: str) -> _Column:
    def entry(standing: Standing) -> Entry:
        value = standing.by_matrix.get(matrix)
        return formatting.number_entry(value, formatting.percent(value))

    return _Column(
        Column(matrix.capitalize(), f"Worst case over the attacks of the {matrix} matrix alone", numeric=True), entry
    )


def _rank(standing: Standing) -> Entry:
    return Entry(standing.rank_text, order=standing.rank) if standing.ranks else Entry(formatting.NONE, tone="muted")


def _defense(standing: Standing) -> Entry:
    first = standing.ranks is not None and standing.ranks[0] == 1
    return formatting.text_entry(standing.defense, tone="best" if first and not standing.flags else "")


def _clean(standing: Standing) -> Entry:
    return formatting.share_entry(standing.clean.estimate if standing.clean else None)


def robust_entry(standing: Standing) -> Entry:
    """Robust accuracy as a board shows it: an upper bound if the target lacks cells or is flagged."""
    if standing.robust is None:
        return Entry("incomplete", "no scored cell", tone="warning")
    estimate = standing.robust.estimate
    if standing.rank is not None and standing.flags:
        note = f"{formatting.interval(estimate)}; {formatting.plural(len(standing.flags), 'flag')}"
        return Entry(f"≤ {formatting.percent(estimate.value)}", note, estimate.value, interval=estimate, tone="warning")
    if standing.rank is not None:
        return formatting.share_entry(estimate, bar=True)
    return Entry(f"≤ {formatting.percent(estimate.value)}, incomplete", order=estimate.value, tone="warning")


def _distance(standing: Standing) -> Entry:
    if standing.distortion is None:
        return Entry(formatting.NONE, tone="muted")
    attack, median = standing.distortion
    return Entry(formatting.number(median), attack, order=median)


def _time_columns(board: RankedBoard) -> list[_Column]:
    """A column for each device: times of different ones never stand, and are never sorted, in one."""
    devices = sorted({device for standing in board.standings for device in standing.seconds})
    return [
        _time_column(device, f"Time per image, {device}" if len(devices) > 1 else "Time per image") for device in devices
    ]


def _time_column(device: str, name: str) -> _Column:
    def entry(standing: Standing) -> Entry:
        value = standing.seconds.get(device)
        return formatting.number_entry(value, formatting.seconds(value))

    return _Column(
        Column(name, f"Attack time per image on {device}, summed over the white-box attacks", numeric=True), entry
    )


def _by_seed(standing: Standing) -> Entry:
    values = standing.robust.by_seed if standing.robust else ()
    pairs = zip(standing.seeds, values, strict=False)
    entry = formatting.text_entry(", ".join(f"{seed}: {formatting.percent(value)}" for seed, value in pairs))
    return replace(entry, note=_spread(standing)) if len(values) > 1 else entry


def _spread(standing: Standing) -> str:
    """Median and spread over training seeds, and how much of a single training's luck is the seed's and the images'."""
    variance = split_variance(standing.answers)
    points = [f"{100 * deviation:.1f}" for deviation in (variance.spread, variance.training, variance.sampling)]
    return f"median {formatting.percent(variance.median)}, spread {points[0]} points; seed {points[1]}, images {points[2]}"


_FIRST = (
    _Column(
        Column("Rank", "From 1 + the targets that are significantly better, to all but those significantly worse", True),
        _rank,
    ),
    _Column(Column("Defense", heading=True), _defense),
    _Column(
        Column("Robust accuracy", "Worst case over every attack of every matrix, with its 95% interval", numeric=True),
        robust_entry,
    ),
    _Column(Column("Clean", "Accuracy on the clean images, with its 95% interval", numeric=True), _clean),
)
_WEAKEST = _Column(
    Column("Weakest cell", "The single attack that leaves the least robust accuracy"),
    lambda standing: formatting.text_entry(str(standing.weakest or "")),
)
_DISTANCE = _Column(
    Column("Median distance", "Smallest median distance of a minimal-norm attack, failures at infinity", numeric=True),
    _distance,
)
_SEEDS = _Column(
    Column("By seed", "Robust accuracy of each training seed's model, and the standard deviations that seed and images add"),
    _by_seed,
)
_ARCHITECTURE = _Column(Column("Architecture"), lambda standing: formatting.text_entry(standing.architecture))


def _ranking_text(board: RankedBoard) -> str:
    """How the ranks were found."""
    pairs = len(board.ranking.duels)
    if not pairs:
        return ""
    tested = (
        "Student's t over training seeds"
        if board.ranking.over_seeds
        else "exact McNemar on the same images, sign flips if outcomes are shares"
    )
    return (
        "A rank is an interval: from 1 + the number of targets that are significantly better, to all but those that are "
        f"significantly worse (two-sided at 5%, {tested}, Holm's correction over the board's "
        f"{formatting.plural(pairs, 'pair')})."
    )


def _claim(board: RankedBoard) -> list[str]:
    """Whether ranks speak of methods or of models."""
    if not board.ranking.duels or board.ranking.over_seeds:
        return []
    return [
        "Ranks compare these checkpoints, not the methods: at least one target has a single training seed, and another seed "
        "may move it by more than the images do."
    ]


def _incomplete(board: RankedBoard, missing: int) -> list[str]:
    caveats = []
    if missing:
        caveats.append(
            f"{formatting.plural(missing, 'cell')} of the run have no record yet, so that this ranking is provisional."
        )
    for standing in board.standings:
        if standing.rank is None:
            lacks = ", ".join(standing.lacks[:4]) + (
                f" and {len(standing.lacks) - 4} more" if len(standing.lacks) > 4 else ""
            )
            caveats.append(
                f"{standing.label} is unranked: without {lacks or 'a scored cell'} its value is only an upper bound."
            )
    return caveats


def _flagged(board: RankedBoard) -> list[str]:
    """Ranked targets whose value is an upper bound all the same."""
    return [
        f"The evaluation of {standing.label} is incomplete ({', '.join(flag.name for flag in standing.flags)}): its value "
        "is an upper bound."
        for standing in board.standings
        if standing.flags and standing.rank is not None
    ]


def _devices(board: RankedBoard) -> list[str]:
    devices = sorted({device for standing in board.standings for device in standing.seconds})
    if len(devices) > 1:
        return [f"Times of {', '.join(devices)} are not comparable; each device has a column of its own."]
    return [f"Times were measured on {devices[0]}."] if devices else []
