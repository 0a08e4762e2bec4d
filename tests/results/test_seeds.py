from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from advbench.results import seeds
from advbench.results.seeds import Spread


def test_the_variance_is_split_into_seed_and_sampling():
    """Gaussian effects of known size: 400 seeds and 1,000 examples estimate each closely."""
    rng = np.random.default_rng(0)
    seed, example, rest, n = 0.03, 0.5, 0.2, 1000
    table = 0.6 + rng.normal(0, seed, (400, 1)) + rng.normal(0, example, (1, n)) + rng.normal(0, rest, (400, n))
    found = seeds.split_variance(list(table))
    assert found.training == pytest.approx(seed, rel=0.1)
    assert found.sampling == pytest.approx(math.sqrt((example**2 + rest**2) / n), rel=0.1)
    assert found.spread == pytest.approx(math.hypot(seed, rest / math.sqrt(n)), rel=0.1)
    assert found.median == pytest.approx(np.median(table.mean(axis=1)))


def test_the_split_predicts_how_far_a_new_training_on_new_examples_lies():
    rng = np.random.default_rng(1)

    def trainings(count, n):
        chances = np.clip(rng.beta(0.5, 0.4, n) + rng.normal(0, 0.04, (count, 1)), 0, 1)
        return (rng.random((count, n)) < chances).astype(float)

    lone = [trainings(1, 400).mean() for _ in range(2000)]
    splits = [seeds.split_variance(list(trainings(5, 400))) for _ in range(200)]
    predicted = np.mean([one.training**2 + one.sampling**2 for one in splits])
    assert math.sqrt(predicted) == pytest.approx(np.std(lone), rel=0.08)


def test_one_seed_has_no_spread():
    found = seeds.split_variance([np.array([1.0, 0.0, 1.0, 1.0])])
    assert found.median == 0.75
    assert math.isnan(found.spread)
    assert math.isnan(found.training)


def test_equal_seeds_have_no_training_variance():
    values = np.array([1.0, 0.0, 1.0, 1.0])
    found = seeds.split_variance([values] * 3)
    assert (found.spread, found.training) == (0.0, 0.0)
    assert found.sampling == pytest.approx(values.std(ddof=1) / 2)


def _groups(rng, sds, sizes=(5, 3)):
    return [[rng.normal(0.5, sd, size) for size in sizes] for sd in sds]


def test_a_lone_target_is_judged_by_students_t():
    rng = np.random.default_rng(2)
    (group,) = _groups(rng, [0.01])
    (spread,) = seeds.shared_spreads([group], step=1e-3)
    assert spread.degrees == 6
    found = seeds.compare_seeds(*group, (spread, spread))
    theirs = stats.ttest_ind(group[1], group[0], alternative="less")
    assert found.lower == pytest.approx(theirs.pvalue)
    assert found.higher == pytest.approx(1 - theirs.pvalue)
    assert found.difference == pytest.approx(group[1].mean() - group[0].mean())


def test_targets_that_spread_alike_share_one_pooled_spread():
    groups = [[np.array([0.5, 0.52, 0.48, 0.51, 0.49]), np.array([0.5, 0.51, 0.49])], [np.array([0.70, 0.72, 0.71])]]
    squares = [sum(((values - values.mean()) ** 2).sum() for values in group) for group in groups]
    spreads = seeds.shared_spreads(groups, step=1e-3)
    assert spreads == [Spread(pytest.approx(math.sqrt(sum(squares) / 8)), 8.0)] * 2


def test_a_noisy_target_keeps_to_its_own_spread():
    rng = np.random.default_rng(3)
    groups = _groups(rng, [0.001, 0.01, 0.3], (40, 40))
    spreads = seeds.shared_spreads(groups, step=1e-6)
    pooled = math.sqrt(np.mean([[values.var(ddof=1) for values in group] for group in groups]))
    own = math.sqrt(np.mean([values.var(ddof=1) for values in groups[2]]))
    assert spreads[2].sd == pytest.approx(own, rel=0.02)
    assert spreads[2].sd > 1.6 * pooled, "and is not judged by its quiet neighbours"
    assert 0.001 < spreads[0].sd < spreads[1].sd < pooled
    assert all(78 <= spread.degrees <= 85 for spread in spreads)


def test_the_prior_is_found_by_its_moments():
    """Variances drawn from a scaled F distribution, as Smyth assumes, with 8 prior degrees of freedom.

    Their mean, which is what pooling finds, is 8 / (8 - 2) times the scale.
    """
    rng = np.random.default_rng(5)
    sigma2 = 8 * 0.04 / rng.chisquare(8, 4000)
    variances = sigma2 * rng.chisquare(6, 4000) / 6
    prior, degrees = seeds._prior(variances, np.full(4000, 6.0))
    assert prior == pytest.approx(0.04 * 8 / 6, rel=0.1)
    assert degrees == pytest.approx(8, rel=0.2)


@pytest.mark.parametrize("value", [1e-6, 0.01, 0.7, 3.0, 500.0])
def test_the_inverse_of_trigamma(value):
    assert special.polygamma(1, seeds._inverse_trigamma(value)) == pytest.approx(value, rel=1e-6)


def test_no_spread_is_below_the_rounding_of_an_accuracy():
    (spread,) = seeds.shared_spreads([[np.full(5, 0.97), np.full(3, 0.97)]], step=0.01)
    assert spread.sd == pytest.approx(0.01 / math.sqrt(12))


def test_the_sampling_of_examples_widens_the_comparison():
    first, second, spread = np.array([0.5, 0.51, 0.52]), np.array([0.55, 0.56, 0.57]), Spread(0.01, 4)
    alone = seeds.compare_seeds(first, second, (spread, spread))
    wider = seeds.compare_seeds(first, second, (spread, spread), sampling=0.03**2)
    variance = 2 * 0.01**2 / 3
    df = (variance + 0.03**2) ** 2 / (variance**2 / 4)
    assert alone.higher == pytest.approx(stats.t.sf(0.05 / math.sqrt(variance), 4))
    assert wider.higher == pytest.approx(stats.t.sf(0.05 / math.sqrt(variance + 0.03**2), df))
    assert wider.higher > alone.higher


def test_one_seed_cannot_be_compared():
    with pytest.raises(ValueError, match="at least two training seeds"):
        seeds.shared_spreads([[np.array([0.5]), np.array([0.6])]], step=0.01)


@pytest.mark.parametrize("sds", [(0.01,) * 4, (0.002, 0.005, 0.01, 0.02), (0.03, 0.01, 0.01, 0.01)])
def test_false_alarms_keep_to_their_level_though_targets_spread_differently(sds):
    """Each family of four is tested at 1%; strongly unequal spreads cost up to about 2%, plain pooling up to 7%."""
    rng = np.random.default_rng(6)
    alarms = 0
    for _ in range(1500):
        groups = _groups(rng, sds)
        spreads = seeds.shared_spreads(groups, step=1e-4)
        lower = [seeds.compare_seeds(*group, (one, one)).lower for group, one in zip(groups, spreads, strict=True)]
        alarms += min(lower) <= 0.01 / 4
    assert alarms / 1500 <= (0.016 if len(set(sds)) == 1 else 0.028)
