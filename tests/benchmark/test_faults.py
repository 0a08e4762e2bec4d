"""Runs in real processes that are ended at bad moments: nothing is left behind, lost or done twice, and records are equal.

The campaign runs with ``pytest -m faults`` and takes minutes; a short version of it is among the usual tests.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import advbench
from advbench.results.record import Examples
from advbench.results.store import Store

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")

DEADLINE = 900.0
"""Seconds after which a wait has failed; nothing here is timed."""

SHORT = {
    "matrix": "white-box",
    "defense": "none,pgd-linf(steps=2)",
    "attack": "fgsm,pgd(steps=30)",
    "architecture": "gu2014/n100-100-10",
    "n_examples": 100,
    "train_examples": 200,
    "epochs": 1,
    "batch": 16,
    "device": "cpu",
}
LONG = SHORT | {
    "matrix": "all",
    "defense": "none,pgd-linf(steps=2),input-noise(passes=2)",
    "substitute": "gu2014/n100-100-10",
    "substitute_rounds": 1,
    "substitute_seeds": 20,
    "score_draws": 2,
}

CODE = """
import sys, advbench
from advbench.cli.app import main
sys.argv = ["advbench", "run", {config!r}, "--out", {out!r}, "--jobs", "{jobs}"]
main()
"""


def wait_until(holds, what):
    deadline = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)


@dataclass
class Place:
    """The folders of a disturbed run: its output, its cache, and its temporary files; configuration and log lie beside."""

    root: Path
    settings: dict

    @property
    def beside(self):
        return self.root.with_name("files-of-the-run")

    def start(self, jobs=2):
        config, temporary = self.beside.with_suffix(".toml"), self.root.with_name("tmp")
        config.write_text("".join(f"{name.replace('_', '-')} = {value!r}\n" for name, value in self.settings.items()))
        temporary.mkdir(exist_ok=True)
        code = CODE.format(config=str(config), out=str(self.root / "out"), jobs=jobs)
        environment = os.environ | {"ADVBENCH_CACHE": str(self.root / "cache"), "TMPDIR": str(temporary)}
        command = [sys.executable, "-c", code]
        with self.beside.with_suffix(".log").open("w") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def started(self):
        """A run that has finished another task."""
        count, process = len(self.finished()), self.start()
        wait_until(lambda: len(self.finished()) > count or process.poll() is not None, "a task")
        assert process.poll() is None, "the run was over before it could be ended"
        return process

    @property
    def log(self):
        return self.beside.with_suffix(".log").read_text()

    @property
    def complaint(self):
        """The one line that was said of what went wrong."""
        (line,) = [line for line in self.log.splitlines() if line.startswith("advbench: ")]
        assert "Traceback" not in self.log
        return line

    def finished(self):
        """The files of finished tasks, and which version of each lies there."""
        patterns = ("out/records/*/record.json", "out/store/*/*.npz", "cache/models/*.safetensors")
        found = {}
        for path in sorted(path for pattern in patterns for path in self.root.glob(pattern)):
            about = path.stat()
            found[path] = about.st_ino, about.st_mtime_ns
        return found

    def temporary(self):
        return sorted(path.name for path in self.root.with_name("tmp").iterdir() if path.name.startswith("advbench"))


def living(session):
    """The processes of a session that are not dead yet."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                _, _, fields = (folder / "stat").read_text().rpartition(")")
                state, _, _, of = fields.split()[:4]
            except (OSError, ValueError):
                continue
            if int(of) == session and state != "Z":
                found.append(int(folder.name))
    return found


def undisturbed(root, settings):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVBENCH_CACHE", str(root / "cache"))
        result = advbench.run(**settings, out=root / "out", jobs=1)
    assert result.exit_code == 0
    return Store(root / "out")


def same_records(place, whole):
    """The keys, the facts that are not measured, and all outcomes are those of the undisturbed run."""
    store = Store(place.root / "out")
    assert store.keys() == whole.keys()
    for key in whole.keys():  # noqa: SIM118 - not a mapping
        mine, others = store.load(key), whole.load(key)
        assert mine is not None
        for name in ("status", "matrix", "dataset", "target", "source", "attack", "weights_sha256", "threat", "counts"):
            assert getattr(mine[0], name) == getattr(others[0], name)
        for name in Examples.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(mine[1], name), getattr(others[1], name), err_msg=name)


def ended(place, process, number, kept):
    """End a run by a signal to its parent alone: everything that it started ends too, and its temporary folder goes."""
    before = place.finished()
    assert kept.items() <= before.items()
    os.kill(process.pid, number)
    process.wait(DEADLINE)
    wait_until(lambda: not living(process.pid), "processes live on")
    assert place.temporary() == []
    if number in (signal.SIGTERM, signal.SIGHUP):
        assert process.returncode == 130
        assert "interrupted: what is finished is kept" in place.log
        assert "Traceback" not in place.log
    return before


def test_a_run_that_is_ended_leaves_nothing_behind_and_the_next_one_goes_on(tmp_path):
    place, kept = Place(tmp_path / "disturbed", SHORT), {}
    place.root.mkdir()
    for number in (signal.SIGKILL, signal.SIGTERM):
        kept |= ended(place, place.started(), number, kept)
    undisturbed(place.root, SHORT)
    assert place.temporary() == []
    assert kept.items() <= place.finished().items(), "a finished task was lost or done again"
    same_records(place, undisturbed(tmp_path / "whole", SHORT))


# --- the campaign

SEED = int(os.environ.get("ADVBENCH_FAULTS_SEED", "0"))
KILLS = int(os.environ.get("ADVBENCH_FAULTS_KILLS", "12"))

MOMENTS = {
    "some seconds after the start": None,
    "while a file is written": (
        "out/store/*/.*.tmp",
        "out/store/blocks/*/.*.tmp",
        "cache/models/.*.tmp",
        "out/records/.writing/*/*.npz",
    ),
    "while a record is written": ("out/records/.writing/*",),
    "when a task is finished": (),
}


def let_run(place, process, moment, chance):
    """Wait for a moment, or for the end of the run."""
    if MOMENTS[moment] is None:
        deadline = time.monotonic() + chance.uniform(0, 40)
        wait_until(lambda: time.monotonic() > deadline or process.poll() is not None, moment)
        return
    before, patterns = len(place.finished()), MOMENTS[moment]

    def reached():
        files = any(next(place.root.glob(pattern), None) for pattern in patterns)
        return files or (not patterns and len(place.finished()) > before) or process.poll() is not None

    wait_until(reached, moment)


def kill(place, process, number, whole_group):
    if whole_group:
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid, number)
    process.wait(DEADLINE)
    wait_until(lambda: not living(process.pid), "processes live on")


def damage(path, chance):
    content = path.read_bytes()
    place = chance.randrange(len(content))
    ways = (content[:place], b"", content[:place] + bytes(9) + content[place + 9 :])
    path.write_bytes(chance.choice(ways))


@pytest.mark.faults
def test_no_kill_at_any_moment_loses_or_repeats_a_finished_task(tmp_path):
    """SIGKILL, SIGTERM and SIGHUP to the parent or to all, and now and then a damaged file."""
    chance, place = random.Random(SEED), Place(tmp_path / "disturbed", LONG)
    whole = undisturbed(tmp_path / "whole", LONG)
    place.root.mkdir()
    kept, damaged, hits = {}, {}, 0
    for _ in range(KILLS):
        jobs, moment = chance.choice((1, 2, 2)), chance.choice(list(MOMENTS))
        number, group = chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)), chance.random() < 0.3
        process = place.start(jobs)
        let_run(place, process, moment, chance)
        if process.poll() is not None:  # it has come to its end
            assert process.returncode == 0, place.log
            break
        hits += 1
        kill(place, process, number, group)
        assert "Traceback" not in place.log, (moment, number)
        said = [line for line in place.log.splitlines() if line.startswith("damaged")]
        assert len(said) == len(set(said)), "damage is said once"
        now = place.finished()
        assert kept.items() <= now.items(), (moment, number, "a finished task was lost or done again")
        kept = {path: version for path, version in now.items() if damaged.get(path) != version}
        stored = [path for path in kept if path.name != "record.json"]
        if stored and chance.random() < 0.3:
            path = chance.choice(stored)
            del kept[path]
            damage(path, chance)
            damaged[path] = place.finished()[path]
        print(f"{moment}: signal {number} to {'all' if group else 'the parent'}, {len(kept)} finished")
    for leftover in place.root.with_name("tmp").iterdir():
        os.utime(leftover, (0, 0))  # a folder of a killed process counts as one after a minute
    process = place.start()
    assert process.wait(DEADLINE) == 0, place.log
    wait_until(lambda: not living(process.pid), "processes live on")
    assert place.temporary() == []
    assert kept.items() <= place.finished().items(), "a finished task was lost or done again"
    same_records(place, whole)
    assert hits >= 2


@pytest.mark.faults
def test_several_starts_at_once_give_the_records_of_one(tmp_path):
    """No batch is given, and none is known: the first one to measure decides for all."""
    settings = {name: value for name, value in SHORT.items() if name != "batch"}
    place = Place(tmp_path / "disturbed", settings)
    place.root.mkdir()
    starts = [place.start(jobs) for jobs in (1, 1, 2)]
    for process in starts:
        assert process.wait(DEADLINE) == 0, place.log
        wait_until(lambda process=process: not living(process.pid), "processes live on")
    shutil.copytree(place.root / "cache", tmp_path / "whole" / "cache")
    same_records(place, undisturbed(tmp_path / "whole", settings))


@pytest.fixture
def disk(tmp_path):
    """Mounts a small disk of its own; given options, mounts it anew."""
    folder = tmp_path / "disturbed"
    folder.mkdir()

    def mount(options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
        return done.returncode == 0

    if not mount("size=200k"):
        pytest.skip("no tmpfs may be mounted here")
    try:
        yield folder, lambda options: mount(f"remount,{options}")
    finally:
        subprocess.run(["umount", folder], check=False)


@pytest.mark.faults
def test_a_disk_that_is_full_or_read_only_is_one_line_and_the_run_goes_on_when_it_has_room(tmp_path, disk):
    folder, remount = disk
    place, kept = Place(folder, SHORT), {}
    for options, said in (("size=200k", "No space left on device"), ("size=900k", "No space left on device")):
        assert remount(options)
        process = place.start()
        assert process.wait(DEADLINE) == 2, place.log
        assert said in place.complaint
        wait_until(lambda process=process: not living(process.pid), "processes live on")
        assert kept.items() <= place.finished().items()
        kept = place.finished()
    assert remount("size=100m")
    (place.root / "cache").mkdir(exist_ok=True)
    assert remount("ro")
    process = place.start()
    assert process.wait(DEADLINE) == 2, place.log
    assert "Read-only file system" in place.complaint
    assert remount("rw")
    assert place.start().wait(DEADLINE) == 0, place.log
    assert kept.items() <= place.finished().items(), "a finished task was lost or done again"
    same_records(place, undisturbed(tmp_path / "whole", SHORT))
