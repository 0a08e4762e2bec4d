"""Models from their contents: built, trained, loaded, and the black-box attacker's substitute."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from advbench import registry
from advbench.attacks.access import DecisionBased
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.substitute import Substitute, train_substitute
from advbench.defenses.defended import Defended
from advbench.specs import Spec
from advbench.zoo import architectures, checkpoints, training
from advbench.zoo.data import DataSet, Split
from advbench.zoo.training import Budget, Progress

Contents = Mapping[str, Mapping[str, Any]]
"""The contents of training tasks, by key."""

SUBSTITUTE_BUDGET = Budget(epochs=30, batch_size=64, learning_rate=2e-3)


def architecture_of(name: str, arguments: Mapping[str, Any], data: DataSet) -> nn.Module:
    """A fresh network of a registered architecture for the images of `data`."""
    if name.startswith("torchvision/"):
        return architectures.build(name, data.shape, data.n_classes)
    module: nn.Module = registry.factory("architectures", name)(data.shape, data.n_classes, **arguments)
    return module


def build_defended(content: Mapping[str, Any], contents: Contents, data: DataSet) -> Defended:
    """The untrained structure of a training task's content, with those of its inputs."""
    inputs = {name: build_defended(contents[key], contents, data) for name, key in content["inputs"].items()}
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
    progress: Progress | None = None,
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
            progress=progress,
        )
    return fitted


def fit_substitute(content: Mapping[str, Any], target: Defended, data: DataSet, device: torch.device) -> Substitute:
    """The substitute of Papernot et al. for the labels of `target`, from held-out images that are never scored.

    The seed images are the first of the validation split; the rest of that split measures the fidelity.
    """
    seed = int(content["seed"])
    held_out = data.validation.first(int(content["seeds"])).to(device)
    rest = data.validation.select(slice(int(content["seeds"]), None)).to(device)

    def oracle(rng: ExampleRNG) -> DecisionBased:
        return DecisionBased(target.model, rng, stochastic=target.stochastic)

    return train_substitute(
        oracle,
        held_out.x,
        fit=partial(_fit_round, content=content, data=data, seed=seed, device=device),
        rounds=int(content["rounds"]),
        step=float(content["step"]),
        seed=seed,
        held_out_x=rest.x,
    )


def _fit_round(
    x: Tensor, labels: Tensor, round_: int, *, content: Mapping[str, Any], data: DataSet, seed: int, device: torch.device
) -> nn.Module:
    """Train a fresh substitute on the images and oracle labels of one round."""
    with training.seeded(seed + 1000 * (round_ + 1)):
        model = architecture_of(content["architecture"]["name"], content["architecture"]["arguments"], data).to(device)
    split = Split.of(x.cpu(), labels.cpu())
    queried = dataclasses.replace(data, train=split, validation=split.first(1), fingerprint="queried")
    training.train(model, training.cross_entropy, queried, budget=SUBSTITUTE_BUDGET, seed=seed + round_, device=device)
    return model


def defense_of(content: Mapping[str, Any]) -> Any:
    """The defense of a training task's content, with every argument as the content holds it."""
    return registry.restore("defenses", content["defense"])


def _architecture(content: Mapping[str, Any], data: DataSet) -> Callable[[], nn.Module]:
    spec = Spec.of(content["architecture"]["name"], content["architecture"]["arguments"])
    return lambda: architecture_of(spec.name, spec.keywords, data)
