"""The inner maximisation of adversarial training: ascent steps on the loss of the network that is being trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from advbench.attacks import balls
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel, Untargeted, cross_entropy

Loss: TypeAlias = Callable[[Tensor], Tensor]
"""Logits (n, classes) -> what is climbed, shape (n,)."""


def ascend(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int,
    step_size: float,
    random_start: bool,
    rng: ExampleRNG,
    sparsity: float | None = None,
) -> Tensor:
    """Images of higher cross-entropy in the ball around `x`: `climb` from the clean image or a random point of the ball.

    One step of size 1 without a box is the first-order maximiser of Shaham et al. 2015 (arXiv:1511.05432, algorithm 1);
    several steps from a random start are the adversary of Madry et al. 2018 (arXiv:1706.06083, section 2.1).

    y: labels (n,). random_start: from a uniform point of the ball, drawn from `rng`. The rest is as in `climb`.
    """
    _radius(threat)
    start = balls.random_start(x.detach(), threat, rng) if random_start else x

    def loss(logits: Tensor) -> Tensor:
        return cross_entropy(logits, Untargeted(y))

    return climb(model, x, start, loss, threat, steps=steps, step_size=step_size, sparsity=sparsity)


def climb(
    model: nn.Module,
    x: Tensor,
    start: Tensor,
    loss: Loss,
    threat: ThreatModel,
    *,
    steps: int,
    step_size: float,
    sparsity: float | None = None,
) -> Tensor:
    """Images of higher loss in the ball around `x`: projected steepest ascent from `start`.

    Inside a box the step is the steepest among the directions that stay in it: see `feasible`.

    The network runs in the mode that it is in: batch statistics and dropout while it trains, as in the code of both papers.
    It comes back as it was: no parameter gradient is computed, no buffer (running statistics) changes.

    x, start: images (n, c, h, w). threat: the ball, with an epsilon, and the box. steps: gradient steps, each a forward and
    a backward. step_size: as a fraction of epsilon. sparsity: for l1, the share of the values that a step is spread over
    (`balls.sparse_step`); None steps on one value. Returns images (n, c, h, w) without a graph.
    """
    length = step_size * _radius(threat)
    x, x_adv = x.detach(), start.detach()
    with unchanged(model):
        for _ in range(steps):
            gradient = input_gradient(model, x_adv, loss)
            if sparsity is None:
                step = length * balls.steepest(feasible(gradient, x_adv, threat), threat)
            else:
                step = balls.sparse_step(gradient, x_adv, threat, length, sparsity)
            x_adv = balls.project(x_adv + step, x, threat)
    return x_adv


def input_gradient(model: nn.Module, x: Tensor, loss: Loss) -> Tensor:
    """The gradient of the batch's summed loss in the images, shape (n, c, h, w)."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(model(x)).sum(), x)
    return gradient


def _radius(threat: ThreatModel) -> float:
    if threat.epsilon is None:
        raise ValueError("Expected a threat with an epsilon, got None: an ascent needs a ball to stay in")
    return threat.epsilon


def feasible(gradient: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """`gradient` without the components along which a pixel of `x` would leave the box at once; shapes (n, ...).

    Pixels at the end of their range are most of an image of digits. Without this rule the one pixel of an l1 step is often
    one that cannot move, step after step, and an l2 step spends its length on pixels that are clipped back.
    """
    if threat.box is None:
        return gradient
    low, high = threat.box
    return gradient.masked_fill(((x <= low) & (gradient < 0)) | ((x >= high) & (gradient > 0)), 0)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Freeze the parameters of `model` and keep its mode; flags and buffers are restored, after an exception too."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
