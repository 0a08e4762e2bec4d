"""Calibrations: what a component leaves open is found on held-out images, never on scored ones (DESIGN, invariant 7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from advbench.attacks.calibration import HeldOut
from advbench.attacks.preparation import converged_draws, score_scale
from advbench.attacks.threat import ThreatModel
from advbench.defenses.defended import Surrogate
from advbench.registry import registry
from advbench.tasks.evaluation import guard_of
from advbench.zoo.data import Split


def calibrate(
    content: Mapping[str, Any],
    source: Surrogate | None,
    split: Split,
    device: torch.device,
    *,
    draws: int = 1,
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """The open values of the component of a calibration's content, by name.

    source: the attacked model; None where the values depend on the images of `split` alone, which then stay on the CPU.
    draws, scale: as `craft` takes them.
    """
    component = registry.restore(content["kind"], content["component"])
    if source is None:
        few = split.first(content["n"])
        found: dict[str, Tensor] = component.calibrate(
            HeldOut(x=few.x, y=few.y, index=few.index, threat=ThreatModel("none", None))
        )
        return found
    held_out = _held_out(content, source, split, device, draws, scale)
    return component.calibrate(held_out)  # type: ignore[no-any-return]


def prepare(content: Mapping[str, Any], source: Surrogate, split: Split, device: torch.device) -> dict[str, Tensor]:
    """What every attack on a surrogate must know, of what its content `wants`: see `advbench.attacks.preparation`.

    Returns ``scale`` of its detector's score; ``draws`` that a gradient averages, with ``cosines`` and whether it was
    ``capped``.
    """
    found: dict[str, Tensor] = {}
    if "scale" in content["wants"]:
        found["scale"] = torch.tensor(score_scale(_held_out(content, source, split, device)), dtype=torch.float64)
    if "draws" in content["wants"]:
        how = content["converged"]
        held_out = _held_out(content, source, split, device, scale=float(found.get("scale", 1.0))).first(how["n"])
        converged = converged_draws(held_out, level=how["level"], cap=how["cap"])
        found["draws"] = torch.tensor(converged.draws)
        found["cosines"] = torch.tensor(converged.cosines, dtype=torch.float64)
        found["capped"] = torch.tensor(converged.capped)
    return found


def _held_out(
    content: Mapping[str, Any], source: Surrogate, split: Split, device: torch.device, draws: int = 1, scale: float = 1.0
) -> HeldOut:
    few = split.first(content["n"]).to(device)
    return HeldOut(
        x=few.x,
        y=few.y,
        index=few.index,
        threat=threat_of(content["threat"]),
        model=source.model,
        stochastic=source.stochastic,
        draws=draws,
        seed=content["seed"],
        batch=content["batch"],
        guard=guard_of(source, few.y, scale),
    )


def threat_of(content: Mapping[str, Any]) -> ThreatModel:
    """The threat model of a task's content."""
    box = content["box"]
    return ThreatModel(content["norm"], content["epsilon"], None if box is None else (box[0], box[1]))
