"""Squared Frobenius norms of any map's Jacobian, per example: exact, one backward pass per output, or by random projection.

The estimator is that of Hoffman et al. 2019 (arXiv:1908.02729, section 2.3), with random signs in place of points on a
sphere: for v of independent signs ``E ||v^T J||^2 = ||J||_F^2`` (Hutchinson 1990), at the cost of one backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXACT_CLASSES = 20
"""The most backward passes for the exact Jacobian of a network, unless the caller asks for projections."""


def projected_norms(
    outputs: Tensor, inputs: Tensor, *, projections: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """Unbiased estimates of ``||d outputs / d inputs||_F^2``, shape (n,), differentiable where grad mode is on.

    outputs: (n, ...), computed from `inputs`, (n, ...), which has ``requires_grad``. projections: random directions
    averaged, each one backward pass. generator: draws the directions; None takes torch's global generator.
    """
    if projections < 1:
        raise ValueError(f"Expected `projections` >= 1, got {projections}")
    total = inputs.new_zeros(len(inputs))
    for _ in range(projections):
        signs = torch.empty_like(outputs, requires_grad=False).bernoulli_(generator=generator).mul_(2).sub_(1)
        total = total + _squared_vjp(outputs, inputs, signs)
    return total / projections


def exact_norms(outputs: Tensor, inputs: Tensor) -> Tensor:
    """``||d outputs / d inputs||_F^2``, shape (n,): one backward pass per output; shapes as in `projected_norms`.

    >>> x = torch.tensor([[3.0, 4.0]], requires_grad=True)
    >>> exact_norms(x.square(), x).tolist()  # the Jacobian is diag(6, 8)
    [100.0]
    """
    total = inputs.new_zeros(len(inputs))
    flat = outputs.flatten(1)
    for column in range(flat.shape[1]):
        unit = torch.zeros_like(flat)
        unit[:, column] = 1
        total = total + _squared_vjp(flat, inputs, unit)
    return total


def network_jacobian(
    model: nn.Module,
    x: Tensor,
    *,
    output: str = "softmax",
    projections: int | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits (n, classes) and ``||dy/dx||_F^2`` of a whole network, shape (n,), Gu and Rigazio 2014, arXiv:1412.5068, eq. 5.

    One forward pass serves both. x: images (n, ...). output: y is the `softmax` or the `logits`. projections: random
    projections averaged (see `projected_norms`); None is exact, one backward pass per class, for networks of up to
    `EXACT_CLASSES`, and one projection for larger ones. While a network trains, the
    derivative goes through batch statistics and drawn dropout masks as autograd sees them.
    """
    check_output(output)
    if projections is not None and projections < 1:
        raise ValueError(f"Expected `projections` >= 1, got {projections}")
    with torch.enable_grad():
        inputs = x if x.requires_grad else x.detach().requires_grad_()
        logits = model(inputs)
        y = logits.softmax(dim=1) if output == "softmax" else logits
    if projections is None and y.shape[1] <= EXACT_CLASSES:
        norms = exact_norms(y, inputs)
    else:
        norms = projected_norms(y, inputs, projections=projections or 1, generator=generator)
    return (logits, norms) if torch.is_grad_enabled() else (logits.detach(), norms)


def check_output(output: str) -> None:
    """ValueError unless `output` names what the last layer's Jacobian is taken of."""
    if output not in ("softmax", "logits"):
        raise ValueError(f"Expected `output` softmax or logits, got {output!r}")


def _squared_vjp(outputs: Tensor, inputs: Tensor, vector: Tensor) -> Tensor:
    """``||vector^T J||^2`` for each example, shape (n,)."""
    keep = torch.is_grad_enabled()
    (product,) = torch.autograd.grad(outputs, inputs, vector, create_graph=keep, retain_graph=True)
    return product.flatten(1).square().sum(dim=1)
