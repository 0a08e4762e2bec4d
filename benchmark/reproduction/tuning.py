"""The strength of each method by one rule, from trainings on seeds that no verdict counts and images that no net trained on.

The largest strength such that it and all smaller ones of the grid lose at most half of the bar that clean accuracy is judged
at. A loss is bounded from above: one-sided, at 95%, paired by image. Every method has as many grid points; where the rule
ends at an edge of a grid, the grid is extended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from advbench.reproduction.clean import held_out_answers

if TYPE_CHECKING:
    from advbench.reproduction.findings import Findings, ScoredCell
    from advbench.reproduction.study import Scale, Settings
    from advbench.results.statistics import Values

LEVEL: Final = 0.95
LEAST_IMAGES: Final = 5_000
"""Fewer held-out images bound no loss of a tenth of a point."""

Strengths: TypeAlias = "Mapping[str, tuple[float, ...]]"
"""Those that are trained, by method."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method with a strength.

    settings: its training at a strength. grid: ascending. lower, higher: what is added below the grid, and above it, in that
    order, where the rule ends at an edge. whole: whether all of the grid is trained, for a curve; otherwise no strength
    above the first that loses too much, which the rule would not reach.
    """

    settings: Callable[[float], Settings]
    grid: tuple[float, ...]
    lower: tuple[float, ...] = ()
    higher: tuple[float, ...] = ()
    whole: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Tuning:
    """How the strengths of a paper's methods are chosen on one data set.

    name: of the run. run: its settings for some trainings, with one attack. bar: of a loss of clean accuracy, in percent
    points; half of it counts. plain: the training that a loss is measured against. seeds: of these trainings. scales: at
    which the strengths are chosen so; `untuned` at the others. untuned: strengths to plan with before any is chosen.
    """

    name: str
    methods: Mapping[str, Method]
    run: Callable[[Scale, Sequence[Settings]], Settings]
    bar: float
    plain: Settings
    seeds: tuple[int, ...]
    scales: tuple[Scale, ...]
    untuned: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class ValidationSearch:
    """How settings are chosen by what trained models do on validation images, where no strength of a training is wanted.

    name: of the search. runs: the trainings that it looks at, by name, as the runs of a study. find: what it chooses from
    them. seeds, scales: as of `Tuning`. untuned: what to plan with before anything is chosen.
    """

    name: str
    runs: Callable[[Scale], Mapping[str, Settings]]
    find: Callable[[Findings, Scale], Tuned]
    seeds: tuple[int, ...]
    scales: tuple[Scale, ...]
    untuned: Mapping[str, float]


Selection: TypeAlias = Tuning | ValidationSearch
"""What chooses before the judged runs."""


@dataclass(frozen=True, slots=True)
class Point:
    """A method at a strength, in percent: its loss of held-out accuracy with its upper bound, its accuracy there, and under
    attack on test images."""

    strength: float
    loss: float
    bound: float
    clean: float
    robust: float


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a tuning found.

    chosen: the strength of each method; 0 where no point of the grid was small enough. points: by method, ascending; none
    where nothing was tuned. plain: the training without a penalty. images: held out. seen: of a search, what it looked at
    as rows of tables: by name, the label of each and its figures.
    """

    chosen: Mapping[str, float]
    points: Mapping[str, tuple[Point, ...]]
    plain: Point | None = None
    images: int = 0
    seen: Mapping[str, tuple[tuple[str, tuple[float, ...]], ...]] = field(default_factory=dict)


def untuned(tuning: Selection) -> Tuned:
    """The strengths before any is chosen."""
    return Tuned(tuning.untuned, {})


def bound(losses: Values, level: float = LEVEL) -> float:
    """The one-sided upper bound of a mean loss in percent, from its values on images, (n,); infinite for fewer than two.

    Normal, with one more image at the largest loss of all, so that no agreement is a certainty.

    >>> round(bound(np.zeros(5_000)), 3)
    0.033
    """
    from scipy import special

    n = len(losses)
    if n < 2:
        return math.inf
    variance = float(losses.var(ddof=1)) / n + (100.0 / n) ** 2
    return float(losses.mean()) + float(special.ndtri(level)) * math.sqrt(variance)


def largest_kept(bounds: Mapping[float, float], allowed: float) -> float:
    """The largest strength such that it and all smaller ones have a bound of at most `allowed`; 0 if the smallest has not.

    >>> largest_kept({0.3: 0.1, 1.0: 0.1, 3.0: 0.4, 10.0: 0.1}, allowed=0.15)
    1.0
    """
    kept = 0.0
    for strength in sorted(bounds):
        if bounds[strength] > allowed:
            break
        kept = strength
    return kept


def first(tuning: Tuning) -> dict[str, tuple[float, ...]]:
    """The strengths that are trained before anything is known: the smallest of each grid, or all of it."""
    return {name: method.grid if method.whole else method.grid[:1] for name, method in tuning.methods.items()}


def following(tuning: Tuning, tuned: Tuned) -> dict[str, tuple[float, ...]]:
    """The strengths to train after those that were measured: one more where the rule ends at an edge, the same elsewhere."""
    found = dict[str, tuple[float, ...]]()
    for name, method in tuning.methods.items():
        bounds = {point.strength: point.bound for point in tuned.points[name]}
        kept = largest_kept(bounds, tuning.bar / 2)
        beyond = method.lower if kept == 0 else (*method.grid, *method.higher) if kept == max(bounds) else ()
        found[name] = (*bounds, *[strength for strength in beyond if strength not in bounds][:1])
    return found


def trainings(tuning: Tuning, strengths: Strengths) -> list[Settings]:
    """The plain training, and each method at its strengths."""
    return [tuning.plain, *(tuning.methods[name].settings(each) for name in strengths for each in strengths[name])]


def measure(tuning: Tuning, findings: Findings, strengths: Strengths) -> Tuned:
    """The points of all trainings, and the strengths that the rule chooses.

    Raises ValueError, in one line, for a training without a cell, and where there are too few held-out images.
    """
    plain = _Trained.of(tuning, findings, tuning.plain)
    if len(plain.correct) < LEAST_IMAGES:
        raise ValueError(f"Expected at least {LEAST_IMAGES:,} held-out images to choose by, got {len(plain.correct):,}")
    points = {
        name: tuple(
            _Trained.of(tuning, findings, tuning.methods[name].settings(each)).point(each, plain) for each in sorted(values)
        )
        for name, values in strengths.items()
    }
    bounds = {name: {point.strength: point.bound for point in each} for name, each in points.items()}
    chosen = {name: largest_kept(each, tuning.bar / 2) for name, each in bounds.items()}
    return Tuned(chosen, points, plain.point(0.0, plain), len(plain.correct))


@dataclass(frozen=True, slots=True, eq=False)
class _Trained:
    """Trainings of one kind over seeds, in percent: correct answers by held-out image, and accuracy under attack."""

    correct: Values
    robust: float

    @staticmethod
    def of(tuning: Tuning, findings: Findings, settings: Settings) -> _Trained:
        run = findings[tuning.name]
        cells: list[ScoredCell] = [run.trained(settings, seed=seed) for seed in findings.seeds]
        correct = 100 * np.mean([held_out_answers(run, cell) for cell in cells], axis=0)
        return _Trained(correct, float(np.mean([cell.accuracy for cell in cells])))

    def point(self, strength: float, plain: _Trained) -> Point:
        losses = plain.correct - self.correct
        return Point(strength, float(losses.mean()), bound(losses), float(self.correct.mean()), self.robust)
