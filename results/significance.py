"""Tests of a difference on the same examples, and Holm's correction for many of them.

Two fixed models, or two attacks on one model, answer the same examples, so that the comparison is paired. What is fixed
matters: these tests speak of these very models. Of a method, which is trained anew from other seeds,
`advbench.results.seeds` speaks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from advbench.results.statistics import Values

MCNEMAR = "exact McNemar"
SIGN_FLIP = "sign-flip permutation"
_RESAMPLES = 9_999
_EQUAL = 1e-9
_MOST_CLUSTERS = 20


@dataclass(frozen=True, slots=True)
class MeanDifference:
    """A difference of two means, second minus first, with its two-sided p-value and the test that gave it."""

    difference: float
    p_value: float
    test: str


def paired_test(first: Values, second: Values) -> MeanDifference:
    """Compare two answers to the same examples, shares of correct draws or of correct seeds, each (n,).

    Exact McNemar if every share is 0 or 1, the sign-flip permutation test over examples otherwise.
    Raises ValueError for shapes that differ or no example.

    >>> first, second = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0]), np.zeros(6)
    >>> found = paired_test(first, second)
    >>> round(found.difference, 3), found.p_value, found.test
    (-0.833, 0.0625, 'exact McNemar')
    """
    differences = _differences(first, second)
    if np.isin(first, (0.0, 1.0)).all() and np.isin(second, (0.0, 1.0)).all():
        gained, lost = int((differences > 0).sum()), int((differences < 0).sum())
        return MeanDifference(float(differences.mean()), float(exact_mcnemar(gained, lost)), MCNEMAR)
    return MeanDifference(float(differences.mean()), sign_flip(differences), SIGN_FLIP)


def mcnemar_of_pairs(correct: NDArray[np.bool_]) -> Callable[[int, int], MeanDifference]:
    """`paired_test` of any two of m answers to the same n examples, right or wrong, shape (m, n), all found at once.

    >>> correct = np.array([[True, True, True, True, True, False], [False] * 6])
    >>> mcnemar_of_pairs(correct)(0, 1) == paired_test(*correct.astype(float))
    True
    """
    counts = correct.astype(np.float64)  # products of zeros and ones, exact
    gained = np.rint((1 - counts) @ counts.T).astype(np.int64)  # by the column's answer over the row's
    p_values = exact_mcnemar(gained, gained.T)
    n = correct.shape[1]
    return lambda i, j: MeanDifference(float((gained[i, j] - gained[j, i]) / n), float(p_values[i, j]), MCNEMAR)


def exact_mcnemar(gained: ArrayLike, lost: ArrayLike, *, one_sided: bool = False) -> Values:
    """The p-value of McNemar's exact test (McNemar 1947), for counts of any shape.

    gained: examples that only the second gets right; lost: those that only the first does. Under the null hypothesis each of
    these falls on either side like a fair coin. one_sided: how likely as many gained or more are, where only a gain would
    count, rather than a difference either way.

    >>> float(exact_mcnemar(gained=0, lost=5))  # five coins on one side: 2 / 2**5
    0.0625
    """
    gained, lost = np.asarray(gained, dtype=np.int64), np.asarray(lost, dtype=np.int64)
    if (gained < 0).any() or (lost < 0).any():
        raise ValueError(f"Expected counts `gained` and `lost` >= 0, got {gained} and {lost}")
    if one_sided:
        return binomial_tail(gained, gained + lost, 0.5)
    return np.minimum(1.0, 2 * binomial_tail(np.maximum(gained, lost), gained + lost, 0.5))


def binomial_tail(k: ArrayLike, n: ArrayLike, p: float) -> Values:
    """The probability of at least `k` of `n` where each has probability `p`, for counts of any shape."""
    from scipy import special

    k, n = np.asarray(k, dtype=np.float64), np.asarray(n, dtype=np.float64)
    inside = special.betainc(np.clip(k, 1, None), np.clip(n - k + 1, 1, None), p)
    tail: Values = np.where(k <= 0, 1.0, np.where(k <= n, inside, 0.0))
    return tail


def sign_flip(differences: Values, seed: int = 0) -> float:
    """The two-sided p-value of the permutation test that flips the sign of each example's difference, (n,) (Fisher 1935).

    Valid if the two answers are exchangeable, as a fixed model's under two equally strong attacks are, and for many
    examples if the means are equal. Resamples are drawn as one binomial for each distinct size of difference. Where
    Hoeffding's bound on the p-value, 2 exp(-(sum d)² / (2 sum d²)), is below what they resolve, the bound is returned.

    >>> sign_flip(np.array([0.1, -0.1, 0.2, -0.2]))  # as much on either side
    1.0
    """
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    if len(sizes) == 0:
        return 1.0
    observed = abs(float(differences.sum()))
    bound = 2 * math.exp(-(observed**2) / (2 * float(counts @ sizes**2)))
    if bound < 1 / (_RESAMPLES + 1):
        return bound
    rng = np.random.default_rng(seed)
    sums = np.zeros(_RESAMPLES)
    for size, count in zip(sizes, counts, strict=True):
        sums += size * (2 * rng.binomial(count, 0.5, _RESAMPLES) - count)
    return float((1 + (np.abs(sums) >= observed - _EQUAL).sum()) / (_RESAMPLES + 1))


def cluster_sign_flip(gains: Sequence[float] | Values) -> float:
    """The one-sided p-value that a mean gain over clusters is above zero, exactly: every flip of their signs is counted.

    gains: one mean per cluster, (k,), of all that depends on each other (the cells, seeds and images of one setting): a
    cluster's cells change sign together. No p-value is below 2^-k: eight clusters at least can show 0.005.
    Raises ValueError for no cluster, or more than 20.

    >>> cluster_sign_flip([1.0, 2.0, 3.0]), cluster_sign_flip([1.0, 2.0, -3.0])
    (0.125, 0.625)
    """
    found = np.asarray(gains, dtype=np.float64)
    if found.ndim != 1 or not 0 < len(found) <= _MOST_CLUSTERS:
        raise ValueError(f"Expected 1 to {_MOST_CLUSTERS} clusters, got shape {found.shape}")
    bits = np.arange(2 ** len(found))[:, None] >> np.arange(len(found))
    sums = (1 - 2 * (bits & 1)) @ found
    return float((sums >= sums[0] - _EQUAL).mean())


def holm(p_values: Sequence[float] | Values, weights: Sequence[float] | Values | None = None) -> Values:
    """Holm's adjusted p-values (Holm 1979), (m,): rejecting those <= alpha errs anywhere with probability <= alpha.

    weights: how much of alpha each hypothesis gets, equal shares if None (the weighted procedure of the same paper).

    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    w = np.ones_like(p) if weights is None else np.asarray(weights, dtype=np.float64)
    if p.ndim != 1 or w.shape != p.shape or (w <= 0).any():
        raise ValueError(f"Expected as many positive `weights` as p-values, got shapes {w.shape} and {p.shape}")
    order = np.argsort(p / w, kind="stable")
    left = np.cumsum(w[order][::-1])[::-1]
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] / w[order] * left))
    return adjusted


def wilcoxon_signed_rank(first: Sequence[float] | Values, second: Sequence[float] | Values) -> MeanDifference:
    """Wilcoxon's signed-rank test over paired cells, as Mosca & Magoulas 2018 compare two training methods.

    first, second: the accuracies of two methods in the same m settings (attack, epsilon, network). The cells of one model
    are not independent, so that the p-value describes how consistent the difference is; it is not a method's error rate.
    """
    from scipy import stats

    exact = _differences(np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64))
    differences = exact.round(9)  # so that equal differences tie
    name = "Wilcoxon signed-rank over cells"
    if not differences.any():
        return MeanDifference(0.0, 1.0, name)
    return MeanDifference(float(differences.mean()), float(stats.wilcoxon(differences).pvalue), name)


def _differences(first: Values, second: Values) -> NDArray[np.float64]:
    if first.shape != second.shape or first.ndim != 1 or len(first) == 0:
        raise ValueError(f"Expected two answers to the same examples, got shapes {first.shape} and {second.shape}")
    return np.asarray(second - first, dtype=np.float64)
