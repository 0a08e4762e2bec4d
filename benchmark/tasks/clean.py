"""Clean: how the scored model answers on the clean images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from advbench.tasks.context import Context, data_of, defended_of, save
from advbench.tasks.evaluation import Counts, count
from advbench.tasks.task import Task, artefact, scored_split
from advbench.zoo import checkpoints


def run(task: Task, context: Context, device: torch.device) -> None:
    """Count the answers of the scored model on the scored images."""
    content = task.content
    defended = defended_of(content["target"], context, device)
    split = scored_split(data_of(context), content["n"])
    found = count(defended, split, seed=content["seed"], draws=content["draws"], batch=content["batch"], device=device)
    save(
        artefact("clean", task.key, context.out),
        **{name: getattr(found, name).numpy() for name in _COUNTED},
        draws=np.array(found.draws),
        weights_sha256=np.array(checkpoints.fingerprint(defended.model)),
    )


def read_clean(path: Path) -> tuple[Counts, str]:
    """The counts of a finished clean task, and the fingerprint of the weights."""
    with np.load(path, allow_pickle=False) as file:
        counts = Counts.of((torch.from_numpy(file[name]) for name in _COUNTED), int(file["draws"]))
        return counts, str(file["weights_sha256"])


_COUNTED = ("prediction", "select", "report", "select_rejected", "report_rejected", "wrong", "fooled", "score")
"""The arrays of `Counts`, in order."""
