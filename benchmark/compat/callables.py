"""Functions that answer logits, as the modules that the harness attacks."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

Forward = Callable[[Tensor], Tensor]
"""Images (n, c, h, w) in [0, 1] -> logits (n, classes)."""


class Called(nn.Module):
    """A function of images, with the modules that it was found to call, so that these keep their modes and their weights.

    device: where it is asked if it calls no module.
    """

    def __init__(self, function: Forward, device: torch.device) -> None:
        super().__init__()
        self.function = function
        self.called = nn.ModuleList(dict.fromkeys(_modules_of(function)))
        self.register_buffer("place", torch.zeros(0, device=device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, c, h, w)."""
        return self.function(x)


def as_module(forward_pass: Forward | nn.Module, device: str | torch.device = "cpu") -> nn.Module:
    """The module of a forward pass: itself, the one that a method belongs to, else the function as one.

    device: where a function is asked that calls no module, if it is there. Raises ValueError for what cannot be called.
    """
    owner = getattr(forward_pass, "__self__", None)
    if isinstance(forward_pass, nn.Module):
        return forward_pass
    if isinstance(owner, nn.Module) and getattr(forward_pass, "__name__", "") in ("forward", "__call__"):
        return owner
    if not callable(forward_pass):
        raise ValueError(f"Expected a model, or a function of images, got {type(forward_pass).__name__}")
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        place = torch.device("cpu")
    return Called(forward_pass, place)


def _modules_of(function: object, depth: int = 3) -> Iterator[nn.Module]:
    """The modules in what a function closes over, its globals by the names that it uses, its arguments and its object."""
    if isinstance(function, nn.Module):
        yield function
    elif depth and isinstance(function, functools.partial):
        for value in (function.func, *function.args, *function.keywords.values()):
            yield from _modules_of(value, depth - 1)
    elif depth and callable(function):
        for value in _seen_by(function):
            yield from _modules_of(value, depth - 1)


def _seen_by(function: object) -> Iterator[object]:
    owner = getattr(function, "__self__", None)
    yield owner
    holder: object = vars(owner if owner is not None else function) if hasattr(owner or function, "__dict__") else {}
    if isinstance(holder, Mapping):
        yield from holder.values()
    try:
        found = inspect.getclosurevars(function)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return
    yield from found.nonlocals.values()
    yield from found.globals.values()
