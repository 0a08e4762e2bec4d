"""Layer sizes that follow the size of the images."""

from __future__ import annotations

import torch
from torch import nn


def flat_features(body: nn.Module, shape: tuple[int, int, int], name: str) -> int:
    """Numbers per image that `body` hands on for images of `shape`, found by one forward pass of zeros.

    Raises ValueError if a feature map shrinks to nothing; `name` is the architecture that the message names.
    """
    training = body.training
    body.eval()
    try:
        with torch.no_grad():
            return body(torch.zeros(1, *shape)).numel()  # type: ignore[no-any-return]
    except RuntimeError:
        size = "x".join(map(str, shape))
        raise ValueError(f"Expected larger images for {name}, got {size}: its feature maps shrink to nothing") from None
    finally:
        body.train(training)
