"""Figures by training seed that know the images behind them, so that a verdict counts both.

A `Figure` is a number of one training with its value on every image; a `SeedFigure` is such a number for each seed. Both do
arithmetic: the difference of two accuracies on the same images is a difference on every image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Self, overload

import numpy as np
from numpy.typing import NDArray

from advbench.results.crossed import CrossedMean, crossed_mean, crossed_statistic, over_seeds
from advbench.results.statistics import Values

Indices = NDArray[np.int64]
PERCENT = 100.0


class Figure(float):
    """A figure of one training, the mean of its values on images.

    by_image: (n,). index: the images' places in the data set, (n,). step: the most that an image can change its own value,
    0 if there is no such bound.
    """

    by_image: Values
    index: Indices
    step: float

    def __new__(cls, by_image: Values, index: Indices, step: float = 0.0) -> Self:
        """The mean of the values. Raises ValueError unless there is an index for each."""
        if by_image.shape != index.shape or by_image.ndim != 1:
            raise ValueError(f"Expected a value for each of {index.shape} images, got {by_image.shape}")
        made = super().__new__(cls, float(by_image.mean()) if len(by_image) else float("nan"))
        made.by_image, made.index, made.step = np.asarray(by_image, dtype=np.float64), index, step
        return made

    def rest_of(self, whole: float) -> Figure:
        """What is left of `whole`, such as the error beside an accuracy of 100."""
        return Figure(whole - self.by_image, self.index, self.step)


def percent(shares: Values, index: Indices) -> Figure:
    """The mean of shares by image in percent."""
    return Figure(PERCENT * np.asarray(shares, dtype=np.float64), index, PERCENT)


def ratio(numerator: Values, denominator: Values, index: Indices, scale: float = 1.0) -> Figure:
    """scale x sum(numerator) / sum(denominator), such as a mean over the images that an attack broke.

    The value on an image is the ratio's linearisation (the delta method): the ratio, and how far the image moves it. NaN
    where the denominator's sum is zero.
    """
    if not denominator.any():
        return Figure(np.full(len(index), np.nan), index)
    share = denominator.mean()
    value = numerator.mean() / share
    return Figure(scale * (value + (numerator - value * denominator) / share), index)


class SeedFigure(Sequence[float]):
    """A figure by training seed.

    values: one per seed. table: on every image, (seeds, n), or None where only the seeds' values are known. places, step:
    the index and step of `Figure`; the images are the same for all seeds. Without a table the step is the smallest
    difference of two values. resamples: of a statistic that is no mean, its values on images drawn anew, (draws, seeds).
    """

    __slots__ = ("images", "places", "resamples", "step", "table", "values")

    def __init__(
        self, values: Iterable[float], table: Values | None = None, places: Indices | None = None, step: float = 0.0
    ) -> None:
        self.values = tuple(float(value) for value in values)
        self.table, self.places, self.step = table, places, step
        self.resamples: Values | None = None
        self.images = 0 if places is None else len(places)

    @classmethod
    def bootstrapped(cls, statistics: Sequence[Callable[[Indices], float]], images: int, draws: int = 200) -> SeedFigure:
        """A statistic that is no mean, with its bootstrap over images, which the seeds share.

        statistics: for each seed, the statistic of the images at some positions, each of which may come more than once.
        """
        rows = np.random.default_rng(0).integers(0, images, (draws, images))
        made = cls(statistic(np.arange(images)) for statistic in statistics)
        made.resamples, made.images = np.array([[each(row) for each in statistics] for row in rows]), images
        return made

    @classmethod
    def of(cls, figures: Iterable[float]) -> SeedFigure:
        """Of one figure per seed; their images count where all have the same ones."""
        found = list(figures)
        known = [one for one in found if isinstance(one, Figure)]
        if found and len(known) == len(found) and all(np.array_equal(one.index, known[0].index) for one in known):
            return cls._of_table(np.stack([one.by_image for one in known]), known[0].index, max(one.step for one in known))
        return cls(found)

    @classmethod
    def _of_table(cls, table: Values, index: Indices, step: float) -> SeedFigure:
        return cls(table.mean(axis=1).tolist(), table, index, step)

    def crossed(self) -> CrossedMean:
        """The mean over seeds and images, with the parts of its variance."""
        if self.resamples is not None:
            return crossed_statistic(np.array(self.values), self.resamples, self.images)
        if self.table is None:
            return over_seeds(np.array(self.values), self.step)
        return crossed_mean(self.table, self.step)

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[float]:
        return iter(self.values)

    @overload
    def __getitem__(self, key: int) -> float: ...

    @overload
    def __getitem__(self, key: slice) -> Sequence[float]: ...

    def __getitem__(self, key: int | slice) -> float | Sequence[float]:
        return self.values[key]

    def __eq__(self, other: object) -> bool:
        return self.values == (other.values if isinstance(other, SeedFigure) else other)

    def __hash__(self) -> int:
        return hash(self.values)

    def __repr__(self) -> str:
        return f"SeedFigure({self.values})"

    def __add__(self, other: Sequence[float] | float) -> SeedFigure:
        return _combined(self, other, 1.0)

    def __sub__(self, other: Sequence[float] | float) -> SeedFigure:
        return _combined(self, other, -1.0)

    def __rsub__(self, whole: float) -> SeedFigure:
        return self * -1.0 + whole

    def __mul__(self, factor: float) -> SeedFigure:
        if self.table is None or self.places is None:
            made = SeedFigure((factor * value for value in self.values), step=abs(factor) * self.step)
            made.resamples, made.images = None if self.resamples is None else factor * self.resamples, self.images
            return made
        return self._of_table(factor * self.table, self.places, abs(factor) * self.step)

    __radd__ = __add__
    __rmul__ = __mul__


def measured(values: Sequence[float]) -> SeedFigure:
    """Values by seed as they come, with their images where these are known."""
    return values if isinstance(values, SeedFigure) else SeedFigure.of(values)


def difference(ours: Sequence[float], others: Sequence[float]) -> SeedFigure:
    """Ours minus the others, seed by seed, and image by image where both know theirs."""
    return measured(ours) - others


def mean_of(figures: Iterable[Sequence[float]]) -> SeedFigure:
    """The mean of several figures, by seed."""
    found = [measured(one) for one in figures]
    total = found[0]
    for one in found[1:]:
        total = total + one
    return total * (1.0 / len(found))


def lowest(figures: Iterable[Sequence[float]]) -> SeedFigure:
    """For each seed the least of several figures, with that one's images."""
    found = [measured(one) for one in figures]
    chosen = [int(np.argmin([one[seed] for one in found])) for seed in range(len(found[0]))]
    first = found[0]
    if first.places is None or any(one.places is None or not np.array_equal(one.places, first.places) for one in found):
        return SeedFigure(found[which][seed] for seed, which in enumerate(chosen))
    rows = [_table(found[which])[seed] for seed, which in enumerate(chosen)]
    return SeedFigure._of_table(np.stack(rows), first.places, max(one.step for one in found))


def highest(figures: Iterable[Sequence[float]]) -> SeedFigure:
    """For each seed the greatest of several figures, with that one's images."""
    return lowest([measured(one) * -1.0 for one in figures]) * -1.0


def _combined(first: SeedFigure, other: Sequence[float] | float, sign: float) -> SeedFigure:
    """first + sign x other. What an image can change by is the larger of a difference's two steps, a sum's both."""
    if isinstance(other, int | float):
        if first.table is None or first.places is None:
            made = SeedFigure((value + sign * other for value in first.values), step=first.step)
            made.resamples, made.images = None if first.resamples is None else first.resamples + sign * other, first.images
            return made
        return SeedFigure._of_table(first.table + sign * other, first.places, first.step)
    second = measured(other)
    if len(first) != len(second):
        raise ValueError(f"Expected as many seeds on both sides, got {len(first)} and {len(second)}")
    step = max(first.step, second.step) if sign < 0 else first.step + second.step
    if first.places is None or second.places is None:
        rounded = max(one.step for one in (first, second) if one.places is None)
        made = SeedFigure((a + sign * b for a, b in zip(first, second, strict=True)), step=rounded)
        if first.resamples is not None and second.resamples is not None and first.images == second.images:
            made.resamples, made.images = first.resamples + sign * second.resamples, first.images
        return made
    if np.array_equal(first.places, second.places):
        return SeedFigure._of_table(_table(first) + sign * _table(second), first.places, step)
    index = np.union1d(first.places, second.places)
    spread = _on(first, index) + sign * _on(second, index)
    return SeedFigure._of_table(spread, index, step * len(index) / min(len(first.places), len(second.places)))


def _table(one: SeedFigure) -> Values:
    if one.table is None:
        raise ValueError("Expected figures whose images are known")
    return one.table


def _on(one: SeedFigure, index: Indices) -> Values:
    """A table on more images with the same means: each known image weighs as much as it did, the others say nothing."""
    table, known = _table(one), one.places
    if known is None:
        raise ValueError("Expected figures whose images are known")
    means = table.mean(axis=1, keepdims=True)
    spread = np.repeat(means, len(index), axis=1)
    spread[:, np.searchsorted(index, known)] = means + (table - means) * len(index) / len(known)
    return np.asarray(spread)
