"""The black-box attacker's substitute, trained on the labels of a whole defended pipeline."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from advbench.attacks.access import DecisionBased
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.substitute import Substitute, train_substitute
from advbench.clocks import stopwatch
from advbench.defenses.defended import Defended
from advbench.tasks.artefacts import Kind, artefact
from advbench.tasks.components import Component, architecture_of
from advbench.tasks.context import Context, data_of, defended_of
from advbench.zoo import checkpoints, training
from advbench.zoo.data import DataSet, Split
from advbench.zoo.training import Budget


@dataclass(frozen=True, slots=True)
class SubstituteContent:
    """What a substitute depends on.

    target: key of the training of the model whose labels it learns. architecture: the substitute's. rounds: of
    Jacobian-based augmentation; step: its lambda. seeds: how many held-out images it starts from. fingerprint: of the data
    set. seed: of the training.
    """

    kind: ClassVar[Kind] = "substitute"

    target: str
    architecture: Component
    rounds: int
    step: float
    seeds: int
    fingerprint: str
    seed: int

    @property
    def needs(self) -> tuple[str, ...]:
        """The training of its target."""
        return (self.target,)

    def label(self, architecture: str, target: str) -> str:
        """For people."""
        return f"substitute {architecture} for {target}"


def run(key: str, content: SubstituteContent, context: Context, device: torch.device) -> None:
    """Train the substitute and write its checkpoint."""
    target = defended_of(content.target, context, device)
    with training.GENERATORS, stopwatch(device) as measured:
        found = fit_substitute(content, target, data_of(context), device)
    metadata = {
        "seconds": f"{measured.seconds:.3f}",
        "queries": str(found.queries),
        "fidelity": f"{found.fidelity:.6f}",
        "sizes": ",".join(map(str, found.sizes)),
    }
    checkpoints.save(artefact("substitute", key, context.out), found.model, metadata)


@dataclass(frozen=True, slots=True)
class SubstituteFacts:
    """The contents of a substitute's checkpoint beside the weights.

    queries: to the target. fidelity: the share of held-out images on which both agree, NaN if there were none. sizes: of the
    training set in each round. seconds: of all rounds.
    """

    queries: int
    fidelity: float
    sizes: tuple[int, ...]
    seconds: float


def read_substitute(key: str, context: Context) -> SubstituteFacts:
    """The contents of a finished substitute's checkpoint beside the weights."""
    found = checkpoints.metadata(artefact("substitute", key, context.out))
    return SubstituteFacts(
        queries=int(found["queries"]),
        fidelity=float(found["fidelity"]),
        sizes=tuple(int(size) for size in found["sizes"].split(",")),
        seconds=float(found["seconds"]),
    )


BUDGET = Budget(epochs=30, batch_size=64, learning_rate=2e-3)
"""How a substitute is trained in each round."""

_FIDELITY_IMAGES = 1000
"""The most held-out images that a substitute is compared with the oracle on: a purifier takes seconds for a hundred."""


def fit_substitute(content: SubstituteContent, target: Defended, data: DataSet, device: torch.device) -> Substitute:
    """The substitute of Papernot et al. for the labels of `target`, from held-out images that are never scored.

    The seed images are the first of the validation split, which no model is trained on; the next thousand at most measure
    the fidelity. Where the split is small the seeds are two thirds of it at most.
    """
    seeds = min(content.seeds, 2 * len(data.validation) // 3)
    rest = data.validation.select(slice(seeds, seeds + _FIDELITY_IMAGES)).to(device)

    def oracle(rng: ExampleRNG) -> DecisionBased:
        return DecisionBased(target.model, rng, stochastic=target.stochastic)

    return train_substitute(
        oracle,
        data.validation.first(seeds).to(device).x,
        fit=partial(_fit_round, content=content, data=data, device=device),
        rounds=content.rounds + 1,
        step=content.step,
        seed=content.seed,
        held_out_x=rest.x,
    )


def _fit_round(
    x: Tensor, labels: Tensor, round_: int, *, content: SubstituteContent, data: DataSet, device: torch.device
) -> nn.Module:
    """Train a fresh substitute on the images and oracle labels of one round."""
    with training.seeded(content.seed + 1000 * (round_ + 1)):
        model = architecture_of(content.architecture, data).to(device)
    split = Split.of(x.cpu(), labels.cpu())
    queried = dataclasses.replace(data, train=split, validation=split.first(1), fingerprint="queried")
    training.train(model, training.cross_entropy, queried, budget=BUDGET, seed=content.seed + round_, device=device)
    return model
