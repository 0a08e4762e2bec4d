"""Leases of tasks: one owner at a time, takeover from lost owners, and no harm by owners that come back."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from advbench.engine.leases import Failures, Leases, Owner

TAKER = """
import sys, time
from pathlib import Path
from advbench.engine.leases import Leases, Owner

leases = Leases(Path(sys.argv[1]), Owner.here(), seconds=float(sys.argv[2]))
assert leases.take("task") is not None
print("taken", flush=True)
time.sleep(600)
"""


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def owner(name="a"):
    """An owner on a machine that is not this one, so that only its silence tells that it is lost."""
    return Owner("elsewhere", "another machine", 1, "1", f"token {name}")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def taker(tmp_path):
    """A process that has taken the lease of ``task``."""
    started = []

    def start(seconds=60):
        process = subprocess.Popen([sys.executable, "-c", TAKER, str(tmp_path), str(seconds)], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline() == b"taken\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def _take_all(out, keys, results, start, end):
    leases = Leases(out, Owner.here())
    start.wait()
    results.put([key for key in keys if leases.take(key) is not None])
    end.wait()  # the lease of a process that is gone is free


def test_of_processes_that_race_for_a_lease_one_gets_it(tmp_path):
    context = multiprocessing.get_context("fork")
    keys, results, start, end = [f"task-{i}" for i in range(60)], context.Queue(), context.Event(), context.Event()
    racers = [context.Process(target=_take_all, args=(tmp_path, keys, results, start, end)) for _ in range(6)]
    for racer in racers:
        racer.start()
    start.set()
    taken = Counter(key for _ in racers for key in results.get(timeout=60))
    end.set()
    for racer in racers:
        racer.join()
    assert taken == dict.fromkeys(keys, 1)


def test_a_lease_that_stays_unchanged_is_taken_over_after_the_seconds_that_its_owner_said(tmp_path, clock):
    first = Leases(tmp_path, owner("a"), seconds=30)
    second = Leases(tmp_path, owner("b"), seconds=5, clock=clock)
    assert first.take("task").attempt == 1
    assert second.take("task") is None
    clock.now = 29.9
    assert second.take("task") is None
    assert set(second.others()) == {"task"}
    clock.now = 30.1
    assert second.others() == {}
    assert second.take("task").attempt == 2


def test_a_touched_lease_is_not_taken_over(tmp_path, clock):
    first, second = Leases(tmp_path, owner("a"), seconds=30), Leases(tmp_path, owner("b"), clock=clock)
    first.take("task")
    for now in (0, 25, 50, 75):
        clock.now = now
        assert second.take("task") is None
        os.utime(tmp_path / "store/leases/task", ns=(now, now))  # as `touch` does, at a time that surely differs
    before = (tmp_path / "store/leases/task").stat().st_mtime_ns
    first.touch()
    assert (tmp_path / "store/leases/task").stat().st_mtime_ns > before


def test_an_owner_that_comes_back_neither_removes_nor_touches_what_another_has_taken_over(tmp_path, clock):
    first, second = Leases(tmp_path, owner("a"), seconds=30), Leases(tmp_path, owner("b"), clock=clock)
    first.take("task")
    second.take("task")
    clock.now = 31
    second.take("task")
    path = tmp_path / "store/leases/task"
    os.utime(path, ns=(1, 1))
    first.touch()
    assert path.stat().st_mtime_ns == 1
    first.give_back("task")
    assert json.loads(path.read_text())["owner"]["token"] == "token b"
    second.give_back("task")
    assert not path.exists()


def test_the_lease_of_a_killed_process_of_this_machine_is_free_at_once(tmp_path, taker):
    process, leases = taker(), Leases(tmp_path, Owner.here())
    assert leases.take("task") is None
    process.kill()
    process.wait()
    assert leases.others() == {}
    assert leases.take("task").attempt == 2


def test_a_stopped_process_is_silent_not_gone(tmp_path, taker, clock):
    process, leases = taker(30), Leases(tmp_path, Owner.here(), clock=clock)
    process.send_signal(signal.SIGSTOP)
    assert leases.take("task") is None
    clock.now = 31
    assert leases.take("task").attempt == 2


def test_a_new_start_counts_no_attempts_of_processes_that_are_gone(tmp_path, taker):
    process, leases = taker(), Leases(tmp_path, Owner.here())
    leases.remove_lost()
    assert leases.take("task") is None
    process.kill()
    process.wait()
    leases.remove_lost()
    assert leases.take("task").attempt == 1


def test_leases_are_kept_fresh_in_a_block_and_given_back_at_its_end(tmp_path):
    leases = Leases(tmp_path, Owner.here(), seconds=0.3)
    with leases.kept_fresh():
        leases.take("task")
        path = tmp_path / "store/leases/task"
        os.utime(path, ns=(1, 1))
        deadline = time.monotonic() + 60
        while path.stat().st_mtime_ns == 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert list((tmp_path / "store/leases").iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"owner": 1}', b"\xff" * 100, b"[" * 10**5, b'{"owner": {}, "seconds": "x"}']
)
def test_a_file_that_is_no_lease_counts_as_one_until_it_was_silent_for_a_minute(tmp_path, clock, content):
    leases = Leases(tmp_path, owner("a"), clock=clock)
    (tmp_path / "store/leases").mkdir(parents=True)
    (tmp_path / "store/leases/task").write_bytes(content)
    assert leases.take("task") is None
    assert leases.others() == {"task": None}
    clock.now = 61
    assert leases.take("task").attempt == 2


def test_failures_are_told_to_others_until_a_new_start_forgets_them(tmp_path):
    one, other = Failures(tmp_path), Failures(tmp_path)
    one.write("task", "out of memory")
    (tmp_path / "store/failed/bad").write_text("{")
    assert other.read() == {"task": "out of memory"}
    assert (other.of("task"), other.of("bad"), other.of("none")) == ("out of memory", "", "")
    one.forget()
    assert other.read() == {}
