from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advbench.config import make_config
from advbench.plan.plan import make_plan
from advbench.tasks.images import scored_split
from advbench.zoo.data import DataSet, Split

pytestmark = pytest.mark.usefixtures("cache")


def plan_of(settings, **changes):
    return make_plan(make_config(**(settings | changes)), measure=False)


def kinds(plan):
    return Counter(task.kind for task in plan.tasks.values())


@pytest.mark.parametrize("n", [1, 2, 3])
def test_transfer_crafts_grow_linearly_and_scores_quadratically(settings, n):
    defenses = ["none", "weight-decay", "gaussian-blur"][:n]
    plan = plan_of(settings, matrix="transfer", defense=defenses, attack="fgsm,pgd")
    assert kinds(plan)["craft"] == 2 * n
    assert kinds(plan)["score"] == len(plan.cells) == 2 * n * n


def test_the_three_matrices_of_the_default_suite(settings):
    plain = {name: settings[name] for name in ("out", "device", "batch")}
    plan = plan_of(plain)
    targets, attacks, stochastic_surrogates = 4, 3, 2
    assert kinds(plan)["train"] == targets
    assert kinds(plan)["substitute"] == targets
    white = attacks * (targets - 1 + stochastic_surrogates)
    assert kinds(plan)["craft"] == white + attacks * targets + attacks * targets
    oblivious = attacks
    assert kinds(plan)["calibrate"] == 1
    assert kinds(plan)["score"] == attacks * targets + oblivious + attacks * targets + attacks * targets**2


def test_a_model_that_others_stand_on_is_trained_once(settings):
    plan = plan_of(
        settings, matrix="white-box", defense="none,input-noise(passes=2),gaussian-blur(base='input-noise(passes=2)')"
    )
    assert kinds(plan)["train"] == 3
    inputs = [task.content.inputs for task in plan.tasks.values() if task.kind == "train"]
    assert sum(bool(each) for each in inputs) == 2


def test_keys_name_the_content(settings):
    plan = plan_of(settings)
    assert set(plan.tasks) == set(plan_of(settings).tasks)
    for change in ({"epochs": 3}, {"seed": 1}, {"n_examples": 23}, {"batch": 8}, {"epsilon": 0.2}):
        assert not set(plan.cells) & set(plan_of(settings, **change).cells), change


def test_draws_are_in_the_keys_of_stochastic_models_only(settings):
    plan, other = plan_of(settings), plan_of(settings, draws=3)
    changed = {task.label for key, task in plan.tasks.items() if task.kind == "craft" and key not in other.tasks}
    of_noise = {task.label for task in plan.tasks.values() if task.kind == "craft" and "on input-noise" in task.label}
    assert changed == {label for label in of_noise if not label.endswith("(base)")}


def test_where_the_results_go_is_no_part_of_a_key(settings, tmp_path):
    assert set(plan_of(settings).tasks) == set(plan_of(settings, out=tmp_path / "elsewhere", jobs=2).tasks)


def test_needs_come_before_those_who_need_them(settings):
    seen = set()
    for key, task in plan_of(settings).tasks.items():
        assert set(task.needs) <= seen
        seen.add(key)


def test_an_unset_training_radius_is_the_runs(settings):
    def radius(**changes):
        plan = plan_of(settings, matrix="white-box", defense="pgd-linf,robust-l2", attack="pgd", **changes)
        return {
            task.content.defense.name: task.content.defense.keywords["epsilon"]
            for task in plan.tasks.values()
            if task.kind == "train"
        }

    assert radius(epsilon="0.05,0.15")["pgd-linf"] == 0.15
    assert radius(epsilon="0.05")["robust-l2"] == radius(epsilon="0.15")["robust-l2"]


def test_a_minimal_norm_attack_is_crafted_once_for_all_radii(settings):
    one = plan_of(settings, matrix="white-box", attack="deepfool", epsilon="0.1")
    three = plan_of(
        settings, matrix="white-box", attack="deepfool", epsilon="0.1,0.2,0.3", defense="none,input-noise(passes=2)"
    )
    smallest, whole_budget = 1 + 2, 3  # surrogates of none and input-noise; the noise's at each radius
    assert kinds(three)["craft"] == smallest + whole_budget
    assert kinds(three)["score"] == 6 + 3  # those of the attacker who ignores the noise
    assert kinds(one)["craft"] == 1 + 1 + 2 + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attack": "pdg"}, "did you mean pgd"),
        ({"defense": "pgd-lnf"}, "did you mean pgd-linf"),
        ({"architecture": "gu2014/n100"}, "did you mean gu2014/n100-100-10"),
        ({"dataset": "digit"}, "did you mean digits"),
        ({"attack": "fgsm", "norm": "l2"}, "'fgsm' is for linf, got norm 'l2'"),
        ({"attack": "pgd(steps=0)"}, "`steps`"),
        ({"attack": "pgd(stepz=3)"}, "did you mean steps"),
        ({"defense": "input-noise(base='nonne')"}, "did you mean none"),
        ({"device": "tpu"}, "Expected `device`"),
        ({"dataset": "npz:nowhere.npz"}, "nowhere.npz"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(settings, changes, message):
    with pytest.raises((ValueError, OSError)) as caught:
        plan_of(settings, **changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.integers(1, 60), st.integers(1, 40))
def test_the_scored_images_are_a_fixed_choice_in_order(n, size):
    split = Split.of(torch.zeros(size, 1, 2, 2), torch.zeros(size, dtype=torch.int64))
    data = DataSet("x", split, split, split, 2, {}, fingerprint="0")
    chosen = scored_split(data, n).index.tolist()
    assert len(set(chosen)) == len(chosen) == min(n, size)
    assert chosen == sorted(chosen)
    assert chosen == scored_split(data, n).index.tolist()
