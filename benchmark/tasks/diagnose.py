"""Diagnose: a look at a target's gradients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from advbench.attacks.threat import ThreatModel
from advbench.tasks.artefacts import Kind, artefact, read, save
from advbench.tasks.context import Context, data_of, defended_of
from advbench.tasks.diagnosis import diagnose
from advbench.tasks.images import Images, scored_split


@dataclass(frozen=True, slots=True)
class DiagnoseContent:
    """What the symptoms of a model's gradients depend on.

    target: key of the training of the model. threat: how far steps along the gradient go. draws: passes that a gradient of
    a stochastic model averages. images: the scored ones.
    """

    kind: ClassVar[Kind] = "diagnose"

    target: str
    threat: ThreatModel
    draws: int
    images: Images

    @property
    def needs(self) -> tuple[str, ...]:
        """The training of the model."""
        return (self.target,)

    def label(self, target: str) -> str:
        """For people."""
        return f"gradients of {target}"


def run(key: str, content: DiagnoseContent, context: Context, device: torch.device) -> None:
    """Count the symptoms of the gradients of a target's surrogates."""
    found = diagnose(
        defended_of(content.target, context, device),
        scored_split(data_of(context), content.images.n),
        content.threat,
        seed=content.images.seed,
        draws=content.draws,
        device=device,
    )
    save(artefact("diagnose", key, context.out), **{name: np.array(count) for name, count in found.items()})


def read_diagnosis(path: Path) -> dict[str, int]:
    """The symptoms that a finished diagnosis counted, by name, and the number of images. DamagedError."""
    return {name: int(count) for name, count in read(path).items()}
