"""The place of a plan: the kind of device that its numbers belong to, as keys know it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from advbench.clocks import device_name, resolve_devices
from advbench.plan.compute_batch import Batches


@dataclass(frozen=True, slots=True)
class Place:
    """What a plan must be told to be the same on another machine.

    kind: of the device, as torch names it, such as ``cuda``. name: of the device itself, which stands in keys. batches: the
    compute batches that were measured on it, by the name of what was measured. answers: of the user's networks to fixed
    images (`advbench.tasks.answers`); those of another processor, which rounds differently, count as these.
    """

    kind: str
    name: str
    batches: Mapping[str, Batches] = field(default_factory=dict)
    answers: tuple[str, ...] = ()

    @staticmethod
    def of(device: torch.device) -> Place:
        """The place of a device of this machine, of which nothing is known yet."""
        return Place(device.type, device_name(device))


def devices_of(place: Place, text: str) -> list[torch.device]:
    """The devices of this machine that `text` names, as in `advbench.clocks.resolve_devices`, and that are of a place."""
    try:
        devices = resolve_devices(text)
    except ValueError:
        return []
    return [device for device in devices if device_name(device) == place.name]
