"""Benches: what a kernel costs beside the memory-bandwidth limit and beside its rivals, as ratios.

Seconds of one machine say nothing about another, so a bench reports ratios: of two calls that were measured in turns, one
round of each after the other, each at its fastest. `BENCHES` maps a name to ``module:function``; the function is called with
a device and yields a `BenchRow` per ratio as it is measured.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import math
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from tabulate import tabulate

from advbench.clocks import single_thread, stopwatch
from advbench.devices import allocated_bytes, synchronise, traits

BENCHES: dict[str, str] = {
    "jacobian": "advbench.benches.jacobian:rows",
    "covariance": "advbench.benches.covariance:rows",
    "training": "advbench.benches.training:rows",
    "purifiers": "advbench.benches.purifiers:rows",
    "engine": "advbench.benches.engine:rows",
    "waits": "advbench.benches.waits:rows",
}

COPY_BYTES = 2 * 2**27
"""Bytes that one call of `copier` moves: 128 MiB read and 128 MiB written, beyond any processor's cache."""

TURN_SECONDS = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow:
    """One ratio of a bench.

    case: what is computed, with its sizes. measure: forward, forward + backward, or training step. device: its name.
    against: what the seconds are divided by, such as ``bandwidth limit`` or ``torch.func.jacrev``. seconds,
    reference_seconds: both at their fastest, for the same amount of work. bar: the largest ratio that is allowed; None where
    nothing is asked. peak_bytes: memory taken beyond what was there before the call; None where it was not measured.
    images: how many the seconds are for; None if the work is not proportional to images.
    """

    case: str
    measure: str
    device: str
    against: str
    seconds: float
    reference_seconds: float
    bar: float | None = None
    peak_bytes: int | None = None
    images: int | None = None

    @property
    def ratio(self) -> float:
        """How many times the reference's seconds."""
        return self.seconds / self.reference_seconds if self.reference_seconds else math.inf

    @property
    def holds(self) -> bool:
        """Whether the ratio is within its bar, if it has one."""
        return self.bar is None or self.ratio <= self.bar


def run(name: str, device: torch.device) -> Iterator[BenchRow]:
    """The rows of a registered bench, as they are measured. ValueError for an unknown name."""
    if name not in BENCHES:
        raise ValueError(f"Expected a bench among {', '.join(BENCHES)}, got {name!r}")
    module, _, function = BENCHES[name].partition(":")
    rows: Iterator[BenchRow] = getattr(importlib.import_module(module), function)(device)
    return rows


def fastest(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    rounds: int = 30,
    seconds: float = 2.0,
    turn_seconds: float = TURN_SECONDS,
) -> dict[str, float]:
    """Seconds of each call at its fastest, `device` synchronised; the calls take turns, one warm-up round not counted.

    A turn repeats its call for `turn_seconds`, so that a short one finds its code, and such data as fits, in the cache. On a
    CPU the seconds are the process's own (its kernel time too), which other work beside it does not lengthen: call it with
    one thread.
    rounds: at most so many. seconds: no new round begins after so much wall-clock time, but two rounds always run.
    """
    best = dict.fromkeys(calls, math.inf)
    start = time.perf_counter()
    for number in range(rounds + 1):
        for name, call in calls.items():
            turn = _turn(call, device, turn_seconds)
            if number:
                best[name] = min(best[name], turn)
        if number >= 2 and time.perf_counter() - start > seconds:
            break
    return best


def _turn(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds of the fastest of the calls that fit a turn; one where not even that fits."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    best, start = math.inf, time.perf_counter()
    while True:
        synchronise(device)
        before = clock()
        call()
        synchronise(device)
        best = min(best, clock() - before)
        if time.perf_counter() - start > seconds:
            return best


def copier(device: torch.device) -> Callable[[], object]:
    """A call that copies one large buffer into another and so moves `COPY_BYTES`: what `fastest` measures bandwidth by."""
    source = torch.ones(COPY_BYTES // 8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The most memory that `call` held at once beyond what was held before it, after one call that warms up.

    On a GPU that of torch's allocator; on a CPU that of the process's resident pages, freed ones handed back first.
    """
    call()
    return _held_beyond(call, device)


def fresh_peak_bytes(prepare: Callable[[], Callable[[], object]], device: torch.device) -> int:
    """`peak_bytes` of what `prepare` returns; on a CPU in a process of its own, where nothing freed before is used again.

    prepare: pickled for that process. It calls what loads code, so that the pages of libraries do not count; the call that
    it returns is measured at its first.
    """
    if not traits(device).host:
        return _held_beyond(prepare(), device)
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as alone:
        return alone.submit(_prepared_peak_bytes, prepare, device).result()


def _prepared_peak_bytes(prepare: Callable[[], Callable[[], object]], device: torch.device) -> int:
    with single_thread():
        return _held_beyond(prepare(), device)


def _held_beyond(call: Callable[[], object], device: torch.device) -> int:
    """Bytes that `call` held at most beyond what was held before it."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    before = _resident_bytes() if traits(device).host else allocated_bytes(device)
    with stopwatch(device) as measured:
        call()
    return max(0, measured.peak_memory_bytes - before)


def _resident_bytes() -> int:
    try:
        return int(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        return 0


def table(rows: Iterable[BenchRow]) -> str:
    """The rows as a Markdown table of ratios, with the milliseconds of an image where a row counts images."""
    rows = list(rows)
    by_image = any(row.images for row in rows)
    lines = [
        [
            row.case,
            row.measure,
            row.against,
            f"{row.ratio:.3g}",
            "" if row.bar is None else f"{row.bar:g}" + ("" if row.holds else ", missed"),
            "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.1f}",
            *([_an_image(row)] if by_image else []),
        ]
        for row in rows
    ]
    return tabulate(
        lines,
        headers=["case", "measure", "against", "ratio", "bar", "peak MiB", *(["ms an image"] if by_image else [])],
        tablefmt="github",
        colalign=("left", "left", "left", "right", "left", "right", *(["right"] if by_image else [])),
        disable_numparse=True,
    )


def _an_image(row: BenchRow) -> str:
    """Milliseconds."""
    return "" if row.images is None else f"{1e3 * row.seconds / row.images:.3g}"
