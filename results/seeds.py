"""Training seeds: how far they spread, and whether two sets of trainings differ by more than that.

A method is trained from several seeds and every model answers the same fixed examples, so that a seed's accuracy is one
number and the seeds are the sample. Pairing the examples of two trainings instead would ignore the seed's own variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from advbench.results.statistics import Values

T_TEST = "t over training seeds"


@dataclass(frozen=True, slots=True)
class SeedSplit:
    """How the accuracy of a method varies.

    median, spread: of the accuracies over training seeds; the spread is their standard deviation, NaN for one seed.
    training, sampling: standard deviations of a single training's accuracy that come from the seed, and from the choice of
    test examples. Both are NaN for one seed.
    """

    median: float
    spread: float
    training: float
    sampling: float


@dataclass(frozen=True, slots=True)
class Spread:
    """A standard deviation over training seeds and the degrees of freedom that it rests on."""

    sd: float
    degrees: float


@dataclass(frozen=True, slots=True)
class SeedComparison:
    """A difference of two means over seeds, second minus first, with the one-sided p-values of being lower and higher."""

    difference: float
    lower: float
    higher: float


def split_variance(values_by_seed: Sequence[Values]) -> SeedSplit:
    """Split the variance of accuracies, shares by example for each seed (n,), into training seed and sampling.

    Seeds and examples cross, each with an effect of its own: value = mean + seed + example + rest. From the mean squares of
    the two-way table (Searle, Casella & McCulloch 1992, chapter 4), a training on n new examples has variance seed +
    (example + rest) / n.

    Every seed answers half of the images, always the same ones: all of the spread comes from the choice of images.

    >>> split_variance([np.repeat([0.0, 1.0], 50)] * 3).training
    0.0
    """
    table = np.stack(values_by_seed)
    seeds, n = table.shape
    by_seed = table.mean(axis=1)
    if seeds < 2 or n < 2:
        return SeedSplit(float(np.median(by_seed)), *(math.nan,) * 3)
    by_example = table.mean(axis=0)
    rest = table - by_seed[:, None] - by_example + table.mean()
    seed_square = n * by_seed.var(ddof=1)
    example_square = seeds * by_example.var(ddof=1)
    rest_square = (rest**2).sum() / ((seeds - 1) * (n - 1))
    training = max(0.0, (seed_square - rest_square) / n)
    example = max(0.0, (example_square - rest_square) / seeds)
    return SeedSplit(
        float(np.median(by_seed)),
        float(by_seed.std(ddof=1)),
        math.sqrt(training),
        math.sqrt((example + rest_square) / n),
    )


def shared_spreads(groups: Sequence[Sequence[Values]], step: float) -> list[Spread]:
    """The spread of each target, pooled over the targets as far as their spreads agree (Smyth 2004's moderated variance).

    groups: for each target its sets of accuracies, such as those before and after a change, each (seeds,); a set has a mean
    of its own. step: the smallest difference between two accuracies, 1 / n; no spread is below what rounding to it leaves.

    Where the targets' variances scatter no more than chance would have it, each gets the pooled one with all degrees of
    freedom; the more they scatter, the more a noisy one is left to its own. Raises ValueError for a target without a set of
    two.
    """
    degrees = np.array([sum(len(values) - 1 for values in group) for group in groups], dtype=np.float64)
    if (degrees < 1).any():
        raise ValueError("Expected at least two training seeds of every target, got one")
    squares = np.array([sum(float(((values - values.mean()) ** 2).sum()) for values in group) for group in groups])
    variances = np.maximum(squares / degrees, step**2 / 12)
    prior, prior_degrees = _prior(variances, degrees)
    if math.isinf(prior_degrees):
        return [Spread(math.sqrt(prior), float(degrees.sum()))] * len(groups)
    moderated = (prior_degrees * prior + degrees * variances) / (prior_degrees + degrees)
    # The prior is itself estimated from these targets, so that the sum of both must not claim more degrees than there are.
    total = np.minimum(prior_degrees + degrees, degrees.sum())
    return [Spread(math.sqrt(variance), float(df)) for variance, df in zip(moderated, total, strict=True)]


def compare_seeds(first: Values, second: Values, spreads: tuple[Spread, Spread], *, sampling: float = 0.0) -> SeedComparison:
    """Student's t over training seeds: accuracies (seeds,) of two methods, or before and after a change.

    spreads: of each, from `shared_spreads`; the fewer of their degrees of freedom count. sampling: the variance that the
    choice of examples adds to the difference, 0 if the claim is about these examples only; degrees of freedom are then
    Satterthwaite's, with the examples' taken as many.

    >>> before, after = np.array([0.80, 0.82, 0.81]), np.array([0.70, 0.72, 0.71])
    >>> (spread,) = shared_spreads([[before, after]], step=1e-4)
    >>> found = compare_seeds(before, after, (spread, spread))
    >>> round(found.difference, 3), round(spread.sd, 3), spread.degrees, found.lower < 0.001
    (-0.1, 0.01, 4.0, True)
    """
    from scipy import special

    variance = spreads[0].sd ** 2 / len(first) + spreads[1].sd ** 2 / len(second)
    difference = float(second.mean() - first.mean())
    t = difference / math.sqrt(variance + sampling)
    df = min(spread.degrees for spread in spreads) * (1 + sampling / variance) ** 2
    return SeedComparison(difference, float(special.stdtr(df, t)), float(special.stdtr(df, -t)))


def _prior(variances: Values, degrees: Values) -> tuple[float, float]:
    """The variance that the targets share, and how many degrees of freedom it is worth: infinity if they agree.

    The moments of log variances under a scaled F distribution (Smyth 2004, section 6.2); of few targets these are rough, so
    that the variance is never taken below the pooled one, which keeps false alarms at their level.
    """
    from scipy import special

    pooled = float((variances * degrees).sum() / degrees.sum())
    if len(variances) == 1:
        return pooled, math.inf
    logs = np.log(variances) - special.digamma(degrees / 2) + np.log(degrees / 2)
    excess = float(logs.var(ddof=1) - special.polygamma(1, degrees / 2).mean())
    if excess <= 0:
        return pooled, math.inf
    half = _inverse_trigamma(excess)
    return max(pooled, float(np.exp(logs.mean() + special.digamma(half) - np.log(half)))), 2 * half


def _inverse_trigamma(value: float) -> float:
    """Where the trigamma function has `value` > 0, by Newton's method on its reciprocal, which is convex."""
    from scipy import special

    y = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(special.polygamma(1, y))
        step = trigamma * (1 - trigamma / value) / float(special.polygamma(2, y))
        y += step
        if -step < 1e-9 * y:
            break
    return y
