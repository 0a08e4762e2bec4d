"""The dask engine on real clusters of this machine: equal records, workers that die, and clusters that are refused."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections import deque
from dataclasses import replace

import numpy as np
import pytest

import advbench
from advbench.config import make_config
from advbench.engine.local import engine_of
from advbench.engine.places import Slots
from advbench.engine.scheduler import run_plan
from advbench.plan.plan import make_plan
from advbench.results.store import Store
from advbench.tasks.clean import CleanContent
from advbench.tasks.context import Context
from advbench.tasks.execution import TaskOutcome
from advbench.tasks.images import Images
from advbench.tasks.task import Task
from advbench.tasks.time_limit import limited, said

pytestmark = pytest.mark.slow

CONTENT = CleanContent("target", 1, Images(0, "digits", "test", 4, 4, "cpu"))


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def until(holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


pytest.importorskip("distributed", reason="dask's distributed is not installed")


@pytest.fixture
def engine(tmp_path, cache):
    """Makes an engine of two workers, and ends it."""
    from advbench.engine.dask_engine import Cluster, DaskEngine

    made = []

    def make(work, **changes):
        context = replace(Context(tmp_path / "out", "digits", None, {}, {}, 0), **changes)
        made.append(DaskEngine(context, Cluster(None, Slots.of(2, ["cpu"]), "cpu", None), work))
        return made[-1]

    yield make
    for each in made:
        each.close(kill=True)


def outcomes(engine, names):
    """Run tasks as the scheduler does, and return their reasons."""
    waiting, found, running = deque(Task(name, CONTENT, f"label of {name}", 1.0) for name in names), {}, 0
    while waiting or running:
        while waiting and running < engine.slots:
            engine.submit(waiting.popleft())
            running += 1
        outcome = engine.wait()
        running -= 1
        assert outcome.key not in found
        found[outcome.key] = outcome.reason
    return found


def test_a_run_of_which_a_worker_is_killed_has_the_records_of_a_local_run(settings, cache, tmp_path):
    given = settings | {"matrix": "white-box", "defense": "none,input-noise(passes=2)", "attack": "fgsm,pgd(steps=20)"}
    here = advbench.run(**given)
    assert here.exit_code == 0
    cache.rename(tmp_path / "first cache")  # so that models are trained by dask's workers
    plan = make_plan(make_config(**given | {"out": tmp_path / "there", "engine": "dask", "jobs": 2}), measure=False)
    engines, killed = [], []

    def engine_for(plan, context):
        engines.append(engine_of(plan, context))
        return engines[0]

    def watch(status):
        if not killed and any("pgd" in label for label in status.running):
            pids = engines[0]._client.run(os.getpid)
            assert len(pids) == 2
            killed.append(min(pids.values()))
            os.kill(killed[0], signal.SIGKILL)

    found = run_plan(plan, watch, engine_for)
    assert killed
    assert (found.failures, found.interrupted, found.ran) == ({}, False, len(plan.tasks))
    assert plan.cells == here.cells
    for key in here.cells:
        (one, ours, *_), (other, theirs, *_) = (Store(out).load(key) for out in (here.out, plan.config.out))
        assert one.counts == other.counts
        for name in ("clean_correct", "select_correct", "report_correct", "distance_l2", "distance_linf"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_workers_that_die_or_do_not_stop_cost_no_other_task(engine, tmp_path):
    """Each in a worker of its own: one is killed once, one by its task each time, one is stuck outside Python."""
    places = tmp_path / "pids"
    places.mkdir()

    def work(task, context, device):
        with (places / task.key).open("a") as file:
            file.write(f"{os.getpid()}\n")
        tries = (places / task.key).read_text().count("\n")
        if task.key == "once" and tries == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if task.key == "always":
            os.kill(os.getpid(), signal.SIGKILL)
        if task.key == "exit":
            raise SystemExit(0)
        with limited(context.time_limit, context.last_words and context.last_words / task.key):
            if task.key == "stuck":
                lock = ctypes.create_string_buffer(64)
                for _ in range(2):
                    ctypes.PyDLL(None).pthread_mutex_lock(lock)
        return TaskOutcome(task.key, 0.0, "no such luck" if task.key == "bad" else "")

    made = engine(work, time_limit=2.0)
    names = ["a", "once", "b", "bad", "exit", "stuck", "c", "always", "d", "e"]
    found = outcomes(made, names)
    assert found.pop("always").startswith("the worker died: ")
    stuck = said(2, stood="its code did not stop, so its process was ended")
    assert found == dict.fromkeys(("a", "b", "c", "d", "e", "once"), "") | {
        "bad": "no such luck",
        "exit": "SystemExit: 0",
        "stuck": stuck,
    }
    tries = {path.name: len(set(path.read_text().split())) for path in places.iterdir()}
    assert (tries["once"], tries["stuck"]) == (2, 1)
    assert tries["always"] >= 2
    assert outcomes(made, ["again"]) == {"again": ""}


def test_what_runs_is_killed_with_the_run_and_a_wait_may_come_back_with_nothing(engine, tmp_path):
    def work(task, context, device):
        (tmp_path / "pid").write_text(str(os.getpid()))
        time.sleep(600)

    made = engine(work)
    assert made.slots == 2
    with pytest.raises(RuntimeError, match="Expected a submitted task to wait for, got none"):
        made.wait()
    made.submit(Task("a", CONTENT, "a", 1.0))
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    assert made.wait(0.05) is None
    pid = int((tmp_path / "pid").read_text())
    made.close(kill=True)
    until(lambda: not alive(pid))


def test_a_cluster_that_is_there_is_used_or_refused_in_one_line(settings, cache, tmp_path):
    from distributed import LocalCluster

    from advbench.engine.dask_engine import Cluster, DaskEngine

    context = Context(tmp_path / "out", "digits", None, {}, {}, 0)
    places = Slots.of(1, ["cpu"])

    def work(task, context, device):
        return TaskOutcome(task.key, 0.0, device)

    with pytest.raises(ValueError, match=r"^Expected a dask scheduler at tcp://127.0.0.1:9, got none"):
        DaskEngine(context, Cluster("tcp://127.0.0.1:9", places, "cpu", None), work)
    with LocalCluster(n_workers=1, threads_per_worker=3, dashboard_address="127.0.0.1:0", memory_limit=0) as cluster:
        address = cluster.scheduler_address
        used = DaskEngine(context, Cluster(address, places, "cpu", None), work)
        assert used.slots == 3
        assert outcomes(used, "abcde") == dict.fromkeys("abcde", "cpu")
        used.close()
        capped = DaskEngine(context, Cluster(address, places, "cpu", 2), work)
        assert capped.slots == 2
        capped.close()
        with pytest.raises(ValueError, match="resource GPU, got none"):
            DaskEngine(context, Cluster(address, places, "cuda", None), work)
        os.environ["ADVBENCH_CACHE"] = str(tmp_path / "elsewhere")  # `cache` puts it back
        with pytest.raises(ValueError, match=r"^Expected workers with the cache .*elsewhere, got .*: set ADVBENCH_CACHE"):
            DaskEngine(context, Cluster(address, places, "cpu", None), work)
        assert list(tmp_path.rglob("*.tmp")) == []


def test_a_worker_that_does_not_see_the_folder_is_named(tmp_path, cache, monkeypatch):
    from advbench.engine import dask_engine, dask_worker

    class Client:
        def run(self, look, out, name):
            seen = look(out, name)
            assert (seen.out, seen.models) == (True, True)
            return {"tcp://there:1": replace(seen, host="there", out=False)}

    engine = dask_engine.DaskEngine.__new__(dask_engine.DaskEngine)
    engine._client = Client()
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=rf"sees? the folder {out}, got the dask worker tcp://there:1 on there: use a disk"):
        engine._check(Context(out, "digits", None, {}, {}, 0))
    task = Task("a", CONTENT, "a", 1.0)
    gone = Context(tmp_path / "nowhere", "digits", None, {}, {}, 0)
    outcome = dask_worker.perform((None, gone), task, "cpu")
    assert outcome.refused
    assert f"sees the folder {tmp_path / 'nowhere'}" in outcome.reason
