"""The kinds of devices that a run may use, and what differs between them.

`TRAITS` is the one table: a new kind of device is one more row. The processor (``cpu``) is the host; every other kind is an
accelerator, of whose queue, generators and allocator its torch module tells, such as `torch.cuda`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTraits:
    """What is known of a kind of device.

    host: it is the processor itself: nothing is queued, and its tasks share the memory of the process.
    indexed: there may be several, and its torch module's functions take one of them.
    auto: ``auto`` may choose it.
    triton: torch.compile needs Triton for it, and a C++ compiler elsewhere.
    """

    host: bool = False
    indexed: bool = True
    auto: bool = True
    triton: bool = True


_ACCELERATOR = DeviceTraits()

TRAITS: dict[str, DeviceTraits] = {
    "cpu": DeviceTraits(host=True, indexed=False, triton=False),
    "cuda": _ACCELERATOR,
    "xpu": _ACCELERATOR,
    # It has no float64, which random numbers and some attacks use: asked for, not chosen.
    "mps": DeviceTraits(indexed=False, auto=False, triton=False),
}
"""Kinds of devices by torch's name for them, in the order in which ``auto`` prefers accelerators."""


def traits(device: torch.device) -> DeviceTraits:
    """The traits of a device; those of a discrete GPU for a kind that is not in `TRAITS`.

    >>> traits(torch.device("cpu")).host
    True
    """
    return TRAITS.get(device.type, _ACCELERATOR)


def count(kind: str) -> int:
    """How many devices of a kind are here: 1 for ``cpu``.

    >>> count("cpu")
    1
    """
    return 1 if traits(torch.device(kind)).host else int(torch.get_device_module(kind).device_count())


def accelerators() -> Iterator[torch.device]:
    """Every accelerator that is here."""
    for kind, known in TRAITS.items():
        if not known.host:
            yield from (torch.device(kind, number) for number in range(count(kind)))


def synchronise(device: torch.device) -> None:
    """Wait until `device` has done what it was given."""
    if not traits(device).host:
        _module(device).synchronize(*_named(device))


def allocated_bytes(device: torch.device) -> int:
    """Bytes of tensors that an accelerator's allocator holds."""
    module = _module(device)
    held = getattr(module, "memory_allocated", None)
    return int(held(device) if held else module.current_allocated_memory())


def reset_peak(device: torch.device) -> None:
    """Forget the peak of an accelerator's memory, if its allocator keeps one."""
    reset = getattr(_module(device), "reset_peak_memory_stats", None)
    if reset:
        reset(device)


def peak_bytes(device: torch.device) -> int:
    """The most bytes of tensors that an accelerator held since `reset_peak`; what it holds now if it keeps no peak."""
    peak = getattr(_module(device), "max_memory_allocated", None)
    return int(peak(device)) if peak else allocated_bytes(device)


def accelerator_name(device: torch.device) -> str:
    """The product's name; the kind of device, such as ``mps``, if torch does not tell."""
    named = getattr(_module(device), "get_device_name", None)
    return str(named(device)) if named else device.type


def random_state(device: torch.device) -> Tensor:
    """The state of the device's global generator."""
    state: Tensor = torch.get_rng_state() if traits(device).host else _module(device).get_rng_state(*_named(device))
    return state


def set_random_state(device: torch.device, state: Tensor) -> None:
    """Put a state of `random_state` back."""
    if traits(device).host:
        torch.set_rng_state(state)
    else:
        _module(device).set_rng_state(state, *_named(device))


def seed_generator(device: torch.device, seed: int) -> None:
    """Seed the device's global generator."""
    if traits(device).host:
        torch.default_generator.manual_seed(seed)
    elif traits(device).indexed:
        with _module(device).device(device):
            _module(device).manual_seed(seed)
    else:
        _module(device).manual_seed(seed)


def _module(device: torch.device) -> Any:
    return torch.get_device_module(device.type)


def _named(device: torch.device) -> tuple[torch.device, ...]:
    """The arguments that tell a torch module's function which device is meant."""
    return (device,) if traits(device).indexed else ()
