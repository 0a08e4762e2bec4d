"""The generator and the critic of Defense-GAN (Samangouei et al. 2018, arXiv:1805.06605), for images of any size.

Those of the authors' MNIST code, which took them from Gulrajani et al. 2017 (arXiv:1704.00028): a dense layer and three
transposed convolutions, three convolutions and a dense layer, all of 5 x 5 with stride 2. Neither has batch norm, so that an
image never depends on the batch it stands in. `dense` networks of the same interface are many times as fast on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Shape = tuple[int, int, int]


class Generator(nn.Module):
    """Latent vectors (n, latent) -> images (n, c, h, w) in [0, 1]."""

    def __init__(self, body: nn.Module, latent: int) -> None:
        super().__init__()
        self.body = body
        self.latent = latent

    def forward(self, z: Tensor) -> Tensor:
        """The images of the latent vectors `z`, each of its own vector alone."""
        images: Tensor = self.body(z)
        return images


def convolutional_generator(shape: Shape, *, latent: int = 128, width: int = 64) -> Generator:
    """Transposed convolutions from 4, 2 and 1 times `width` channels; each doubles the side (4, 7, 14, 28 on MNIST)."""
    rows, columns = _halved(shape[1]), _halved(shape[2])
    channels = (4 * width, 2 * width, width, shape[0])
    layers: list[nn.Module] = [
        nn.Linear(latent, channels[0] * rows[3] * columns[3]),
        nn.ReLU(),
        nn.Unflatten(1, (channels[0], rows[3], columns[3])),
    ]
    for stage in range(3):
        # Out of a side s come 2 s - 1 pixels and the padding, which is 1 where the side to reach is even.
        more = (rows[2 - stage] - 2 * rows[3 - stage] + 1, columns[2 - stage] - 2 * columns[3 - stage] + 1)
        layers.append(nn.ConvTranspose2d(channels[stage], channels[stage + 1], 5, stride=2, padding=2, output_padding=more))
        layers.append(nn.ReLU() if stage < 2 else nn.Sigmoid())
    return Generator(_initialised(nn.Sequential(*layers)), latent)


def convolutional_critic(shape: Shape, *, width: int = 64) -> nn.Sequential:
    """Images (n, c, h, w) -> scores (n,): convolutions of 1, 2 and 4 times `width` channels with leaky ReLUs."""
    channels = (shape[0], width, 2 * width, 4 * width)
    layers: list[nn.Module] = []
    for stage in range(3):
        layers += [nn.Conv2d(channels[stage], channels[stage + 1], 5, stride=2, padding=2), nn.LeakyReLU(0.2)]
    features = channels[3] * _halved(shape[1])[3] * _halved(shape[2])[3]
    return _initialised(nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 1), nn.Flatten(0)))


def dense_generator(shape: Shape, *, latent: int = 128, width: int = 64) -> Generator:
    """Two hidden ReLU layers of 4 times `width` units."""
    hidden = 4 * width
    body = nn.Sequential(
        nn.Linear(latent, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, math.prod(shape)),
        nn.Sigmoid(),
        nn.Unflatten(1, shape),
    )
    return Generator(_initialised(body), latent)


def dense_critic(shape: Shape, *, width: int = 64) -> nn.Sequential:
    """Images (n, c, h, w) -> scores (n,): two hidden layers of 4 times `width` units with leaky ReLUs."""
    hidden = 4 * width
    layers = [nn.Linear(math.prod(shape), hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, hidden), nn.LeakyReLU(0.2)]
    return _initialised(nn.Sequential(nn.Flatten(), *layers, nn.Linear(hidden, 1), nn.Flatten(0)))


GENERATORS: dict[str, Callable[..., Generator]] = {"convolutional": convolutional_generator, "dense": dense_generator}
"""name -> (shape, latent, width) -> an untrained generator."""

CRITICS: dict[str, Callable[..., nn.Sequential]] = {"convolutional": convolutional_critic, "dense": dense_critic}
"""name -> (shape, width) -> an untrained critic."""


def _halved(side: int) -> tuple[int, int, int, int]:
    """A side and what is left of it after each of three convolutions of stride 2."""
    return side, -(-side // 2), -(-side // 4), -(-side // 8)


@torch.no_grad()
def _initialised(body: nn.Sequential) -> nn.Sequential:
    """Normal weights of variance ``gain / (fan in + fan out)``, as in the authors' code; no biases.

    The gain is 4 for convolutions (He et al. 2015) and 2 for dense layers (Glorot and Bengio 2010). Of the taps of a stride
    of 2 only every fourth meets a pixel, which the fan counts.
    """
    for layer in body:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            into, out = layer.in_channels * 25, layer.out_channels * 25
            fans = into + out / 4 if isinstance(layer, nn.Conv2d) else into / 4 + out
            layer.weight.normal_(0, math.sqrt(4 / fans))
        elif isinstance(layer, nn.Linear):
            layer.weight.normal_(0, math.sqrt(2 / (layer.in_features + layer.out_features)))
        else:
            continue
        assert layer.bias is not None
        layer.bias.zero_()
    return body
