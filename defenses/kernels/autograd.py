"""What torch hands to the forward and the backward of an autograd function."""

from __future__ import annotations

from typing import Protocol

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
