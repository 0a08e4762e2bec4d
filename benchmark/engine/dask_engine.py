"""The engine of a dask cluster, by `distributed.Client` itself: joblib's back end for dask waits for ever for a lost worker.

Workers write their results where the run lies, so they must see its folder and that of the models. Only the process that has
started the run writes error records.
"""

from __future__ import annotations

import logging
import os
import queue
import shutil
import signal
import time
import uuid
import zlib
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from distributed import Client, Future, LocalCluster, WorkerPlugin
from distributed.scheduler import KilledWorker

from advbench.engine import dask_worker
from advbench.engine.dask_worker import Seen
from advbench.engine.places import Slots
from advbench.engine.sharing import pickled
from advbench.engine.suspects import Suspects
from advbench.engine.work import Work
from advbench.errors import debugging
from advbench.files import locked
from advbench.plan.plan import Plan
from advbench.tasks.context import Context
from advbench.tasks.execution import TaskOutcome, execute
from advbench.tasks.task import Task
from advbench.zoo.checkpoints import cache_dir

GPU = "GPU"
"""The resource that a worker of somebody's cluster has as many of as it has GPUs, by dask's convention."""
_PATIENCE = 60.0
"""Seconds until the first worker must be there."""
_LOOK = 2.0
"""Seconds between two counts of the workers."""
_RETRIES = 2
_DEATHS = 2
"""Workers of the run's own cluster that a task may cost before it runs alone."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a run asks of its cluster.

    address: of a scheduler that is there already; None: a cluster of this machine for the run alone. places: the slots of
    the latter, each with its device. device: the type of device that tasks take. most: slots at most.
    """

    address: str | None
    places: Slots
    device: str
    most: int | None

    @staticmethod
    def of(plan: Plan, places: Slots) -> Cluster:
        """The cluster that a configuration names."""
        kind = plan.devices[0].type if plan.place is None else plan.place.kind
        return Cluster(plan.config.address, places, kind, plan.config.jobs)


class DaskEngine:
    """Tasks on the workers of a dask scheduler.

    A worker that dies is a matter of its task alone, which the scheduler gives to another one. When so many have died that
    the scheduler gives a task up, it runs once more alone: a task that only waited at the same worker is blamed as well.
    Raises ValueError, in one line, if no worker comes, or one that does not see the folders or has other versions.
    """

    def __init__(self, context: Context, cluster: Cluster, work: Work = execute) -> None:
        self._cluster = cluster
        self._suspects = Suspects()
        self._running: dict[Future, Task] = {}
        self._ended: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._run = uuid.uuid4().hex[:8]
        self._count = self._submitted = 0
        self._counted = -_LOOK
        self._held = ExitStack()
        self._own: LocalCluster | None = None
        try:
            self._connect()
            self._check(context)
            content = zlib.compress(pickled((work, replace(context, last_words=self._last_words(context)))), 1)
            key = f"advbench-shared-{self._run}"
            # A task, not scattered data: what was scattered is lost for good with the last worker that holds it.
            self._shared = self._client.submit(dask_worker.unpacked, content, key=key, pure=False)
        except BaseException:
            self.close(kill=True)
            raise

    @property
    def slots(self) -> int:
        """How many tasks run side by side, as of a moment ago: workers come and go."""
        if self._cluster.address is None:
            return self._cluster.places.count
        if time.monotonic() - self._counted >= _LOOK:
            self._count, self._counted = sum(self._capacities().values()), time.monotonic()
        most = self._cluster.most
        return max(1, self._count if most is None else min(most, self._count))

    def submit(self, task: Task) -> None:
        """Give the task to the scheduler."""
        if self._cluster.address is None:
            self._cluster.places.take(task)
        if self._suspects.admit(task):
            self._start(task)

    def wait(self, timeout: float | None = None) -> TaskOutcome | None:
        """Wait for a worker. OSError if the scheduler is gone."""
        if not self._running:
            raise RuntimeError("Expected a submitted task to wait for, got none")
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                future = self._ended.get(timeout=None if until is None else max(0.0, until - time.monotonic()))
            except queue.Empty:
                return None
            outcome = self._outcome(future)
            for task in self._suspects.next(busy=bool(self._running)):
                self._start(task)
            if outcome is not None:
                if self._cluster.address is None:
                    self._cluster.places.give_back(outcome.key)
                return outcome

    def close(self, *, kill: bool = False) -> None:
        """Leave the cluster. One of the run's own ends, at once with `kill`; in another, tasks that run are not ended."""
        if kill:
            self._kill()
        self._held.close()

    # --- the cluster

    def _connect(self) -> None:
        _be_quiet()
        address, count = self._cluster.address, 1
        if address is None:
            count = self._cluster.places.count
            self._own = self._held.enter_context(_own_cluster(count))
        try:
            self._client = self._held.enter_context(Client(self._own or address, timeout=_PATIENCE if self._own else 10.0))
        except (OSError, ValueError) as error:
            raise ValueError(f"Expected a dask scheduler at {address}, got none: {_one_line(error)}") from None
        if self._own is not None:
            self._client.register_plugin(_OwnWorker())
        try:
            self._client.wait_for_workers(count, timeout=_PATIENCE)
        except TimeoutError:
            raise ValueError(f"Expected dask workers within {_PATIENCE:.0f} s, got none: see `dask worker`") from None

    def _capacities(self) -> dict[str, int]:
        """How many tasks each worker takes side by side: by its threads on the CPU, by its GPUs else."""
        # Asked for directly: the client keeps an answer without workers, which now and then takes the place of this one.
        workers = self._client.sync(self._client.scheduler.identity, n_workers=-1)["workers"]
        if self._cluster.device == "cpu":
            return {address: int(worker["nthreads"]) for address, worker in workers.items()}
        return {address: int(worker["resources"].get(GPU, 0)) for address, worker in workers.items()}

    def _check(self, context: Context) -> None:
        """Refuse workers that do not see what they need, or that compute by other versions."""
        name = f".advbench.{uuid.uuid4().hex}.tmp"
        with ExitStack() as held:
            for folder in (context.out, cache_dir() / "models"):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).touch()
                held.callback((folder / name).unlink, missing_ok=True)
                held.enter_context(locked(folder / name))
            try:
                found: dict[str, Seen] = self._client.run(dask_worker.look, context.out, name)
            except Exception as error:
                raise ValueError(f"Expected dask workers with advbench installed, got {_one_line(error)}") from None
        here = dask_worker.versions()
        for address, seen in found.items():
            who = f"the dask worker {address} on {seen.host}"
            if not seen.out:
                raise ValueError(f"Expected workers that see the folder {context.out}, got {who}: use a disk that all share")
            if not seen.models:
                raise ValueError(
                    f"Expected workers with the cache {cache_dir()}, got {seen.cache} of {who}: set ADVBENCH_CACHE for all"
                )
            if seen.versions != here:
                raise ValueError(f"Expected workers with {here}, got {who} with {seen.versions}")
        if not sum(self._capacities().values()):
            raise ValueError(f"Expected dask workers with the resource {GPU}, got none: dask worker --resources {GPU}=1")

    def _last_words(self, context: Context) -> Path | None:
        """A folder that all workers see, for the last words of those whose task does not stop; None without a limit."""
        if context.time_limit is None:
            return None
        folder = context.out / "store" / "last-words" / self._run
        folder.mkdir(parents=True)
        self._held.callback(shutil.rmtree, folder, ignore_errors=True)
        return folder

    def _kill(self) -> None:
        """End the processes of the run's own workers, in the midst of what they do, and forget what was submitted."""
        for future in self._running:
            with suppress(Exception):
                future.cancel()
        for nanny in self._own.workers.values() if self._own is not None else ():
            nanny.auto_restart = False
            with suppress(Exception):
                os.kill(nanny.pid, signal.SIGKILL)

    # --- tasks

    def _start(self, task: Task) -> None:
        own = self._cluster.address is None
        device = self._cluster.places.taken[task.key] if own else self._cluster.device
        self._submitted += 1
        future = self._client.submit(
            dask_worker.perform,
            self._shared,
            task,
            device,
            key=f"{task.kind}-{task.key}-{self._run}-{self._submitted}",
            resources=None if own or device == "cpu" else {GPU: 1},
            priority=-self._submitted,
            retries=_RETRIES,
            pure=False,
        )
        self._running[future] = task
        future.add_done_callback(self._ended.put)

    def _outcome(self, future: Future) -> TaskOutcome | None:
        """How a task ended; None if it must run again."""
        task = self._running.pop(future)
        if future.status not in ("finished", "error"):
            raise OSError(f"the dask scheduler {self._client.scheduler.addr} is gone: what is finished is kept")
        outcome: TaskOutcome
        try:
            outcome = future.result()
        except KilledWorker:  # even of a task that had finished: what it gave is lost with the worker that held it
            if not self._suspects.accuse(task):
                return None
            outcome = TaskOutcome(
                task.key, 0.0, "the worker died: all dask workers that were given the task have died of it"
            )
        future.release()  # else it would be computed again if the worker that holds it died
        self._suspects.ended(task)
        return outcome


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _be_quiet() -> None:
    """Show none of dask's tracebacks, unless they are wanted: what matters to the run is said in one line."""
    if not debugging():
        for name in list(logging.root.manager.loggerDict):
            if name.partition(".")[0] == "distributed":
                logging.getLogger(name).setLevel(logging.CRITICAL)


def _own_cluster(workers: int) -> LocalCluster:
    """So many processes of this machine, one task each, ended with this one."""
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        memory_limit=0,  # a worker keeps no data for dask; its limit would end tasks that need much memory
        dashboard_address=None,  # no dashboard; its port would be open all the same, and collide with the next run's
        silence_logs=logging.CRITICAL,
        scheduler_kwargs={"allowed_failures": _DEATHS - 1, "dashboard_address": "127.0.0.1:0"},
    )


class _OwnWorker(WorkerPlugin):  # type: ignore[misc]
    """A worker of the run's own cluster leaves Ctrl-C to the process that started it."""

    name = "advbench"

    def setup(self, worker: object) -> None:  # noqa: ARG002
        """Ignore the signal, in the main thread of the worker."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
