"""Stochastic models of the user, which draw from global generators: repeatable for any batch.

Such a model's draws depend on the place of an image in its batch. So it is always run on full blocks of the same size, with
every image at the same place of the same block, and with the generators seeded for (seed, purpose, block, draw).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from advbench.attacks.rng import ExampleRNG
from advbench.zoo.training import GENERATORS, seeded

_GREY = 0.5


class Blockwise(nn.Module):
    """A model with random numbers of its own, called as ``model(x, rng)`` like advbench's stochastic ones.

    model: images (n, c, h, w) -> logits (n, classes), whose answer for an image depends on that image and on torch's global
    generators alone (Python's and NumPy's are seeded too). block: images per pass. index: data-set indices of the images
    that fill the blocks first, in ascending order, shape (n,); if None an image's place is its index.

    A pass costs a whole block even where a few of its images are asked for: the other places are grey. Images of one block
    that are at different draws take a pass for each.
    """

    def __init__(self, model: nn.Module, *, block: int, index: Tensor | None = None) -> None:
        super().__init__()
        if block < 1:
            raise ValueError(f"Expected `block` >= 1, got {block}")
        self.model = model
        self.block = block
        self._index = None if index is None else index.sort().values.cpu()

    def extra_repr(self) -> str:
        """What the structure is, beside its parts."""
        return f"block={self.block}"

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        """Logits (n, classes) of images (n, c, h, w), in which the same image at the same draw meets the same numbers."""
        if not len(x):
            return self.model(x)  # type: ignore[no-any-return]
        slot, draw = self._slots(rng.index.cpu()), rng.draw.cpu()
        block, place = slot // self.block, (slot % self.block).to(x.device)
        passes, belongs = torch.unique(torch.stack((block, draw, _copies(slot, draw))), dim=1, return_inverse=True)
        parts, rows = [], []
        for number, (which, at, _) in enumerate(passes.T.tolist()):
            mine = (belongs == number).nonzero().flatten().to(x.device)
            full = x.new_full((self.block, *x.shape[1:]), _GREY).index_copy(0, place[mine], x[mine])
            with generators(_seed(rng.key, which, at), x.device):
                parts.append(self.model(full)[place[mine]])
            rows.append(mine)
        return torch.cat(parts)[torch.cat(rows).argsort()]

    def _slots(self, index: Tensor) -> Tensor:
        """The place of each image in the row of all blocks; images beyond the known ones stand behind these."""
        if self._index is None:
            return index
        found = torch.searchsorted(self._index, index).clamp(max=len(self._index) - 1)
        return torch.where(self._index[found] == index, found, len(self._index) + index)


def _copies(slot: Tensor, draw: Tensor) -> Tensor:
    """How many earlier rows are of the same image at the same draw, (n,): these need passes of their own."""
    _, same = torch.unique(torch.stack((slot, draw)), dim=1, return_inverse=True)
    order = same.argsort(stable=True)
    ordered = same[order]
    rank = torch.arange(len(same)) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(rank).index_copy_(0, order, rank)


def _seed(key: tuple[int, int], block: int, draw: int) -> int:
    text = f"{key[0]:08x}{key[1]:08x}/{block}/{draw}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


@contextmanager
def generators(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators, of torch and its device, of Python and of NumPy, and put their states back afterwards."""
    with GENERATORS, seeded(seed, device):
        states = random.getstate(), np.random.get_state()  # noqa: NPY002 - those that foreign code draws from
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
