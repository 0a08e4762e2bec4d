"""Several runs in one report: every cell once, every model under its own name, and only fair boards joined.

Boards of different runs are joined if no target loses its rank: then all targets of a board were attacked by
the same attacks (DESIGN, invariant 4). Otherwise each keeps its own board, which names its runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from advbench.reading import seen
from advbench.reports.cells import Cells, in_order
from advbench.reports.standings import complete
from advbench.results.boards import BoardThreat, attack_facts, threat_of
from advbench.results.cells import Cell
from advbench.results.record import Record


def merge(runs: Mapping[str, Cells]) -> Cells:
    """The cells of several runs, by the run's name, as the cells of one report."""
    cells_by_run = _distinct(_named_apart(runs))
    families: dict[BoardThreat, dict[str, list[Cell]]] = {}
    for run, cells in cells_by_run.items():
        for cell in cells:
            families.setdefault(threat_of(cell).family, {}).setdefault(run, []).append(cell)
    merged = [cell for by_run in families.values() for cell in _joined(by_run)]
    missing = tuple(dict.fromkeys(key for cells in runs.values() for key in cells.missing))
    keys = {cell.record.key for cell in merged}
    return Cells(in_order(merged), tuple(key for key in missing if key not in keys))


def _distinct(runs: Mapping[str, Sequence[Cell]]) -> dict[str, list[Cell]]:
    """Every key once, from the first run that has it scored."""
    owner: dict[str, str] = {}
    for scored in (True, False):
        for run, cells in runs.items():
            for cell in cells:
                if (cell.examples is not None) is scored:
                    owner.setdefault(cell.record.key, run)
    taken: set[str] = set()
    distinct: dict[str, list[Cell]] = {}
    for run, cells in runs.items():
        distinct[run] = [cell for cell in cells if owner[cell.record.key] == run and cell.record.key not in taken]
        taken |= {cell.record.key for cell in distinct[run]}
    return distinct


def _named_apart(runs: Mapping[str, Cells]) -> dict[str, list[Cell]]:
    """The cells with labels that name one model each: by the architecture if it tells them apart, else by the run."""
    models: dict[tuple[str, int], dict[str, set[str]]] = {}
    for run, cells in runs.items():
        for cell in cells.cells:
            record = cell.record
            if record.weights_sha256:
                weights = models.setdefault((record.target["label"], record.seed), {}).setdefault(run, set())
                weights.add(record.weights_sha256)
    clashing = {
        label for (label, _), by_run in models.items() if len({frozenset(weights) for weights in by_run.values()}) > 1
    }
    by_architecture = {label for label in clashing if _architectures_differ(label, runs)}

    def name(run: str, target: Mapping[str, object]) -> str:
        label, architecture = str(target["label"]), target.get("architecture")
        if label in by_architecture and isinstance(architecture, dict):
            return f"{label} / {architecture['name']}"
        return f"{label} [{run}]" if label in clashing else label

    return {run: [_renamed(cell, run, name) for cell in cells.cells] for run, cells in runs.items()}


def _architectures_differ(label: str, runs: Mapping[str, Cells]) -> bool:
    """Whether every run has the models of a label on an architecture of its own."""
    if " / " in label:
        return False
    seen = [
        {cell.record.target["architecture"]["name"] for cell in cells.cells if cell.record.target["label"] == label}
        for cells in runs.values()
    ]
    names = [name for architectures in seen if architectures for name in architectures]
    return len(set(names)) == len(names)


def _renamed(cell: Cell, run: str, name: Callable[[str, Mapping[str, object]], str]) -> Cell:
    record = cell.record
    target = record.target | {"label": name(run, record.target)}
    source = record.source
    if source is not None and source["kind"] == "model":
        source = source | {"label": name(run, source)}
    if target == record.target and source == record.source:
        return cell
    return replace(cell, record=replace(record, target=target, source=source))


def _joined(by_run: Mapping[str, Sequence[Cell]]) -> list[Cell]:
    """The cells of one data set and norm, with the runs that share a board named if there is more than one board."""
    groups: list[tuple[str, ...]] = [(run,) for run in by_run]
    every_run = tuple(by_run)
    if len(groups) > 1 and _may_join([by_run[run] for run in every_run]):
        groups = [every_run]
    while len(groups) > 1:
        pair = next(
            (
                (first, second)
                for first, second in combinations(groups, 2)
                if _may_join([[cell for run in group for cell in by_run[run]] for group in (first, second)])
            ),
            None,
        )
        if pair is None:
            break
        groups = [pair[0] + pair[1], *(group for group in groups if group not in pair)]
    board = {run: " + ".join(group) if len(groups) > 1 else "" for group in groups for run in group}
    return [replace(cell, run=board[run], origin=run) for run, cells in by_run.items() for cell in cells]


def _may_join(parts: Sequence[Sequence[Cell]]) -> bool:
    """Whether no target loses its rank on one board for all, and each attack's name stands for one attack."""
    together = [cell for cells in parts for cell in cells]
    meanings = {_meaning(cell.record) for cell in together}
    if len({label for label, _ in meanings}) < len(meanings):
        return False
    return set().union(*(complete(cells) for cells in parts)) <= complete(together)


def _meaning(record: Record) -> tuple[str, str]:
    """An attack's label, and what it stands for: every argument, the source that it ran from, and its budget."""
    return record.attack["label"], json.dumps(attack_facts(record), sort_keys=True)


def run_names(paths: Iterable[str]) -> list[str]:
    """A short name for each folder: its last part, with as many parents as tell all of them apart."""
    split = [[part for part in path.replace("\\", "/").split("/") if part not in ("", ".")] or ["."] for path in paths]
    length = 1
    while len({tuple(parts[-length:]) for parts in split}) < len({tuple(parts) for parts in split}):
        length += 1
    return [seen("/".join(parts[-length:])) for parts in split]
