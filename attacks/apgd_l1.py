"""Auto-PGD in l1: sparse steps whose sparsity follows the perturbation's, in balls that shrink to the threat's."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.access import WhiteBox
from advbench.attacks.aims import Aim
from advbench.attacks.iterates import Search
from advbench.attacks.losses import margin
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel

PHASES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))
"""Radius in units of epsilon, and share of the steps."""

_PERIOD = 0.04
_DENSER = 1.5
_SHRINKAGE = 1.5
_SMALLEST_STEP = 0.1
_SAME_SPARSITY = 0.95


class SparseClimb(NamedTuple):
    """Where a run stands, for the live examples.

    x_adv, gradient: the last iterate; best, best_gradient, best_loss: that of the highest loss. step: the step size. share:
    of the values that a step moves. nonzeros: changed values of the best iterate at the last checkpoint. Images
    (m, c, h, w), the others (m,).
    """

    x_adv: Tensor
    gradient: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    step: Tensor
    share: Tensor
    nonzeros: Tensor


def climb_sparsely(search: Search[WhiteBox], aim: Aim, threat: ThreatModel, rng: ExampleRNG, steps: int) -> None:
    """One run in l1 from a random start: algorithms 1 and 2 of Croce & Hein 2021 (arXiv:2103.01208), of `steps` steps.

    Three phases, in balls of three, two and one times epsilon, each from the best point of the one before, projected; only
    the last one's iterates count. A step moves a share of the values, those with the largest gradients, by equal amounts
    of epsilon in sum. Every 4% of a phase's steps the share becomes that of the best iterate's non-zeros over 1.5; where
    these fell by 5% the step size is epsilon again and the example goes back to its best iterate, else it shrinks by 1.5,
    down to a tenth of epsilon. A run costs steps + 3 forwards and backwards.
    """
    points = search.x + rng.normal(tuple(search.x.shape[1:]), search.x.dtype)
    left = steps
    for radius, part in PHASES:
        phase = min(left, math.ceil(part * steps))
        left -= phase
        ball = replace(threat, epsilon=radius * threat.epsilon_or_inf)
        points = sparse_phase(search, aim, ball, balls.project(points, search.x, ball), phase, counts=radius == 1)


def sparse_phase(
    search: Search[WhiteBox], aim: Aim, threat: ThreatModel, start: Tensor, steps: int, *, counts: bool = True
) -> Tensor:
    """One phase of a run from `start`; returns its best points, shape (m, c, h, w), m the examples that are still live."""
    climb = _observe(search, aim, start, _start(start, search.x, threat), counts)
    period = max(int(_PERIOD * steps), 1)
    for step in range(1, steps + 1):
        if not search:
            break
        x_adv = climb.x_adv + balls.per_example(climb.step, start) * _sparse_direction(climb)
        climb = _observe(search, aim, balls.project(x_adv, search.x, threat), climb, counts)
        if step % period == 0:
            climb = _check(climb, search.x, threat)
    return climb.best


def _start(start: Tensor, x: Tensor, threat: ThreatModel) -> SparseClimb:
    nothing, low = torch.zeros_like(start), start.new_full((len(start),), -torch.inf)
    nonzeros = balls.distance(start - x, "l0")
    return SparseClimb(
        start,
        nothing,
        start,
        nothing,
        low,
        torch.full_like(low, threat.epsilon_or_inf),
        nonzeros / x[0:1].numel() / _DENSER,
        nonzeros,
    )


def _sparse_direction(climb: SparseClimb) -> Tensor:
    """The sign of the gradient on a share of its largest values, one at the least, with unit length in l1."""
    gradient = balls.finite(climb.gradient).flatten(1)
    size = gradient.abs()
    count = (climb.share * size.shape[1]).ceil().long().clamp(1, size.shape[1])
    threshold = size.sort(dim=1, descending=True).values.gather(1, count.unsqueeze(1) - 1)
    direction = gradient.sign().where(size >= threshold, 0)
    return (direction / direction.abs().sum(dim=1, keepdim=True).clamp(min=1)).view_as(climb.gradient)


def _observe(search: Search[WhiteBox], aim: Aim, x_adv: Tensor, climb: SparseClimb, counts: bool) -> SparseClimb:
    """Look at the next iterates and, where they count, carry on with the examples that stay."""
    evaluation = aim.observe(search, x_adv)
    if counts:
        search.record(x_adv, evaluation.logits, margin(evaluation.logits, search.goal))
    loss = evaluation.loss.to(x_adv.dtype)
    better = loss > climb.best_loss
    climb = climb._replace(
        x_adv=x_adv,
        gradient=evaluation.gradient,
        best=x_adv.where(balls.per_example(better, x_adv), climb.best),
        best_gradient=evaluation.gradient.where(balls.per_example(better, x_adv), climb.best_gradient),
        best_loss=loss.where(better, climb.best_loss),
    )
    return SparseClimb(*search.keep(*climb)) if counts else climb


def _check(climb: SparseClimb, x: Tensor, threat: ThreatModel) -> SparseClimb:
    """Let sparsity and step size follow the best iterates."""
    nonzeros = balls.distance(climb.best - x, "l0")
    sparser = nonzeros < _SAME_SPARSITY * climb.nonzeros
    back = balls.per_example(sparser, x)
    step = (climb.step / _SHRINKAGE).clamp(min=_SMALLEST_STEP * threat.epsilon_or_inf)
    return climb._replace(
        x_adv=climb.best.where(back, climb.x_adv),
        gradient=climb.best_gradient.where(back, climb.gradient),
        step=torch.full_like(step, threat.epsilon_or_inf).where(sparser, step),
        share=nonzeros / x[0:1].numel() / _DENSER,
        nonzeros=nonzeros,
    )
