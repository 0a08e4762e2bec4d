"""Runs in real processes that are ended at bad moments: nothing is left behind, lost or done twice, and records are equal.

The campaign runs with ``pytest -m faults`` and takes minutes; a short version of it is among the usual tests.
"""

from __future__ import annotations

import os
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

DEADLINE = 600.0
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
    """The folders of a disturbed run: its output, its cache, and its temporary files."""

    root: Path
    settings: dict

    def start(self, jobs=2):
        config = self.root / "run.toml"
        words = (f"{name.replace('_', '-')} = {value!r}\n" for name, value in self.settings.items())
        config.write_text("".join(words))
        for folder in ("cache", "tmp"):
            (self.root / folder).mkdir(exist_ok=True)
        code = CODE.format(config=str(config), out=str(self.root / "out"), jobs=jobs)
        environment = os.environ | {"ADVBENCH_CACHE": str(self.root / "cache"), "TMPDIR": str(self.root / "tmp")}
        command = [sys.executable, "-c", code]
        with (self.root / "log").open("w") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def started(self):
        """A run that has finished another task."""
        count, process = len(self.finished()), self.start()
        wait_until(lambda: len(self.finished()) > count or process.poll() is not None, "a task")
        assert process.poll() is None, "the run was over before it could be ended"
        return process

    @property
    def log(self):
        return (self.root / "log").read_text()

    def finished(self):
        """The files of finished tasks, and which version of each lies there."""
        patterns = ("out/records/*/record.json", "out/store/*/*.npz", "cache/models/*.safetensors")
        found = {}
        for path in sorted(path for pattern in patterns for path in self.root.glob(pattern)):
            about = path.stat()
            found[path] = about.st_ino, about.st_mtime_ns
        return found

    def temporary(self):
        return sorted(path.name for path in (self.root / "tmp").iterdir() if path.name.startswith("advbench"))


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
