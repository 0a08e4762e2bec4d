"""Where running crafts stand: workers write small files at most once a second, the parent reads them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from advbench.attacks import progress
from advbench.attacks.access import Access
from advbench.files import write_atomically

EVERY = 1.0
"""Seconds between two reports of a craft, at least."""


@dataclass(frozen=True, slots=True)
class CraftProgress:
    """Where a running craft stands.

    label: of its task. part: of an ensemble, empty if there is none. images: all that it attacks. robust: those that
    withstand so far. share: of the work that is done, in [0, 1], roughly. seconds: since it began.
    """

    label: str
    part: str
    images: int
    robust: int
    share: float
    seconds: float

    @property
    def seconds_left(self) -> float | None:
        """The time left by the share that is done; None until something is."""
        return self.seconds * (1 - self.share) / self.share if self.share > 0 else None

    @property
    def so_far(self) -> str:
        """How far it is, for the row of an attack that goes no further."""
        return f"{self.robust} of {self.images} images still robust, {self.share:.0%} done"

    def __str__(self) -> str:
        part = f"{self.part}, " if self.part else ""
        left = "" if self.seconds_left is None else f", about {self.seconds_left:.0f} s left"
        return f"{part}{self.robust} of {self.images} images still robust{left}"


class Reporter:
    """Follows a craft block by block, and says where it stands.

    say: called with the standing, at most once in `every` seconds. forwards: what the attack takes for an example that
    withstands it, roughly (`attacks.capabilities.passes_of`, times the draws of a stochastic model).
    """

    def __init__(self, say: Callable[[CraftProgress], None], label: str, images: int, forwards: float, every: float) -> None:
        self.say, self.label, self.images, self.forwards, self.every = say, label, images, forwards, every
        self.started = self.told = time.monotonic()
        self.done = self.broken = 0
        self._access: Access | None = None
        self._part = ""

    @contextmanager
    def block(self, access: Access) -> Iterator[None]:
        """Follow the attack of the examples of one access, which happens inside."""
        self._access, self._part = access, ""
        self._inside = broken = torch.zeros(len(access), dtype=torch.bool, device=access.rows.device)

        def listen(part: str, rows: Tensor, achieved: Tensor) -> None:
            broken[rows] |= achieved
            self._part = part
            if time.monotonic() - self.told >= self.every:
                self.told = time.monotonic()
                self.say(self.standing())

        with progress.heard_by(listen):
            yield
        self.done += len(access)
        self.broken += int(broken.sum())
        self._access = None

    def standing(self) -> CraftProgress:
        """Where the craft stands now."""
        share, broken = float(self.done), self.broken
        if self._access is not None:
            share += len(self._access) * min(0.99, float(self._access.ledger.forwards.max()) / self.forwards)
            broken += int(self._inside.sum())
        share /= max(1, self.images)
        return CraftProgress(
            self.label, self._part, self.images, self.images - broken, share, time.monotonic() - self.started
        )


def write(folder: Path, key: str, standing: CraftProgress) -> None:
    """Write the progress of the task `key` to its file, as a whole; a full disk or lost folder does not stop it."""
    with suppress(OSError):
        write_atomically(folder / f"{key}.json", json.dumps(asdict(standing)), make_folder=False)


def forget(folder: Path, key: str) -> None:
    """Remove the file of a task that has ended."""
    with suppress(OSError):
        (folder / f"{key}.json").unlink(missing_ok=True)


def read(folder: Path) -> dict[str, CraftProgress]:
    """The standings of all running crafts, by key."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError, TypeError):
            found[path.stem] = CraftProgress(**json.loads(path.read_text()))
    return found
