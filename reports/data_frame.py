"""Cells as a pandas DataFrame, a row each, for a user's own analyses and results.csv."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from advbench.reports import formatting
from advbench.reports.cells import Cells, from_records
from advbench.reports.standings import ranked_boards
from advbench.results.boards import BoardThreat, threat_of
from advbench.results.cells import Cell
from advbench.results.record import Record
from advbench.results.statistics import Estimate
from advbench.results.store import Store

if TYPE_CHECKING:
    import pandas as pd

_RATES = ("clean_accuracy", "robust_accuracy", "success_all", "success_clean_correct")
_COSTS = ("seconds", "forwards", "backwards", "queries")


def frame(records: Sequence[Record], store: Store) -> pd.DataFrame:
    """A row for each record, failed and skipped ones among them, whose figures are then missing.

    Columns: what was run, the interval of the target's ranks on its board, rates in [0, 1] each with ``_low`` and ``_high``
    of its 95% interval, distortions in pixel units, costs per image, and the device they were measured on.
    """
    return cell_frame(from_records(records, store))


def cell_frame(cells: Sequence[Cell], missing: Sequence[str] = ()) -> pd.DataFrame:
    """The same for cells that were read already; keys without a record are rows with the status ``missing``."""
    return report_frame(Cells(tuple(cells), tuple(missing)))


def report_frame(cells: Cells) -> pd.DataFrame:
    """The same for the cells of a report."""
    import pandas as pd

    ranks = {
        (board.threat, standing.label): standing.ranks
        for board in ranked_boards(cells)
        for standing in board.standings
        if standing.ranks is not None
    }
    rows = [_row(cell) | _ranks(cell, ranks) for cell in cells.cells]
    rows += [{"key": key, "status": "missing"} for key in cells.missing]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def _row(cell: Cell) -> dict[str, object]:
    record, statistics = cell.record, cell.statistics
    defense, architecture = formatting.names(record)
    row: dict[str, object] = {
        "key": record.key,
        "status": record.status,
        "reason": record.reason,
        "matrix": record.matrix,
        "dataset": record.dataset["name"],
        "split": record.dataset["split"],
        "n": record.dataset["n"],
        "target": record.target["label"],
        "defense": defense,
        "architecture": architecture,
        "stochastic": record.target["stochastic"],
        "source": record.source["label"] if record.source else None,
        "attack": record.attack["label"],
        "attack_arguments": json.dumps(record.attack["arguments"], sort_keys=True),
        "minimal_norm": record.attack["minimal_norm"],
        "norm": record.threat["norm"],
        "epsilon": record.threat["epsilon"],
        "seed": record.seed,
        "device": record.measured.get("device"),
        "peak_memory_bytes": record.measured.get("peak_memory_bytes"),
    }
    if statistics is None:
        return row
    for name in _RATES:
        row |= _estimate(name, getattr(statistics, name))
    if statistics.distortion is not None:
        row |= _estimate("median_distance", statistics.distortion.median)
        row |= {
            "mean_rms": statistics.distortion.mean_rms,
            "mean_ratio": statistics.distortion.mean_ratio,
            "survivors": statistics.distortion.survivors,
        }
    return row | {f"{name}_per_image": getattr(statistics, name) for name in _COSTS}


def _ranks(cell: Cell, ranks: Mapping[tuple[BoardThreat, str], tuple[int, int]]) -> dict[str, int]:
    """The rank interval of a cell's target on the board of the cell's own threat."""
    interval = ranks.get((threat_of(cell), cell.record.target["label"]))
    return {} if interval is None else {"target_rank_low": interval[0], "target_rank_high": interval[1]}


def _estimate(name: str, estimate: Estimate | None) -> dict[str, float]:
    if estimate is None:
        return {}
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


_COLUMNS = (
    *("key", "status", "reason", "matrix", "dataset", "split", "n", "target", "defense", "architecture", "stochastic"),
    *("source", "attack", "attack_arguments", "minimal_norm", "norm", "epsilon", "seed"),
    *("target_rank_low", "target_rank_high"),
    *(f"{name}{end}" for name in (*_RATES, "median_distance") for end in ("", "_low", "_high")),
    *("mean_rms", "mean_ratio", "survivors"),
    *(f"{name}_per_image" for name in _COSTS),
    *("device", "peak_memory_bytes"),
)
