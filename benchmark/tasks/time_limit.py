"""The end of a task that takes too long: raised in its code, and the end of a process whose code does not stop for that."""

from __future__ import annotations

import ctypes
import faulthandler
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Protocol

AGAIN = 1.0
"""Seconds after which a task that has caught its end is told again."""
_LONGEST_GRACE = 10.0


class TimeIsUp(BaseException):
    """A task has reached its time limit. No Exception, so that code which catches those cannot go on.

    part: which part of the task had its time. stood: how far the task was. Both empty if it does not tell.
    """

    part: str = ""
    stood: str = ""


def said(seconds: float, part: str = "", stood: str = "") -> str:
    """The reason of a task that has reached its limit.

    >>> said(60, "images 32 to 63", "37 of 100 images still robust, 42% done")
    'time limit of 60 s for images 32 to 63: 37 of 100 images still robust, 42% done'
    """
    return f"time limit of {seconds:g} s" + (f" for {part}" if part else "") + (f": {stood}" if stood else "")


@contextmanager
def limited(seconds: float | None, last_words: Path | None = None) -> Iterator[None]:
    """Raise TimeIsUp in the block when it has taken so many seconds, and again every second until it is left.

    seconds: no limit if None. last_words: a file, in a process that may be ended: if the block does not stop, since code
    without Python's interpreter runs in it, the process writes there where it was and ends, as long again after the limit,
    but at least one second and at most ten. `begin_again` starts the time anew.
    """
    if seconds is None:
        yield
        return
    alarm = _Limit(seconds, last_words)
    alarm.start()
    _current.limit = alarm
    try:
        yield
    finally:
        _current.limit = None
        while True:  # an alarm that rings meanwhile must not keep itself
            try:
                alarm.stop()
                break
            except TimeIsUp:
                continue


def begin_again() -> None:
    """Give this thread's block all of its time again, as for the next part of a task."""
    limit: _Limit | None = getattr(_current, "limit", None)
    if limit is not None:
        limit.stop()
        limit.start()


_current = threading.local()


class _Alarm(Protocol):
    def start(self) -> None: ...

    def stop(self) -> None: ...


class _Limit:
    """An alarm in this thread and, with a file for last words, the end of the process after it."""

    def __init__(self, seconds: float, last_words: Path | None) -> None:
        by_signal = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
        self._alarm: _Alarm = _SignalAlarm(seconds) if by_signal else _ThreadAlarm(seconds)
        self._end = None if last_words is None else _ProcessEnd(seconds + min(_LONGEST_GRACE, max(1.0, seconds)), last_words)

    def start(self) -> None:
        if self._end is not None:
            self._end.start()
        self._alarm.start()

    def stop(self) -> None:
        self._alarm.stop()
        if self._end is not None:
            self._end.stop()


class _SignalAlarm:
    """SIGALRM in the main thread, which ends waits for the system too. An alarm that stood before goes on afterwards."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._rings = False

    def start(self) -> None:
        self._rings, self._started = True, time.monotonic()
        self._handler = signal.signal(signal.SIGALRM, self._ring)
        self._before = signal.setitimer(signal.ITIMER_REAL, self._seconds, AGAIN)

    def stop(self) -> None:
        if not self._rings:
            return
        self._rings = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._handler)
        left, interval = self._before
        if left:
            gone = time.monotonic() - self._started
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, left - gone), interval)

    def _ring(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._rings:
            raise TimeIsUp


class _ThreadAlarm:
    """An exception set in a thread beside the main one, where no signal arrives: raised at its next step in Python."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._thread = ctypes.c_ulong(threading.get_ident())
        self._over = threading.Event()
        self._watch: threading.Thread | None = None

    def start(self) -> None:
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._ring, args=(self._over,), daemon=True, name="advbench-time-limit")
        self._watch.start()

    def stop(self) -> None:
        self._over.set()
        if self._watch is not None:
            self._watch.join()
        ctypes.pythonapi.PyThreadState_SetAsyncExc(self._thread, None)

    def _ring(self, over: threading.Event) -> None:
        wait = self._seconds
        while not over.wait(wait):
            ctypes.pythonapi.PyThreadState_SetAsyncExc(self._thread, ctypes.py_object(TimeIsUp))
            wait = AGAIN


class _ProcessEnd:
    """The end of the process after some seconds, with the stacks of its threads written to a file."""

    def __init__(self, seconds: float, last_words: Path) -> None:
        self._seconds, self._path = seconds, last_words
        self._file: IO[str] | None = None

    def start(self) -> None:
        if self._file is None:
            self._file = self._path.open("w")
        faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)

    def stop(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        if self._file is not None:
            self._file.close()
            self._file = None
            self._path.unlink(missing_ok=True)
