from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from advbench.results import ranking


def models(rng, accuracies, n=1000, noise=0.1):
    """Deterministic models on the same images, whose hardness they share."""
    hardness = rng.random(n)
    return [[(accuracy - hardness + rng.normal(0, noise, n) > 0).astype(float)] for accuracy in accuracies]


def test_an_interval_runs_from_the_better_ones_to_the_worse_ones():
    """0 beats 2 and 3, 1 beats 3: nothing else is known."""
    better = np.zeros((4, 4), dtype=bool)
    better[0, 2] = better[0, 3] = better[1, 3] = True
    assert ranking.intervals(better) == ((1, 2), (1, 3), (2, 4), (3, 4))


@given(st.integers(1, 7))
def test_intervals_are_ranks_where_every_pair_is_decided(m):
    better = np.triu(np.ones((m, m), dtype=bool), 1)
    assert ranking.intervals(better) == tuple((i + 1, i + 1) for i in range(m))
    assert ranking.intervals(np.zeros((m, m), dtype=bool)) == ((1, m),) * m


def test_far_models_are_told_apart_and_close_ones_are_not():
    found = ranking.rank(models(np.random.default_rng(0), [0.7, 0.695, 0.5, 0.1]))
    assert found.intervals == ((1, 2), (1, 2), (3, 3), (4, 4))
    assert (found.over_seeds, len(found.duels)) == (False, 6)


def test_every_pair_is_mcnemars_by_holm():
    rng = np.random.default_rng(1)
    values = models(rng, [0.5, 0.52, 0.54, 0.57], n=600)
    raw = {}
    for i, j in combinations(range(4), 2):
        difference = values[j][0] - values[i][0]
        gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
        raw[i, j] = stats.binomtest(gained, gained + lost).pvalue
    rejected = set()
    for step, pair in enumerate(sorted(raw, key=raw.get)):
        if raw[pair] > 0.05 / (6 - step):
            break
        rejected.add(pair)
    found = ranking.rank(values)
    assert 0 < len(rejected) < 6
    assert {(duel.first, duel.second) for duel in found.duels if duel.adjusted <= 0.05} == rejected
    assert {(duel.first, duel.second): duel.p_value for duel in found.duels} == pytest.approx(raw)
    wins = [{pair for pair in rejected if i in pair} for i in range(4)]
    for i, (low, high) in enumerate(found.intervals):
        assert high - low == 3 - len(wins[i])


def test_equal_models_share_all_ranks_in_95_percent():
    rng = np.random.default_rng(2)
    decided = [set(ranking.rank(models(rng, [0.5] * 5, n=300)).intervals) != {(1, 5)} for _ in range(300)]
    assert np.mean(decided) <= 0.075


def methods(rng, accuracies, seeds=5, spread=0.02, n=500):
    shift = rng.normal(0, spread, (len(accuracies), seeds))
    return [
        [one[0] for one in models(rng, [accuracy + luck for luck in lucks], n)]
        for accuracy, lucks in zip(accuracies, shift, strict=True)
    ]


def test_methods_are_compared_over_seeds_and_checkpoints_would_deceive():
    """Equal methods whose seeds spread by two points: one seed each ranks them by luck, five do not."""
    rng = np.random.default_rng(3)
    runs = [methods(rng, [0.5] * 4) for _ in range(200)]
    over_seeds = [ranking.rank(run) for run in runs]
    assert all(one.over_seeds for one in over_seeds)
    assert np.mean([set(one.intervals) != {(1, 4)} for one in over_seeds]) <= 0.08
    single = [ranking.rank([seeds[:1] for seeds in run]) for run in runs]
    assert np.mean([set(one.intervals) != {(1, 4)} for one in single]) > 0.1


def test_different_methods_are_told_apart_over_seeds():
    found = ranking.rank(methods(np.random.default_rng(4), [0.8, 0.6, 0.58], seeds=3))
    assert found.intervals == ((1, 1), (2, 3), (2, 3))


def test_one_seed_anywhere_makes_the_claim_about_checkpoints():
    values = methods(np.random.default_rng(5), [0.8, 0.6], seeds=3)
    assert ranking.rank(values).over_seeds
    assert not ranking.rank([values[0], values[1][:1]]).over_seeds


def test_stochastic_models_are_ranked_by_their_shares():
    rng = np.random.default_rng(6)
    chances = rng.beta(2, 2, 300)
    values = [[rng.binomial(10, np.clip(chances + shift, 0, 1)) / 10] for shift in (0.1, 0.0, 0.0)]
    assert ranking.rank(values).intervals == ((1, 1), (2, 3), (2, 3))


def test_a_lone_target_and_none():
    assert ranking.rank([[np.ones(3)]]).intervals == ((1, 1),)
    assert ranking.rank([]).intervals == ()
    assert ranking.rank([[np.ones(3)], [np.ones(3)]]).intervals == ((1, 2), (1, 2))


def test_other_examples_are_refused():
    with pytest.raises(ValueError, match="the same examples"):
        ranking.rank([[np.ones(3)], [np.ones(4)]])
