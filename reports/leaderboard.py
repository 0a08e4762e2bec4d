"""The leaderboards: one section for each board."""

from __future__ import annotations

from advbench.reports import wording
from advbench.reports.boards import Board, Standing
from advbench.reports.section import Column, Entry, Section, Table
from advbench.results.record import MATRICES

_COLUMNS = (
    Column("Rank", "By worst-case robust accuracy; equal values share a rank", numeric=True),
    Column("Defense", heading=True),
    Column("Architecture"),
    Column("Clean", "Accuracy on the clean images, with its 95% interval", numeric=True),
    Column("Robust accuracy", "Worst case over every attack of every matrix, with its 95% interval", numeric=True),
    *(
        Column(name.capitalize(), f"Worst case over the attacks of the {name} matrix alone", numeric=True)
        for name in MATRICES
    ),
    Column("Weakest cell", "The single attack that leaves the least robust accuracy"),
    Column("Median distance", "Smallest median distance of a minimal-norm attack, failures at infinity", numeric=True),
    Column("Time per image", "Attack time per image on the named device, summed over the white-box attacks", numeric=True),
)
_SEEDS = Column("By seed", "Robust accuracy of the model of each training seed")


def leaderboard_section(board: Board, *, missing: int = 0) -> Section:
    """The ranking of a board. missing: cells of the run that have no record at all."""
    several = any(len(standing.seeds) > 1 for standing in board.standings)
    columns = (*_COLUMNS, _SEEDS) if several else _COLUMNS
    rows = tuple(_row(standing, several) for standing in board.standings)
    threat = board.threat
    images = f"{wording.plural(threat.n, 'image')} of the {threat.split} split of {threat.dataset}"
    return Section(
        title=f"Leaderboard: {threat.title}",
        anchor=wording.anchor(f"leaderboard {threat.title}"),
        text=(
            f"Targets ranked by robust accuracy under {wording.threat(threat.norm, threat.epsilon)} on the same {images}. "
            "An image counts as robust only where every attack of every matrix leaves it correct; images that the model "
            "gets wrong without an attack count as not robust."
        ),
        tables=(Table(f"Worst-case robust accuracy, {threat.title}", columns, rows, filterable=len(rows) > 8),),
        caveats=(*_incomplete(board, missing), *_devices(board), *board.caveats),
    )


def _row(standing: Standing, several_seeds: bool) -> tuple[Entry, ...]:
    complete = standing.rank is not None
    row = (
        Entry(str(standing.rank), order=standing.rank) if complete else Entry(wording.NONE, tone="muted"),
        wording.text_entry(standing.defense, tone="best" if standing.rank == 1 else ""),
        wording.text_entry(standing.architecture),
        wording.share_entry(standing.clean.estimate if standing.clean else None),
        _robust(standing),
        *(_matrix(standing, matrix) for matrix in MATRICES),
        wording.text_entry(str(standing.weakest or "")),
        _distance(standing),
        _time(standing),
    )
    by_seed = standing.robust.by_seed if standing.robust else ()
    seeds = ", ".join(f"{seed}: {wording.percent(value)}" for seed, value in zip(standing.seeds, by_seed, strict=False))
    return (*row, wording.text_entry(seeds)) if several_seeds else row


def _robust(standing: Standing) -> Entry:
    if standing.robust is None:
        return Entry("incomplete", "no scored cell", tone="warning")
    estimate = standing.robust.estimate
    if standing.rank is not None:
        return wording.share_entry(estimate, bar=True)
    return Entry(f"≤ {wording.percent(estimate.value)}, incomplete", order=estimate.value, tone="warning")


def _matrix(standing: Standing, matrix: str) -> Entry:
    value = standing.by_matrix.get(matrix)
    return wording.number_entry(value, wording.percent(value))


def _distance(standing: Standing) -> Entry:
    if standing.distortion is None:
        return Entry(wording.NONE, tone="muted")
    attack, median = standing.distortion
    return Entry(wording.number(median), attack, order=median)


def _time(standing: Standing) -> Entry:
    if len(standing.seconds) != 1:
        return Entry("several devices" if standing.seconds else wording.NONE, tone="muted")
    ((_, value),) = standing.seconds.items()
    return Entry(wording.seconds(value), order=value)


def _incomplete(board: Board, missing: int) -> list[str]:
    found = []
    if missing:
        found.append(
            f"{wording.plural(missing, 'cell')} of the run have no record yet, so that this ranking is provisional."
        )
    for standing in board.standings:
        if standing.rank is None:
            lacks = ", ".join(standing.lacks[:4]) + (
                f" and {len(standing.lacks) - 4} more" if len(standing.lacks) > 4 else ""
            )
            found.append(
                f"{standing.label} is unranked: without {lacks or 'a scored cell'} its value is only an upper bound."
            )
    return found


def _devices(board: Board) -> list[str]:
    devices = sorted({device for standing in board.standings for device in standing.seconds})
    if len(devices) > 1:
        return [f"Times were measured on {', '.join(devices)} and are not comparable; see the costs below."]
    return [f"Times were measured on {devices[0]}."] if devices else []
