"""Train: a defense fitted, its checkpoint in the cache."""

from __future__ import annotations

import dataclasses
import json

import torch

from advbench.clocks import device_name, stopwatch
from advbench.tasks.context import GENERATORS, Context, checkpoint, data_of
from advbench.tasks.models import fit_defended
from advbench.tasks.task import Task
from advbench.zoo import checkpoints


def run(task: Task, context: Context, device: torch.device) -> None:
    """Fit the defense and write its checkpoint."""
    with GENERATORS, stopwatch(device) as measured:
        fitted = fit_defended(task.key, context.contents, data_of(context), checkpoint, device)
    metadata = {"seconds": f"{measured.seconds:.3f}", "device": device_name(device), "label": task.label}
    if fitted.history is not None:
        metadata["history"] = json.dumps(dataclasses.asdict(fitted.history))
    checkpoints.save(checkpoint(task.key), fitted.modules(), metadata | {"facts": json.dumps(dict(fitted.facts))})
