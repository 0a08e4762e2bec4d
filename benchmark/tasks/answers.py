"""What a user's network answers on a few fixed images: its behaviour, which no hash of its files holds.

A factory may read a file, an environment variable or an installed library. So its answers stand in the key of every task
that the network is part of, beside its files and weights, and are compared whenever a worker builds it again.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from advbench.clocks import single_thread
from advbench.modes import evaluating
from advbench.zoo.data import DataSet
from advbench.zoo.training import seeded

_CLEAN, _NOISE, _BETWEEN = 4, 2, 2
"""How many of the fixed images are of the data set, of noise, and half of each."""
_ROUNDING = 1e-3
"""The change of an answer, as a share of the largest one, that another processor may make."""


def fixed_images(data: DataSet) -> tuple[Tensor, Tensor]:
    """The images that every network of a data set is asked about, (n, c, h, w) each: test images, and noise and mixtures.

    A network that is sure of the test images tells little about itself there; one that refuses noise is asked the rest.
    """
    clean = data.test.x[:_CLEAN]
    noise = torch.rand(_NOISE + _BETWEEN, *data.shape, generator=torch.Generator().manual_seed(0))
    return clean, torch.cat((noise[:_NOISE], (noise[_NOISE:][: len(clean)] + clean[:_BETWEEN]) / 2))


def answers(model: nn.Module, data: DataSet, *, slopes: bool = True) -> str:
    """A text that names the behaviour of a model: the hash of its logits and of their gradients, then a number by image.

    model: images -> logits. It is asked on one thread, in two batches of a fixed size and with torch's generators seeded, so
    that the same model gives the same text on the same machine. What it cannot answer counts with the kind of its error.
    slopes: whether with gradients; `alike` does without.
    """
    digest, numbers = hashlib.sha256(), []
    with single_thread(), evaluating(model):
        for part in fixed_images(data):
            x = part.to(_place(model))
            try:
                logits = _logits(model, x)
                numbers += _mixed(logits.double()).tolist()
                digest.update(_bytes(logits) + (_slopes(model, x) if slopes else b""))
            except (Exception, SystemExit) as error:
                digest.update(f"no answer: {type(error).__name__}".encode())
    return " ".join((digest.hexdigest(), *(f"{value:.6e}" for value in numbers)))


def alike(planned: str, found: str) -> bool:
    """Whether two texts of `answers` are of the same behaviour, but for what another processor rounds differently."""
    one, other = planned.split(" ")[1:], found.split(" ")[1:]
    if not one or len(one) != len(other):
        return planned == found
    pairs = [(float(first), float(second)) for first, second in zip(one, other, strict=True)]
    scale = max((abs(value) for pair in pairs for value in pair if math.isfinite(value)), default=0.0)
    return all(repr(a) == repr(b) or abs(a - b) <= _ROUNDING * scale for a, b in pairs)


def _place(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad(), seeded(0, x.device):
        logits: Tensor = model(x.clone())
    return logits


def _slopes(model: nn.Module, x: Tensor) -> bytes:
    """The gradients of a mixture of the logits, as bytes; nothing where there are none."""
    x = x.clone().requires_grad_()
    try:
        with torch.enable_grad(), seeded(0, x.device):
            mixed = _mixed(model(x.clone()).double())
            return _bytes(torch.autograd.grad(mixed.sum(), x)[0]) if mixed.requires_grad else b""
    except (Exception, SystemExit):  # without a gradient; what an attack then does, its cell says
        return b""


def _mixed(logits: Tensor) -> Tensor:
    """A number by image, (n,), which no two classes enter alike."""
    weights = torch.arange(1, logits.shape[-1] + 1, dtype=logits.dtype, device=logits.device).cos()
    return (logits * weights).flatten(1).mean(dim=1)


def _bytes(values: Tensor) -> bytes:
    values = values.detach().cpu().contiguous()
    head = f"{tuple(values.shape)} {values.dtype}\n".encode()
    return head + values.flatten().view(torch.uint8).numpy().tobytes()
