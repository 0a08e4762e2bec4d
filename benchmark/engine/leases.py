"""Leases: a file for each task that somebody works on, so that several processes and machines share one run folder.

A lease lies in ``OUT/store/leases/KEY`` and is taken by making the file, which only one can. Its owner writes the current
time into it again and again; if it stays unchanged for too long, or if the owner's process on this machine is gone, another
one takes it over. Losing a lease does no harm: a task that runs twice writes the same result twice. No clock of one machine
is compared with that of another. What failed lies in ``OUT/store/failed/KEY`` with its reason. Never imports torch.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from advbench.files import names_in, write_atomically

SECONDS = 60.0
"""How long a lease may stay unchanged before others take it over."""
_BEATS = 6
"""How often an owner touches its leases in that time."""
_LARGEST = 2**16


@dataclass(frozen=True, slots=True)
class Owner:
    """Who works on a task. machine: one boot of one machine, or container. started: when the process began, in ticks."""

    host: str
    machine: str
    pid: int
    started: str
    token: str

    @staticmethod
    def here() -> Owner:
        """This process."""
        pid = os.getpid()
        return Owner(platform.node(), _machine(), pid, _started(pid), uuid.uuid4().hex)

    @property
    def gone(self) -> bool:
        """Whether it was a process of this machine, and is no more."""
        return self.machine == _machine() and _started(self.pid) != self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as its file has it. seconds: how long it may stay unchanged. attempt: from one on, how many took it so far."""

    owner: Owner
    seconds: float
    attempt: int


class Leases:
    """The leases of a run folder, seen by one owner.

    seconds: how long a lease of this owner may stay unchanged, at least a few times the delay of a network disk.
    """

    def __init__(
        self, out: Path, owner: Owner, *, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.folder = out / "store" / "leases"
        self.owner, self.seconds, self._clock = owner, float(seconds), clock
        self._spelled = json.dumps(asdict(owner))
        self._mine: dict[str, Lease] = {}
        self._seen: dict[str, tuple[tuple[int, int], Lease | None, float]] = {}
        self._turn = threading.Lock()

    def take(self, key: str) -> Lease | None:
        """The lease of a task that nobody works on, or whose owner is lost; None if another one holds it.

        Raises OSError if the folder cannot be written.
        """
        try:
            made = self._make(key, 1)
        except FileNotFoundError:
            self.folder.mkdir(parents=True, exist_ok=True)
            made = self._make(key, 1)
        if made:
            return self._mine[key]
        lost = self._lost(key)
        if lost is None or not self._put_away(key, lost):
            return None
        return self._mine[key] if self._make(key, lost.attempt + 1) else None

    def give_back(self, key: str) -> None:
        """Give a lease back. If another owner has taken it over meanwhile, that one keeps it."""
        with self._turn:
            self._mine.pop(key, None)
        with suppress(OSError):
            if self._owns(key):
                os.unlink(self._place(key))  # noqa: PTH108 - ten thousand times in a run

    def others(self) -> dict[str, Lease | None]:
        """The leases that others hold and keep fresh, by the keys of their tasks; None for one that is being written."""
        held: dict[str, Lease | None] = {}
        names = names_in(self.folder)
        for key in names - self._mine.keys():
            if self._lost(key) is None and key in self._seen:
                held[key] = self._seen[key][1]
        for key in self._seen.keys() - names:
            del self._seen[key]
        return held

    def remove_lost(self) -> None:
        """Remove the leases of processes of this machine that are gone, so that they count as no attempts."""
        for key in names_in(self.folder):
            lease = self._read(self.folder / key)
            if lease is not None and lease.owner.gone:
                self._put_away(key, lease)

    @contextmanager
    def kept_fresh(self) -> Iterator[None]:
        """While the block runs, a thread touches the leases that are held; those that are left then are given back."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(self.seconds / _BEATS):
                self.touch()

        thread = threading.Thread(target=beat, daemon=True, name="advbench-leases")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            for key in list(self._mine):
                self.give_back(key)

    def touch(self) -> None:
        """Show that this owner is alive, in every lease that it holds and that is still its own."""
        with self._turn:
            mine = list(self._mine)
        for key in mine:
            with suppress(OSError):
                if self._owns(key):
                    os.utime(self._place(key))

    def _make(self, key: str, attempt: int) -> bool:
        """Make the file of a lease unless it is there."""
        try:
            descriptor = os.open(self._place(key), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return False
        try:
            text = f'{{"owner": {self._spelled}, "seconds": {self.seconds}, "attempt": {attempt}}}'
            os.write(descriptor, text.encode())
        except OSError:
            with suppress(OSError):
                (self.folder / key).unlink()
            raise
        finally:
            os.close(descriptor)
        with self._turn:
            self._mine[key] = Lease(self.owner, self.seconds, attempt)
        return True

    def _place(self, key: str) -> str:
        return f"{self.folder}/{key}"

    def _owns(self, key: str) -> bool:
        """Whether a lease is still this owner's. OSError if there is none."""
        descriptor = os.open(self._place(key), os.O_RDONLY)
        try:
            return self.owner.token.encode() in os.read(descriptor, _LARGEST)
        finally:
            os.close(descriptor)

    def _lost(self, key: str) -> Lease | None:
        """The lease of a key if its owner is lost: gone from this machine, or silent for longer than it said."""
        path = self.folder / key
        try:
            found = path.stat()
        except OSError:
            self._seen.pop(key, None)
            return None
        version = found.st_ino, found.st_mtime_ns
        before = self._seen.get(key)
        if before is None or before[0] != version or before[1] is None:
            since = before[2] if before is not None and before[0] == version else self._clock()
            before = self._seen[key] = version, self._read(path), since
        lease = before[1] or Lease(_NOBODY, SECONDS, 1)  # its writer was killed between making and writing it
        silent = self._clock() - before[2] > lease.seconds
        return lease if silent or lease.owner.gone else None

    def _put_away(self, key: str, lost: Lease) -> bool:
        """Move a lost lease out of the way; False if another one has done so by now."""
        path, aside = self.folder / key, self.folder / f".{key}.{self.owner.token}"
        try:
            path.rename(aside)
        except OSError:
            return False
        now = self._read(aside)
        if now is not None and now.owner != lost.owner:  # a new one since the last look: give it back
            with suppress(OSError):
                os.link(aside, path)
            aside.unlink(missing_ok=True)
            return False
        aside.unlink(missing_ok=True)
        self._seen.pop(key, None)
        return True

    def _read(self, path: Path) -> Lease | None:
        """The lease of a file; None if there is none, or none yet."""
        try:
            with path.open("rb") as file:
                found = json.loads(file.read(_LARGEST))
            return Lease(Owner(**found["owner"]), float(found["seconds"]), int(found["attempt"]))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None


_NOBODY = Owner("", "", 0, "", "")


class Failures:
    """The reasons of tasks that failed in a run folder, for those that wait for them elsewhere."""

    def __init__(self, out: Path) -> None:
        self.folder = out / "store" / "failed"
        self._known: dict[str, str] = {}

    def write(self, key: str, reason: str) -> None:
        """Say why a task failed."""
        write_atomically(self.folder / key, json.dumps({"reason": reason}))

    def of(self, key: str) -> str:
        """The reason of a task, empty if it has not failed."""
        try:
            with (self.folder / key).open("rb") as file:
                return str(json.loads(file.read(_LARGEST))["reason"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return ""

    def read(self) -> Mapping[str, str]:
        """The reason of each task that failed, by key; files that are none are left out."""
        names = names_in(self.folder)
        found = {key: self._known.get(key) or self.of(key) for key in names}
        self._known = {key: reason for key, reason in found.items() if reason}
        return self._known

    def forget(self) -> None:
        """Forget all of them, so that a new start tries these tasks again."""
        for key in names_in(self.folder):
            with suppress(OSError):
                (self.folder / key).unlink(missing_ok=True)
        self._known = {}


def _machine() -> str:
    """What tells this machine, since it was started, and this container from others."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return " ".join(parts)


def _started(pid: int) -> str:
    """When a process of this machine began, in ticks since its start; empty if there is none, or if it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "" if Path("/proc/self/stat").exists() or not _signalled(pid) else "alive"
    return "" if fields[0] == "Z" else fields[19]


def _signalled(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
