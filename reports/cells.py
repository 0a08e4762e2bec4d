"""The cells of a report, in reading order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from advbench.results.cells import Cell
from advbench.results.matrices import MATRICES
from advbench.results.record import Record
from advbench.results.store import Store


@dataclass(frozen=True)
class Cells:
    """All cells of a report, in reading order, and the keys that have no readable record."""

    cells: tuple[Cell, ...]
    missing: tuple[str, ...] = ()

    @cached_property
    def scored(self) -> tuple[Cell, ...]:
        """The cells with numbers."""
        return tuple(cell for cell in self.cells if cell.examples is not None)

    @cached_property
    def unscored(self) -> tuple[Cell, ...]:
        """The cells that failed or were skipped."""
        return tuple(cell for cell in self.cells if cell.examples is None)


def load(store: Store, keys: Sequence[str] | None = None) -> Cells:
    """Read the cells `keys` of a store, all if None. A damaged record is logged and counts as missing."""
    wanted = store.keys() if keys is None else list(dict.fromkeys(keys))
    parts_by_key = {key: store.load(key) for key in wanted}
    cells = [Cell(*parts) for parts in parts_by_key.values() if parts is not None]
    return Cells(in_order(cells), tuple(key for key, parts in parts_by_key.items() if parts is None))


def from_records(records: Iterable[Record], store: Store) -> tuple[Cell, ...]:
    """The cells of records that were read already, as they come. Raises ValueError if the examples are damaged."""
    return tuple(Cell(record, store.examples(record.key) if record.status == "ok" else None) for record in records)


def in_order(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """Cells by data set, threat, matrix, target, attack, source and seed."""
    return tuple(sorted(cells, key=lambda cell: _order(cell.record, cell.run)))


def _order(record: Record, run: str) -> tuple[str | int | float, ...]:
    epsilon = record.threat["epsilon"]
    return (
        record.dataset["name"],
        record.dataset["split"],
        record.dataset["n"],
        run,
        record.threat["norm"],
        -1.0 if epsilon is None else epsilon,
        MATRICES.index(record.matrix),
        record.target["label"],
        record.attack["label"],
        record.source["label"] if record.source else "",
        record.seed,
        record.key,
    )
