"""What torch hands to the forward and the backward of an autograd function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor


class AutogradContext(Protocol):
    """What an autograd function keeps between its forward and its backward; a function that keeps more extends it."""

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]:
        """The tensors that the forward saved."""
        ...

    @property
    def needs_input_grad(self) -> tuple[bool, ...]:
        """Which of the forward's arguments want a gradient."""
        ...

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep tensors for the backward."""
        ...


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """torch's decorator of the same name for a backward that must not be differentiated, free where none could be.

    A graph of the backward is asked for by `create_graph` alone, and gradients are enabled inside it then and only then.
    """
    guarded = torch.autograd.function.once_differentiable(backward)

    @functools.wraps(backward)
    def wrapped(ctx: Any, *gradients: Tensor) -> Any:
        return guarded(ctx, *gradients) if torch.is_grad_enabled() else backward(ctx, *gradients)

    return wrapped
