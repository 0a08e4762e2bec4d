"""The compute batch: how many images pass through a model at once, chosen by measured throughput and remembered."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from advbench.attacks.access import NoGradientError, WhiteBox
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Untargeted, cross_entropy
from advbench.clocks import device_name, single_thread, stopwatch
from advbench.defenses.defended import Defended
from advbench.devices import traits
from advbench.files import locked, write_atomically

DEFAULT_BATCH = 128
_SECONDS = 0.15
_LONG = 1.0
"""A pass of so many seconds keeps a processor busy: larger batches are not tried."""
_SHORT = 0.01
"""A pass of so many seconds is not worth dividing: most of it is overhead once an attack has few images left."""


@dataclass(frozen=True, slots=True)
class Ladder:
    """The batches that are tried on a kind of device, powers of two.

    start: the first. least: smaller ones are taken only where the doubling ends before it. largest: the last. memory: bytes
    that a pass may take beyond the first one; the next batch is not tried where it would take more. parts: into how many an
    attack should be divisible.
    """

    start: int
    least: int
    largest: int
    memory: float
    parts: int


_HOST = Ladder(1, 32, 512, 2**30, 8)
"""A processor's tasks share its memory, and a purifier may take seconds for an image."""
_ACCELERATOR = Ladder(256, 256, 8192, math.inf, 4)
"""A GPU is idle with few images."""


@dataclass(frozen=True, slots=True)
class Pass:
    """A forward and backward of a batch: seconds, and the peak of memory in bytes while it ran."""

    seconds: float
    peak: int


@dataclass(frozen=True, slots=True)
class Batches:
    """Batches for a model. fastest: for all images at once. divisible: for a part of them, at 80% of the throughput.

    A tiny model's passes are short, and cost the same for few images as for many: they are not worth dividing, and both
    batches are alike.
    """

    fastest: int
    divisible: int

    def of(self, images: int, parts: int) -> int:
        """The batch for so many images: the largest power of two that leaves more than `parts` of them, at least
        `divisible`, at most `fastest`."""
        share = max(1, (images - 1) // parts)
        return min(self.fastest, max(self.divisible, 1 << (share.bit_length() - 1)))


def compute_batch(
    defended: Defended,
    shape: tuple[int, int, int],
    *,
    images: int,
    draws: int,
    device: torch.device,
    memory: Path,
    measure: bool,
    named: str | None = None,
    known: dict[str, Batches] | None = None,
) -> int:
    """Images per compute batch for a model of this structure on this device, of `images` that are attacked in all.

    Two batches are measured once, as the smallest powers of two within 5% and 20% of the best throughput of a forward and
    backward, the second one of at least 10 ms, and remembered in the file `memory`; of several processes that measure at
    once the first to write decides for all. Between the two, the batch is the largest power of two below an eighth of the
    images, on a GPU below a quarter, so that workers can share an attack. What the file holds beside sensible numbers is
    measured again. Weights do not matter, so an untrained model serves. With `measure` false an unknown answer is
    `DEFAULT_BATCH` and nothing runs. named: the name of the device if it is not here. known: batches by name that go before
    those of the file; what is found is added.
    """
    ladder, known = ladder_of(device), {} if known is None else known
    name = _name(defended, shape, draws, named or device_name(device))
    if name not in known:
        found = _read(memory, ladder.largest)
        if name in found:
            known[name] = found[name]
        elif measure:
            known[name] = _remembered(memory, name, _measure(defended, shape, draws, device), ladder.largest)
        else:
            return DEFAULT_BATCH
    return known[name].of(images, ladder.parts)


def ladder_of(device: torch.device) -> Ladder:
    """The batches that are tried on a device."""
    return _HOST if traits(device).host else _ACCELERATOR


def fastest(measured: Callable[[int], Pass], ladder: Ladder) -> Batches:
    """The smallest batches within 5% and 20% of the best throughput, 1 if none fits.

    measured: a pass of so many images, or torch.OutOfMemoryError. Batches double until a pass takes more than a second, is
    slower for each image, or the next would take too much memory; where the first does not fit, they halve until one does.
    """
    passes: dict[int, Pass] = {}
    batch, largest = ladder.start, ladder.largest
    while 1 <= batch <= largest:
        try:
            last = passes[batch] = measured(batch)
        except torch.OutOfMemoryError:
            if passes:
                break
            batch = largest = batch // 2
            continue
        growth = last.peak - next(iter(passes.values())).peak
        slower = batch / last.seconds < 0.8 * max(size / one.seconds for size, one in passes.items())
        if last.seconds > _LONG or 2 * growth > ladder.memory or (slower and batch > ladder.least):
            break
        batch *= 2
    counted = [size for size in passes if size >= ladder.least] or list(passes)
    best = max((size / passes[size].seconds for size in counted), default=0.0)
    fast = min((size for size in counted if size / passes[size].seconds >= 0.95 * best), default=1)
    enough = (size for size in counted if size / passes[size].seconds >= 0.8 * best and passes[size].seconds >= _SHORT)
    return Batches(fast, min(fast, min(enough, default=fast)))


def _measure(defended: Defended, shape: tuple[int, int, int], draws: int, device: torch.device) -> Batches:
    defended.model.to(device)
    ladder = ladder_of(device)
    with single_thread():
        return fastest(lambda batch: _pass(defended, shape, draws, device, batch, ladder.least), ladder)


def _pass(defended: Defended, shape: tuple[int, int, int], draws: int, device: torch.device, batch: int, least: int) -> Pass:
    """A forward and backward of `batch` images: the shortest of several from `least` on, a single one below.

    Of one image the forward of one draw, or of all, where that alone takes long.
    """
    index = torch.arange(batch, device=device)
    x = ExampleRNG.make(0, "throughput", index).uniform(shape)
    goal = Untargeted(torch.zeros_like(index))
    rng = ExampleRNG.make(0, "throughput", index)
    for few in (1, draws) if batch == 1 else ():
        with WhiteBox(defended.model, rng, stochastic=defended.stochastic, draws=few) as access:
            forward = _timed(partial(access.logits, x), device)
        if forward.seconds > _LONG:
            return forward
    with WhiteBox(defended.model, rng, stochastic=defended.stochastic, draws=draws) as access:
        ask: Callable[[], object] = partial(access.loss_gradient, x, goal, cross_entropy)
        try:
            first = _timed(ask, device)
        except NoGradientError:  # attacks differentiate a surrogate; the model itself is only asked
            ask = partial(access.logits, x)
            first = _timed(ask, device)
        if batch < least or first.seconds > _LONG:
            return first
        best, spent = math.inf, 0.0
        while spent < _SECONDS:
            again = _timed(ask, device)
            best, spent = min(best, again.seconds), spent + again.seconds
    return Pass(best, first.peak)


def _timed(ask: Callable[[], object], device: torch.device) -> Pass:
    with stopwatch(device) as measured:
        ask()
    return Pass(measured.seconds, measured.peak_memory_bytes)


def _name(defended: Defended, shape: tuple[int, int, int], draws: int, device: str) -> str:
    structure = hashlib.sha256(repr(defended.model).encode()).hexdigest()[:16]
    passes = draws if defended.stochastic else 1
    return f"{structure} {'x'.join(map(str, shape))} draws {passes} on {device} torch {torch.__version__}"


def _remembered(memory: Path, name: str, measured: Batches, largest: int) -> Batches:
    """The batches that `memory` has for a name by now, else the measured ones, which are written."""
    memory.parent.mkdir(parents=True, exist_ok=True)
    with locked(memory.parent):
        known = _read(memory, largest)
        if name not in known:
            # Numbers of other kinds of devices may be larger than `largest`, and stay.
            others = _read(memory, max(_HOST.largest, _ACCELERATOR.largest))
            known = {name: measured}
            kept = {one: [found.fastest, found.divisible] for one, found in (others | known).items()}
            write_atomically(memory, json.dumps(kept, sort_keys=True, indent=1))
    return known[name]


def _read(memory: Path, largest: int) -> dict[str, Batches]:
    """The batches of a file by name, those from 1 to `largest`; none if it is no such file."""
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    found = known.items() if isinstance(known, dict) else ()
    return {name: Batches(*pair) for name, pair in found if sensible(pair, largest)}


def sensible(pair: object, largest: int = max(_HOST.largest, _ACCELERATOR.largest)) -> bool:
    """Whether a value of a file is two batches, the larger first."""
    if not isinstance(pair, list) or len(pair) != 2 or not all(type(batch) is int for batch in pair):
        return False
    fast, divisible = pair
    return bool(1 <= divisible <= fast <= largest)
