"""A mean over training seeds and test images, crossed: every training answers the same images, and both are samples.

A difference of two methods varies with the training seed, with the image, and with what remains of the two together. A
verdict that counts the seeds alone calls one image of sixty, the same in three trainings, a certainty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from advbench.results.statistics import Estimate, Values

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class CrossedMean:
    """A mean over seeds x images, and the three terms of its variance.

    seed, image, rest: the mean squares of the two-way table, each over (seeds x images), so that the mean's variance is
    estimated by seed + image - rest (Searle, Casella & McCulloch 1992, chapter 4). image and rest are 0 where the images'
    part is unknown. seeds, images: how many there are.
    """

    mean: float
    seed: float
    image: float
    rest: float
    seeds: int
    images: int

    @property
    def variance(self) -> float:
        """Of the mean, never below the largest single term; NaN for fewer than two seeds."""
        return float(_variance(*self._terms)) if self.seeds > 1 else math.nan

    @property
    def degrees(self) -> float:
        """Satterthwaite's degrees of freedom of the variance (Satterthwaite 1946)."""
        return float(_degrees(*self._terms, self.seeds, self.images))

    @property
    def _terms(self) -> tuple[Values, Values, Values]:
        return np.float64(self.seed), np.float64(self.image), np.float64(self.rest)  # type: ignore[return-value]

    @property
    def deviations(self) -> tuple[float, float, float]:
        """Standard deviations of a seed's effect, of an image's and of the rest; NaN where the images' part is unknown.

        What is left of the two together is counted once: a negative estimate of a part is 0.
        """
        cells = self.seeds * self.images
        if cells == 0:
            return math.sqrt(self.seeds * self.seed) if self.seeds > 1 else math.nan, math.nan, math.nan
        seed, image = (max(0.0, term - self.rest) for term in (self.seed, self.image))
        return math.sqrt(self.seeds * seed), math.sqrt(self.images * image), math.sqrt(cells * self.rest)

    @property
    def known(self) -> bool:
        """Whether there is a variance to speak of: two seeds or more, finite, and not all equal without a known step."""
        return self.seeds > 1 and math.isfinite(self.mean) and math.isfinite(self.variance) and self.variance > 0

    def interval(self, level: float = LEVEL) -> Estimate:
        """The mean with Student's interval, as wide as `half_width` says; unbounded where the variance is unknown."""
        if not self.known:
            return Estimate(self.mean, -math.inf, math.inf)
        half = float(half_width(*self._terms, self.seeds, self.images, level))
        return Estimate(self.mean, self.mean - half, self.mean + half)

    def p_above(self, bound: float) -> float:
        """The one-sided p-value of the mean's being above `bound`, which agrees with the interval; 1 where unknown."""
        return self._p(self.mean - bound)

    def p_below(self, bound: float) -> float:
        """The one-sided p-value of the mean's being below `bound`."""
        return self._p(bound - self.mean)

    def _p(self, excess: float) -> float:
        from scipy import special

        if not self.known:
            return 1.0
        size = abs(excess)
        tails = [float(special.stdtr(self.degrees, -size / math.sqrt(self.variance)))]
        if self.seed > 0:
            tails.append(float(special.stdtr(self.seeds - 1, -size / math.sqrt(self.seed))))
        return max(tails) if excess > 0 else 1.0 - max(tails)


def half_width(seed: Values, image: Values, rest: Values, seeds: int, images: int, level: float = LEVEL) -> Values:
    """Of Student's interval, for terms of the variance of any shape; images: 0 where their part is unknown.

    It is never below that of Student's interval over the seeds alone: Satterthwaite's approximation by itself covers 92.4%
    at three seeds whose variance is three to ten times that of the images.
    """
    from scipy import special

    tail = 0.5 + level / 2
    crossed = special.stdtrit(_degrees(seed, image, rest, seeds, images), tail) * np.sqrt(_variance(seed, image, rest))
    wide: Values = np.maximum(crossed, special.stdtrit(seeds - 1, tail) * np.sqrt(seed))
    return wide


def _variance(seed: Values, image: Values, rest: Values) -> Values:
    variance: Values = np.maximum(np.maximum(seed + image - rest, seed), np.maximum(image, rest))
    return variance


def _degrees(seed: Values, image: Values, rest: Values, seeds: int, images: int) -> Values:
    noise = seed**2 / (seeds - 1)
    if images > 1:
        noise = noise + image**2 / (images - 1) + rest**2 / ((seeds - 1) * (images - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        degrees: Values = np.where(noise > 0, _variance(seed, image, rest) ** 2 / noise, np.inf)
    return degrees


def crossed_mean(table: Values, step: float = 0.0) -> CrossedMean:
    """The mean of per-image values, shape (seeds, images).

    step: the most that one image can change the value of its own, 100 for a share in percent. The images' term counts one
    more image that lies so far out, as an interval of matched proportions does (Agresti & Min 2005): without it, 1% of 60
    images that differ in every training are covered in 45 runs of 100. If an image lies farther out than `step`, its
    distance counts. Raises ValueError for another shape.

    One image of sixty, the same in three trainings, is no certainty:

    >>> table = np.zeros((3, 60))
    >>> table[:, 7] = 100.0
    >>> found = crossed_mean(table, step=100.0).interval()
    >>> round(found.value, 2), round(found.low, 2), round(found.high, 2)
    (1.67, -3.05, 6.38)
    """
    table = np.asarray(table, dtype=np.float64)
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"Expected values of shape (seeds, images), got {table.shape}")
    seeds, images = table.shape
    mean = float(table.mean())
    by_seed, by_image = table.mean(axis=1), table.mean(axis=0)
    if not np.isfinite(table).all() or seeds < 2 or images < 2:
        return over_seeds(by_seed, step)
    rest = table - by_seed[:, None] - by_image + mean
    farthest = max(step, float(np.abs(by_image - mean).max()))
    return CrossedMean(
        mean,
        float(by_seed.var(ddof=1)) / seeds,
        float(by_image.var(ddof=1)) / images + (farthest / images) ** 2,
        float((rest**2).sum()) / ((seeds - 1) * (images - 1) * seeds * images),
        seeds,
        images,
    )


def crossed_statistic(by_seed: Values, resamples: Values, images: int) -> CrossedMean:
    """The mean over seeds of a statistic such as a median, with its bootstrap over images.

    by_seed: the statistic, (seeds,). resamples: of the statistic on images drawn with replacement, the same draw for all
    seeds, (draws, seeds). The bootstrap's variances stand for the images' terms of `crossed_mean`, with which they agree for
    a mean. Raises ValueError for shapes that do not fit.
    """
    seeds = len(by_seed)
    if resamples.ndim != 2 or resamples.shape[1] != seeds or len(resamples) < 2:
        raise ValueError(f"Expected resamples of shape (draws, {seeds}), got {resamples.shape}")
    if seeds < 2 or not (np.isfinite(by_seed).all() and np.isfinite(resamples).all()):
        return over_seeds(by_seed)
    together = resamples.mean(axis=1)
    apart = (resamples - together[:, None]).var(axis=0, ddof=1).sum() / (seeds - 1) / seeds
    seed = float(by_seed.var(ddof=1)) / seeds
    return CrossedMean(float(by_seed.mean()), seed, float(together.var(ddof=1)), float(apart), seeds, images)


def over_seeds(by_seed: Values, step: float = 0.0) -> CrossedMean:
    """The mean of one value per seed, (seeds,), where no more is known of the images.

    step: the smallest difference between two values; the variance is never below what rounding to it leaves, step² / 12.
    """
    values = np.asarray(by_seed, dtype=np.float64)
    mean = float(values.mean()) if len(values) else math.nan
    if len(values) < 2 or not np.isfinite(values).all():
        return CrossedMean(mean, math.nan, 0.0, 0.0, len(values), 0)
    return CrossedMean(mean, max(float(values.var(ddof=1)), step**2 / 12) / len(values), 0.0, 0.0, len(values), 0)
