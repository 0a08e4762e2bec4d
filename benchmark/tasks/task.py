"""The nodes of a plan: tasks, named by what they compute, and where their results lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from advbench.defenses.defended import Surrogate
from advbench.zoo import checkpoints
from advbench.zoo.data import DataSet, Split

Kind = Literal["train", "substitute", "clean", "diagnose", "calibrate", "craft", "score"]


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One node of the plan.

    key: SHA-256 of the canonical `content`. needs: keys of the tasks whose results it reads. label: for people. cost: a
    rough measure, for running the longest first. facts: what the record of a score shows beside its content.
    """

    kind: Kind
    key: str
    content: Mapping[str, Any]
    needs: tuple[str, ...]
    label: str
    cost: float
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class View:
    """The model an attack queries: a named surrogate, or the target itself if None.

    stochastic: whether its answers are random. guarded: whether a detector is to be evaded too. exact: whether its answers
    are those of the scored model.
    """

    name: str | None = None
    stochastic: bool = False
    guarded: bool = False
    exact: bool = True

    @staticmethod
    def of(name: str | None, surrogate: Surrogate) -> View:
        """The view of a surrogate."""
        detector = surrogate.detector
        random = surrogate.stochastic or (detector is not None and detector.stochastic)
        return View(name, random, detector is not None, surrogate.exact)


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A defended model of the plan: its training task, its untrained structure's properties, and its names."""

    key: str
    label: str
    seed: int
    defense: Mapping[str, Any]
    architecture: Mapping[str, Any]
    stochastic: bool
    itself: View
    surrogates: tuple[View, ...]
    batch: int
    draws: int

    def facts(self) -> dict[str, Any]:
        """The target as a record shows it."""
        names = ("name", "arguments")
        return {
            "label": self.label,
            "defense": {name: self.defense[name] for name in names},
            "architecture": {name: self.architecture[name] for name in names},
            "stochastic": self.stochastic,
        }


def artefact(kind: Kind, key: str, out: Path) -> Path:
    """The file of a finished task: models in the user's cache, everything else under the output folder."""
    if kind in ("train", "substitute"):
        return checkpoints.cache_dir() / "models" / f"{key}.safetensors"
    if kind == "score":
        return out / "records" / key
    return out / "store" / kind / f"{key}.npz"


def scored_split(data: DataSet, n: int | None) -> Split:
    """The scored test images: all, or `n` of them by a fixed permutation, in the order of the data set."""
    if n is None or n >= len(data.test):
        return data.test
    generator = torch.Generator().manual_seed(0)
    return data.test.select(torch.randperm(len(data.test), generator=generator)[:n].sort().values)
