"""The gate's terms, a row for each number that it compares, and the verdicts of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from advbench.results.boards import Attacker, BoardThreat

Verdict = Literal["better", "same", "worse", "missing", "new"]
Question = Literal["same weights", "re-trained", "checkpoints", ""]
CLEAN, WORST, TIME = "clean accuracy", "robust accuracy", "time per image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The gate's settings.

    alpha: the chance of any false alarm in a gate, in (0, 1).
    tolerance: ignore changes up to this size (0.01 = one percentage point) at any p-value.
    checkpoints_only: compare these checkpoints directly, ignoring training seeds.
    time_bound: the largest allowed ratio of attack times on the same device; times are not compared if None.
    across_versions: whether to compare runs of different versions of advbench or of the attacks' source.
    fail_on_flags: whether a flag that the baseline's target lacks is a failure.

    Raises ValueError for a value out of its range.
    """

    alpha: float = 0.01
    tolerance: float = 0.0
    checkpoints_only: bool = False
    time_bound: float | None = None
    across_versions: bool = False
    fail_on_flags: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"Expected `alpha` in (0, 1), got {self.alpha}")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"Expected `tolerance` in [0, 1), a share such as 0.01 for a point, got {self.tolerance}")
        if self.time_bound is not None and not (self.time_bound >= 1 and math.isfinite(self.time_bound)):
            raise ValueError(f"Expected `time_bound` >= 1, a ratio such as 2, got {self.time_bound}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRow:
    """One number of one target, before and after.

    p_value: after Holm's correction, None if not tested. fails: whether it fails the gate. note: why, or what was
    left out. question: what the comparison is about.
    """

    threat: BoardThreat
    target: str
    quantity: str
    baseline: float | None = None
    candidate: float | None = None
    p_value: float | None = None
    question: Question = ""
    test: str = ""
    verdict: Verdict = "same"
    fails: bool = False
    note: str = ""

    @property
    def difference(self) -> float | None:
        """Candidate minus baseline; of a time, their ratio."""
        if self.baseline is None or self.candidate is None:
            return None
        return self.candidate / self.baseline if self.quantity == TIME else self.candidate - self.baseline


@dataclass(frozen=True, slots=True, kw_only=True)
class CellChange:
    """One attacker's robust accuracy, the mean over training seeds, before and after; shown, never gated."""

    threat: BoardThreat
    target: str
    attacker: Attacker
    baseline: float
    candidate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """The gate's verdicts. incomparable: why the runs cannot be compared, in which case no number is tested."""

    terms: Terms
    rows: tuple[GateRow, ...] = ()
    cells: tuple[CellChange, ...] = ()
    caveats: tuple[str, ...] = ()
    incomparable: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[GateRow, ...]:
        """The rows that fail."""
        return tuple(row for row in self.rows if row.fails)

    @property
    def exit_code(self) -> int:
        """0 if no number is worse, 1 if at least one fails, 2 if the runs cannot be compared."""
        return 2 if self.incomparable else 1 if self.failures else 0
