"""The contractive penalty of a network's dense layers in one node of the graph (Gu and Rigazio 2014, arXiv:1412.5068).

A step of a small network takes as long as its launches, of which norms by image and layer (`softmax_norms`, `masked_norms`)
need twice as many. A penalty asks for their mean alone: of a layer that ends in a ReLU ``sum of active_u ||w_u||^2``, where
active_u is the share of images in which unit u is active; of a layer under a softmax ``<W W^T, H>``, where H is the mean
square of the softmax's Jacobian. Weight decay asks for the squared weights, which are at hand then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from advbench.defenses.kernels.autograd import AutogradContext, once_differentiable


def dense_penalty(
    weights: Sequence[Tensor], outputs: Sequence[Tensor], coefficients: Sequence[float], *, softmax: bool
) -> tuple[Tensor, Tensor]:
    """``sum over layers of coefficient * mean of ||J||_F^2`` over a batch, and the sum of all squared weights; both scalars.

    weights: of each dense layer, (out, in). outputs: of its ReLU, (n, out), >= 0. softmax: whether the last layer is under
    a softmax; its output is then its logits. Differentiable in the weights and the logits, once.

    Rows of squared norms 25 and 4; the first image has both units active, the second the latter alone:

    >>> weight, output = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[0.7, 0.1], [0.0, 0.1]])
    >>> penalty, squares = dense_penalty([weight], [output], [0.5], softmax=False)
    >>> penalty.item(), squares.item()
    (8.25, 29.0)
    """
    hidden = len(weights) - softmax
    fixed = [y.detach() for y in outputs[:hidden]]
    found: tuple[Tensor, Tensor] = _DensePenalty.apply(hidden, tuple(coefficients), *weights, *fixed, *outputs[hidden:])
    return found


class _Context(AutogradContext, Protocol):
    """widths: of the layers that end in a ReLU. share: the last layer's coefficient over the number of images."""

    widths: list[int]
    share: float


class _DensePenalty(torch.autograd.Function):
    """See `dense_penalty`. Arguments: how many layers end in a ReLU, coefficients, the layers' weights, their outputs."""

    @staticmethod
    def forward(ctx: _Context, hidden: int, coefficients: tuple[float, ...], *tensors: Tensor) -> tuple[Tensor, Tensor]:
        weights, outputs = tensors[: len(coefficients)], tensors[len(coefficients) :]
        ctx.widths, ctx.share = [len(weight) for weight in weights[:hidden]], coefficients[-1] / len(outputs[0])
        saved, penalty, squares = list(weights), None, None
        if hidden:
            rows = torch.cat([torch.linalg.vecdot(weight, weight) for weight in weights[:hidden]])
            saved.append(_active(outputs[:hidden], coefficients, ctx.widths))
            penalty, squares = saved[-1] @ rows, rows.sum()
        if hidden < len(weights):
            flat = weights[-1].flatten()
            saved += _under_softmax(weights[-1], outputs[-1])
            twice, squared = saved[-4].flatten() @ flat, flat @ flat
            penalty = twice * (ctx.share / 2) if penalty is None else torch.add(penalty, twice, alpha=ctx.share / 2)
            squares = squared if squares is None else squares + squared
        ctx.save_for_backward(*saved)
        return penalty, squares  # type: ignore[return-value]

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, in_penalty: Tensor, in_squares: Tensor) -> tuple[Tensor | None, ...]:
        hidden, saved, found = len(ctx.widths), ctx.saved_tensors, list[Tensor]()
        in_row, in_square = 2 * in_penalty, 2 * in_squares
        softmax = len(saved) > hidden + 1
        if hidden:
            slopes = torch.split(torch.addcmul(in_square, saved[hidden + softmax], in_row).unsqueeze(1), ctx.widths)
            found = [weight * slope for weight, slope in zip(saved, slopes, strict=False)]
        if not softmax:
            return None, None, *found, *[None] * hidden
        weight, (twice, *rest), scale = saved[hidden], saved[-4:], in_row * ctx.share
        found.append(torch.addcmul(weight * in_square, twice, scale, value=0.5))
        return None, None, *found, *[None] * hidden, _in_logits(weight, *rest).mul_(scale)


def _active(outputs: Sequence[Tensor], coefficients: Sequence[float], widths: list[int]) -> Tensor:
    """The share of images in which each unit is active, times its layer's coefficient; of all units."""
    counts = torch.cat(list(outputs), dim=1).sign_().sum(dim=0)
    n = len(outputs[0])
    if len(set(coefficients)) == 1:
        return counts.mul_(coefficients[0] / n)
    for count, coefficient in zip(torch.split(counts, widths), coefficients, strict=False):
        count.mul_(coefficient / n)
    return counts


def _under_softmax(weight: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradient in W of the summed norms ``sum_k p_k^2 ||w_k - sum_j p_j w_j||^2``, p, p^2 and ``sum_k p_k^2 - 2 p``.

    The sum is ``<W W^T, H>`` with H symmetric, its gradient 2 H W and the sum half of ``<2 H W, W>``.
    """
    p = logits.softmax(dim=1)
    squares = p * p
    factor = torch.sub(squares.sum(dim=1, keepdim=True), p, alpha=2)
    part = p.T @ (p * factor)
    twice = part + part.T
    twice.diagonal().add_(squares.sum(dim=0), alpha=2)
    return twice @ weight, p, squares, factor


def _in_logits(weight: Tensor, p: Tensor, squares: Tensor, factor: Tensor) -> Tensor:
    """Half of the gradient in the logits of the summed norms, shape (n, classes)."""
    gram = weight @ weight.T
    towards = p @ gram
    within = gram.diagonal() + torch.linalg.vecdot(p, towards).unsqueeze(1)
    in_p = within.mul_(p).addcmul_(factor, towards).addmm_(squares, gram, alpha=-1)
    through: Tensor = in_p.mul_(p)  # the softmax's own derivative: p_k (in_p_k - <in_p, p>)
    return through.addcmul_(p, through.sum(dim=1, keepdim=True), value=-1)
