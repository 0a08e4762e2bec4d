"""The global state of the process around code that was handed in: put back afterwards, and its change told.

Models, attacks and defenses of others run in the same process as all that comes after them. A default dtype, a working
directory or a gradient mode that one of them leaves behind would bend later numbers without a word.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch

from advbench import devices


class ChangedStateError(RuntimeError):
    """Code that was handed in has changed global state of the process, which has been put back."""


@dataclass(frozen=True, slots=True)
class _Setting:
    """A global setting on which numbers or places of files depend. of_process: whether threads share it."""

    name: str
    get: Callable[[], Any]
    put: Callable[[Any], object]
    of_process: bool = True


def _folder() -> str | None:
    """The working directory, None if it is gone."""
    with suppress(OSError):
        return os.getcwd()  # noqa: PTH109 - a text, as a setting is shown
    return None


def _enter(folder: str | None) -> None:
    with suppress(OSError):
        if folder is not None:
            os.chdir(folder)


_SETTINGS = (
    _Setting("gradient mode", torch.is_grad_enabled, torch.set_grad_enabled, of_process=False),
    _Setting("default dtype", torch.get_default_dtype, torch.set_default_dtype),
    _Setting("default device", torch.get_default_device, torch.set_default_device),
    _Setting("anomaly detection", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    _Setting("deterministic algorithms", torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    _Setting("precision of products", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    _Setting("working directory", _folder, _enter),
    _Setting("number of threads", torch.get_num_threads, torch.set_num_threads),
)
"""What is compared and put back."""


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def restored(changes: list[str] | None = None) -> Iterator[None]:
    """Put the settings above back after the block, after an exception too.

    changes: gets a text for each setting that the block left otherwise, such as ``default dtype torch.float32 ->
    torch.float64``. In a thread beside the main one only what belongs to that thread is looked at: the rest may have been
    changed by another, and a working directory or dtype that is put back there would be taken from the others.
    """
    before = [(setting, setting.get()) for setting in _SETTINGS if _in_main_thread() or not setting.of_process]
    try:
        yield
    finally:
        for setting, value in before:
            found = setting.get()
            if found != value:
                setting.put(value)
                if changes is not None:
                    changes.append(f"{setting.name} {value} -> {found}")


@contextmanager
def checked() -> Iterator[None]:
    """Put settings back as `restored` does, and in the main thread the global generators.

    Raises ChangedStateError if the block changed a setting and did not fail. Whoever draws from the generators or seeds them
    changes nobody's numbers, since these come back as they were.
    """
    changes: list[str] = []
    with restored(changes), _generators() if _in_main_thread() else nullcontext():
        yield
    if changes:
        raise ChangedStateError(f"Expected code that leaves global state alone, got {', '.join(changes)}")


@contextmanager
def _generators() -> Iterator[None]:
    """Put the states of the global generators back: of torch and its devices, of Python and of NumPy."""
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002
    on_devices = [(device, devices.random_state(device)) for device in devices.accelerators()]
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.random.set_rng_state(states[2])
        for device, state in on_devices:
            devices.set_random_state(device, state)


@dataclass(slots=True)
class Signals:
    """The signals that have asked the program to end. told: whether one has. certain: whether it would have been seen."""

    told: bool = False
    certain: bool = True

    def caused(self, error: BaseException) -> bool:
        """Whether an error that ends programs comes from outside, not from the code that raised it."""
        return not isinstance(error, Exception) and (
            self.told or (isinstance(error, KeyboardInterrupt) and not self.certain)
        )


@contextmanager
def signals() -> Iterator[Signals]:
    """Tell a Ctrl-C from code that raises KeyboardInterrupt or SystemExit of its own, while the block runs.

    Only the main thread is interrupted by signals. The handlers that stand act as before, and are put back.
    """
    seen = Signals()
    if not _in_main_thread():
        yield seen
        return
    handlers = {}
    for number in filter(None, (getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP"))):
        handler = signal.getsignal(number)
        if callable(handler):
            handlers[number] = handler
            signal.signal(number, _telling(seen, handler))
        elif handler is None:  # not installed by Python, so that nothing tells whose interrupt it is
            seen.certain = False
    try:
        yield seen
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _telling(seen: Signals, handler: Callable[[int, FrameType | None], object]) -> Callable[[int, FrameType | None], object]:
    """The handler, which also tells that it ended what ran."""

    def handle(number: int, frame: FrameType | None) -> object:
        try:
            return handler(number, frame)
        except BaseException:
            seen.told = True
            raise

    return handle
