"""What a run sees of others who work on the same folder: which tasks they have taken, which they finished, which failed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from advbench.engine.leases import SECONDS, Failures, Leases, Owner
from advbench.tasks.execution import Listing, lies_there
from advbench.tasks.task import BlockTask, Task

EVERY = 1.0
"""Seconds between two looks at what others do."""
MOST_ATTEMPTS = 3
"""Workers that may be lost with a task; then it has failed."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A task that was asked for.

    mine: whether it is to be run here. ended: whether others have finished it, or it has failed, for `reason`. If neither,
    others work on it.
    """

    mine: bool
    ended: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Others:
    """What others do, at one moment.

    held: the keys of the tasks that they work on. divided: those of the crafts whose blocks are among them. failed: the
    reasons, by key.
    """

    held: Set[str]
    divided: Set[str]
    failed: Mapping[str, str]

    @staticmethod
    def of(held: Set[str], failed: Mapping[str, str]) -> Others:
        """What others do by the keys that they hold."""
        return Others(held, {craft for craft, sign, _ in (key.rpartition("-") for key in held) if sign}, failed)

    def works_on(self, task: Task) -> bool:
        """Whether anybody has the task, a block of it, or the craft that it is a block of."""
        if isinstance(task, BlockTask):
            return task.key in self.held or task.craft in self.held
        return task.key in self.held or task.key in self.divided


class Claims(Protocol):
    """Decides which tasks a run takes."""

    @property
    def divides(self) -> bool:
        """Whether crafts are cut into blocks even for a single slot, so that others can take some."""
        ...

    def take(self, task: Task) -> Taken:
        """Ask for a task that is to be started."""
        ...

    def end(self, task: Task, reason: str) -> None:
        """A task that was taken has ended. reason: why it failed, if it did."""
        ...

    def look(self) -> Others:
        """What others do now."""
        ...

    def finished(self, task: Task) -> bool:
        """Whether the result of a task lies in its place by now."""
        ...

    def pause(self) -> bool:
        """Wait until another look is worth it; whether to go on at all."""
        ...

    def working(self) -> AbstractContextManager[None]:
        """A block within which tasks are taken; when it is left, none is."""
        ...


class Unclaimed:
    """A run whose models live in this process, so that nobody else can work on it."""

    divides = False

    def take(self, task: Task) -> Taken:  # noqa: ARG002
        """Every task."""
        return Taken(mine=True)

    def end(self, task: Task, reason: str) -> None:
        """Nobody is told."""

    def look(self) -> Others:
        """Nobody is there."""
        return Others.of(set(), {})

    def finished(self, task: Task) -> bool:  # noqa: ARG002
        """Only what ran here."""
        return False

    def pause(self) -> bool:
        """There is nothing to wait for."""
        return True

    def working(self) -> nullcontext[None]:
        """Nothing is held."""
        return nullcontext()


class SharedClaims:
    """A run whose folder others may work on.

    helps: whether it is one worker among several, which cuts crafts into blocks even for itself. idle: seconds without
    a task after which it leaves. seconds: how long a lease may stay unchanged.
    """

    def __init__(self, out: Path, *, helps: bool = False, idle: float = math.inf, seconds: float = SECONDS) -> None:
        self.out = out
        self._idle, self._busy = idle, time.monotonic()
        self.leases = Leases(out, Owner.here(), seconds=seconds)
        self.failures = Failures(out)
        self.divides = helps
        self._listing = Listing(out)

    def take(self, task: Task) -> Taken:
        """The task if nobody has it, and for a block nobody the whole craft, and it has not failed elsewhere.

        A task with which several workers were lost has failed.
        """
        if isinstance(task, BlockTask) and task.craft in self.leases.others():
            return Taken(mine=False)
        lease = self.leases.take(task.key)
        if lease is None:
            return Taken(mine=False)
        reason = self.failures.of(task.key)
        if not reason and lease.attempt > MOST_ATTEMPTS:
            reason = f"the worker was lost {MOST_ATTEMPTS} times"
            self.failures.write(task.key, reason)
        ended = bool(reason) or lies_there(task, self.out)
        if ended:
            self.leases.give_back(task.key)
        self._busy = time.monotonic()
        return Taken(not ended, ended, reason)

    def end(self, task: Task, reason: str) -> None:
        """Tell others why a task failed, a craft with its block, and give its lease back.

        On a full disk nothing is told; others then find out by themselves.
        """
        with suppress(OSError):
            for key in (task.key, task.craft) if isinstance(task, BlockTask) else (task.key,):
                if reason:
                    self.failures.write(key, reason)
        self.leases.give_back(task.key)

    def look(self) -> Others:
        """The leases that are kept fresh, and the failures."""
        self._listing = Listing(self.out)
        return Others.of(self.leases.others().keys(), dict(self.failures.read()))

    def finished(self, task: Task) -> bool:
        """Whether the result of a task lies in its place; folders are listed once between two looks."""
        return lies_there(task, self.out) if isinstance(task, BlockTask) else self._listing.finished(task)

    def pause(self) -> bool:
        """Wait for a moment; whether it is still worth it."""
        time.sleep(EVERY)
        return time.monotonic() - self._busy < self._idle

    def begin(self) -> None:
        """Begin a new start of the run: what failed, or was lost with a worker of this machine, is tried again."""
        self.failures.forget()
        self.leases.remove_lost()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Keep the leases that are taken inside fresh, and give them back in the end."""
        with self.leases.kept_fresh():
            yield
