"""Runs of several workers in which workers, machines and the process that began the run are lost, and a disk is full.

Nothing that is finished is lost, and the records are those of an undisturbed run of this machine. ``pytest -m faults``;
ADVBENCH_FAULTS_SEED and ADVBENCH_FAULTS_EVENTS choose another campaign.
"""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from tests.benchmark.test_faults import LONG, Place, living, same_records, undisturbed, wait_until

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc"),
]

SEED = int(os.environ.get("ADVBENCH_FAULTS_SEED", "0"))
EVENTS = int(os.environ.get("ADVBENCH_FAULTS_EVENTS", "10"))
DEADLINE = 900.0
LEASE = 3
"""Seconds, so that a stopped worker loses its task soon."""
SETTINGS = LONG | {"attack": "fgsm,pgd(steps=150)"}


class Scene:
    """A run by one engine: who began it, and its workers, on two pretended machines."""

    def __init__(self, root, engine):
        self.root, self.engine = root, engine
        self.place = Place(root, SETTINGS)
        config = self.place.beside.with_suffix(".toml")
        config.write_text("".join(f"{name.replace('_', '-')} = {value!r}\n" for name, value in SETTINGS.items()))
        self.command = ["run", str(config), "--out", str(root / "out"), "--engine", engine]
        if engine == "dask":
            self.command += ["--jobs", "3"]
        if engine == "slurm":
            self.command += ["--pilots", "3", "--slurm", "cluster=local,timeout_min=60", "--jobs", "1"]
        self.coordinator, self.started = None, []
        self.pilots = {"one": [], "other": []}
        self.codes = Counter()

    def start(self, *arguments):
        log = self.place.beside.with_suffix(f".{time.monotonic_ns()}.log").open("w")
        environment = os.environ | {"ADVBENCH_CACHE": str(self.root / "cache")}
        command = [sys.executable, "-m", "advbench", *arguments]
        with log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        process.log = Path(log.name)
        self.started.append(process)
        return process

    def keep_up(self):
        """Start what is missing: the process that began the run, and, where people do so, workers."""
        if self.coordinator is None or self.coordinator.poll() not in (None, 0):
            self.coordinator = self.start(*self.command)
            if self.engine == "pilots":
                wait_until((self.root / "out" / "plan.json").is_file, "the settings")
        if self.engine == "pilots":
            for machine, pilots in self.pilots.items():
                for pilot in [pilot for pilot in pilots if pilot.poll() is not None]:
                    pilots.remove(pilot)
                    self.codes[pilot.returncode] += 1
                while len(pilots) < (2 if machine == "one" else 1):
                    pilots.append(self.start("work", str(self.root / "out"), "--jobs", "1", "--lease", str(LEASE)))

    def workers(self):
        """The processes of workers."""
        if self.engine == "pilots":
            return [pilot.pid for pilots in self.pilots.values() for pilot in pilots if pilot.poll() is None]
        if self.engine == "slurm":
            return [pid for pid in every_process() if f"work {self.root / 'out'}" in command_of(pid)]
        return [pid for pid in living(self.coordinator.pid) if "spawn_main" in command_of(pid)]

    def ended(self):
        """Whether the run has come to its end; one whose last Slurm worker is lost says so, and is started again."""
        code = self.coordinator.poll()
        return code is not None and not (code == 2 and "Expected pilots at work" in self.coordinator.log.read_text())

    def end(self):
        for pid in (*self.workers(), *living(self.coordinator.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
                os.kill(pid, signal.SIGKILL)
        for process in self.started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(DEADLINE)


def every_process():
    return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def signal_to(pids, number):
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def a_worker_is_killed(scene, chance):
    signal_to(chance.sample(scene.workers(), min(1, len(scene.workers()))), signal.SIGKILL)


def a_worker_is_told_to_end(scene, chance):
    signal_to(chance.sample(scene.workers(), min(1, len(scene.workers()))), signal.SIGTERM)


def all_workers_of_a_machine_are_killed(scene, chance):
    signal_to(sorted(scene.workers())[:2], signal.SIGKILL)


def the_run_is_killed_and_started_again(scene, chance):
    os.kill(scene.coordinator.pid, signal.SIGKILL)
    scene.coordinator.wait(DEADLINE)


def a_worker_is_stopped_and_goes_on_after_its_lease_was_taken(scene, chance):
    chosen = chance.sample(scene.workers(), min(1, len(scene.workers())))
    signal_to(chosen, signal.SIGSTOP)
    time.sleep(2.5 * LEASE)
    signal_to(chosen, signal.SIGCONT)


def let_work(scene, seconds):
    """Wait so long, and for another finished task, or for the end of the run."""
    before, ready = len(scene.place.finished()), time.monotonic() + seconds
    over = lambda: time.monotonic() > ready and len(scene.place.finished()) > before  # noqa: E731
    wait_until(lambda: scene.coordinator.poll() is not None or over(), "another task")


COMMON = (a_worker_is_killed, all_workers_of_a_machine_are_killed, the_run_is_killed_and_started_again)
HAPPENINGS = {
    "pilots": (*COMMON, a_worker_is_told_to_end, a_worker_is_stopped_and_goes_on_after_its_lease_was_taken),
    "slurm": (*COMMON, a_worker_is_told_to_end, a_worker_is_stopped_and_goes_on_after_its_lease_was_taken),
    "dask": COMMON,
}


@pytest.mark.parametrize("engine", list(HAPPENINGS))
def test_no_loss_of_workers_or_of_the_run_loses_a_finished_task(tmp_path, engine):
    library = {"slurm": "submitit", "dask": "distributed"}.get(engine)
    if library and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    whole = undisturbed(tmp_path / "whole", SETTINGS)
    chance = random.Random(SEED)
    root = tmp_path / "disturbed"
    root.mkdir()
    scene, kept, happened = Scene(root, engine), set(), Counter()
    try:
        for number in range(EVENTS):
            scene.keep_up()
            let_work(scene, chance.uniform(1, 6))
            if scene.ended():
                break
            scene.keep_up()
            happening = HAPPENINGS[engine][number % len(HAPPENINGS[engine])]
            happening(scene, chance)
            happened[happening.__name__] += 1
            assert kept <= scene.place.finished().keys(), "a finished task was lost"
            kept = set(scene.place.finished())
            print(f"{happening.__name__}: {len(kept)} finished")
        while not scene.ended():
            scene.keep_up()
            time.sleep(0.2)
        assert scene.coordinator.returncode == 0, scene.coordinator.log.read_text()
        assert kept <= scene.place.finished().keys(), "a finished task was lost"
        assert sum(happened.values()) >= 4, happened
    finally:
        scene.end()
    print(dict(happened))
    same_records(scene.place, whole)


def test_workers_on_a_disk_that_is_full_for_a_while_end_and_later_ones_go_on(tmp_path):
    root = tmp_path / "disturbed"
    root.mkdir()

    def mount(options):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", root], capture_output=True, check=False)
        return done.returncode == 0

    if not mount("size=100m"):
        pytest.skip("no tmpfs may be mounted here")
    scene = None
    try:
        whole = undisturbed(tmp_path / "whole", SETTINGS)
        scene = Scene(root, "pilots")
        scene.keep_up()
        wait_until(lambda: len(scene.place.finished()) > 2, "some tasks")
        kept = set(scene.place.finished())
        used = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
        assert mount(f"remount,size={used + 40_000}")
        pilots = [pilot for machine in scene.pilots.values() for pilot in machine]
        for pilot in pilots:
            assert pilot.wait(DEADLINE) == 2
            (line,) = [line for line in pilot.log.read_text().splitlines() if line.startswith("advbench: ")]
            assert "No space left on device" in line
        assert kept <= scene.place.finished().keys()
        assert mount("remount,size=100m")
        while scene.coordinator.poll() is None:
            scene.keep_up()
            time.sleep(0.2)
        assert scene.coordinator.returncode == 0, scene.coordinator.log.read_text()
        same_records(scene.place, whole)
    finally:
        if scene is not None:
            scene.end()
        subprocess.run(["umount", "-l", root], check=False)
