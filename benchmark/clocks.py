"""Devices, clocks and the environment: where a number was measured, and how."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from advbench import devices


@dataclass(slots=True)
class Measured:
    """What a `stopwatch` saw: seconds of wall-clock, and the peak of memory in bytes while it ran."""

    seconds: float = 0.0
    peak_memory_bytes: int = 0


@contextmanager
def stopwatch(device: torch.device) -> Iterator[Measured]:
    """Measure a block on `device`, synchronised before and after.

    The peak is that of the device's allocator on a GPU, and that of this process's resident memory on a CPU.

    >>> with stopwatch(torch.device("cpu")) as measured:
    ...     total = torch.ones(1000).sum()
    >>> measured.seconds > 0 and measured.peak_memory_bytes > 0
    True
    """
    measured = Measured()
    _reset_peak(device)
    devices.synchronise(device)
    start = time.perf_counter()
    try:
        yield measured
    finally:
        devices.synchronise(device)
        measured.seconds = time.perf_counter() - start
        measured.peak_memory_bytes = _peak(device)


@contextmanager
def single_thread() -> Iterator[None]:
    """One thread for torch inside, as every task has; the number of threads is restored afterwards.

    >>> with single_thread():
    ...     torch.get_num_threads()
    1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def resolve_devices(text: str) -> list[torch.device]:
    """The devices of ``auto``, ``cpu``, ``cuda``, ``xpu``, ``mps`` or ``cuda:0,cuda:1``.

    ``auto`` is the first accelerator that is here, else the processor. ValueError, in one line, if a device does not exist
    here.

    >>> resolve_devices("cpu")
    [device(type='cpu')]
    >>> resolve_devices("abacus")
    Traceback (most recent call last):
        ...
    ValueError: Expected `device` auto, cpu, cuda, xpu, mps or KIND:N, got 'abacus'
    """
    if text == "auto":
        return [next((device for device in devices.accelerators() if devices.traits(device).auto), torch.device("cpu"))]
    found = []
    for part in text.split(","):
        device = _parsed(part.strip())
        if not devices.traits(device).host:
            device, here = torch.device(device.type, device.index or 0), devices.count(device.type)
            if (device.index or 0) >= here:
                raise ValueError(f"Expected a device that is here ({here} of {device.type} found), got {part.strip()!r}")
        found.append(device)
    if len({device.type for device in found}) > 1:
        raise ValueError(f"Expected devices of one type, got {text!r}: a run's numbers belong to one kind of device")
    return list(dict.fromkeys(found))


def _parsed(text: str) -> torch.device:
    """The device that a text names, here or not. ValueError if its kind is not known."""
    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    if device is None or device.type not in devices.TRAITS:
        raise ValueError(f"Expected `device` auto, {', '.join(devices.TRAITS)} or KIND:N, got {text!r}")
    return device


@cache
def device_name(device: torch.device) -> str:
    """The name that stands beside every time: the GPU's, or the processor's."""
    if not devices.traits(device).host:
        return devices.accelerator_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.processor() or platform.machine() or "CPU"


@cache
def environment() -> dict[str, str | bool | None]:
    """Versions and the commit of advbench's checkout, where it runs from one."""
    commit, dirty = _commit()
    found: dict[str, str | bool | None] = {
        "advbench": metadata.version("advbench"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "commit": commit,
        "dirty": dirty,
    }
    if torch.cuda.is_available():
        found |= {"cuda": torch.version.cuda, "driver": _driver()}
    return found


def usable_cores() -> int:
    """The processor cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _commit() -> tuple[str | None, bool | None]:
    folder = Path(__file__).resolve().parent
    if "site-packages" in folder.parts or not (folder.parent / ".git").exists():
        return None, None
    commit = _answer(["git", "-C", str(folder), "rev-parse", "HEAD"])
    status = _answer(["git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no"])
    return (commit or None), (None if status is None else bool(status))


def _driver() -> str | None:
    answer = _answer(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    return answer.splitlines()[0] if answer else None


def _answer(command: list[str]) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _reset_peak(device: torch.device) -> None:
    if not devices.traits(device).host:
        devices.reset_peak(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM of this process (proc(5))


def _peak(device: torch.device) -> int:
    if not devices.traits(device).host:
        return devices.peak_bytes(device)
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
