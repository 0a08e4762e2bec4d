"""Blocks of a craft: the same bits for any grouping and number of workers; a killed attack continues at its last one."""

from __future__ import annotations

import dataclasses
import itertools
import signal
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import advbench
from advbench.config import make_config
from advbench.engine.local import InlineEngine, engine_of
from advbench.engine.places import Slots
from advbench.engine.scheduler import run_plan
from advbench.plan.plan import make_plan
from advbench.results.store import Store
from advbench.tasks import blocks, craft, evaluation
from advbench.tasks.artefacts import artefact
from advbench.tasks.blocks import blocks_of, missing, place_of
from advbench.tasks.craft import read_craft
from advbench.tasks.execution import TaskOutcome
from advbench.tasks.images import Images
from advbench.tasks.task import BlockTask

pytestmark = pytest.mark.usefixtures("cache")

NET = """
import torch
from torch import nn


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(784, 10)

    def forward(self, x):
        return self.last(x.flatten(1) + 0.1 * torch.randn(len(x), 784))


def make():
    return Noisy()
"""


def images(n, batch):
    return Images(0, "digits", "test", n, batch, "cpu")


@given(st.integers(1, 5000), st.integers(1, 600))
def test_blocks_are_whole_compute_batches_in_order_32_at_most(n, batch):
    cut = blocks_of(images(n, batch))
    assert [cut[0].start, *(block.stop for block in cut)] == [*(block.start for block in cut), n]
    assert all(block.start % batch == 0 and len(block) > 0 for block in cut)
    assert len(cut) <= 32
    assert len({len(block) for block in cut[:-1]}) <= 1
    assert len(cut) == -(-n // batch) or n > 32 * batch


def arrays(store, key):
    return dataclasses.asdict(store.examples(key)) | (dataclasses.asdict(store.gallery(key)) if store.gallery(key) else {})


def facts(store, key):
    return {**dataclasses.asdict(store.read(key)), "measured": None, "details": None}


@pytest.fixture
def problem(settings, tmp_path, monkeypatch):
    """Crafts of six batches: on a trained model, on one that draws from the global generator, of another library."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    torch.manual_seed(0)
    weights = {"last.weight": nn.Linear(784, 10).weight.detach() * 4, "last.bias": torch.zeros(10)}
    torch.save(weights, tmp_path / "noisy.pt")
    common = settings | {"matrix": "white-box", "n_examples": 22, "batch": 4, "epsilon": 0.1}
    return {
        "trained": common | {"defense": "input-noise(passes=2)", "attack": "pgd(steps=3),deepfool(steps=3)"},
        "own": common
        | {
            "architecture": "own:net.py:make",
            "defense": "own(weights='noisy.pt', stochastic=True, n_examples=22)",
            "attack": "pgd(steps=3)",
        },
        "foreign": common | {"defense": "none", "attack": "torchattacks/PGD(steps=3)"},
    }


@pytest.mark.parametrize("which", ["trained", "own", "foreign"])
def test_outcomes_are_equal_for_any_grouping_and_any_number_of_workers(problem, which, tmp_path, monkeypatch):
    if which == "foreign":
        pytest.importorskip("torchattacks")
    runs = {}
    for most, jobs in ((32, 1), (1, 1), (3, 1), (32, 2), (3, 4)):
        monkeypatch.setattr(blocks, "MOST", most)
        out = tmp_path / f"{most} {jobs}"
        given = problem[which] | {"out": out, "jobs": jobs, "backend": "threading", "fresh": True}
        runs[out] = advbench.run(**given)
        assert runs[out].exit_code == 0, runs[out].failures
        assert not list((out / "store" / "blocks").glob("*")), "blocks stayed beside the finished craft"
    first, *others = (Store(out) for out in runs)
    assert len(first.keys()) > 0
    for other, key in itertools.product(others, first.keys()):
        assert facts(first, key) == facts(other, key)
        one, two = arrays(first, key), arrays(other, key)
        assert one.keys() == two.keys()
        for name, values in one.items():
            np.testing.assert_array_equal(values, two[name], err_msg=name)


def test_processes_share_the_blocks_of_one_attack(problem, tmp_path):
    alone, shared = (
        advbench.run(**problem["trained"] | {"out": tmp_path / name, "jobs": jobs, "backend": "loky", "fresh": True})
        for name, jobs in (("alone", 1), ("shared", 2))
    )
    assert alone.exit_code == shared.exit_code == 0
    for key in alone.cells:
        for name, values in arrays(Store(alone.out), key).items():
            np.testing.assert_array_equal(values, arrays(Store(shared.out), key)[name], err_msg=name)
        ours, theirs = (Store(run.out).read(key).counts for run in (alone, shared))
        assert ours == theirs


class Recorder:
    """An engine that keeps every task that it is given and runs it at once, on `count` slots."""

    def __init__(self, engine, count):
        self.engine, self.slots, self.tasks = engine, count, []

    def submit(self, task):
        self.tasks.append(task)
        self.engine.submit(task)

    def wait(self, timeout=None):
        return self.engine.wait(timeout)

    def close(self, *, kill=False):
        self.engine.close(kill=kill)


def recorded(plan, count):
    recorders = []

    def engine_for(plan, context):
        recorders.append(Recorder(InlineEngine(context, Slots.of(count, ["cpu"])), count))
        return recorders[-1]

    return recorders, engine_for


def test_a_craft_is_divided_once_its_needs_are_there_and_packed_after_its_last_block(problem):
    plan = make_plan(make_config(**problem["trained"]))
    recorders, engine_for = recorded(plan, 3)
    seen = []
    assert not run_plan(plan, lambda status: seen.append((status.done, status.total)), engine_for).failures
    tasks = recorders[0].tasks
    crafts = [task for task in tasks if task.kind == "craft" and not isinstance(task, BlockTask)]
    for one in crafts:
        mine = [task for task in tasks if isinstance(task, BlockTask) and task.craft == one.key]
        assert [task.block for task in mine] == list(blocks_of(one.content.images))
        assert sum(task.cost for task in mine) == pytest.approx(plan.tasks[one.key].cost)
        assert all(tasks.index(task) < tasks.index(one) for task in mine)
    assert len(crafts) == sum(task.kind == "craft" for task in plan.tasks.values())
    assert seen[-1] == (len(plan.tasks), len(plan.tasks))


@pytest.mark.parametrize("count", [1, 2])
def test_an_attack_that_is_killed_continues_at_its_last_block(problem, count, monkeypatch):
    given = problem["trained"] | {"defense": "none", "attack": "pgd(steps=3)"}
    plan = make_plan(make_config(**given))
    (key,) = (task.key for task in plan.tasks.values() if task.kind == "craft")
    asked = Counter()
    honest = evaluation.craft

    def counted(attack, surrogate, split, *rest, **more):
        asked.update(split.index.tolist())
        if sum(asked.values()) > 12 and not asked["killed"]:
            asked["killed"] += 1
            signal.raise_signal(signal.SIGINT)
        return honest(attack, surrogate, split, *rest, **more)

    monkeypatch.setattr(craft, "craft", counted)
    assert run_plan(plan, None, recorded(plan, count)[1]).interrupted
    assert [block.start for block in missing(key, plan.tasks[key].content.images, plan.config.out)] == [12, 16, 20]
    assert not run_plan(plan, None, recorded(plan, count)[1]).failures
    times = Counter(value for index, value in asked.items() if index != "killed")
    assert times == {1: 18, 2: 4}, "only the images of the block at work are attacked twice"


def test_fresh_forgets_the_blocks_of_an_interrupted_attack(problem):
    plan = make_plan(make_config(**problem["trained"] | {"defense": "none", "attack": "pgd(steps=3)"}))
    (key,) = (task.key for task in plan.tasks.values() if task.kind == "craft")
    first = place_of(key, blocks_of(images(22, 4))[0], plan.config.out)
    first.parent.mkdir(parents=True)
    first.write_bytes(b"of an interrupted run")
    plan.forget()
    assert not first.exists()


@pytest.mark.parametrize("count", [1, 2])
def test_a_block_that_fails_names_its_images_and_the_others_stay(problem, count, monkeypatch):
    given = problem["trained"] | {"defense": "none", "attack": "pgd(steps=3),fgsm"}
    plan = make_plan(make_config(**given))
    honest, sick = evaluation.craft, {"yes": True}

    def failing(attack, surrogate, split, *rest, **more):
        if sick["yes"] and len(split) == 4 and type(attack).__name__ == "PGD":
            sick["left"] = sick.get("left", 3) - 1
            if not sick["left"]:
                raise RuntimeError("no more memory")
        return honest(attack, surrogate, split, *rest, **more)

    monkeypatch.setattr(craft, "craft", failing)
    result = run_plan(plan, None, recorded(plan, count)[1])
    (reason,) = set(result.failures.values())
    assert reason == "needs pgd(steps=3) on none, which failed: BlockError: images 8 to 11: RuntimeError: no more memory"
    (key,) = (task.key for task in plan.tasks.values() if task.label == "pgd(steps=3) on none")
    place = place_of(key, blocks_of(images(22, 4))[0], plan.config.out)
    before = place.stat().st_mtime_ns
    damaged = place_of(key, blocks_of(images(22, 4))[1], plan.config.out)
    damaged.write_bytes(damaged.read_bytes()[:-40])
    sick["yes"] = False
    attacked = []
    monkeypatch.setattr(craft, "craft", lambda *a, **k: attacked.append(a[2].index.tolist()) or honest(*a, **k))
    assert place.stat().st_mtime_ns == before
    assert not run_plan(plan, None, recorded(plan, count)[1]).failures
    after = [4, 4, 4, 2] if count == 1 else [4, 4, 2]  # on two slots the next one was at work when this one failed
    assert [len(each) for each in attacked] == [4, *after], "the damaged one, the failed one and those not begun"
    found = read_craft(artefact("craft", key, plan.config.out), 22)
    assert found is not None
    assert len(found.x_adv) == 22


def test_the_blocks_of_a_craft_that_failed_are_not_started(problem):
    plan = make_plan(make_config(**problem["trained"] | {"defense": "none", "attack": "pgd(steps=3)"}))
    started = []

    class Failing(Recorder):
        def wait(self, timeout=None):
            outcome = super().wait()
            return TaskOutcome(outcome.key, 0.0, "no such luck") if outcome.key.endswith("-0") else outcome

    def engine_for(plan, context):
        started.append(Failing(InlineEngine(context, Slots.of(2, ["cpu"])), 2))
        return started[-1]

    assert set(run_plan(plan, None, engine_for).failures.values()) == {
        "needs pgd(steps=3) on none, which failed: no such luck"
    }
    assert [task.block.start for task in started[0].tasks if isinstance(task, BlockTask)] == [0, 4]


def test_the_model_that_is_kept_between_blocks_is_let_go_after_the_craft(problem, monkeypatch):
    loaded = []
    honest = craft.attacked_model
    monkeypatch.setattr(craft, "attacked_model", lambda *given: loaded.append(given[0].model) or honest(*given))
    plan = make_plan(make_config(**problem["trained"] | {"defense": "none"}))
    assert not run_plan(plan, None, engine_of).failures
    assert len(loaded) == 2, "once for each craft, not for each block"
    assert craft._KEPT.model is None


def test_a_block_at_work_says_so_by_its_images(problem, monkeypatch):
    plan = make_plan(make_config(**problem["trained"] | {"defense": "none", "attack": "pgd(steps=3)"}))
    seen = []
    monkeypatch.setattr(craft.progress, "write", lambda _folder, name, standing: seen.append((name, standing)))
    (key,) = (task.key for task in plan.tasks.values() if task.kind == "craft")

    def engine_for(plan, context):
        return Recorder(InlineEngine(dataclasses.replace(context, every=0.0), Slots.of(2, ["cpu"])), 2)

    assert not run_plan(plan, lambda _: None, engine_for).failures
    assert {(name, standing.label, standing.images) for name, standing in seen} == {
        (f"{key}-{block.start}", f"pgd(steps=3) on none, {block}", len(block)) for block in blocks_of(images(22, 4))
    }


def test_two_starts_of_one_run_do_no_task_twice(problem, monkeypatch):
    """The second has planned all tasks before the first did any."""
    config = make_config(**problem["trained"] | {"defense": "none"})
    one, two = make_plan(config), make_plan(config)
    waiting = two.pending()
    assert not run_plan(one, None, recorded(one, 2)[1]).failures
    written = {path: path.stat().st_mtime_ns for path in config.out.rglob("*") if path.is_file()}
    for kind in ("train", "clean", "craft", "score"):
        monkeypatch.setattr(f"advbench.tasks.{kind}.run", lambda *_, kind=kind: pytest.fail(f"a second {kind}"))
    monkeypatch.setattr("advbench.tasks.craft.run_block", lambda *_: pytest.fail("a second block"))
    monkeypatch.setattr(type(two), "pending", lambda self: waiting)
    recorders, engine_for = recorded(two, 1)
    assert not run_plan(two, None, engine_for).failures
    assert len(waiting) > 0 == len(recorders[0].tasks)
    assert {path: path.stat().st_mtime_ns for path in config.out.rglob("*") if path.is_file()} == written


def test_a_craft_that_another_start_packs_meanwhile_is_no_error(problem, monkeypatch):
    plan = make_plan(make_config(**problem["trained"] | {"defense": "none", "attack": "pgd(steps=3)"}))
    (key,) = (task.key for task in plan.tasks.values() if task.kind == "craft")
    out, cut, honest = plan.config.out, blocks_of(images(22, 4)), craft.read_craft

    def packed_by_another(path, n=None):
        if path == place_of(key, cut[2], out):
            craft._save(artefact("craft", key, out), craft._joined([honest(place_of(key, b, out), len(b)) for b in cut]))
            blocks.forget(key, out)
        return honest(path, n)

    monkeypatch.setattr(craft, "read_craft", packed_by_another)
    assert not run_plan(plan, None, recorded(plan, 1)[1]).failures
    assert len(honest(artefact("craft", key, out), 22).x_adv) == 22
