"""The time limit of a task: code that waits, computes, catches everything, or runs outside Python's interpreter."""

from __future__ import annotations

import ctypes
import re
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import advbench
from advbench.attacks import balls
from advbench.engine.local import InlineEngine
from advbench.engine.places import Slots
from advbench.engine.processes import ProcessEngine
from advbench.results.store import Store
from advbench.tasks import craft
from advbench.tasks.clean import CleanContent
from advbench.tasks.context import Context
from advbench.tasks.execution import execute
from advbench.tasks.images import Images
from advbench.tasks.task import Task
from advbench.tasks.time_limit import TimeIsUp, begin_again, limited, said

CONTEXT = Context(Path("out"), "digits", None, {}, {}, 0)
CONTENT = CleanContent("target", 1, Images(0, "digits", "test", 4, 4, "cpu"))


def in_a_thread(call):
    """Call in a thread beside the main one; returns what came."""
    found = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join(60)
    return found[0]


def here(call):
    return call()


WHERE = [here, in_a_thread]


def wait():
    while True:
        time.sleep(0.01)


def compute():
    number = 0
    while True:
        number += 1


def catch_all():
    while True:
        with suppress(Exception):
            wait()


def catch_the_first():
    try:
        wait()
    except BaseException:
        wait()


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("code", [wait, compute, catch_all, catch_the_first])
def test_code_that_takes_too_long_ends(where, code):
    def call():
        start = time.monotonic()
        try:
            with limited(0.2):
                code()
        except TimeIsUp:
            return time.monotonic() - start
        return None

    assert where(call) >= 0.2


@pytest.mark.parametrize("where", WHERE)
def test_code_within_its_time_is_left_alone_and_so_is_what_follows(where):
    def call():
        for _ in range(20):
            with limited(0.05):
                pass
        time.sleep(0.15)
        return sum(range(100_000))

    assert where(call) == 4999950000


@pytest.mark.parametrize("where", WHERE)
def test_each_part_has_all_of_the_time(where):
    def call():
        try:
            with limited(0.3):
                for part in range(4):
                    begin_again()
                    time.sleep(0.15)
                    done = part
                time.sleep(1)
                return "not ended"
        except TimeIsUp:
            return done

    assert where(call) == 3


def test_a_sleep_in_the_main_thread_is_cut_short():
    start = time.monotonic()
    with pytest.raises(TimeIsUp), limited(0.1):
        time.sleep(30)
    assert time.monotonic() - start < 15


def test_an_alarm_that_the_program_has_set_goes_on():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(time.monotonic()))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        start = time.monotonic()
        with limited(60):
            pass
        while not rung and time.monotonic() - start < 20:
            time.sleep(0.01)
        assert rung[0] - start >= 0.29
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_without_a_limit_begin_again_does_nothing():
    with limited(None):
        begin_again()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_what_is_said_of_a_limit():
    assert said(60) == "time limit of 60 s"
    assert said(0.5, "images 0 to 3", "2 of 4") == "time limit of 0.5 s for images 0 to 3: 2 of 4"


# --- tasks on engines


def limited_work(task, context, device, folder):
    """What a worker does, its own code in place of the task's."""

    def perform(task, context, place):
        words = None if context.last_words is None else context.last_words / task.key
        with (folder / task.key).open("a") as file:
            file.write("x")
        with limited(context.time_limit, words):
            if task.key.startswith("waits"):
                wait()
            if task.key.startswith("stuck"):
                lock = ctypes.create_string_buffer(64)
                for _ in range(2):  # the second waits for the first with the interpreter held: no signal is seen
                    ctypes.PyDLL(None).pthread_mutex_lock(lock)
            if task.key.startswith("long"):
                time.sleep(0.3)

    return execute(task, context, device, perform)


def outcomes(engine, names):
    """Run tasks two at a time, and return their reasons."""
    waiting, found, running = [Task(name, CONTENT, name, 1.0) for name in names], {}, 0
    while waiting or running:
        while waiting and running < engine.slots:
            engine.submit(waiting.pop(0))
            running += 1
        outcome = engine.wait()
        running -= 1
        found[outcome.key] = outcome.reason
    engine.close()
    return found


@pytest.mark.parametrize(("engine", "slots"), [(InlineEngine, 1), (ProcessEngine, 2)])
def test_a_task_that_takes_too_long_fails_alone(engine, slots, tmp_path):
    made = engine(replace(CONTEXT, time_limit=0.5), Slots.of(slots, ["cpu"]), partial(limited_work, folder=tmp_path))
    found = outcomes(made, ["a", "waits", "b", "waits too", "c"])
    assert found == dict.fromkeys("abc", "") | dict.fromkeys(("waits", "waits too"), "time limit of 0.5 s")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(found, "x")


def test_a_process_that_is_stuck_outside_python_ends_and_the_task_beside_it_runs_again(tmp_path):
    made = ProcessEngine(replace(CONTEXT, time_limit=1.0), Slots.of(2, ["cpu"]), partial(limited_work, folder=tmp_path))
    found = outcomes(made, ["stuck", *(f"long {i}" for i in range(12))])
    why = "time limit of 1 s: its code did not stop, so its process was ended"
    assert found == {f"long {i}": "" for i in range(12)} | {"stuck": why}
    assert (tmp_path / "stuck").read_text() == "x"


# --- whole runs


def test_a_row_says_how_far_its_attack_was_and_finished_blocks_are_kept(settings, cache, monkeypatch):
    """From image 32 on each of 60 steps takes 0.15 s, of which 3 s see a third."""
    slow, save, project = [], craft._Crafting.save, balls.project

    def slowly(*arguments):
        time.sleep(0.15 if slow else 0.0)
        return project(*arguments)

    def saved(self, block):
        slow[:] = [True] if block.start >= 32 and getattr(self.attack, "steps", 0) == 60 else []
        save(self, block)

    monkeypatch.setattr(craft._Crafting, "save", saved)
    monkeypatch.setattr(balls, "project", slowly)
    given = settings | {"matrix": "white-box", "defense": "none", "batch": 16, "n_examples": 64}
    assert advbench.run(**given | {"attack": "fgsm"}).exit_code == 0
    given |= {"attack": "fgsm,pgd(steps=60, stop='never')"}
    result = advbench.run(**given, time_limit=3.0)
    (reason,) = result.failures.values()
    said = re.fullmatch(
        r"needs .* which failed: time limit of 3 s for images 32 to 47: (\d+) of 64 images still robust, (\d+)% done; "
        r"2 of 4 blocks are finished and kept",
        reason,
    )
    assert said, reason
    assert 0 < int(said[1]) < 64
    assert 50 < int(said[2]) < 75
    assert sorted(Store(result.out).status(key) for key in result.cells) == ["error", "ok"]
    monkeypatch.undo()
    monkeypatch.setenv("ADVBENCH_CACHE", str(cache))
    assert advbench.run(**given).failures == {}


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_limit_that_is_not_reached_changes_no_number(settings, cache, jobs):
    given = settings | {"matrix": "white-box", "defense": "none", "attack": "fgsm,pgd(steps=3)"}
    plain, limited = (
        advbench.run(**given | more | {"out": settings["out"] / name})
        for name, more in (("plain", {}), ("limited", {"time_limit": 600.0, "jobs": jobs}))
    )
    assert plain.cells == limited.cells
    assert plain.failures == limited.failures == {}
    for key in plain.cells:
        one, other = (Store(result.out).read(key) for result in (plain, limited))
        assert one.counts == other.counts
        ours, theirs = (Store(result.out).load(key)[1] for result in (plain, limited))
        np.testing.assert_array_equal(ours.report_correct, theirs.report_correct)
        np.testing.assert_array_equal(ours.distance_l2, theirs.distance_l2)
