"""Strengths by the rule: the bound, the largest that is kept, how a grid grows, and a reproduction that chooses its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from advbench.reproduction import engine, studies, tuning
from advbench.reproduction.findings import Findings
from advbench.reproduction.study import Comparison, Ours, Pair, Study
from advbench.reproduction.tuning import (
    Method,
    Point,
    Tuned,
    Tuning,
    ValidationSearch,
    bound,
    first,
    following,
    largest_kept,
)

_RUN = {
    "dataset": "digits",
    "epochs": 2,
    "train_examples": 400,
    "n_examples": 20,
    "architecture": ["gu2014/n100-100-10"],
    "attack": ["fgsm"],
    "matrix": ["white-box"],
    "norm": "linf",
    "epsilon": [0.1],
    "batch": 20,
}


def _tuning(**fields) -> Tuning:
    made = Tuning(
        "gu2014.strengths",
        {"gn": Method(lambda s: {"name": "gradient-norm", "coefficient": s}, (0.001, 1000.0), (0.0001,), (5000.0,))},
        lambda scale, found: {**_RUN, "defense": list(found)},
        20.0,
        {"name": "none"},
        (7, 8),
        ("smoke",),
        {"gn": 0.5},
    )
    return replace(made, **fields)


@pytest.mark.parametrize("n", [500, 20_000])
def test_the_bound_covers_a_loss_that_is_true_by_construction(n):
    """Of 400 draws of paired images with a true loss of 1 point, some 95% have a bound above it."""
    rng = np.random.default_rng(0)
    draws = rng.choice([100.0, -100.0, 0.0], p=[0.03, 0.02, 0.95], size=(400, n))
    covered = np.mean([bound(row) >= 1.0 for row in draws])
    assert 0.92 < covered < 0.99


def test_the_bound_is_one_sided_and_paired():
    losses = np.array([100.0] * 30 + [-100.0] * 20 + [0.0] * 950)
    by_hand = 1.0 + stats.norm.ppf(0.95) * np.sqrt(losses.var(ddof=1) / 1000 + 0.1**2)
    assert bound(losses) == pytest.approx(by_hand)
    assert bound(np.zeros(1)) == np.inf


def test_a_strength_counts_only_if_all_smaller_ones_do():
    assert largest_kept({0.3: 0.1, 1.0: 0.2, 3.0: 0.1}, 0.15) == 0.3
    assert largest_kept({0.3: 0.2, 1.0: 0.1}, 0.15) == 0
    assert largest_kept({3.0: 0.15, 0.3: -1.0, 1.0: 0.0}, 0.15) == 3.0


def _tuned(**bounds) -> Tuned:
    return Tuned({}, {name: tuple(Point(s, 0.0, b, 0.0, 0.0) for s, b in each.items()) for name, each in bounds.items()})


def test_a_grid_grows_upward_while_the_rule_ends_at_its_edge_and_downward_from_a_first_loss():
    one = _tuning(bar=0.3)
    assert first(one) == {"gn": (0.001,)}
    assert following(one, _tuned(gn={0.001: 0.1})) == {"gn": (0.001, 1000.0)}
    assert following(one, _tuned(gn={0.001: 0.1, 1000.0: 0.1})) == {"gn": (0.001, 1000.0, 5000.0)}
    assert following(one, _tuned(gn={0.001: 0.1, 1000.0: 0.1, 5000.0: 0.1})) == {"gn": (0.001, 1000.0, 5000.0)}
    assert following(one, _tuned(gn={0.001: 0.1, 1000.0: 0.2})) == {"gn": (0.001, 1000.0)}
    assert following(one, _tuned(gn={0.001: 0.2})) == {"gn": (0.001, 0.0001)}
    assert following(one, _tuned(gn={0.0001: 0.1, 0.001: 0.2})) == {"gn": (0.0001, 0.001)}
    whole = _tuning(methods={"gn": replace(one.methods["gn"], whole=True)})
    assert first(whole) == {"gn": (0.001, 1000.0)}


def _compare(findings: Findings) -> list[Comparison]:
    cells = [findings["judged"].trained({"name": "gradient-norm"}, seed=seed) for seed in findings.seeds]
    used = {cell.record.target["defense"]["arguments"]["coefficient"] for cell in cells}
    chosen = findings.tuned.chosen["gn"] if findings.tuned else None
    row = ("used, chosen", (Pair(None, Ours(tuple(used))), Pair(None, Ours((chosen,)))))
    return [Comparison("strengths", (("used", ""), ("chosen", "")), (row,))]


def _study(one: Tuning) -> Study:
    def runs(strength):
        return {"judged": {**_RUN, "defense": [{"name": "gradient-norm", "coefficient": strength}]}}

    return Study(
        "gu2014.tiny",
        "a tuned study",
        lambda scale: runs(one.untuned["gn"]),
        _compare,
        lambda scale: ("everything",),
        tuning=one,
        tuned_runs=lambda scale, tuned: runs(tuned.chosen["gn"]),
        more_seeds={"smoke": 1},
    )


def test_a_reproduction_chooses_a_strength_on_seeds_of_its_own_and_judges_with_it(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(tuning, "LEAST_IMAGES", 100)
    monkeypatch.setattr(studies, "STUDIES", (_study(_tuning()),))
    ran = []
    (outcome,) = engine.reproduce(
        "gu2014.tiny", scale="smoke", out=tmp_path, seeds=(0,), jobs=1, announce=ran.append
    ).outcomes
    assert not outcome.problem
    # 0.001 loses next to nothing, 1000 nearly all that is learnt: the bar is 20 points.
    assert ran == [
        "gu2014.strengths: 1 strengths of 1 methods",
        "gu2014.strengths: 2 strengths of 1 methods",
        "gu2014.tiny (judged)",
    ]
    used, chosen = (pair.ours.values for pair in outcome.comparisons[0].rows[0][1])
    assert used == chosen == (0.001,)
    with np.load(next((tmp_path / "store" / "held-out").glob("*.npz"))) as found:
        assert set(np.unique(found["correct"])) <= {0, 1}
        assert len(found["correct"]) > 400  # the validation split and the training images that were not trained on
    trained = sorted((tmp_path / "records").rglob("record.json"))
    again = engine.reproduce("gu2014.tiny", scale="smoke", out=tmp_path, seeds=(0,), jobs=1)
    assert again.outcomes[0].comparisons == outcome.comparisons
    assert trained == sorted((tmp_path / "records").rglob("record.json"))


def test_too_few_held_out_images_and_a_seed_on_both_sides_are_told(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(studies, "STUDIES", (_study(_tuning()),))
    few = engine.reproduce("gu2014.tiny", scale="smoke", out=tmp_path, seeds=(0,), jobs=1)
    assert few.exit_code == 1
    assert few.outcomes[0].problem.startswith("Expected at least 5,000 held-out images to choose by, got ")
    both = engine.reproduce("gu2014.tiny", scale="smoke", out=tmp_path, seeds=(6,), jobs=1)
    assert both.outcomes[0].problem == "Expected other `seeds` than those that strengths are chosen by, got 7 among both"


def test_a_search_looks_at_nets_of_its_own_and_its_choice_is_judged(tmp_path, monkeypatch, cache):
    def runs(scale):
        return {"looked at": {**_RUN, "defense": [{"name": "none"}]}}

    def find(findings, scale):
        (cell,) = findings["looked at"].cells
        return Tuned({"gn": 0.001 if cell.record.seed == 7 else 0.0}, {}, seen={"seeds": (("the seed", (7.0,)),)})

    search = ValidationSearch("gu2014.search", runs, find, (7,), ("smoke",), {"gn": 0.5})
    monkeypatch.setattr(studies, "STUDIES", (replace(_study(_tuning()), tuning=search),))
    ran = []
    (outcome,) = engine.reproduce(
        "gu2014.tiny", scale="smoke", out=tmp_path, seeds=(0,), jobs=1, announce=ran.append
    ).outcomes
    assert not outcome.problem
    assert ran == ["gu2014.search (looked at)", "gu2014.tiny (judged)"]
    used, chosen = (pair.ours.values for pair in outcome.comparisons[0].rows[0][1])
    assert used == chosen == (0.001,)
    both = engine.reproduce("gu2014.tiny", scale="smoke", out=tmp_path, seeds=(6,), jobs=1)
    assert both.outcomes[0].problem == "Expected other `seeds` than those that strengths are chosen by, got 7 among both"
