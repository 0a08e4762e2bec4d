"""The loss of a batch with its gradient in the images, which a penalty on that gradient can be differentiated through."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


def linearise(model: nn.Module, x: Tensor, y: Tensor, *, differentiable: bool) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy and each image's gradient of its own cross-entropy, (n, c, h, w): one forward and one backward.

    Through batch norm in training mode the gradient is that of the sum of all losses of the batch.

    x: images (n, c, h, w). y: labels (n,). differentiable: whether the gradient keeps its graph, so that the next backward
    pass is a double one.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        losses = cross_entropy(model(x), y, reduction="none")
        (gradient,) = torch.autograd.grad(losses.sum(), x, create_graph=differentiable, retain_graph=True)
    return losses.mean(), gradient
