"""Where a training stands, epoch by epoch: how far it was when its time was up, and weights of every epoch if asked for."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path

import torch
from torch import nn

from advbench.defenses.defended import Architecture, Defense
from advbench.tasks.artefacts import checkpoint, whole
from advbench.zoo import checkpoints


def weights_after(key: str, epochs: int) -> list[Path] | None:
    """The checkpoints of a training's network after each of its epochs; None unless all of them were kept, whole."""
    paths = [_path(key, epoch) for epoch in range(1, epochs + 1)]
    return paths if all(map(whole, paths)) and not _path(key, epochs + 1).exists() else None


def _folder(key: str) -> Path:
    return checkpoint(key).with_name(f"{key}.epochs")


def _path(key: str, epoch: int) -> Path:
    return _folder(key) / f"{epoch}.safetensors"


class TrainingWatch:
    """Follows one training.

    key: of its task. epochs: of its budget. keep: whether the weights after every epoch are kept beside its checkpoint; a
    defense that trains several networks, or one in several stages, has no such epochs and keeps none.
    """

    def __init__(self, key: str, epochs: int, *, keep: bool) -> None:
        self.key, self.epochs, self.keep = key, epochs, keep
        self._made: list[nn.Module] = []
        self._done = self._steps = 0
        if keep:
            shutil.rmtree(_folder(key), ignore_errors=True)

    def watched(self, architecture: Architecture) -> Architecture:
        """The architecture, whose networks are known here."""

        def made() -> nn.Module:
            self._made.append(architecture())
            return self._made[-1]

        return made

    def note(self, done: int, steps: int) -> None:
        """Called after every step: how many are done, and how many there are in all."""
        again = done <= self._done or (self._steps and steps != self._steps)
        self._done, self._steps = done, steps
        if not self.keep:
            return
        if again or len(self._made) != 1 or steps % self.epochs:
            self.keep = False
            shutil.rmtree(_folder(self.key), ignore_errors=True)
        elif done % (steps // self.epochs) == 0:
            with torch.no_grad():
                checkpoints.save(_path(self.key, done * self.epochs // steps), self._made[0], {})

    @property
    def so_far(self) -> str:
        """How far the training is, for a task that goes no further; empty before its first step."""
        if not self._steps:
            return ""
        share = self._done / self._steps
        epoch = min(self.epochs, int(share * self.epochs) + 1)
        return f"in epoch {epoch} of {self.epochs}, {share:.0%} of the training done"


def takes_progress(defense: Defense) -> bool:
    """Whether a defense's `fit` says where it stands; one of a plug-in may not."""
    accepted = inspect.signature(defense.fit).parameters
    return "progress" in accepted or any(one.kind is inspect.Parameter.VAR_KEYWORD for one in accepted.values())
