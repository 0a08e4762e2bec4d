from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from advbench.zoo.data import DataSet, Split


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def blobs() -> DataSet:
    """Three classes of 4 x 4 grey images, each bright in its own row: easy to learn."""
    generator = torch.Generator().manual_seed(0)

    def split(n: int) -> Split:
        y = torch.arange(n) % 3
        x = 0.3 * torch.rand(n, 1, 4, 4, generator=generator)
        x[torch.arange(n), 0, y] += 0.6
        return Split.of(x, y)

    return DataSet("blobs", split(60), split(15), split(30), 3, {"linf": 0.1})


@pytest.fixture
def small_net() -> Callable[[], nn.Sequential]:
    """Makes a network with dropout and batch normalisation, the same weights each time."""

    def make() -> nn.Sequential:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return nn.Sequential(
                nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 3)
            )

    return make
