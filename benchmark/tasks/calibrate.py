"""Calibrate: what a component leaves open, found on held-out images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advbench.attacks.access import NoGradientError
from advbench.clocks import stopwatch
from advbench.tasks.calibration import calibrate, prepare
from advbench.tasks.context import Context, data_of, save
from advbench.tasks.surrogates import attacked_model
from advbench.tasks.task import Task, artefact


def run(task: Task, context: Context, device: torch.device) -> None:
    """Find the open values on held-out images; where the model gives no gradient, the artefact says so."""
    content = task.content
    with stopwatch(device) as measured:
        try:
            values = _values(content, context, device)
        except NoGradientError:
            values = {NO_GRADIENT: torch.tensor(True)}
    save(
        artefact("calibrate", task.key, context.out),
        seconds=np.array(measured.seconds),
        **{f"value_{name}": value.cpu().numpy() for name, value in values.items()},
    )


def _values(content: Mapping[str, Any], context: Context, device: torch.device) -> dict[str, Tensor]:
    """What a calibration's content asks for."""
    split = getattr(data_of(context), content["split"])
    if content["source"] is None:
        return calibrate(content, None, split, device)
    source = attacked_model(content, context, device)
    if content["kind"] == "surrogate":
        return prepare(content, source, split, device)
    return calibrate(content, source, split, device, **prepared_for(content, context))


def prepared_for(content: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """The draws that a question averages and what a detector's score is worth, as given or as found on held-out images."""
    values = read_values(content["preparation"], context) if content["preparation"] else {}
    draws = content["draws"] or int(values.get("draws", torch.tensor(1)))
    return {"draws": draws, "scale": float(values.get("scale", torch.tensor(1.0)))}


def read_values(key: str, context: Context) -> dict[str, Tensor]:
    """The values that a calibration found, by name."""
    with np.load(artefact("calibrate", key, context.out), allow_pickle=False) as file:
        return {name.removeprefix("value_"): torch.from_numpy(file[name]) for name in file.files if name != "seconds"}


NO_GRADIENT = "no_gradient"
"""What a calibration holds where the source gave no gradient."""
