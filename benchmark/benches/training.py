"""Training-time defenses: what a step of each costs over a step of plain training, on the same net and images.

A step is what the training loop repeats: the objective, its backward pass and Adam. All steps of a net take turns in one
process. A defense that trains twice, an autoencoder first, takes a step of both. What happens once, before the first step
(the tangent planes of the images, say), is not counted, and neither is a search over trainings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Iterator

import torch
from torch import Tensor, nn

from advbench.benches.bench import BenchRow, fastest
from advbench.clocks import device_name
from advbench.defenses.capabilities import open_norm, with_epsilon
from advbench.defenses.training.deep_contractive import DeepContractive
from advbench.defenses.training.pretrained import Pretrained, autoencoder_around
from advbench.defenses.training.trained import FromScratch
from advbench.registry import registry
from advbench.registry.specs import Spec
from advbench.zoo.data import Split
from advbench.zoo.optimizers import WAME
from advbench.zoo.training import Objective, Step, seeded

BATCH = 128
SHAPE = (1, 28, 28)
NETWORKS = ("gu2014/n200-200-10", "shaham2015/convnet")
SMALLEST = "gu2014/n100-100-10"
"""The net on which launches, not arithmetic, make a step: the penalty on layer Jacobians is measured there too."""

RADII = {"linf": 0.3, "l2": 1.5, "l1": 10.0}
"""MNIST's usual ones, for the defenses that take the run's; they change no cost."""

WEIGHTS = 12_000_000
"""About as many as the largest net of Mosca and Magoulas 2018 has."""
PROMISED = {"deep-contractive": 1.3, "sgr": 1.3, "robust-linf": 2.0, "robust-l2": 2.0, "robust-l1": 2.0}
"""Bars on the CPU, times plain training: the papers' "very little" and "twice"."""

BASELINE = "none"
_DECAYED = "weight-decay"
REFERENCES = dict.fromkeys(("deep-contractive", "gaussian-noise"), _DECAYED)
"""What is not beside `none`: those whose objective has the weight decay that is their paper's plain training too."""


def rows(device: torch.device) -> Iterator[BenchRow]:
    """A row for each registered training-time defense on each net, as they are measured."""
    for network in NETWORKS:
        yield from steps(network, device)
    yield from steps(SMALLEST, device, names=(BASELINE, _DECAYED, "deep-contractive"), seconds=10.0)
    yield optimizer(device)


def steps(
    network: str, device: torch.device, *, names: Container[str] | None = None, seconds: float = 60.0
) -> Iterator[BenchRow]:
    """The rows of one net, of the defenses of these names or of all; at most about so many seconds."""
    chosen = {name: each for name, each in defenses().items() if names is None or name in names}
    found = fastest({name: stepper(each, network, device) for name, each in chosen.items()}, device, seconds=seconds)
    for name, taken in found.items():
        reference = REFERENCES.get(name, BASELINE)
        if name != BASELINE:
            yield BenchRow(
                case=f"{network}, {BATCH} images, {name}",
                measure="training step",
                device=device_name(device),
                against="plain training" + (" with weight decay" if reference == _DECAYED else ""),
                seconds=taken,
                reference_seconds=found[reference],
                bar=PROMISED.get(name) if device.type == "cpu" else None,
            )


def optimizer(device: torch.device, weights: int = WEIGHTS) -> BenchRow:
    """A step of WAME beside one of torch's Adam, on one tensor of so many weights."""
    calls: dict[str, Callable[[], object]] = {}
    for name, kind in (("wame", WAME), ("adam", torch.optim.Adam)):
        parameter = nn.Parameter(torch.zeros(weights, device=device))
        parameter.grad = torch.linspace(-1, 1, weights, device=device)
        calls[name] = kind([parameter], lr=1e-3).step
    found = fastest(calls, device, seconds=10.0)
    return BenchRow(
        case=f"{weights:,} weights, wame",
        measure="step of the optimizer",
        device=device_name(device),
        against="a step of Adam",
        seconds=found["wame"],
        reference_seconds=found["adam"],
        bar=1.5 if device.type == "cpu" else None,
    )


def defenses() -> dict[str, FromScratch]:
    """The registered defenses that train a net from scratch by one objective, with their defaults."""
    created = {name: registry.defenses.create(Spec(name)) for name in registry.defenses.names()}
    return {name: _settled(each) for name, each in created.items() if isinstance(each, FromScratch)}


def _settled(defense: FromScratch) -> FromScratch:
    """The defense with what is open in it: a radius, or a penalty's coefficient."""
    if isinstance(defense, DeepContractive):
        return dataclasses.replace(defense, coefficient=1e-4)
    norm = open_norm(defense, "linf")
    return defense if norm is None else with_epsilon(defense, RADII[norm])


def stepper(defense: FromScratch, network: str, device: torch.device, *, moving: bool = True) -> Callable[[], object]:
    """A call that takes one step on random images. moving: with Adam's part of it, of which torch keeps some on the host."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(BATCH, *SHAPE, generator=generator), torch.randint(10, (BATCH,), generator=generator)
    images = Split.of(x, y).to(device)
    with seeded(0, device):
        model = registry.build_network(Spec(network), SHAPE, 10).train()
    if not isinstance(defense, Pretrained):
        return _step(model.to(device), images, defense.start(images), moving)
    autoencoder = autoencoder_around(model, SHAPE, seed=0).to(device)
    pair = (
        _step(autoencoder, images, defense.reconstruction, moving),
        _step(model.to(device), images, defense.objective, moving),
    )
    return lambda: [call() for call in pair]


def _step(model: nn.Module, images: Split, objective: Objective, moving: bool) -> Callable[[], object]:
    # Steps of length zero, so that every call does the same work on the same weights.
    optimizer, step = torch.optim.Adam(model.parameters(), lr=0.0), Step(0, 0, 0, images.index)

    def call() -> Tensor:
        optimizer.zero_grad()
        terms = objective(model, images.x, images.y, step)
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        if moving:
            optimizer.step()
        return loss.detach()

    return call
