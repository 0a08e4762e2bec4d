"""Plans of many cells: what all seeds or all cells share is made once, and keys stay what they are."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from advbench.config import make_config
from advbench.plan import keys, planner
from advbench.plan.keys import Keys, canonical, key_of, keyed
from advbench.plan.plan import Plan, make_plan
from advbench.plan.planner import Planner
from advbench.registry.specs import Spec
from advbench.tasks import execution


def plan(**settings: Any) -> Plan:
    return make_plan(make_config(None, dataset="digits", device="cpu", batch=128, **settings), measure=False)


def test_keys_are_those_of_each_content_by_itself():
    found = plan(
        defense="none,input-noise(base='pgd-linf'),feature-squeezing,weight-decay(coefficient=1)",
        attack="fgsm,pgd(steps=2),deepfool,square,estimated-noise",
        epsilon="0.1,0.2",
        seed="0,1",
        unit_test=True,
    )
    assert len({task.kind for task in found.tasks.values()}) == 8
    for key, task in found.tasks.items():
        assert key == key_of(task.content), task.label


def test_equal_parts_that_are_spelled_differently_have_keys_of_their_own():
    whole, real = (
        plan(defense=f"weight-decay(coefficient={text})", attack="fgsm", matrix="transfer") for text in ("1", "1.0")
    )
    (first,), (second,) = whole.trainings.values(), real.trainings.values()
    assert first == second
    together = Keys()
    assert [together.of(content) for content in (first, second)] == [key_of(first), key_of(second)]
    assert canonical(keyed(first)) != canonical(keyed(second))


def test_an_untrained_structure_is_built_once_for_all_seeds(monkeypatch):
    built: list[object] = []
    build = planner.build_defended
    monkeypatch.setattr(planner, "build_defended", lambda *given: built.append(given[0]) or build(*given))
    found = plan(defense="none,weight-decay", attack="fgsm", matrix="white-box", seed=",".join(map(str, range(20))))
    assert len(found.trainings) == 40
    assert len(built) == 2


def test_shared_parts_are_spelled_once(monkeypatch):
    """Of a transfer matrix of 12 x 12 models the texts that are spelled grow with the models, not with the cells."""
    spelled: list[object] = []
    text = keys.canonical
    monkeypatch.setattr(keys, "canonical", lambda value: spelled.append(value) or text(value))
    names = ",".join(f"weight-decay(coefficient={i + 1}e-4)" for i in range(12))
    assert len(plan(defense=names, attack="fgsm", matrix="transfer").cells) == 144
    assert len(spelled) < 40


def test_what_lies_there_is_asked_once_for_each_task(tmp_path, monkeypatch):
    """A craft that 20 cells need is looked for once, and a file that is not there by the names in its folder."""
    names = ",".join(f"weight-decay(coefficient={i + 1}e-4)" for i in range(20))
    found = plan(defense=names, attack="fgsm", matrix="transfer", out=tmp_path)
    (tmp_path / "store" / "craft").mkdir(parents=True)
    craft = next(task for task in found.tasks.values() if task.kind == "craft")
    (tmp_path / "store" / "craft" / f"{craft.key}.npz").touch()
    asked: list[str] = []
    monkeypatch.setattr(execution, "lies_there", lambda task, out: asked.append(task.key) or True)
    assert len(found.pending()) == len(found.tasks) - 1
    assert asked == [craft.key]


def test_contents_hold_the_same_parts(monkeypatch):
    config = make_config(None, dataset="digits", device="cpu", batch=128, seed="0,1")
    made = Planner(config, measure=False)
    one, other = (made.target(Spec("none"), Spec("gu2014/n200-200-10"), seed, alone=True) for seed in (0, 1))
    assert (one.seed, other.seed) == (0, 1)
    assert one.key != other.key
    assert one.facts is other.facts


@pytest.mark.parametrize("matrix", ["transfer", "white-box"])
def test_a_cell_of_a_plan_is_small(matrix):
    """Bytes per cell, a task for the score and, where there is one, for the craft."""
    names = ",".join(f"weight-decay(coefficient={i + 1}e-4)" for i in range(20))
    attacks = ",".join(f"pgd(steps={i + 1})" for i in range(4))
    plan(defense="none", attack="fgsm")
    tracemalloc.start()
    try:
        found = plan(defense=names, attack=attacks, matrix=matrix)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held / len(found.tasks) < 2000
