"""Means over seeds x images: their three variances, intervals that hold what they promise, and no certainty from a few."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from advbench.results.crossed import crossed_mean, crossed_statistic, over_seeds
from tests.results import coverage

_TABLE = np.array([[1.0, 4.0, 2.0, 7.0], [2.0, 5.5, 1.0, 9.0], [4.0, 8.0, 6.5, 11.0]])


def test_the_terms_are_those_of_the_two_way_table():
    """Mean squares by the sums of squares of the book: total = seeds + images + rest."""
    seeds, images = _TABLE.shape
    grand = _TABLE.sum() / 12
    of_seeds = sum(images * (row.sum() / images - grand) ** 2 for row in _TABLE)
    of_images = sum(seeds * (column.sum() / seeds - grand) ** 2 for column in _TABLE.T)
    of_rest = ((_TABLE - grand) ** 2).sum() - of_seeds - of_images
    squares = of_seeds / 2, of_images / 3, of_rest / 6
    found = crossed_mean(_TABLE)
    farthest = max(abs(column.sum() / seeds - grand) for column in _TABLE.T)
    assert found.seed == pytest.approx(squares[0] / 12)
    assert found.image == pytest.approx(squares[1] / 12 + (farthest / 4) ** 2)
    assert found.rest == pytest.approx(squares[2] / 12)
    total = found.seed + found.image - found.rest
    assert found.variance == pytest.approx(total)
    degrees = total**2 / (found.seed**2 / 2 + found.image**2 / 3 + found.rest**2 / 6)
    assert found.degrees == pytest.approx(degrees)
    low, high = stats.t.interval(0.95, degrees, loc=grand, scale=math.sqrt(total))
    assert (found.interval().low, found.interval().high) == pytest.approx((low, high))


def test_the_variance_is_never_below_a_single_term():
    rest_only = np.array([[1.0, -1.0], [-1.0, 1.0]])  # seeds and images have equal means
    found = crossed_mean(rest_only)
    assert (found.seed, found.image) == (0.0, 0.0)
    assert found.variance == found.rest == pytest.approx(1.0)


def test_seeds_that_vary_most_have_students_interval_of_the_seeds():
    table = np.array([[1.0], [2.0], [4.5]]) + 1e-9 * np.arange(50)
    expected = stats.t.interval(0.95, 2, loc=2.5, scale=stats.sem([1.0, 2.0, 4.5]))
    found = crossed_mean(table).interval()
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-6)
    alone = over_seeds(np.array([1.0, 2.0, 4.5])).interval()
    assert (alone.low, alone.high) == pytest.approx(expected)


@pytest.mark.parametrize("differing", [0, 1])
def test_equal_differences_never_give_an_interval_of_no_width(differing):
    """One image of sixty, or none, in each of three trainings: the bare difference is equal in all of them."""
    table = np.zeros((3, 60))
    table[:, :differing] = 100.0
    found = crossed_mean(table, step=100.0).interval()
    assert found.low < 0 < found.high
    assert found.high - found.low > 2 * 100 / 60
    assert over_seeds(table.mean(axis=1)).interval().high == math.inf


def test_where_nothing_is_known_of_the_variance_the_interval_is_unbounded():
    for found in (
        crossed_mean(np.zeros((3, 60))),
        crossed_mean(np.ones((1, 60))),
        crossed_mean(np.array([[math.nan, 1.0], [1.0, 2.0]])),
        over_seeds(np.array([])),
        over_seeds(np.array([1.0])),
    ):
        assert (found.interval().low, found.interval().high) == (-math.inf, math.inf)
        assert found.p_above(-1e9) == found.p_below(1e9) == 1.0
    with pytest.raises(ValueError, match=r"Expected values of shape \(seeds, images\), got \(3,\)"):
        crossed_mean(np.ones(3))


def test_the_p_value_is_the_level_at_which_the_interval_ends():
    for table in (_TABLE, np.array([[1.0], [2.0], [4.5]]) + np.zeros(50), _TABLE - _TABLE.mean(axis=1, keepdims=True)):
        found = crossed_mean(table)
        for level in (0.8, 0.95, 0.99):
            ends = found.interval(level)
            assert found.p_above(ends.low) == pytest.approx((1 - level) / 2)
            assert found.p_below(ends.high) == pytest.approx((1 - level) / 2)
            assert found.p_above(ends.high) == pytest.approx((1 + level) / 2)


def test_a_statistic_with_its_bootstrap_agrees_with_a_mean():
    rng = np.random.default_rng(5)
    table = rng.normal(size=(4, 200)) + rng.normal(size=200) + 0.1 * rng.normal(size=(4, 1))
    rows = rng.integers(0, 200, (4000, 200))
    resamples = np.stack([table[:, row].mean(axis=1) for row in rows])
    found, exact = crossed_statistic(table.mean(axis=1), resamples, 200), crossed_mean(table)
    assert (found.mean, found.seed, found.seeds, found.images) == pytest.approx((exact.mean, exact.seed, 4, 200))
    assert found.image == pytest.approx(exact.image, rel=0.1)
    assert found.rest == pytest.approx(exact.rest, rel=0.1)
    with pytest.raises(ValueError, match=r"Expected resamples of shape \(draws, 4\)"):
        crossed_statistic(table.mean(axis=1), resamples.T, 200)


def test_the_median_has_the_interval_of_its_sampling():
    """300 images of a normal value: the median's standard error is 1.2533 / sqrt(300)."""
    rng = np.random.default_rng(6)
    images = rng.normal(size=300)
    table = images + 1e-3 * rng.normal(size=(3, 1)) + 1e-3 * rng.normal(size=(3, 300))
    rows = rng.integers(0, 300, (2000, 300))
    resamples = np.stack([np.median(table[:, row], axis=1) for row in rows])
    found = crossed_statistic(np.median(table, axis=1), resamples, 300)
    assert math.sqrt(found.variance) == pytest.approx(1.2533 / math.sqrt(300), rel=0.35)


@pytest.mark.parametrize("seeds", coverage.SEEDS)
@pytest.mark.parametrize("case", coverage.CASES)
def test_intervals_hold_the_truth_as_often_as_they_say(case, seeds):
    for images, repeats in ((60, 1_500), (300, 1_000), (10_000, 250)):
        found = coverage.covered(coverage.CASES[case], seeds, images, repeats)
        error = 100 * math.sqrt(0.95 * 0.05 / repeats)
        assert 93.0 - error <= found <= 97.5 + error, (images, found)


@pytest.mark.parametrize("seeds", coverage.SEEDS)
@pytest.mark.parametrize("case", coverage.CAUTIOUS)
def test_where_they_err_they_are_too_wide(case, seeds):
    """Three seeds tell the rest of the table from a seed's variance too badly to do better."""
    for images, repeats in ((60, 1_000), (300, 600)):
        assert coverage.covered(coverage.CAUTIOUS[case], seeds, images, repeats) >= 93.0, images
