from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.access import WhiteBox
from advbench.attacks.rng import ExampleRNG


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Linear(nn.Module):
    """Logits W x + b; W of shape (classes, c, h, w), b of shape (classes,)."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.flatten(1).T + self.bias


@pytest.fixture
def linear() -> Callable[..., Linear]:
    return Linear


@pytest.fixture
def white_box() -> Callable[..., WhiteBox]:
    """White-box access to a model for n examples (or those of `index`), with the streams of a seed."""

    def make(model: nn.Module, index: int | Tensor, seed: int = 0, **arguments: object) -> WhiteBox:
        index = torch.arange(index) if isinstance(index, int) else index
        return WhiteBox(model, ExampleRNG.make(seed, "attack", index).fork("model"), **arguments)

    return make
