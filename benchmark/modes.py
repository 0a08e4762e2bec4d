"""Training and evaluation mode of any module, those among them that cannot be switched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def evaluate(model: nn.Module) -> None:
    """Put a module in evaluation mode, whatever its own `eval` returns.

    A program of torch.export raises when it is switched, for its mode was fixed when it was exported: only the attributes
    `training` of its modules are set.
    """
    try:
        model.eval()
    except Exception:
        for module in model.modules():
            if getattr(module, "training", False):
                module.training = False


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put `model` in evaluation mode, and give every submodule its mode back afterwards, after an exception too.

    Modules without a mode, such as frozen TorchScript, have none before or after.
    """
    modes = [(module, module.training) for module in model.modules() if hasattr(module, "training")]
    evaluate(model)
    try:
        yield
    finally:
        for module, training in modes:
            if module.training is not training:
                module.training = training
