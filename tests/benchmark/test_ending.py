"""How a run ends from outside: signals that mean Ctrl-C, disks that are full, and streams that take nothing."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import sys
import threading
from collections import deque
from pathlib import Path

import numpy as np
import pytest

import advbench
from advbench.cli.app import main
from advbench.config import make_config
from advbench.engine.ending import as_ctrl_c
from advbench.engine.scheduler import run_plan
from advbench.plan.plan import make_plan
from advbench.tasks import artefacts, execution
from advbench.tasks.artefacts import artefact
from advbench.tasks.blocks import blocks_of
from advbench.tasks.context import Context
from advbench.tasks.execution import TaskOutcome, execute
from advbench.tasks.task import BlockTask

SIGNALS = [signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_block_once(number):
    after = []

    def block():
        with as_ctrl_c():
            try:
                signal.raise_signal(number)
                after.append("not interrupted")
            finally:
                for again in SIGNALS:
                    signal.raise_signal(again)
                after.append("tidied up")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert after == ["tidied up"]
    assert [signal.getsignal(each) for each in SIGNALS] == [signal.SIG_DFL, signal.SIG_DFL]


def test_a_signal_that_the_program_handles_or_ignores_is_left_alone():
    seen = []
    before = [signal.signal(signal.SIGTERM, lambda *_: seen.append("handled")), signal.signal(signal.SIGHUP, signal.SIG_IGN)]
    try:
        with as_ctrl_c():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
        assert seen == ["handled"]
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


def test_blocks_inside_one_another_and_in_other_threads_change_nothing():
    def elsewhere():
        with as_ctrl_c():
            seen.append(signal.getsignal(signal.SIGTERM))

    seen = []
    with as_ctrl_c():
        outer = signal.getsignal(signal.SIGTERM)
        with as_ctrl_c():
            seen.append(signal.getsignal(signal.SIGTERM))
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert seen == [outer, outer]
        assert signal.getsignal(signal.SIGTERM) is outer
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# --- disks that are full


class Filling:
    """An engine with two slots whose disk is full from some task on."""

    slots = 2

    def __init__(self, full_from):
        self.full_from, self.submitted, self.running, self.closed = full_from, [], deque(), []

    def submit(self, task):
        self.submitted.append(task)
        self.running.append((task, len(self.submitted) >= self.full_from))

    def wait(self, timeout=None):
        task, full = self.running.popleft()
        return TaskOutcome(task.key, 0.0, "OSError: [Errno 28] No space left on device: 'x'" if full else "", full)

    def close(self, *, kill=False):
        self.closed.append(kill)


def test_a_full_disk_stops_the_run_and_is_no_result_of_any_cell(settings, cache):
    plan = make_plan(make_config(**settings | {"matrix": "white-box", "attack": "fgsm"}), measure=False)
    engine = Filling(4)
    with pytest.raises(OSError, match=r"No space left on device.*what is finished is kept") as caught:
        run_plan(plan, None, lambda *_: engine)
    assert "\n" not in str(caught.value)
    assert len(engine.submitted) == 5, "the task that ran beside it was waited for, and no other started"
    assert not engine.running
    assert engine.closed == [True]
    assert plan.store.keys() == []


class Wrapped(RuntimeError):
    pass


@pytest.mark.parametrize(
    ("number", "no_room"), [(errno.ENOSPC, True), (errno.EROFS, True), (errno.EDQUOT, True), (errno.ENOENT, False)]
)
def test_an_outcome_tells_a_full_disk_from_other_errors(settings, cache, monkeypatch, number, no_room):
    plan = make_plan(make_config(**settings), measure=False)

    def fail(*_):
        raise OSError(number, os.strerror(number), "a file")

    def fail_inside(*_):
        try:
            fail()
        except OSError as error:
            raise Wrapped(f"images 0 to 3: {error}") from error

    context = Context(settings["out"], "digits", None, {}, {}, 0)
    for failing in (fail, fail_inside):
        monkeypatch.setattr(execution, "_perform", failing)
        outcome = execute(next(iter(plan.tasks.values())), context, "cpu")
        assert outcome.no_room is no_room
        assert os.strerror(number) in outcome.reason


def test_what_another_start_of_the_run_has_finished_is_not_done_again(settings, cache, monkeypatch):
    settings |= {"matrix": "white-box", "defense": "none", "attack": "pgd(steps=1)", "batch": 8}
    advbench.run(**settings)
    plan = make_plan(make_config(**settings), measure=False)
    (craft,) = (task for task in plan.tasks.values() if task.kind == "craft")
    blocks = [BlockTask.of(craft, block) for block in blocks_of(craft.content.images)]
    assert len(blocks) == 3
    context = Context(settings["out"], "digits", None, {}, {}, 0)
    performed = []
    monkeypatch.setattr(execution, "_perform", lambda task, *_: performed.append(task.key))
    for task in (*plan.tasks.values(), *blocks):
        assert execute(task, context, "cpu").reason == ""
    assert performed == []
    artefact("craft", craft.key, settings["out"]).unlink()
    for task in (craft, *blocks):
        execute(task, context, "cpu")
    assert performed == [task.key for task in (craft, *blocks)]

    def overtaken(task, *_):
        artefacts.save(artefact("craft", craft.key, settings["out"]), x_adv=np.zeros((24, 1)))
        raise FileNotFoundError(errno.ENOENT, "the blocks were packed by another start")

    monkeypatch.setattr(execution, "_perform", overtaken)
    assert execute(craft, context, "cpu").reason == ""


def test_a_run_sweeps_what_killed_writers_left_in_its_folders_and_in_the_cache(settings, cache):
    """Also where it has nothing to write; what is younger than an hour may be at work."""
    settings |= {"matrix": "white-box", "defense": "none", "attack": "fgsm"}
    advbench.run(**settings)
    places = [settings["out"] / place for place in (".", "store/craft", "store/clean", "store/blocks/0123")]
    old, young = [], []
    for place in (*places, cache, cache / "models"):
        place.mkdir(parents=True, exist_ok=True)
        for leftovers, name in ((old, "0"), (young, "1")):
            leftovers.append(place / f".key.npz.{name * 32}.tmp")
            leftovers[-1].write_bytes(b"half a")
    record = settings["out"] / "records" / ".writing" / ("0" * 32)
    record.mkdir(parents=True)
    for path in (*old, record):
        os.utime(path, (0, 0))
    assert advbench.run(**settings).ran == 0
    assert not any(path.exists() for path in (*old, record))
    assert all(path.exists() for path in young)


# --- the command line

WORDS = (
    "advbench run --matrix white-box --defense none --attack fgsm --device cpu --jobs 1 --architecture gu2014/n100-100-10"
)
WORDS += " --n-examples 12 --train-examples 200 --epochs 1"


@pytest.fixture
def command(tmp_path, monkeypatch, cache, capfd):
    """Runs a command in a folder of its own: the exit code, and what was printed to stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words, stdout=None):
        monkeypatch.setattr(sys, "argv", [*WORDS.split(), "--out", "out", *words])
        with pytest.MonkeyPatch.context() as patch:
            if stdout is not None:
                patch.setattr(sys, "stdout", stdout)
            with pytest.raises(SystemExit) as ended:
                main()
        return ended.value.code, capfd.readouterr().err

    return run


def one_line(stderr):
    assert stderr.startswith("advbench: ")
    assert stderr.count("\n") == 1
    return stderr


def written(folder):
    return {path: path.stat().st_mtime_ns for path in [*folder.glob("cache/models/*"), *folder.glob("out/store/*/*")]}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_stdout_that_takes_nothing_is_one_line_and_a_later_run_goes_on(command, tmp_path):
    with Path("/dev/full").open("w") as full:
        code, stderr = command(stdout=full)
    assert code == 2
    assert "No space left on device" in one_line(stderr)
    before = written(tmp_path)
    assert before
    assert command() == (0, "")
    assert before.items() <= written(tmp_path).items(), "what is finished is not done again"


def test_a_full_disk_is_one_line_and_the_same_command_goes_on_when_there_is_room(command, tmp_path):
    """No file may be larger than this, and a checkpoint is."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        code, stderr = command()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2
    assert "File too large" in one_line(stderr)
    assert not list(tmp_path.glob("out/records/*/record.json"))
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]
    assert command() == (0, "")


@pytest.mark.parametrize("out", ["file", "file/below", "/dev/null", "/proc/advbench"])
def test_an_output_folder_that_cannot_be_is_one_line(command, tmp_path, out):
    (tmp_path / "file").write_text("of the user")
    code, stderr = command("--out", out)
    assert code == 2
    assert out in one_line(stderr)
    assert (tmp_path / "file").read_text() == "of the user"


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o002, 0o664, 0o775), (0o027, 0o640, 0o750)])
def test_the_files_of_a_run_and_of_the_cache_follow_the_umask(command, tmp_path, umask, file, folder):
    """Others may share a cache where the user lets them."""
    before = os.umask(umask)
    try:
        assert command() == (0, "")
    finally:
        os.umask(before)
    found = [path for place in ("cache", "out") for path in (tmp_path / place).rglob("*")]
    names = {path.name for path in found}
    assert names >= {"compute-batch.json", "models", "record.json", "leaderboard.html", "run.json"}
    for path in found:
        assert stat.S_IMODE(path.stat().st_mode) == (folder if path.is_dir() else file), path


def test_ctrl_c_while_the_plan_is_made_is_no_traceback(command, monkeypatch):
    monkeypatch.setattr("advbench.plan.plan.make_plan", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    code, stderr = command()
    assert code == 130
    assert "Traceback" not in stderr
