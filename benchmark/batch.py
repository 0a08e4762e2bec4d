"""The compute batch: how many images pass through a model at once, chosen by measured throughput and remembered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from advbench.attacks.access import NoGradientError, WhiteBox
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Untargeted, cross_entropy
from advbench.clocks import device_name, single_thread, stopwatch
from advbench.defenses.defended import Defended
from advbench.zoo import checkpoints

DEFAULT_BATCH = 128
_SECONDS = 0.15
_LONG = 1.0
"""A pass of so many seconds keeps a processor busy: larger batches are not tried."""
_LIMITS = {"cpu": (32, 512), "cuda": (256, 8192)}


def compute_batch(
    defended: Defended, shape: tuple[int, int, int], *, draws: int, device: torch.device, memory: Path, measure: bool
) -> int:
    """Images per compute batch for a model of this structure on this device.

    The answer is measured once, as the smallest power of two within 5% of the best throughput of a forward and backward,
    and remembered in the file `memory`. Weights do not matter, so an untrained model serves. With `measure` false an
    unknown answer is `DEFAULT_BATCH` and nothing runs.
    """
    name = _name(defended, shape, draws, device)
    known = _read(memory)
    if name not in known:
        if not measure:
            return DEFAULT_BATCH
        known = _read(memory) | {name: _measure(defended, shape, draws, device)}
        _write(memory, known)
    return known[name]


def _measure(defended: Defended, shape: tuple[int, int, int], draws: int, device: torch.device) -> int:
    smallest, largest = _LIMITS[device.type]
    speeds: dict[int, float] = {}
    defended.model.to(device)
    with single_thread():
        batch = smallest
        while batch <= largest:
            try:
                speeds[batch] = _images_per_second(defended, shape, draws, device, batch)
            except torch.OutOfMemoryError:
                break
            if speeds[batch] < 0.8 * max(speeds.values()) or batch / speeds[batch] > _LONG:
                break
            batch *= 2
    if not speeds:
        return 1
    return min(batch for batch, speed in speeds.items() if speed >= 0.95 * max(speeds.values()))


def _images_per_second(
    defended: Defended, shape: tuple[int, int, int], draws: int, device: torch.device, batch: int
) -> float:
    index = torch.arange(batch, device=device)
    x = ExampleRNG.make(0, "throughput", index).uniform(shape)
    goal = Untargeted(torch.zeros_like(index))
    rng = ExampleRNG.make(0, "throughput", index)
    best, spent = 0.0, 0.0
    with WhiteBox(defended.model, rng, stochastic=defended.stochastic, draws=draws) as access:
        try:
            ask: Callable[[], object] = partial(access.loss_gradient, x, goal, cross_entropy)
            ask()
        except NoGradientError:  # attacks differentiate a surrogate; the model itself is only asked
            ask = partial(access.logits, x)
        while spent < _SECONDS:
            with stopwatch(device) as measured:
                ask()
            best, spent = max(best, batch / measured.seconds), spent + measured.seconds
    return best


def _name(defended: Defended, shape: tuple[int, int, int], draws: int, device: torch.device) -> str:
    structure = hashlib.sha256(repr(defended.model).encode()).hexdigest()[:16]
    passes = draws if defended.stochastic else 1
    return f"{structure} {'x'.join(map(str, shape))} draws {passes} on {device_name(device)} torch {torch.__version__}"


def _read(memory: Path) -> dict[str, int]:
    try:
        known = json.loads(memory.read_text())
    except (OSError, ValueError):
        return {}
    return {str(name): int(batch) for name, batch in known.items()} if isinstance(known, dict) else {}


def _write(memory: Path, known: dict[str, int]) -> None:
    checkpoints.write_atomically(memory, json.dumps(known, indent=1, sort_keys=True).encode())
