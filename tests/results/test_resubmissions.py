"""Random models by the worst of several submissions: the right value by counting, and no bias."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest

from advbench.results.boards import Answers, Attacker, TrainedModel
from advbench.results.resubmissions import outlasts, rules_of

FIRST, SECOND = Attacker("white-box", "pgd", ""), Attacker("white-box", "fgsm", "")


def model(clean, answers, draws=10):
    return TrainedModel(
        seed=0,
        weights="",
        device="",
        draws=draws,
        clean=np.array(clean),
        answers={attacker: Answers(np.array(report), np.array(select)) for attacker, (report, select) in answers.items()},
        failures={},
    )


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_every_choice_of_draws_is_counted(n):
    for correct in range(8):
        draws = [True] * correct + [False] * (7 - correct)
        right = [all(chosen) for chosen in combinations(draws, n)]
        assert outlasts(np.array(correct), 7, n) == pytest.approx(sum(right) / len(right), abs=1e-15)


@pytest.mark.parametrize("n", [1, 2, 5, 10])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_it_is_unbiased(n, share):
    counts = np.arange(11)
    chance = np.array([comb(10, c) * share**c * (1 - share) ** (10 - c) for c in counts])
    assert (chance * outlasts(counts, 10, n)).sum() == pytest.approx(share**n, abs=1e-12)


def test_more_submissions_than_draws_cannot_be_told():
    with pytest.raises(ValueError, match="1 <= n <= 10 draws, got 11"):
        outlasts(np.array([3]), 10, 11)
    with pytest.raises(ValueError, match="at most 10 submissions"):
        model([10], {FIRST: ([9], [9])}).worst_case(submissions=11)
    assert rules_of([10, 5]) == (1, 2, 5)
    assert rules_of([10]) == (1, 2, 5, 10)


def test_the_worst_case_takes_the_attacker_of_fewest_selection_draws():
    """By hand: the second attacker is chosen on the first image (8 of 10), both tie on the second (9 and 7 of 10)."""
    attacked = model([10, 10], {FIRST: ([10, 9], [9, 6]), SECOND: ([8, 7], [3, 6])})
    assert attacked.worst_case().tolist() == pytest.approx([0.8, 0.8])
    two = [8 * 7 / 90, (9 * 8 + 7 * 6) / 2 / 90]
    assert attacked.worst_case(submissions=2).tolist() == pytest.approx(two)
    assert attacked.worst_case([FIRST], submissions=10).tolist() == [1.0, 0.0]


def test_clean_images_are_judged_by_the_same_rule():
    attacked = model([10, 9, 0], {FIRST: ([10, 9, 0], [10, 9, 0])})
    assert attacked.clean_values().tolist() == [1.0, 0.9, 0.0]
    assert attacked.clean_values(5).tolist() == pytest.approx([1.0, 0.5, 0.0])


def test_one_submission_is_the_mean_to_the_last_bit():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 11, (2, 200))
    attacked = model(counts[0], {FIRST: (counts[1], rng.integers(0, 11, 200)), SECOND: (counts[0], counts[1])})
    selects = np.stack([answers.select for answers in attacked.answers.values()])
    reports = np.stack([answers.report for answers in attacked.answers.values()])
    plain = reports.mean(axis=0, where=selects == selects.min(axis=0)) / 10
    assert np.array_equal(attacked.worst_case(), plain)
    assert np.array_equal(attacked.clean_values(), counts[0] / 10)
