"""Models from their contents: built, trained, loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advbench.defenses.defended import Defended
from advbench.registry import registry
from advbench.registry.specs import Spec
from advbench.zoo import checkpoints, training
from advbench.zoo.data import DataSet
from advbench.zoo.training import Budget

Contents = Mapping[str, Mapping[str, Any]]
"""The contents of training tasks, by key."""


def architecture_of(name: str, arguments: Mapping[str, Any], data: DataSet) -> nn.Module:
    """A fresh network of an architecture for the images of `data`."""
    return registry.build_network(Spec.of(name, arguments), data.shape, data.n_classes)


def build_defended(content: Mapping[str, Any], contents: Contents, data: DataSet) -> Defended:
    """The untrained structure of a training task's content, with those of its inputs; no random state is left changed."""
    inputs = {name: build_defended(contents[key], contents, data) for name, key in content["inputs"].items()}
    with training.seeded(0):
        built: Defended = defense_of(content).build(_architecture(content, data), data, inputs)
    return built


def load_defended(
    key: str, contents: Contents, data: DataSet, file: Callable[[str], Path], device: torch.device
) -> Defended:
    """The trained model of a training task; `file` gives the checkpoint of a key."""
    defended = build_defended(contents[key], contents, data)
    modules = defended.modules()
    checkpoints.load(file(key), modules)
    modules.to(device).eval()
    return defended


def fit_defended(
    key: str,
    contents: Contents,
    data: DataSet,
    file: Callable[[str], Path],
    device: torch.device,
) -> Defended:
    """Train what the content of `key` says, on top of its inputs' checkpoints."""
    content = contents[key]
    inputs = {name: load_defended(each, contents, data, file, device) for name, each in content["inputs"].items()}
    seed = int(content["seed"])
    with training.seeded(seed):
        fitted: Defended = defense_of(content).fit(
            _architecture(content, data),
            data,
            inputs=inputs,
            seed=seed,
            device=device,
            budget=Budget(**content["budget"]),
        )
    return fitted


def defense_of(content: Mapping[str, Any]) -> Any:
    """The defense of a training task's content, with every argument as the content holds it."""
    described = content["defense"]
    return registry.restore("parts" if described["name"] in registry.parts else "defenses", described)


def _architecture(content: Mapping[str, Any], data: DataSet) -> Callable[[], nn.Module]:
    if content["architecture"] is None:
        return _no_architecture
    spec = Spec.of(content["architecture"]["name"], content["architecture"]["arguments"])
    return lambda: architecture_of(spec.name, spec.keywords, data)


def _no_architecture() -> nn.Module:
    raise RuntimeError("Expected a part that is made for no architecture not to ask for one")
