from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from advbench.results import significance


@given(st.integers(0, 400), st.integers(0, 400))
def test_exact_mcnemar_is_the_binomial_test_of_the_discordant_pairs(gained, lost):
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert float(significance.exact_mcnemar(gained, lost)) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_takes_counts_of_any_shape_and_refuses_negative_ones():
    gained, lost = np.array([[0, 3], [9, 1]]), np.array([[5, 3], [1, 9]])
    p = significance.exact_mcnemar(gained, lost)
    assert p.shape == (2, 2)
    assert p[1, 0] == p[1, 1] == pytest.approx(stats.binomtest(1, 10).pvalue)
    with pytest.raises(ValueError, match="Expected counts `gained` and `lost` >= 0"):
        significance.exact_mcnemar(-1, 2)


@given(st.integers(0, 400), st.integers(0, 400))
def test_the_one_sided_test_counts_gains_alone(gained, lost):
    expected = stats.binomtest(gained, gained + lost, alternative="greater").pvalue if gained + lost else 1.0
    assert float(significance.exact_mcnemar(gained, lost, one_sided=True)) == pytest.approx(expected, rel=1e-9)


def test_the_binomials_tail_takes_counts_of_any_shape():
    for n, p in ((1, 0.3), (17, 0.5), (359, 0.01)):
        k = np.array([[0, 1, n // 2], [n, n + 1, n + 7]])
        np.testing.assert_allclose(significance.binomial_tail(k, n, p), stats.binom.sf(k - 1, n, p), rtol=1e-9, atol=1e-300)


def test_two_fixed_models_are_compared_on_the_examples_that_they_disagree_about():
    first = np.array([1.0] * 30 + [0.0] * 2 + [1.0] * 50 + [0.0] * 18)
    second = np.array([0.0] * 30 + [1.0] * 2 + [1.0] * 50 + [0.0] * 18)
    found = significance.paired_test(first, second)
    assert found.test == significance.MCNEMAR
    assert found.difference == pytest.approx(-0.28)
    assert found.p_value == pytest.approx(stats.binomtest(2, 32).pvalue)
    assert significance.paired_test(second, first).p_value == found.p_value


def test_mcnemar_keeps_its_level_where_two_models_are_equally_good():
    """Two models right on 70% each, agreeing more than by chance; the exact test is conservative."""
    rng = np.random.default_rng(0)
    base, flip_a, flip_b = rng.random((3, 4000, 200))
    first, second = ((base < 0.7) ^ (flip < 0.1) for flip in (flip_a, flip_b))
    p = significance.exact_mcnemar((second & ~first).sum(axis=1), (first & ~second).sum(axis=1))
    assert 0.02 <= (p <= 0.05).mean() <= 0.055
    assert (p <= 0.01).mean() <= 0.012


def test_the_sign_flip_test_agrees_with_all_signs():
    rng = np.random.default_rng(4)
    differences = rng.integers(-8, 11, 12) / 10
    signs = np.array(list(product((-1, 1), repeat=12)))
    exact = (np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9).mean()
    assert significance.sign_flip(differences) == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 9999))
    assert significance.sign_flip(-differences) == significance.sign_flip(differences)
    assert significance.sign_flip(np.zeros(5)) == 1.0


def test_the_sign_flip_test_agrees_with_scipys_permutation_test():
    rng = np.random.default_rng(1)
    first, second = rng.binomial(10, 0.6, 40) / 10, rng.binomial(10, 0.68, 40) / 10
    theirs = stats.permutation_test(
        (first, second), lambda a, b, axis: (b - a).mean(axis=axis), permutation_type="samples", vectorized=True, rng=5
    )
    assert significance.paired_test(first, second).p_value == pytest.approx(theirs.pvalue, abs=0.02)
    assert significance.paired_test(first, second).test == significance.SIGN_FLIP


def test_far_tails_are_bounded_and_not_cut_off_at_what_resamples_resolve():
    differences = np.full(200, 0.1)
    exact = 2 * 0.5**200
    assert exact <= significance.sign_flip(differences) <= 1e-40


def test_the_sign_flip_test_keeps_its_level_for_stochastic_models():
    """Ten draws of each of two models whose chances differ from example to example, with equal means."""
    rng = np.random.default_rng(2)
    chances = rng.beta(2, 1, (2, 300, 150))
    first, second = rng.binomial(10, chances) / 10
    p = np.array([significance.paired_test(*pair).p_value for pair in zip(first, second, strict=True)])
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.03)
    assert (p <= 0.01).mean() <= 0.025


def test_answers_to_other_examples_are_refused():
    with pytest.raises(ValueError, match="Expected two answers to the same examples"):
        significance.paired_test(np.ones(3), np.ones(4))
    with pytest.raises(ValueError, match="Expected two answers to the same examples"):
        significance.paired_test(np.ones(0), np.ones(0))


p_values = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@given(p_values)
def test_holm_rejects_step_by_step(values):
    """By the book: the smallest against alpha / m, the next against alpha / (m - 1), until one is kept."""
    adjusted = significance.holm(values)
    for alpha in (0.01, 0.05, 0.3):
        rejected: set[int] = set()
        for step, i in enumerate(np.argsort(values, kind="stable")):
            if values[i] > alpha / (len(values) - step):
                break
            rejected.add(int(i))
        close = {i for i, p in enumerate(adjusted) if abs(p - alpha) < 1e-12}
        assert set(np.flatnonzero(adjusted <= alpha)) | close == rejected | close


@given(p_values, st.floats(0.1, 10))
def test_holm_with_equal_weights_is_holm(values, weight):
    np.testing.assert_allclose(significance.holm(values, [weight] * len(values)), significance.holm(values))


def test_weighted_holm_divides_alpha():
    np.testing.assert_allclose(significance.holm([0.01, 0.01], [9, 1]), [0.01 / 0.9, 0.01 / 0.9])
    np.testing.assert_allclose(significance.holm([0.01, 0.5], [9, 1]), [0.01 / 0.9, 0.5])
    with pytest.raises(ValueError, match="as many positive `weights`"):
        significance.holm([0.1], [0.0])


@pytest.mark.parametrize("weights", [None, np.array([9, 9, 9, 1, 1, 1])])
def test_holm_errs_in_one_family_of_twenty_at_5_percent(weights):
    rng = np.random.default_rng(3)
    families = rng.random((4000, 6))
    families[:, 0] *= 1e-4  # one hypothesis is false
    errors = [(significance.holm(family, weights)[1:] <= 0.05).any() for family in families]
    assert np.mean(errors) == pytest.approx(0.05, abs=0.014)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_wilcoxon_over_cells_is_scipys(seed):
    first, second = np.random.default_rng(seed).random((2, 14))
    found = significance.wilcoxon_signed_rank(first, second)
    assert found.p_value == pytest.approx(stats.wilcoxon(second, first).pvalue)
    assert "over cells" in found.test


def test_wilcoxon_on_the_papers_printed_pairs_gives_its_verdict():
    """Mosca & Magoulas 2018, table 5: two-sided p = 0.0073 over the 32 printed pairs."""
    import tomllib
    from importlib import resources

    text = (resources.files("advbench.results.papers") / "mosca2018.toml").read_text(encoding="utf-8")
    (table,) = [one for one in tomllib.loads(text)["table"] if one["id"] == "mosca2018.table5"]
    rows = {(row[0], row[1]): row[2:] for row in table["rows"]}
    settings_ = sorted({setting for setting, _ in rows})
    control, treated = (np.concatenate([rows[one, variant] for one in settings_]) for variant in ("control", "sgm"))
    assert len(control) == 32
    assert significance.wilcoxon_signed_rank(control, treated).p_value == pytest.approx(0.0073, abs=2e-4)


def test_equal_cells_have_no_difference():
    assert significance.wilcoxon_signed_rank([0.1, 0.2], [0.1, 0.2]).p_value == 1.0


@pytest.mark.parametrize("gains", [[1.0], [1.0, 2.0, -0.5, 4.0], [0.3, -0.2, 0.0, 0.1, 0.7], [1.0] * 8])
def test_clusters_are_flipped_in_every_way(gains):
    sums = [
        sum(sign * gain for sign, gain in zip(signs, gains, strict=True)) for signs in product((1, -1), repeat=len(gains))
    ]
    expected = sum(total >= sum(gains) - 1e-9 for total in sums) / len(sums)
    assert significance.cluster_sign_flip(gains) == pytest.approx(expected, abs=1e-12)


def test_no_cluster_has_no_p_value():
    with pytest.raises(ValueError, match="Expected 1 to 20 clusters"):
        significance.cluster_sign_flip([])
