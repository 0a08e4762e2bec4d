"""The cells of a report, in reading order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeVar, cast

from numpy.typing import NDArray

from advbench.results.archive import Source
from advbench.results.cells import Cell
from advbench.results.matrices import MATRICES
from advbench.results.record import Record
from advbench.results.store import Store

_Derived = TypeVar("_Derived")


@dataclass(frozen=True)
class Cells:
    """All cells of a report, in reading order, and the keys that have no readable record."""

    cells: tuple[Cell, ...]
    missing: tuple[str, ...] = ()
    _found: dict[Callable[[Cells], object], object] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, derive: Callable[[Cells], _Derived]) -> _Derived:
        """What `derive` makes of these cells; found once, so that all forms of a report show the same numbers."""
        if derive not in self._found:
            self._found[derive] = derive(self)
        return cast(_Derived, self._found[derive])

    @cached_property
    def scored(self) -> tuple[Cell, ...]:
        """The cells with numbers."""
        return tuple(cell for cell in self.cells if cell.examples is not None)

    @cached_property
    def unscored(self) -> tuple[Cell, ...]:
        """The cells that failed or were skipped."""
        return tuple(cell for cell in self.cells if cell.examples is None)


def load(source: Source, keys: Sequence[str] | None = None) -> Cells:
    """Read the cells `keys` of a source, all if None. A damaged record is logged and counts as missing.

    Outcomes that cells have in common, such as the labels, are held once; images stay where they are.
    """
    wanted = source.keys() if keys is None else list(dict.fromkeys(keys))
    cells, missing = [], []
    known: dict[bytes, NDArray[Any]] = {}
    for key in wanted:
        parts = source.outcomes(key)
        if parts is None:
            missing.append(key)
            continue
        record, examples = parts
        if examples is not None:
            examples.share(known)
        cells.append(Cell(record, examples, partial(source.gallery, key)))
    return Cells(in_order(cells), tuple(missing))


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
