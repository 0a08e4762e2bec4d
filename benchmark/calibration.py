"""Calibrations: what a component leaves open is found on held-out images, never on scored ones (DESIGN, invariant 7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from advbench import registry
from advbench.attacks.calibration import HeldOut
from advbench.attacks.threat import ThreatModel
from advbench.defenses.defended import Surrogate
from advbench.zoo.data import Split


def calibrate(content: Mapping[str, Any], source: Surrogate | None, split: Split, device: torch.device) -> dict[str, Tensor]:
    """The open values of the component of a calibration's content, by name.

    source: the attacked model; None where the values depend on the images of `split` alone, which then stay on the CPU.
    """
    component = registry.restore(content["kind"], content["component"])
    if source is None:
        few = split.first(content["n"])
        found: dict[str, Tensor] = component.calibrate(
            HeldOut(x=few.x, y=few.y, index=few.index, threat=ThreatModel("none", None))
        )
        return found
    few = split.first(content["n"]).to(device)
    held_out = HeldOut(
        x=few.x,
        y=few.y,
        index=few.index,
        threat=threat_of(content["threat"]),
        model=source.model,
        stochastic=source.stochastic,
        draws=content["draws"],
        seed=content["seed"],
        batch=content["batch"],
    )
    return component.calibrate(held_out)  # type: ignore[no-any-return]


def threat_of(content: Mapping[str, Any]) -> ThreatModel:
    """The threat model of a task's content."""
    box = content["box"]
    return ThreatModel(content["norm"], content["epsilon"], None if box is None else (box[0], box[1]))
