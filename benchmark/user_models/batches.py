"""Models for a fixed number of images, asked about any number."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def in_batches(answer: Callable[[Tensor], Tensor], x: Tensor, size: int | None) -> Tensor:
    """The answers (n, k) of a model that takes `size` images at a time, any number if None.

    x: images, (n, ...). The last ones are filled up with the first image, whose surplus answers are dropped.
    """
    if size is None:
        return answer(x)
    short = -len(x) % size
    padded = torch.cat((x, x[:1].expand(short, *x.shape[1:]))) if short else x
    return torch.cat([answer(part) for part in torch.split(padded, size)])[: len(x)]
