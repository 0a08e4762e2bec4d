"""Workers of other processes: the same plan or one line, one folder shared by many, and what is lost with one of them."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import advbench
from advbench.config import make_config
from advbench.engine.claims import SharedClaims
from advbench.engine.leases import Leases, Owner
from advbench.engine.pilots import Watching, preview, work
from advbench.engine.scheduler import run_plan
from advbench.plan.compute_batch import Batches
from advbench.plan.place import Place
from advbench.plan.plan import make_plan
from advbench.plan.saved import Saved, same_plan
from advbench.results.record import Examples
from advbench.results.store import Store
from advbench.user_models.target import plan_target

pytestmark = pytest.mark.usefixtures("cache")

DEADLINE = 300.0

NET = """
import os
import torch
from torch import nn


def make():
    torch.manual_seed(int(os.environ.get("WHICH", "0")))
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


class Deadly(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = make()

    def forward(self, x):
        if os.environ.get("DEADLY") and len(x) == 24 and x.requires_grad:
            os._exit(3)
        return self.net(x)


def deadly():
    return Deadly()
"""


@pytest.fixture
def small(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return settings | {"matrix": "white-box", "defense": "none,input-noise(passes=2)", "attack": "fgsm,pgd(steps=3)"}


def begun(config):
    """The plan of a run that was begun and of which nothing is done."""
    plan = make_plan(config)
    Saved.of(config).planned(plan).write(config.out)
    return plan


def command(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "advbench", *map(str, arguments)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def said(process):
    text, _ = process.communicate(timeout=DEADLINE)
    assert "Traceback" not in text
    return process.returncode, text


def wait_until(holds, what):
    deadline = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)


def same_records(one, other):
    assert one.keys() == other.keys()
    for key in one.keys():  # noqa: SIM118 - not a mapping
        mine, others = one.load(key), other.load(key)
        for name in ("status", "matrix", "dataset", "target", "source", "attack", "weights_sha256", "threat", "counts"):
            assert getattr(mine[0], name) == getattr(others[0], name)
        for name in Examples.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(mine[1], name), getattr(others[1], name), err_msg=name)


def test_a_pilot_makes_the_same_plan_from_the_file_alone(small, tmp_path, monkeypatch):
    """The keys of a run with a net of the user's by a relative path, made again in a folder of another name."""
    (tmp_path / "net.py").write_text(NET)
    plan = begun(make_config(**small | {"architecture": "own:net.py:make", "draws": None, "epsilon": "0.1,0.2"}))
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    again = same_plan(Saved.read(moved), moved)
    assert list(again.tasks) == list(plan.tasks)
    assert again.cells == plan.cells
    assert again.config.out == moved


def test_a_pilot_knows_what_people_read_of_an_evaluated_model(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    plan = plan_target("net.py:make", dataset="digits", attack="fgsm", n_examples=8, batch=8, out=tmp_path / "out")
    Saved.of(plan.config).planned(plan).write(plan.config.out)
    again = same_plan(Saved.read(tmp_path / "out"), tmp_path / "out")
    assert {key: plan.cell(key).facts.target.label for key in plan.cells} == dict.fromkeys(plan.cells, "net.py:make")
    assert {key: again.cell(key).facts.target.label for key in again.cells} == dict.fromkeys(plan.cells, "net.py:make")


def test_a_plan_for_a_gpu_is_made_where_none_is(small):
    """The device's name and its batch are in the keys, as a machine that has it says."""
    config = make_config(**small | {"device": "cuda", "batch": None})
    own = make_plan(make_config(**small | {"batch": None}), measure=False)
    names = {name.replace(own.place.name, "Some GPU"): Batches(64, 16) for name in make_plan_with_batches(small).batches}
    plan = make_plan(config, measure=False, place=Place("cuda", "Some GPU", names))
    crafts = [task.content.images for task in plan.tasks.values() if task.kind == "craft"]
    assert {images.device for images in crafts} == {"Some GPU"}
    assert {images.batch for images in crafts} == {16}  # 24 images in four parts, at least the divisible batch
    assert plan.devices == []
    assert not set(plan.tasks) & {key for key, task in own.tasks.items() if task.kind == "craft"}


def test_a_dry_run_for_gpus_of_other_machines_needs_none_here(small):
    config = make_config(**small | {"device": "cuda", "engine": "slurm"})
    with pytest.raises(ValueError, match="a device that is here"):
        make_plan(config, measure=False)
    plan = preview(config)
    assert len(plan.cells) == len(make_plan(make_config(**small), measure=False).cells)
    assert len(plan.cells) == len(make_plan(make_config(**small), measure=False).cells)
    assert not any(plan.done(task) for task in plan.tasks.values())


def test_a_run_for_gpus_is_watched_and_reported_where_none_is(small, tmp_path):
    """As on a login node: the plan is told, no device is here, and others do or fail the tasks."""
    config = make_config(**small | {"device": "cuda", "defense": "none"} | {"jobs": None})
    plan = make_plan(config, measure=False, place=Place("cuda", "Some GPU"))
    assert plan.devices == []
    (train,) = plan.trainings
    claims = SharedClaims(config.out)
    claims.failures.write(train, "no memory left")
    result = run_plan(plan, engine_for=lambda *_: Watching(), claims=claims)
    assert set(result.failures) == set(plan.cells)
    assert {plan.store.read(key).measured["device"] for key in plan.cells} == {"Some GPU"}


def make_plan_with_batches(small):
    return make_plan(make_config(**small | {"batch": None})).place


def test_answers_that_another_processor_rounds_differently_make_the_same_plan(small, tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(NET)
    config = make_config(**small | {"architecture": "own:net.py:make"})
    plan = begun(config)
    (told,) = plan.place.answers
    digest, *numbers = told.split()
    rounded = " ".join((digest[::-1], f"{float(numbers[0]) * (1 + 1e-5):.6e}", *numbers[1:]))
    elsewhere = make_plan(config, place=dataclasses.replace(plan.place, answers=(rounded,)))
    assert elsewhere.place.answers == (rounded,)
    Saved.of(config).planned(elsewhere).write(config.out)
    assert list(same_plan(Saved.read(config.out), config.out).tasks) == list(elsewhere.tasks) != list(plan.tasks)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda saved: {"place": dataclasses.replace(saved.place, name="A GPU")},
            "Expected the device of the run, A GPU",
        ),
        (
            lambda saved: {"facts": {**saved.facts, "data": "0" * 64}},
            "Expected the data set digits (fingerprint)",
        ),
        (lambda saved: {"facts": {**saved.facts, "torch": "1.0"}}, "Expected the version of torch of the run, 1.0"),
        (lambda saved: {"facts": {**saved.facts, "craft": "0" * 64}}, "Expected the code of the tasks 'craft' of the run"),
        (lambda saved: {}, "Expected the plan of the run, got another one here"),
    ],
    ids=["device", "data", "version", "code", "anything else"],
)
def test_a_worker_on_which_something_differs_says_what_in_one_line(small, change, complaint):
    config = make_config(**small)
    begun(config)
    saved = Saved.read(config.out)
    changed = {"keys": "0" * 64} | change(saved)
    dataclasses.replace(saved, **changed).write(config.out)
    with pytest.raises(ValueError, match="Expected") as caught:
        work(config.out, jobs=1)
    assert str(caught.value).startswith(complaint)
    assert "\n" not in str(caught.value)
    assert not (config.out / "store").exists() or not list((config.out / "store").glob("*/*"))


def test_a_worker_whose_model_answers_otherwise_refuses(small, tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(NET)
    begun(make_config(**small | {"architecture": "own:net.py:make"}))
    monkeypatch.setenv("WHICH", "1")
    with pytest.raises(ValueError, match="a model or an attack of yours"):
        work(tmp_path / "out", jobs=1)


def test_a_worker_without_the_model_cache_of_the_run_refuses(small, tmp_path, monkeypatch):
    begun(make_config(**small))
    monkeypatch.setenv("ADVBENCH_CACHE", str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"Expected the model cache of the run.* set ADVBENCH_CACHE"):
        work(tmp_path / "out", jobs=1)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"schema": 2}', '{"schema": 1}', "[" * 10**5, '{"schema": 1, "settings": 5}', "\x00" * 50],
)
def test_a_damaged_plan_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(ValueError, match=r"plan\.json: ") as caught:
        Saved.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_run_is_refused_in_one_line(tmp_path):
    code, text = said(command("work", tmp_path))
    assert (code, text.count("\n")) == (2, 1)
    assert "Expected the folder of a run" in text


def test_several_workers_and_a_watching_run_make_the_records_of_an_undisturbed_one(small, tmp_path):
    """No slot of its own: all tasks are done by three processes, each once."""
    whole = advbench.run(**small | {"out": tmp_path / "whole"})
    out, cache = tmp_path / "shared", {"ADVBENCH_CACHE": str(tmp_path / "shared-cache")}
    config = tmp_path / "run.toml"
    given = small | {"engine": "pilots"}
    config.write_text("".join(f"{k.replace('_', '-')} = {v!r}\n" for k, v in given.items() if k not in ("out", "jobs")))
    coordinator = command("run", config, "--out", out, **cache)
    wait_until((out / "plan.json").is_file, "the run's settings")
    pilots = [command("work", out, "--jobs", 1, "--lease", 20, **cache) for _ in range(3)]
    texts = [said(pilot) for pilot in pilots]
    code, text = said(coordinator)
    assert code == 0, text
    assert "advbench work" in text
    assert [each[0] for each in texts] == [0, 0, 0], texts
    same_records(Store(out), Store(whole.out))
    done = [int(line.split()[0]) for _, lines in texts for line in lines.splitlines() if "tasks done here" in line]
    plan = make_plan(make_config(**small))
    crafts = sum(task.kind == "craft" for task in plan.tasks.values())
    assert sum(done) == len(plan.tasks) + 2 * crafts  # each attack has two blocks of 16 images, and is packed
    assert list((out / "store" / "leases").iterdir()) == []


def test_a_worker_joins_a_run_of_this_machine(small, tmp_path):
    """The run holds one task; the worker does all others, as far as they do not need it."""
    config = make_config(**small)
    plan = begun(config)
    crafts = [task for task in plan.tasks.values() if task.kind == "craft"]
    held = Leases(config.out, Owner.here())
    with held.kept_fresh():
        held.take(crafts[0].key)
        done = work(config.out, jobs=1, idle=0.1)
    assert [plan.done(task) for task in crafts] == [False] + [True] * (len(crafts) - 1)
    assert done.left == 2  # that attack, and its cell
    result = run_plan(plan)
    assert (result.failures, result.ran) == ({}, 2)


def test_a_task_that_failed_elsewhere_is_not_tried_again_and_is_a_row_in_the_end(small):
    config = make_config(**small | {"defense": "none"})
    plan = begun(config)
    (train,) = plan.trainings
    claims = SharedClaims(config.out)
    claims.failures.write(train, "no memory left")
    done = work(config.out, jobs=1)
    assert (done.ran, done.left) == (0, 0)
    result = run_plan(plan, engine_for=lambda *_: Watching(), claims=claims)
    assert set(result.failures) == set(plan.cells)
    assert all(reason.endswith("which failed: no memory left") for reason in result.failures.values())
    again = run_plan(plan)  # a new start tries it again
    assert again.failures == {}


def test_a_task_that_ends_its_worker_three_times_fails_and_the_others_are_done(small, tmp_path):
    """The net ends the process whenever 24 images are differentiated at once, as its attack does."""
    (tmp_path / "net.py").write_text(NET)
    given = small | {"architecture": "gu2014/n100-100-10,own:net.py:deadly", "attack": "fgsm", "batch": 24}
    plan = begun(make_config(**given | {"defense": "none"}))
    codes = []
    while not codes or codes[-1] == 3:
        code, text = said(command("work", "out", "--jobs", 1, DEADLY="1"))
        codes.append(code)
    assert codes == [3] * 3 + [1], text
    assert "failed: the worker was lost 3 times" in text
    labels = {plan.tasks[key].kind: plan.done(plan.tasks[key]) for key in plan.tasks if "own" in plan.tasks[key].label}
    assert labels == {"train": True, "clean": True, "diagnose": True, "craft": False, "score": False}
    assert all(plan.done(task) for task in plan.tasks.values() if "own" not in task.label)


def test_a_worker_that_is_told_to_end_gives_its_tasks_back_and_counts_no_attempt(small, tmp_path):
    out = tmp_path / "out"
    plan = begun(make_config(**small | {"attack": "pgd(steps=100000)", "defense": "none"}))
    (craft,) = [task for task in plan.tasks.values() if task.kind == "craft"]
    pilot = command("work", out, "--jobs", 1)
    wait_until(lambda: list((out / "store" / "leases").glob(f"{craft.key}*")), "the attack")
    pilot.send_signal(signal.SIGTERM)
    code, text = said(pilot)
    assert code == 130
    assert "interrupted" in text
    assert list((out / "store" / "leases").iterdir()) == []
    assert not list((out / "store").glob("failed/*"))


def test_an_attack_of_a_lost_worker_is_gone_on_with_from_its_last_block(small, tmp_path):
    """A worker is stopped while it attacks the second block, its lease is taken over, and it comes back."""
    out, toml = tmp_path / "out", small | {"attack": "pgd(steps=3000)", "defense": "none", "n_examples": 48}
    plan = begun(make_config(**toml))
    (craft,) = [task for task in plan.tasks.values() if task.kind == "craft"]
    leases = out / "store" / "leases"
    pilot = command("work", out, "--jobs", 1, "--lease", 2)
    wait_until(lambda: (leases / f"{craft.key}-16").exists(), "the second block")
    pilot.send_signal(signal.SIGSTOP)
    done = work(out, jobs=1)
    assert (done.left, done.failures) == (0, {})
    assert not (out / "store" / "blocks" / craft.key).exists()
    made = (out / "store" / "craft" / f"{craft.key}.npz").stat()
    pilot.send_signal(signal.SIGCONT)
    code, _ = said(pilot)
    assert code == 0
    assert (out / "store" / "craft" / f"{craft.key}.npz").stat().st_ino == made.st_ino
    assert list(leases.iterdir()) == []
    whole = advbench.run(**toml | {"out": tmp_path / "whole"})
    result = run_plan(plan)
    assert (result.ran, result.failures) == (0, {})
    same_records(Store(out), Store(whole.out))


def test_slurm_pilots_as_local_jobs_do_a_run_and_a_second_start_reports(small, tmp_path):
    pytest.importorskip("submitit")
    whole = advbench.run(**small | {"out": tmp_path / "whole"})
    out, cache = tmp_path / "shared", {"ADVBENCH_CACHE": str(tmp_path / "shared-cache")}
    config = tmp_path / "run.toml"
    given = {k.replace("_", "-"): v for k, v in small.items() if k not in ("out", "jobs")}
    config.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in given.items()))
    flags = ["--engine", "slurm", "--slurm", "cluster=local,timeout_min=20", "--pilots", "2", "--jobs", "1"]
    code, text = said(command("run", config, "--out", out, *flags, **cache))
    assert code == 0, text
    assert "2 workers submitted" in text
    same_records(Store(out), Store(whole.out))
    logs = "".join(path.read_text() for path in (out / "slurm").glob("*.out"))
    assert logs.count("nothing is left to do") == 2


def test_slurm_without_slurm_is_refused_in_one_line(small, tmp_path):
    pytest.importorskip("submitit")
    code, text = said(command("run", "--engine", "slurm", "--out", tmp_path / "out", PATH="/nowhere"))
    assert (code, text.splitlines()[-1].startswith("advbench: Expected Slurm's commands here")) == (2, True)
