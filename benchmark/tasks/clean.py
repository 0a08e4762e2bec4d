"""Clean: how the scored model answers on the clean images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from advbench.tasks.artefacts import Kind, artefact, read, save
from advbench.tasks.context import Context, data_of, defended_of
from advbench.tasks.evaluation import Counts, count
from advbench.tasks.images import Images, scored_split
from advbench.zoo import checkpoints


@dataclass(frozen=True, slots=True)
class CleanContent:
    """What the answers on clean images depend on.

    target: key of the training of the model. draws: select draws of a stochastic model, and again as many report draws.
    images: the scored ones.
    """

    kind: ClassVar[Kind] = "clean"

    target: str
    draws: int
    images: Images

    @property
    def needs(self) -> tuple[str, ...]:
        """The training of the model."""
        return (self.target,)

    def label(self, target: str) -> str:
        """For people."""
        return f"clean accuracy of {target}"


def run(key: str, content: CleanContent, context: Context, device: torch.device) -> None:
    """Count the answers of the scored model on the scored images."""
    defended, images = defended_of(content.target, context, device), content.images
    split = scored_split(data_of(context), images.n)
    found = count(defended, split, seed=images.seed, draws=content.draws, batch=images.batch, device=device)
    save(
        artefact("clean", key, context.out),
        **{name: getattr(found, name).numpy() for name in _COUNTED},
        draws=np.array(found.draws),
        weights_sha256=np.array(checkpoints.fingerprint(defended.model)),
    )


def read_clean(path: Path, images: int) -> tuple[Counts, str]:
    """The counts of a finished clean task on so many images, and the fingerprint of the weights. DamagedError."""
    found = read(path, rows=images)
    counts = Counts.of((torch.from_numpy(found[name]) for name in _COUNTED), int(found["draws"]))
    return counts, str(found["weights_sha256"])


_COUNTED = ("prediction", "select", "report", "select_rejected", "report_rejected", "wrong", "fooled", "score")
"""The arrays of `Counts`, in order."""
