"""The black-box attacker's substitute: a model trained on the labels that an oracle gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from advbench.attacks.access import DecisionBased, WhiteBox
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Untargeted, cross_entropy

Oracle: TypeAlias = Callable[[ExampleRNG], DecisionBased]
"""Access to the labels of the attacked model, for the examples of the given random streams."""

Fit: TypeAlias = Callable[[Tensor, Tensor, int], nn.Module]
"""(images (n, c, h, w), oracle labels (n,), round from 0) -> a model trained on them, from scratch or carried on."""


@dataclass(frozen=True, slots=True, eq=False)
class Substitute:
    """A substitute and what it cost.

    model: images -> logits. queries: labels asked for, to train it. sizes: training images of each round. fidelity: share of
    the held-out images that it labels as the oracle does, NaN where there were none; the queries of these are not counted,
    for they are the measurement's and not the attacker's.
    """

    model: nn.Module
    queries: int
    sizes: tuple[int, ...]
    fidelity: float


def train_substitute(
    oracle: Oracle,
    x: Tensor,
    *,
    fit: Fit,
    rounds: int,
    step: float,
    seed: int,
    held_out_x: Tensor | None = None,
    cap: int | None = None,
    box: tuple[float, float] = (0.0, 1.0),
    batch: int = 256,
) -> Substitute:
    """Train a substitute with Jacobian-based augmentation (Papernot et al. 2017, arXiv:1602.02697, algorithm 1).

    Each round labels the new images with the oracle, fits a substitute to all images so far, and, except in the last round,
    adds x + step sign(d F_label / d x) for every image x of the set, clipped to the box: the set doubles each round.

    x: the attacker's own images, shape (n, c, h, w). step: the lambda of the paper, in pixel units. cap: at most so many new
    images per round, of images drawn by `seed` (the paper's reservoir); None for all. batch: images per forward pass.

    An image's random stream is that of its position in the set, and each image is asked about once, so that every query to a
    stochastic oracle is a fresh draw that depends on `seed` and the position alone.

    Raises ValueError for no images, or for `rounds`, `step` or `cap` that are not above zero.
    """
    if not len(x):
        raise ValueError("Expected images to start a substitute from, got none")
    for name, value in (("rounds", rounds), ("step", step), ("cap", 1 if cap is None else cap)):
        if not value > 0:
            raise ValueError(f"Expected `{name}` > 0, got {value}")
    labels = torch.empty(0, dtype=torch.int64, device=x.device)
    queries, sizes = 0, []
    for number in range(rounds):
        new, asked = _ask(oracle, x[len(labels) :], len(labels), seed, "substitute", batch)
        labels, queries = torch.cat((labels, new)), queries + asked
        sizes.append(len(x))
        model = fit(x, labels, number)
        if number + 1 < rounds:
            chosen = _sample(x, cap, seed, number)
            x = torch.cat((x, _augment(model, x[chosen], labels[chosen], step, box, batch)))
    fidelity = math.nan if held_out_x is None else _fidelity(model, oracle, held_out_x, seed, batch)
    return Substitute(model, queries, tuple(sizes), fidelity)


def _ask(oracle: Oracle, x: Tensor, first: int, seed: int, purpose: str, batch: int) -> tuple[Tensor, int]:
    """The oracle's labels (n,) of images that stand at position `first` of their set and after, and the queries."""
    labels, queries = [], 0
    for start in range(0, len(x), batch):
        part = x[start : start + batch]
        index = torch.arange(first + start, first + start + len(part), device=x.device)
        with oracle(ExampleRNG.make(seed, "oracle", index).fork(purpose)) as access:
            labels.append(access.labels(part))
        queries += int(access.ledger.queries.sum())
    return torch.cat(labels), queries


def _augment(model: nn.Module, x: Tensor, labels: Tensor, step: float, box: tuple[float, float], batch: int) -> Tensor:
    """Images moved along the sign of the gradient of the substitute's probability of their label."""
    moved = []
    for part, label in zip(torch.split(x, batch), torch.split(labels, batch), strict=True):
        index = torch.arange(len(part), device=x.device)
        with WhiteBox(model, ExampleRNG.make(0, "augment", index)) as access:
            gradient = -access.loss_gradient(part, Untargeted(label), cross_entropy).gradient
        moved.append((part + step * gradient.sign()).clamp(*box))
    return torch.cat(moved)


def _sample(x: Tensor, cap: int | None, seed: int, number: int) -> Tensor:
    """Positions of the images to augment in a round: all, or `cap` of them, in order."""
    positions = torch.arange(len(x), device=x.device)
    if cap is None or cap >= len(x):
        return positions
    tickets = ExampleRNG.make(seed, "attack", positions).fork("reservoir", number).bits(1).squeeze(1)
    return tickets.argsort(stable=True)[:cap].sort().values


def _fidelity(model: nn.Module, oracle: Oracle, x: Tensor, seed: int, batch: int) -> float:
    if not len(x):
        return math.nan
    wanted, _ = _ask(oracle, x, 0, seed, "fidelity", batch)
    agreed = 0
    for part, label in zip(torch.split(x, batch), torch.split(wanted, batch), strict=True):
        index = torch.arange(len(part), device=x.device)
        with WhiteBox(model, ExampleRNG.make(0, "fidelity", index)) as access:
            agreed += int((access.logits(part).argmax(dim=1) == label).sum())
    return agreed / len(x)
