from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from advbench.results import statistics
from advbench.results.record import DISTANCES


@given(n=st.integers(1, 2000), share=st.floats(0, 1))
def test_wilson_agrees_with_scipy(n, share):
    successes = round(share * n)
    ours = statistics.wilson(successes, n)
    theirs = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert ours.value == successes / n
    assert ours.low == pytest.approx(theirs.low, abs=1e-12)
    assert ours.high == pytest.approx(theirs.high, abs=1e-12)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 3), (4, 3)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match="Expected 0 <= `successes` <= `n`"):
        statistics.wilson(successes, n)


def _naive_bootstrap(values, statistic, resamples=20_000):
    rows = np.random.default_rng(7).integers(len(values), size=(resamples, len(values)))
    return statistic(values[rows], axis=1)


@pytest.mark.parametrize("n", [5, 8, 41, 60])
def test_the_bootstraps_agree_with_resampling_one_by_one(n):
    values = np.random.default_rng(n).integers(0, 11, n) / 10
    for ours, statistic in ((statistics.bootstrap_mean, np.mean), (statistics.bootstrap_median, np.median)):
        resampled = _naive_bootstrap(values, statistic)
        estimate = ours(values)
        assert estimate.value == pytest.approx(statistic(values))
        # The quantile's own sampling error: levels within one percent of 2.5% and 97.5%.
        assert np.quantile(resampled, 0.015) - 1e-9 <= estimate.low <= np.quantile(resampled, 0.035) + 1e-9
        assert np.quantile(resampled, 0.965) - 1e-9 <= estimate.high <= np.quantile(resampled, 0.985) + 1e-9


def test_the_median_counts_failures_as_infinitely_far():
    assert statistics.bootstrap_median(np.array([1.0, 2.0, np.inf])).value == 2.0
    estimate = statistics.bootstrap_median(np.array([1.0, np.inf, np.inf, np.inf] * 20))
    assert (estimate.value, estimate.low, estimate.high) == (math.inf,) * 3
    assert statistics.bootstrap_median(np.array([3.0])) == statistics.Estimate(3.0, 3.0, 3.0)


def test_the_intervals_are_repeatable():
    values = np.random.default_rng(0).integers(0, 11, 50) / 10
    assert statistics.bootstrap_mean(values) == statistics.bootstrap_mean(values.copy())
    assert statistics.bootstrap_median(values) == statistics.bootstrap_median(values.copy())
    assert statistics.bootstrap_mean(values) != statistics.bootstrap_mean(values, seed=1)


def _coverage(draw, interval, truth, repeats=400):
    """How often the interval of a sample `draw(rng)` holds the truth."""
    rng = np.random.default_rng(11)
    estimates = [interval(draw(rng)) for _ in range(repeats)]
    return np.mean([estimate.low <= truth <= estimate.high for estimate in estimates])


@pytest.mark.parametrize("p", [0.02, 0.3, 0.9])
def test_wilson_covers_the_truth_in_95_percent(p):
    n = 200
    outcomes = np.arange(n + 1)
    inside = [statistics.wilson(k, n).low <= p <= statistics.wilson(k, n).high for k in outcomes]
    assert 0.93 <= stats.binom.pmf(outcomes, n, p) @ inside <= 0.98


def test_the_bootstrap_covers_the_truth_for_stochastic_models():
    """Each example has its own chance of a correct draw, Beta(2, 1) with mean 2/3, of which 10 draws are counted."""

    def draw(rng):
        return rng.binomial(10, rng.beta(2, 1, size=200)) / 10

    assert 0.92 <= _coverage(draw, statistics.rate, 2 / 3) <= 0.98


def test_the_bootstrap_covers_the_median_distance():
    def draw(rng):
        return rng.exponential(size=101)

    assert 0.92 <= _coverage(draw, statistics.bootstrap_median, math.log(2)) <= 0.98


def test_the_interval_over_seeds_covers_the_mean_of_these_seeds():
    """Three models with chances 0.5, 0.6 and 0.7, correlated over the examples."""

    def draw(rng):
        difficulty = rng.random(200)
        return [(difficulty < p).astype(np.float64) for p in (0.5, 0.6, 0.7)]

    def interval(values):
        return statistics.over_seeds(values).estimate

    assert 0.92 <= _coverage(draw, interval, 0.6) <= 0.98


def test_every_seed_keeps_its_value():
    seeds = statistics.over_seeds([np.array([0.0, 1.0, 1.0, 1.0]), np.array([0.0, 0.0, 1.0, 1.0])])
    assert seeds.by_seed == (0.75, 0.5)
    assert seeds.estimate.value == 0.625


def test_shares_that_are_all_0_or_1_get_wilsons_interval():
    assert statistics.rate(np.ones(50)) == statistics.wilson(50, 50)
    assert statistics.rate(np.ones(50)).low < 0.95, "fifty robust examples do not prove a perfect model"
    assert statistics.rate(np.array([0.5, 1.0])) == statistics.bootstrap_mean(np.array([0.5, 1.0]))


def test_clean_errors_count_as_not_robust(make_record, make_examples):
    """Example 0 is a clean error that the perturbation repairs."""
    examples = make_examples(clean_correct=np.array([0, 1, 1, 1]), report_correct=np.array([1, 1, 0, 1]))
    np.testing.assert_array_equal(statistics.robust(make_record(), examples), [0, 1, 0, 1])
    found = statistics.cell_statistics(make_record(), examples)
    assert found.clean_accuracy == statistics.wilson(3, 4)
    assert found.robust_accuracy == statistics.wilson(2, 4)
    assert found.success_all == statistics.wilson(2, 4)
    assert found.success_clean_correct == statistics.wilson(1, 3)


def test_a_stochastic_models_examples_count_by_their_draws(make_record, make_examples):
    record = make_record(target=make_record().target | {"stochastic": True})
    examples = make_examples(
        draws=10,
        clean_correct=np.array([10, 5, 0, 8]),
        select_correct=np.array([0, 0, 0, 0]),
        report_correct=np.array([3, 5, 4, 10]),
    )
    np.testing.assert_allclose(statistics.robust(record, examples), [0.3, 0.5, 0.0, 1.0])
    assert statistics.cell_statistics(record, examples).clean_accuracy.value == pytest.approx(0.575)


def _minimal(make_record, epsilon=0.3, norm="linf"):
    attack = make_record().attack | {"minimal_norm": True, "label": "deepfool"}
    return make_record(attack=attack, threat={"norm": norm, "epsilon": epsilon, "box": [0, 1]})


def test_a_minimal_norm_attack_breaks_only_within_epsilon(make_record, make_examples):
    """Broken inside, broken on the edge up to rounding, broken beyond, failed."""
    examples = make_examples(
        report_correct=np.array([0, 0, 0, 1]), distance_linf=np.array([0.1, 0.3 * (1 + 5e-7), 0.31, np.inf])
    )
    record = _minimal(make_record)
    np.testing.assert_array_equal(statistics.robust(record, examples), [0, 0, 1, 1])
    np.testing.assert_array_equal(statistics.robust(record, examples, 0.05), [1, 1, 1, 1])
    np.testing.assert_array_equal(statistics.robust(record, examples, 1.0), [0, 0, 0, 1])


@pytest.mark.parametrize("norm", ["l0", "l1", "l2", "linf"])
def test_distances_are_taken_in_the_threats_norm(make_record, make_examples, norm):
    distances = {name: np.full(4, 9.0) for name in DISTANCES} | {f"distance_{norm}": np.full(4, 0.2)}
    record = _minimal(make_record, norm=norm)
    assert (
        statistics.cell_statistics(
            record, make_examples(**distances, report_correct=np.zeros(4, int))
        ).distortion.median.value
        == 0.2
    )


def test_a_fixed_epsilon_attack_speaks_of_its_own_epsilon_only(make_record, make_examples):
    np.testing.assert_array_equal(statistics.robust(make_record(), make_examples(), 0.3), np.ones(4))
    with pytest.raises(ValueError, match=r"Expected epsilon 0\.3, at which pgd ran, got 0\.2"):
        statistics.robust(make_record(), make_examples(), 0.2)
    with pytest.raises(ValueError, match="Expected an `epsilon` for the minimal-norm attack deepfool"):
        statistics.robust(_minimal(make_record, epsilon=None), make_examples())


def test_a_corruption_without_a_norm_counts_at_any_distance(make_record, make_examples):
    record = make_record(threat={"norm": "none", "epsilon": None, "box": [0, 1]})
    examples = make_examples(report_correct=np.array([0, 1, 1, 0]), distance_l2=np.full(4, 50.0))
    np.testing.assert_array_equal(statistics.robust(record, examples), [0, 1, 1, 0])


def test_the_curve_is_the_robust_accuracy_at_every_radius(make_record, make_examples):
    rng = np.random.default_rng(5)
    n = 60
    for draws in (1, 10):
        examples = make_examples(
            n,
            draws,
            clean_correct=rng.integers(0, draws + 1, n),
            report_correct=rng.integers(0, draws + 1, n),
            distance_linf=np.where(rng.random(n) < 0.1, np.inf, np.where(rng.random(n) < 0.1, np.nan, rng.random(n))),
        )
        record = _minimal(make_record)
        epsilons = np.concatenate(([0.01], rng.random(20)))
        expected = [statistics.robust(record, examples, epsilon).mean() for epsilon in epsilons]
        np.testing.assert_allclose(statistics.robust_curve(record, examples, epsilons), expected, atol=1e-12)


@pytest.fixture(scope="session")
def make_outcomes(make_record, make_examples):
    def make(report, select=None, draws=1):
        record = make_record(target=make_record().target | {"stochastic": draws > 1})
        select = report if select is None else select
        return [
            (record, make_examples(report.shape[1], draws, report_correct=reported, select_correct=selected))
            for reported, selected in zip(report, select, strict=True)
        ]

    return make


counts = hnp.arrays(np.int64, (3, 12), elements=st.integers(0, 1))


@given(counts)
def test_the_worst_case_of_a_deterministic_model_is_the_minimum(make_outcomes, correct):
    outcomes = make_outcomes(correct)
    worst = statistics.worst_case(outcomes)
    np.testing.assert_array_equal(worst.values, correct.min(axis=0))
    assert all(worst.values.mean() <= statistics.robust(record, examples).mean() for record, examples in outcomes)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_the_worst_case_of_a_stochastic_model_chooses_and_reports_on_other_draws(make_outcomes, seed):
    rng = np.random.default_rng(seed)
    select, report = rng.integers(0, 11, (2, 4, 30))
    outcomes = make_outcomes(report, select, draws=10)
    worst = statistics.worst_case(outcomes)
    np.testing.assert_array_equal(worst.chosen, select.argmin(axis=0))
    for example, value in enumerate(worst.values):
        tied = select[:, example] == select[:, example].min()
        assert value == pytest.approx(report[tied, example].mean() / 10)


def test_equal_noisy_strategies_do_not_look_worse_than_one(make_outcomes):
    """Five strategies that leave the same chance of 0.5: the minimum would report about 0.33."""
    rng = np.random.default_rng(3)
    select, report = rng.binomial(10, 0.5, (2, 5, 4000))
    outcomes = make_outcomes(report, select, draws=10)
    assert report.min(axis=0).mean() / 10 < 0.35
    assert statistics.worst_case(outcomes).values.mean() == pytest.approx(0.5, abs=0.01)


def test_a_strategy_beyond_epsilon_is_out(make_record, make_examples):
    near = (make_record(), make_examples(report_correct=np.array([1, 1, 0, 1])))
    far = make_examples(
        report_correct=np.array([0, 0, 0, 0]),
        select_correct=np.array([0, 0, 0, 0]),
        distance_linf=np.array([0.2, 0.4, 0.4, np.inf]),
    )
    worst = statistics.worst_case([(_minimal(make_record), far), near], epsilon=0.3)
    np.testing.assert_array_equal(worst.values, [0, 1, 0, 1])
    np.testing.assert_array_equal(worst.chosen, [0, 1, 1, 1])
    alone = statistics.worst_case([(_minimal(make_record), far)], epsilon=0.3)
    np.testing.assert_array_equal(alone.values, [0, 1, 1, 1])
    np.testing.assert_array_equal(alone.chosen, [0, -1, -1, -1])


def test_cells_of_other_examples_are_not_joined(make_record, make_examples):
    record = make_record()
    shifted = make_examples(index=np.arange(1, 5))
    with pytest.raises(ValueError, match="Expected cells of the same examples and draws"):
        statistics.worst_case([(record, make_examples()), (record, shifted)])
    with pytest.raises(ValueError, match="Expected cells of the same examples and draws"):
        statistics.worst_case([(record, make_examples()), (record, make_examples(draws=2))])
    with pytest.raises(ValueError, match="Expected at least one cell"):
        statistics.worst_case([])


def test_distortion_puts_failures_at_infinity_and_names_survivors(make_record, make_examples):
    """Five examples: a clean error (not attacked), three successes, a failure."""
    examples = make_examples(
        5,
        clean_correct=np.array([0, 1, 1, 1, 1]),
        report_correct=np.array([0, 0, 0, 0, 1]),
        distance_linf=np.array([np.nan, 0.1, 0.2, 0.6, np.inf]),
        distance_l2=np.array([np.nan, 1.0, 2.0, 3.0, np.inf]),
        rms=np.array([np.nan, 0.01, 0.02, 0.06, np.inf]),
        image_l2=np.array([4.0, 4.0, 4.0, 4.0, 4.0]),
    )
    found = statistics.cell_statistics(_minimal(make_record), examples)
    assert found.distortion.median.value == pytest.approx(0.4)
    assert found.distortion.mean_rms == pytest.approx(0.03)
    assert found.distortion.mean_ratio == pytest.approx(0.5)
    assert found.distortion.survivors
    assert found.success_clean_correct.value == 0.75
    assert found.success_all.value == 0.8
    assert found.robust_accuracy.value == pytest.approx(0.4), "robust at 0.3: the failure, and the success at 0.6"


def test_without_failures_the_means_are_not_survivors_figures(make_record, make_examples):
    examples = make_examples(report_correct=np.zeros(4, int), image_l2=np.array([0.0, 1.0, 1.0, 1.0]))
    found = statistics.cell_statistics(_minimal(make_record), examples).distortion
    assert not found.survivors
    assert found.mean_ratio == pytest.approx(0.1), "an all-black image has no ratio"
    assert statistics.cell_statistics(make_record(), examples).distortion is None


def test_no_success_and_no_attacked_example_have_no_means(make_record, make_examples):
    failed = make_examples(distance_linf=np.full(4, np.inf), distance_l2=np.full(4, np.inf), rms=np.full(4, np.inf))
    found = statistics.cell_statistics(_minimal(make_record, epsilon=None), failed)
    assert found.distortion.median.value == math.inf
    assert math.isnan(found.distortion.mean_rms)
    assert found.robust_accuracy is None
    wrong = make_examples(clean_correct=np.zeros(4, int), **dict.fromkeys(DISTANCES, np.full(4, np.nan)))
    found = statistics.cell_statistics(_minimal(make_record), wrong)
    assert found.distortion is None
    assert math.isnan(found.success_clean_correct.value)


def test_costs_are_given_per_attacked_example(make_record, make_examples):
    found = statistics.cell_statistics(make_record(), make_examples())
    assert (found.seconds, found.forwards, found.backwards, found.queries) == (0.5, 2.0, 1.0, 0.0)
    nothing = make_record(counts={"examples": 0, "forwards": 0, "backwards": 0, "queries": 0})
    assert statistics.cell_statistics(nothing, make_examples()).seconds is None
    assert statistics.cell_statistics(make_record(measured={}), make_examples()).seconds is None


def test_no_example_is_an_error(make_record, make_examples):
    with pytest.raises(ValueError, match="Expected at least one example, got none"):
        statistics.cell_statistics(make_record(), make_examples(0))


@given(st.lists(st.floats(0, 10), min_size=1, max_size=40), st.sampled_from((0.25, 0.5, 0.75)))
def test_a_quantile_is_numpys_averaged_inverse_and_its_median_the_usual_one(values, share):
    found = statistics.quantile(np.array(values), share)
    assert found == pytest.approx(float(np.quantile(values, share, method="averaged_inverted_cdf")), abs=1e-12)
    with_failures = np.array([*values, np.inf, np.inf])
    assert statistics.quantile(with_failures, 0.5) == np.median(with_failures)
