"""How a run ends from outside: signals that mean Ctrl-C, and workers whose parent is gone; never imports torch."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_EVERY = 0.5
"""Seconds between two looks at the parent."""


@contextmanager
def as_ctrl_c() -> Iterator[None]:
    """While the block runs, SIGTERM and SIGHUP end it as Ctrl-C does: by KeyboardInterrupt in the main thread.

    Only the first one does, so that what follows in a hurry does not disturb the tidying up. A signal that the program
    already handles or ignores is left alone, and outside the main thread nothing changes.
    """
    told = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if not told:
            told = True
            signal.default_int_handler(number, frame)

    handled = []
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
        handled = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
        for number in handled:
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


_folders: set[Path] = set()
_parents: set[int] = set()


def end_with_parent(parent: int) -> None:
    """End this process, at work or idle, within seconds when its parent is gone, even if that was killed.

    parent: the process id that the parent has. Folders named to `remove_with_parent` go too. What is being written is not
    finished; a whole file stays whole. Where a process cannot see that its parent has changed, nothing is watched.
    """
    if os.name == "posix" and parent not in _parents:
        _parents.add(parent)
        threading.Thread(target=_watch, args=(parent,), daemon=True, name="advbench-parent").start()


def remove_with_parent(folder: Path) -> None:
    """Remove a folder of the parent's when the parent is gone."""
    _folders.add(folder)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_EVERY)
    for folder in _folders:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
