"""Diagnose: a look at a target's gradients."""

from __future__ import annotations

import numpy as np
import torch

from advbench.tasks.calibration import threat_of
from advbench.tasks.context import Context, data_of, defended_of, save
from advbench.tasks.diagnosis import diagnose
from advbench.tasks.task import Task, artefact, scored_split


def run(task: Task, context: Context, device: torch.device) -> None:
    """Count the symptoms of the gradients of a target's surrogates."""
    content = task.content
    found = diagnose(
        defended_of(content["target"], context, device),
        scored_split(data_of(context), content["n"]),
        threat_of(content["threat"]),
        seed=content["seed"],
        draws=content["draws"],
        device=device,
    )
    save(artefact("diagnose", task.key, context.out), **{name: np.array(count) for name, count in found.items()})
