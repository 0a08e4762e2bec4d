"""A cell as reports and the gate read it: a record with its outcomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from advbench.results.record import Examples, Gallery, Record
from advbench.results.statistics import CellStatistics, Outcome, cell_statistics


@dataclass(frozen=True, eq=False)
class Cell:
    """A record with its outcomes; `examples` is None if the cell failed or was skipped.

    pictures: reads its gallery, each time anew, since the images of all cells may not fit the memory. run: the runs that its
    board is made of, in a report of several runs that has more than one board for a threat. origin: the run that it comes
    from, in a report of several.
    """

    record: Record
    examples: Examples | None = None
    pictures: Callable[[], Gallery | None] | None = None
    run: str = ""
    origin: str = ""

    @property
    def gallery(self) -> Gallery | None:
        """The images that were kept, read anew; None if there are none. Raises ValueError if they are damaged by now."""
        return None if self.pictures is None else self.pictures()

    @cached_property
    def statistics(self) -> CellStatistics | None:
        """Its rates and costs, computed once; None without outcomes."""
        return None if self.examples is None else cell_statistics(self.record, self.examples)

    @property
    def outcome(self) -> Outcome | None:
        """What the worst case is taken over; None without outcomes."""
        return None if self.examples is None else (self.record, self.examples)
