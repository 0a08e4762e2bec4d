"""Ranks that respect uncertainty: an interval for each target, from tests of all pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from advbench.results.seeds import compare_seeds, shared_spreads
from advbench.results.significance import holm, paired_test
from advbench.results.statistics import Values

ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class Ranking:
    """Rank intervals of targets, in the order in which they came.

    intervals: from 1 + the number that are significantly better, to m - the number that are significantly worse. over_seeds:
    whether the claim is about methods, compared over their training seeds; else it is about these very models. pairs: how
    many comparisons Holm's correction is over.
    """

    intervals: tuple[tuple[int, int], ...]
    over_seeds: bool
    pairs: int


def rank(values: Sequence[Sequence[Values]], alpha: float = ALPHA) -> Ranking:
    """Rank targets by accuracy, so that any pair's order is claimed wrongly with probability at most `alpha` on the board.

    values: for each target and training seed, shares of correct answers by example, (n,), on the same examples. Where every
    target has several seeds, accuracies by seed are compared by Student's t, with the spread shared over targets and the
    sampling of examples on top. Where some has one seed only, the models at hand are compared, paired on the same examples,
    with the mean over a target's seeds.
    """
    m = len(values)
    pairs = list(combinations(range(m), 2))
    over_seeds = m > 0 and all(len(seeds) > 1 for seeds in values)
    better = np.zeros((m, m), dtype=np.bool_)
    if pairs:
        tests = _over_seeds(values, pairs) if over_seeds else _paired(values, pairs)
        adjusted = holm([p_value for _, p_value in tests])
        for (i, j), (difference, _), p_value in zip(pairs, tests, adjusted, strict=True):
            if p_value <= alpha and difference != 0:
                better[(i, j) if difference < 0 else (j, i)] = True
    return Ranking(intervals(better), over_seeds, len(pairs))


def intervals(better: NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    """Rank intervals where ``better[i, j]`` says whether i is significantly better than j, shape (m, m)."""
    m = len(better)
    return tuple((1 + int(better[:, i].sum()), m - int(better[i].sum())) for i in range(m))


def _paired(values: Sequence[Sequence[Values]], pairs: Sequence[tuple[int, int]]) -> list[tuple[float, float]]:
    """Difference, second minus first, and two-sided p-value of each pair."""
    means = [np.mean(np.stack(seeds), axis=0) for seeds in values]
    found = [paired_test(means[i], means[j]) for i, j in pairs]
    return [(one.difference, one.p_value) for one in found]


def _over_seeds(values: Sequence[Sequence[Values]], pairs: Sequence[tuple[int, int]]) -> list[tuple[float, float]]:
    n = len(values[0][0])
    by_example = [np.mean(np.stack(seeds), axis=0) for seeds in values]
    by_seed = [np.array([float(one.mean()) for one in seeds]) for seeds in values]
    spreads = shared_spreads([[means] for means in by_seed], step=1 / n)
    found = [
        compare_seeds(
            by_seed[i],
            by_seed[j],
            (spreads[i], spreads[j]),
            sampling=float((by_example[j] - by_example[i]).var()) / n,
        )
        for i, j in pairs
    ]
    return [(one.difference, min(1.0, 2 * min(one.lower, one.higher))) for one in found]
