"""The precision in which a model is attacked; what counts is always said by the model in float32.

An attack that stops at its first success stops too early where the success is one of the lower precision alone. So such
images are attacked once more, in float32, before a craft is finished.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from advbench.attacks.access import ask, frozen
from advbench.attacks.rng import ExampleRNG
from advbench.defenses.defended import Surrogate

Precision: TypeAlias = Literal["float32", "tf32", "bfloat16"]
"""Of a model's products while it is attacked: of 24 bits; of 11 bits on GPUs that know them; of 8 bits (autocast)."""

_LOCK = threading.Lock()
_ENTERED: list[tuple[bool, bool]] = []
"""What the switches were for each block that runs, of any thread; the first is what stood before."""


@contextmanager
def products(precision: Precision) -> Iterator[None]:
    """Let the products and convolutions of float32 numbers on a GPU keep 11 bits for ``tf32``, all else 24, inside.

    torch's default takes TF32 for convolutions. The switches belong to the process: blocks of several threads may overlap if
    they want the same.

    >>> with products("float32"):
    ...     torch.backends.cudnn.allow_tf32
    False
    """
    with _LOCK:
        _ENTERED.append(_switches())
        _switch(precision == "tf32", precision == "tf32")
    try:
        yield
    finally:
        with _LOCK:
            last = _ENTERED.pop()
            _switch(*last)


def _switches() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def _switch(of_products: bool, of_convolutions: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = of_products, of_convolutions


class HalfPrecision(nn.Module):
    """A model whose products and convolutions are taken in bfloat16 (torch's autocast); its logits are float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, rng: ExampleRNG | None = None) -> Tensor:
        """Logits (n, classes) of images (n, c, h, w), in their precision; `rng` for a stochastic model."""
        with torch.autocast(x.device.type, torch.bfloat16):
            answer: Tensor = self.model(x) if rng is None else self.model(x, rng)
        return answer.to(x.dtype)


def in_precision(source: Surrogate, precision: Precision) -> Surrogate:
    """The model as it is attacked in a precision: with ``bfloat16`` its forward, and so its backward, under autocast."""
    return dataclasses.replace(source, model=HalfPrecision(source.model)) if precision == "bfloat16" else source


def answers(source: Surrogate, x: Tensor, batch: int, device: torch.device, precision: Precision) -> Tensor:
    """The labels (n,), int64, on the processor, that a deterministic model gives to images (n, c, h, w) in a precision."""
    with products(precision), frozen(source.model), torch.no_grad():
        parts = [ask(source.model, part.to(device)).argmax(dim=1).cpu() for part in torch.split(x, batch)]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)
