"""The black-box attacker's substitute, trained on the labels of a whole defended pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from advbench.attacks.access import DecisionBased
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.substitute import Substitute, train_substitute
from advbench.clocks import stopwatch
from advbench.defenses.defended import Defended
from advbench.tasks.context import GENERATORS, Context, data_of, defended_of
from advbench.tasks.models import architecture_of
from advbench.tasks.task import Task, artefact
from advbench.zoo import checkpoints, training
from advbench.zoo.data import DataSet, Split
from advbench.zoo.training import Budget


def run(task: Task, context: Context, device: torch.device) -> None:
    """Train the substitute and write its checkpoint."""
    target = defended_of(task.content["target"], context, device)
    with GENERATORS, stopwatch(device) as measured:
        found = fit_substitute(task.content, target, data_of(context), device)
    metadata = {
        "seconds": f"{measured.seconds:.3f}",
        "queries": str(found.queries),
        "fidelity": f"{found.fidelity:.6f}",
        "sizes": ",".join(map(str, found.sizes)),
    }
    checkpoints.save(artefact("substitute", task.key, context.out), found.model, metadata)


BUDGET = Budget(epochs=30, batch_size=64, learning_rate=2e-3)
"""How a substitute is trained in each round."""

_FIDELITY_IMAGES = 1000
"""The most held-out images that a substitute is compared with the oracle on: a purifier takes seconds for a hundred."""


def fit_substitute(content: Mapping[str, Any], target: Defended, data: DataSet, device: torch.device) -> Substitute:
    """The substitute of Papernot et al. for the labels of `target`, from held-out images that are never scored.

    The seed images are the first of the validation split, which no model is trained on; the next thousand at most measure
    the fidelity. Where the split is small the seeds are two thirds of it at most.
    """
    seed = int(content["seed"])
    seeds = min(int(content["seeds"]), 2 * len(data.validation) // 3)
    rest = data.validation.select(slice(seeds, seeds + _FIDELITY_IMAGES)).to(device)

    def oracle(rng: ExampleRNG) -> DecisionBased:
        return DecisionBased(target.model, rng, stochastic=target.stochastic)

    return train_substitute(
        oracle,
        data.validation.first(seeds).to(device).x,
        fit=partial(_fit_round, content=content, data=data, seed=seed, device=device),
        rounds=int(content["rounds"]) + 1,
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
    training.train(model, training.cross_entropy, queried, budget=BUDGET, seed=seed + round_, device=device)
    return model
