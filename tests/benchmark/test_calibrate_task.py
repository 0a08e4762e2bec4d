"""Calibrations are tasks: keyed by content, kept, shared by the crafts of a model, and their failures are named."""

import numpy as np
import pytest

import advbench
from advbench.attacks.lbfgs import LBFGS
from advbench.config import make_config
from advbench.plan.plan import make_plan
from advbench.results.store import Store
from advbench.tasks.artefacts import artefact
from advbench.tasks.calibrate import DataCalibration

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def small(settings):
    return settings | {"norm": "l2", "attack": "lbfgs(steps=8)", "defense": "none", "epsilon": 2.0, "n_examples": 12}


def plan_of(settings, **changes):
    return make_plan(make_config(**(settings | changes)), measure=False)


def tasks(plan, kind):
    return [task for task in plan.tasks.values() if task.kind == kind]


def test_every_attacked_model_has_one_constant_and_an_explicit_one_needs_none(small):
    plan = plan_of(small, matrix="all", defense="none,input-noise(passes=2)", epsilon="1.0,2.0")
    sources = [(task.content.attacked.model, task.content.attacked.surrogate) for task in tasks(plan, "calibrate")]
    crafts = {(task.content.attacked.model, task.content.attacked.surrogate) for task in tasks(plan, "craft")}
    assert len(sources) == len(set(sources))
    assert set(sources) == crafts
    for craft in tasks(plan, "craft"):
        assert craft.content.calibration in craft.needs
    assert not tasks(plan_of(small, attack="lbfgs(c=0.5)"), "calibrate")


def test_scored_images_are_no_part_of_a_calibration(small):
    plan, other = plan_of(small), plan_of(small, n_examples=20, epsilon=1.0)
    keys = {task.key for task in tasks(plan, "calibrate")}
    assert keys == {task.key for task in tasks(other, "calibrate")}
    assert all(task.content.images.split == "validation" for task in tasks(plan, "calibrate"))
    changed = plan_of(small, attack="lbfgs(steps=9)"), plan_of(small, batch=8), plan_of(small, seed=1)
    assert all(keys.isdisjoint(task.key for task in tasks(one, "calibrate")) for one in changed)


def test_a_calibrated_constant_is_kept_and_shown_and_found_once(small):
    result = advbench.run(**small | {"matrix": "white-box,transfer"})
    assert result.exit_code == 0
    plan = plan_of(small, matrix="white-box,transfer")
    (calibration,) = tasks(plan, "calibrate")
    with np.load(artefact("calibrate", calibration.key, plan.config.out), allow_pickle=False) as file:
        constant, broken = float(file["value_c"]), float(file["value_broken"])
    assert 1e-4 <= constant <= 1e2
    assert broken >= 0.99 or constant == 1e-4
    for key in result.cells:
        assert Store(result.out).read(key).details["calibration"] == [{"broken": broken, "c": constant}]
    # The same constant given by hand makes the same images.
    given = advbench.run(**small | {"matrix": "white-box", "attack": f"lbfgs(steps=8, c={constant!r})"})
    one, other = (Store(result.out).examples(run.cells[0]) for run in (result, given))
    np.testing.assert_array_equal(one.distance_l2, other.distance_l2)
    assert advbench.run(**small | {"matrix": "white-box,transfer"}).ran == 0
    more = plan_of(small, matrix="white-box,transfer", n_examples=13)
    assert sorted({task.kind for task in more.pending()}) == ["clean", "craft", "diagnose", "score"]


def test_a_calibration_that_fails_takes_only_its_own_cells_with_it(small, monkeypatch):
    def fail(self, held_out):
        raise RuntimeError("Expected c = 0.0001 to break 99.0% of the held-out images, got 42.0%: give c")

    monkeypatch.setattr(LBFGS, "calibrate", fail)
    result = advbench.run(**small | {"matrix": "white-box", "attack": "lbfgs(steps=8),lbfgs(steps=8, c=0.5)"})
    frame = result.frame.set_index("attack")
    assert result.exit_code == 1
    assert frame.loc["lbfgs(c=0.5, steps=8)", "status"] == "ok"
    assert frame.loc["lbfgs(steps=8)", "status"] == "error"
    reason = frame.loc["lbfgs(steps=8)", "reason"]
    assert reason.startswith("needs calibrate lbfgs(steps=8) on none, which failed: ")
    assert "got 42.0%" in reason


def test_the_covariance_of_the_data_is_one_task_for_all_models(settings):
    attacks = "estimated-noise(points=3),estimated-noise(points=3, of='pgd(steps=2)', form='radial')"
    small = settings | {"attack": attacks, "defense": "none,weight-decay", "epsilon": 0.3, "n_examples": 12}
    plan = plan_of(small, matrix="white-box", epsilon="0.2,0.3")
    of_data = [task for task in tasks(plan, "calibrate") if isinstance(task.content, DataCalibration)]
    assert len(of_data) == 1
    assert of_data[0].needs == ()
    assert (of_data[0].content.split, of_data[0].content.n) == ("train", len(plan.data.train))
    assert {task.key for task in of_data} <= set(plan_of(small, seed=3, batch=8, norm="l2").tasks)
    result = advbench.run(**small | {"matrix": "white-box"})
    assert result.exit_code == 0
    for key in result.cells:
        (shown,) = Store(result.out).read(key).details["calibration"]
        assert shown["shape"] == [1, 28, 28]
        assert 0 <= shown["clipped"] < 0.5


def test_the_order_of_a_worst_case_is_measured_once_for_each_model_and_never_where_all_attack_all(settings):
    attacks = "worst-case(attacks=['square(queries=10)', 'pgd(steps=3)'])"
    small = settings | {"attack": attacks, "defense": "none", "epsilon": 0.1}
    plan = plan_of(small, matrix="all")
    (calibration,) = tasks(plan, "calibrate")
    crafts = [task for task in tasks(plan, "craft") if task.content.calibration]
    assert [craft.content.transfer for craft in crafts] == [False]
    assert set(dict(calibration.content.attack.parts)) == {"square", "pgd"}
    result = advbench.run(**small | {"matrix": "white-box"})
    assert result.exit_code == 0
    ((shown,),) = (Store(result.out).read(key).details["calibration"] for key in result.cells)
    assert sorted(shown["order"]) == [0, 1]


def test_a_changed_member_is_another_attack(small, monkeypatch):
    from advbench.registry import registry

    before = plan_of(small, norm="linf", epsilon=0.5, attack="worst-case(attacks=['pgd','square'])")
    sources = registry.source_hash
    monkeypatch.setattr(registry, "source_hash", lambda name: sources(name) + ("x" if name.endswith("square") else ""))
    after = plan_of(small, norm="linf", epsilon=0.5, attack="worst-case(attacks=['pgd','square'])")
    assert not set(before.cells) & set(after.cells)
