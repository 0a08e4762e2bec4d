"""Where tasks run: the scheduler on a scripted engine, and the engines of this machine on tasks that fail, exit and die."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections import deque
from pathlib import Path

import pytest
import torch

from advbench.config import make_config
from advbench.engine import local
from advbench.engine.local import InlineEngine, ThreadEngine, engine_of, slots
from advbench.engine.places import Slots
from advbench.engine.processes import ProcessEngine
from advbench.engine.scheduler import longest_paths, run_plan
from advbench.engine.sharing import share, shared
from advbench.plan.plan import make_plan
from advbench.tasks.clean import CleanContent
from advbench.tasks.context import Context
from advbench.tasks.execution import TaskOutcome
from advbench.tasks.images import Images
from advbench.tasks.task import Task

CONTEXT = Context(Path("out"), "digits", None, {}, {}, 0)
CONTENT = CleanContent("target", 1, Images(0, "digits", "test", 4, 4, "cpu"))


def task(name: str) -> Task:
    return Task(name, CONTENT, f"label of {name}", 1.0)


# --- the scheduler


class Scripted:
    """An engine that only keeps account. fails: by kind of task. interrupt: what is raised at which look."""

    def __init__(self, slots=3, fails=(), interrupt=None, last_first=False):
        self.slots = slots
        self.fails = fails
        self.interrupt = interrupt
        self.last_first = last_first
        self.running = deque()
        self.submitted = []
        self.ended = set()
        self.most = 0
        self.closed = []
        self.looks = 0

    def submit(self, task):
        assert not self.closed
        assert set(task.needs) <= self.ended
        self.submitted.append(task)
        self.running.append(task)
        self.most = max(self.most, len(self.running))

    def wait(self, timeout=None):
        self.looks += 1
        if self.interrupt and self.looks == self.interrupt[0]:
            raise self.interrupt[1]
        task = self.running.pop() if self.last_first else self.running.popleft()
        failed = task.kind in self.fails
        if not failed:
            self.ended.add(task.key)
        return TaskOutcome(task.key, 0.0, "no such luck" if failed else "")

    def close(self, *, kill=False):
        self.closed.append(kill)


@pytest.fixture
def plan(settings, cache):
    """A plan whose crafts are of one block each."""
    return make_plan(make_config(**settings | {"matrix": "white-box", "attack": "fgsm", "batch": 32}), measure=False)


@pytest.mark.parametrize("count", [1, 2, 3, 50])
@pytest.mark.parametrize("last_first", [False, True])
def test_every_task_is_submitted_once_after_its_needs_on_a_free_slot(plan, count, last_first):
    engine, seen = Scripted(count, last_first=last_first), []
    result = run_plan(plan, lambda status: seen.append((status.done, len(status.running))), lambda *_: engine)
    assert sorted(each.key for each in engine.submitted) == sorted(plan.tasks)
    assert engine.most <= count
    assert engine.most == count or count == 50
    assert (result.ran, result.failures, result.interrupted) == (len(plan.tasks), {}, False)
    assert engine.closed == [False]
    assert seen[-1] == (len(plan.tasks), 0)
    assert max(running for _, running in seen) == engine.most
    paths = longest_paths(list(plan.tasks.values()))
    roots = [paths[each.key] for each in engine.submitted if not each.needs]
    assert roots == sorted(roots, reverse=True)


def test_a_failure_takes_only_those_with_it_that_need_it(plan):
    engine = Scripted(fails=("craft",))
    result = run_plan(plan, None, lambda *_: engine)
    assert {each.kind for each in plan.tasks.values()} - {each.kind for each in engine.submitted} == {"score"}
    assert result.failures.keys() == set(plan.cells)
    assert all(
        reason.startswith("needs ") and reason.endswith("failed: no such luck") for reason in result.failures.values()
    )
    assert {plan.store.status(key) for key in plan.cells} == {"error"}
    assert engine.closed == [False]


@pytest.mark.parametrize("look", [1, 4])
def test_an_interrupt_ends_what_runs_and_submits_no_more(plan, look):
    engine = Scripted(2, interrupt=(look, KeyboardInterrupt()))
    result = run_plan(plan, None, lambda *_: engine)
    assert (result.interrupted, result.ran) == (True, look - 1)
    assert len(engine.submitted) <= look - 1 + engine.slots
    assert engine.closed == [True]


def test_an_engine_that_breaks_is_closed_and_its_error_comes_through(plan):
    engine = Scripted(interrupt=(2, OSError("the cluster is gone")))
    with pytest.raises(OSError, match="the cluster is gone"):
        run_plan(plan, None, lambda *_: engine)
    assert engine.closed == [True]


def test_a_finished_plan_asks_nothing_of_its_engine(plan, monkeypatch):
    monkeypatch.setattr(type(plan), "pending", lambda self: [])
    engine = Scripted()
    assert run_plan(plan, None, lambda *_: engine).ran == 0
    assert (engine.submitted, engine.looks, engine.closed) == ([], 0, [False])


# --- the engines of this machine


@pytest.mark.parametrize(
    ("jobs", "backend", "kind"),
    [
        (1, "loky", InlineEngine),
        (1, "threading", InlineEngine),
        (3, "threading", ThreadEngine),
        (3, "loky", ProcessEngine),
    ],
)
def test_the_configuration_chooses_the_engine(plan, jobs, backend, kind):
    changed = plan.config.model_copy(update={"jobs": jobs, "backend": backend})
    other = dataclasses.replace(plan, config=changed)
    engine = engine_of(other, CONTEXT)
    assert type(engine) is kind
    assert engine.slots == slots(other) == jobs
    engine.close()


def test_without_distributed_the_engine_dask_is_refused_in_one_line(plan, monkeypatch):
    monkeypatch.setattr(local, "find_spec", lambda name: None)
    changed = plan.config.model_copy(update={"engine": "dask"})
    with pytest.raises(ValueError, match=r"^Expected dask's distributed .* pip install 'advbench\[dask\]'$"):
        run_plan(dataclasses.replace(plan, config=changed))


def test_slots_are_spread_over_the_devices_and_a_freed_one_is_taken_again():
    places = Slots.of(3, ["cuda:0", "cuda:1"])
    assert [places.take(task(name)) for name in "abc"] == ["cuda:0", "cuda:1", "cuda:0"]
    with pytest.raises(RuntimeError, match="Expected at most 3 tasks at a time, got another one: label of d"):
        places.take(task("d"))
    places.give_back("b")
    assert places.take(task("d")) == "cuda:1"


def test_a_device_that_is_free_gets_the_next_task_before_one_at_work():
    places = Slots.of(4, ["cuda:0", "cuda:1"])
    assert [places.take(task(name)) for name in "abc"] == ["cuda:0", "cuda:1", "cuda:0"]
    places.give_back("a")
    places.give_back("c")
    assert [places.take(task(name)) for name in "def"] == ["cuda:0", "cuda:1", "cuda:0"]


def test_slots_per_device_count_on_each_device(plan):
    changed = plan.config.model_copy(update={"jobs": None, "slots_per_device": 3})
    assert slots(dataclasses.replace(plan, config=changed)) == 3
    assert slots(dataclasses.replace(plan, config=changed, devices=[torch.device("cuda", n) for n in (0, 1)])) == 6


ENGINES = {"inline": (InlineEngine, 1), "threads": (ThreadEngine, 3), "processes": (ProcessEngine, 2)}


@pytest.fixture
def made():
    """Makes engines, and closes them."""
    engines = []

    def make(name, work):
        kind, count = ENGINES[name]
        engines.append(kind(CONTEXT, Slots.of(count, ["cpu"]), work))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def run_all(engine, names):
    """Run tasks as the scheduler does, and return their reasons."""
    waiting, found, running = deque(map(task, names)), {}, 0
    while waiting or running:
        while waiting and running < engine.slots:
            engine.submit(waiting.popleft())
            running += 1
        outcome = engine.wait()
        running -= 1
        assert outcome.key not in found
        found[outcome.key] = outcome.reason
    return found


@pytest.mark.parametrize("name", ENGINES)
def test_tasks_that_fail_or_exit_are_outcomes_and_the_others_go_on(made, name, tmp_path):
    def work(task, context, device):
        if task.key.startswith("exit"):
            raise SystemExit(0)
        (tmp_path / task.key).write_text(f"{device} {context.dataset} {os.getpid()}")
        return TaskOutcome(task.key, 0.5, "no such luck" if task.key.startswith("bad") else "")

    names = ["a", "exit", "b", "bad", "exit2", "c", "bad2", "d"]
    found = run_all(made(name, work), names)
    reasons = {"a": "", "b": "", "c": "", "d": "", "bad": "no such luck", "bad2": "no such luck"}
    assert found == reasons | {"exit": "SystemExit: 0", "exit2": "SystemExit: 0"}
    written = {path.name: path.read_text().split() for path in tmp_path.iterdir()}
    assert {key: value[:2] for key, value in written.items()} == {key: ["cpu", "digits"] for key in reasons}
    assert ({value[2] for value in written.values()} == {str(os.getpid())}) is (name != "processes")


@pytest.mark.parametrize("name", ENGINES)
def test_what_no_slot_is_for_and_what_nobody_submitted_are_refused(made, name):
    engine = made(name, lambda task, context, device: TaskOutcome(task.key, 0.0))
    with pytest.raises(RuntimeError, match="Expected a submitted task to wait for, got none"):
        engine.wait()
    for number in range(engine.slots):
        engine.submit(task(str(number)))
    with pytest.raises(RuntimeError, match="tasks at a time, got another one"):
        engine.submit(task("more"))
    assert {engine.wait().key for _ in range(engine.slots)} == set(map(str, range(engine.slots)))
    with pytest.raises(RuntimeError, match="got none"):
        engine.wait()


def test_one_job_runs_in_the_thread_that_waits(made):
    def work(task, context, device):
        return TaskOutcome(task.key, 0.0, threading.current_thread().name)

    assert run_all(made("inline", work), "ab") == dict.fromkeys("ab", threading.current_thread().name)


@pytest.mark.parametrize("name", ["threads", "processes"])
def test_a_wait_with_a_timeout_comes_back_with_nothing_and_loses_nothing(made, name, tmp_path):
    def work(task, context, device):
        while not (tmp_path / "go").exists():
            time.sleep(0.01)
        return TaskOutcome(task.key, 0.0)

    engine = made(name, work)
    engine.submit(task("a"))
    assert engine.wait(0.05) is None
    assert engine.wait(0) is None
    (tmp_path / "go").touch()
    assert engine.wait().key == "a"


def test_threads_run_side_by_side(made):
    together = threading.Barrier(3, timeout=60)

    def work(task, context, device):
        together.wait()
        return TaskOutcome(task.key, 0.0)

    assert run_all(made("threads", work), "abc") == dict.fromkeys("abc", "")


def test_an_error_of_the_work_itself_comes_through(made):
    def work(task, context, device):
        raise LookupError("a bug")

    for name in ENGINES:
        engine = made(name, work)
        engine.submit(task("a"))
        with pytest.raises(LookupError, match="a bug"):
            engine.wait()


def test_a_process_that_dies_takes_only_its_own_task(made, tmp_path):
    def work(task, context, device):
        if task.key.startswith("dies"):
            os.kill(os.getpid(), signal.SIGKILL)
        with (tmp_path / task.key).open("a") as file:
            file.write("x")
        return TaskOutcome(task.key, 0.0)

    names = ["a", "dies", "b", "c"]
    engine = made("processes", work)
    found = run_all(engine, names)
    assert set(found) == set(names)
    for name, reason in found.items():
        if name == "dies":
            assert reason.startswith("the worker died: ")
            assert "\n" not in reason
        else:
            assert reason == ""
            assert (tmp_path / name).exists()
    assert run_all(engine, ["again"]) == {"again": ""}


class Shared:
    """What a work function holds; every time it is unpickled, that is written down."""

    def __init__(self, folder):
        self.folder = folder

    def __setstate__(self, state):
        self.folder = state["folder"]
        with (self.folder / f"unpickled {os.getpid()}").open("a") as file:
            file.write("x")

    def __getstate__(self):
        return {"folder": self.folder}

    def __call__(self, task, context, device):
        if task.key.startswith("dies"):
            os.kill(os.getpid(), signal.SIGKILL)
        return TaskOutcome(task.key, 0.0, str(os.getpid()))


def test_what_all_tasks_share_reaches_each_process_once_and_a_new_one_again(made, tmp_path):
    engine = made("processes", Shared(tmp_path))
    pids = set(run_all(engine, map(str, range(40))).values())
    assert run_all(engine, ["dies"])["dies"].startswith("the worker died")
    pids |= set(run_all(engine, map(str, range(40, 80))).values())
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert len(pids) > 1
    assert {f"unpickled {pid}" for pid in pids} <= set(written)
    assert set(written.values()) == {"x"}


def test_another_run_in_the_same_processes_sees_its_own_context(made):
    def work(task, context, device):
        return TaskOutcome(task.key, 0.0, context.dataset)

    engines = [made("processes", work), made("processes", work)]
    engines[1]._context = dataclasses.replace(CONTEXT, dataset="mnist")
    for _ in range(2):
        assert [set(run_all(engine, "abcd").values()) for engine in engines] == [{"digits"}, {"mnist"}]


def test_a_shared_file_that_is_not_as_it_was_written_is_refused(tmp_path):
    handle = share([1, 2, 3], tmp_path)
    assert shared(handle) == [1, 2, 3]
    other = share([4], tmp_path)
    other.path.write_bytes(handle.path.read_bytes())
    with pytest.raises(ValueError, match="as it was written"):
        shared(other)
    assert shared(handle) == [1, 2, 3]


def test_processes_are_reused_by_the_next_engine(made):
    def work(task, context, device):
        return TaskOutcome(task.key, 0.0, str(os.getpid()))

    first = made("processes", work)
    before = set(run_all(first, map(str, range(6))).values())
    first.close()
    after = set(run_all(made("processes", work), map(str, range(6))).values())
    # Which of the workers take the six tasks is a matter of chance; two pools would have twice as many.
    assert len(before | after) <= first.slots


def test_processes_see_the_cache_folder_of_now(made, monkeypatch):
    def work(task, context, device):
        return TaskOutcome(task.key, 0.0, os.environ["ADVBENCH_CACHE"])

    for folder in ("one", "other"):
        monkeypatch.setenv("ADVBENCH_CACHE", folder)
        assert set(run_all(made("processes", work), "ab").values()) == {folder}


def test_a_task_alone_in_its_process_has_one_thread_and_leaves_ctrl_c_to_the_parent(made, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def work(task, context, device):
        import torch

        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        return TaskOutcome(task.key, 0.0, f"{torch.get_num_threads()} {os.environ['OMP_NUM_THREADS']} {ignored}")

    assert run_all(made("processes", work), "a") == {"a": "1 1 True"}
