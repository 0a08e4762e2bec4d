"""Ranks that respect uncertainty: an interval for each target, from tests of all pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from advbench.results.seeds import T_TEST, compare_seeds, shared_spreads
from advbench.results.significance import MeanDifference, holm, mcnemar_of_pairs, paired_test
from advbench.results.statistics import Values

ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class Duel:
    """The comparison of two targets, by their positions. difference: of robust accuracy, second minus first. p_value:
    two-sided. adjusted: the same after Holm's correction over all pairs of the board.
    """

    first: int
    second: int
    difference: float
    p_value: float
    adjusted: float
    test: str


@dataclass(frozen=True, slots=True)
class Ranking:
    """Rank intervals of targets, in the order in which they came.

    intervals: from 1 + the number that are significantly better, to m - the number that are significantly worse. over_seeds:
    whether the claim is about methods, compared over their training seeds; else it is about these very models. duels: all
    pairs, over which Holm's correction is.
    """

    intervals: tuple[tuple[int, int], ...]
    over_seeds: bool
    duels: tuple[Duel, ...]


def rank(values: Sequence[Sequence[Values]], alpha: float = ALPHA) -> Ranking:
    """Rank targets by accuracy, so that any pair's order is claimed wrongly with probability at most `alpha` on the board.

    values: for each target and training seed, shares of correct answers by example, (n,), on the same examples. Where every
    target has several seeds, accuracies by seed are compared by Student's t, with the spread shared over targets and the
    sampling of examples on top. Where some has one seed only, the models at hand are compared, paired on the same examples,
    with the mean over a target's seeds.

    The first is better than the other two, which these 100 examples cannot tell apart:

    >>> best, good = np.repeat([1.0, 0.0], [95, 5]), np.repeat([1.0, 0.0], [60, 40])
    >>> rank([[best], [good], [np.roll(good, 1)]]).intervals
    ((1, 1), (2, 3), (2, 3))
    """
    m = len(values)
    pairs = list(combinations(range(m), 2))
    over_seeds = m > 0 and all(len(seeds) > 1 for seeds in values)
    tests = (_over_seeds if over_seeds else _paired)(values, pairs) if pairs else []
    adjusted = holm([test.p_value for test in tests])
    duels = tuple(
        Duel(i, j, test.difference, test.p_value, float(corrected), test.test)
        for (i, j), test, corrected in zip(pairs, tests, adjusted, strict=True)
    )
    better = np.zeros((m, m), dtype=np.bool_)
    for duel in duels:
        if duel.adjusted <= alpha and duel.difference != 0:
            better[(duel.first, duel.second) if duel.difference < 0 else (duel.second, duel.first)] = True
    return Ranking(intervals(better), over_seeds, duels)


def intervals(better: NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    """Rank intervals; ``better[i, j]`` says whether i is significantly better than j, shape (m, m)."""
    m = len(better)
    return tuple((1 + int(better[:, i].sum()), m - int(better[i].sum())) for i in range(m))


def _paired(values: Sequence[Sequence[Values]], pairs: Sequence[tuple[int, int]]) -> list[MeanDifference]:
    means = [np.mean(np.stack(seeds), axis=0) for seeds in values]
    certain = [i for i, mean in enumerate(means) if mean.shape == means[0].shape and np.isin(mean, (0.0, 1.0)).all()]
    counted = mcnemar_of_pairs(np.array([means[i] == 1.0 for i in certain])) if certain else None
    place = {target: row for row, target in enumerate(certain)}
    return [
        counted(place[i], place[j]) if counted and i in place and j in place else paired_test(means[i], means[j])
        for i, j in pairs
    ]


def _over_seeds(values: Sequence[Sequence[Values]], pairs: Sequence[tuple[int, int]]) -> list[MeanDifference]:
    n = len(values[0][0])
    by_example = [np.mean(np.stack(seeds), axis=0) for seeds in values]
    by_seed = [np.array([float(shares.mean()) for shares in seeds]) for seeds in values]
    spreads = shared_spreads([[means] for means in by_seed], step=1 / n)
    tests = [
        compare_seeds(
            by_seed[i],
            by_seed[j],
            (spreads[i], spreads[j]),
            sampling=float((by_example[j] - by_example[i]).var()) / n,
        )
        for i, j in pairs
    ]
    return [MeanDifference(test.difference, min(1.0, 2 * min(test.lower, test.higher)), T_TEST) for test in tests]
