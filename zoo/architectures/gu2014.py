"""The MNIST networks of Gu and Rigazio 2014 (arXiv:1412.5068); the paper feeds pixels in [0, 1] without normalisation."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import nn

from advbench.zoo.architectures.sizes import flat_features


def n100_100_10(shape: tuple[int, int, int], n_classes: int) -> nn.Sequential:
    """N100-100-10, two hidden ReLU layers of 100 units (Gu and Rigazio 2014, arXiv:1412.5068)."""
    return _dense(shape, n_classes, 100)


def n200_200_10(shape: tuple[int, int, int], n_classes: int) -> nn.Sequential:
    """N200-200-10, two hidden ReLU layers of 200 units (Gu and Rigazio 2014, arXiv:1412.5068)."""
    return _dense(shape, n_classes, 200)


def _dense(shape: tuple[int, int, int], n_classes: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(shape), width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, n_classes),
    )


def ae400_10(shape: tuple[int, int, int], n_classes: int) -> nn.Sequential:
    """AE400-10, the code of a sparse autoencoder under a linear layer (Gu and Rigazio 2014, arXiv:1412.5068).

    400 sigmoid units and a softmax layer, the structure of Szegedy et al. 2014 (arXiv:1312.6199), from whom the paper takes
    the name. `sparse_autoencoder` is what its encoder (modules 0 to 2) is pre-trained in.
    """
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 400), nn.Sigmoid(), nn.Linear(400, n_classes))


def sparse_autoencoder(shape: tuple[int, int, int]) -> nn.Sequential:
    """The autoencoder 784-400-784 that AE400-10's encoder comes from: images (n, *shape) -> images in [0, 1].

    Modules 0 to 2 are the encoder of `ae400_10`. The decoder is untied with sigmoid output (the paper gives neither).
    """
    pixels = math.prod(shape)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, 400), nn.Sigmoid(), nn.Linear(400, pixels), nn.Sigmoid(), nn.Unflatten(1, shape)
    )


def convnet(shape: tuple[int, int, int], n_classes: int) -> nn.Sequential:
    """ConvNet, two convolutions and one dense layer (Gu and Rigazio 2014, arXiv:1412.5068).

    The paper gives the kinds of layers only; sizes are LeNet's in today's form: 32 and 64 filters of 5 x 5 with padding,
    max pooling by two, 200 dense units.
    """
    body = nn.Sequential(
        nn.Conv2d(shape[0], 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
    features = flat_features(body, shape, "gu2014/convnet")
    return nn.Sequential(*body, nn.Linear(features, 200), nn.ReLU(), nn.Linear(200, n_classes))


def autoencoder(shape: tuple[int, int, int]) -> nn.Sequential:
    """The denoiser 784-256-128-256-784: images (n, *shape) -> images in [0, 1].

    The paper gives the widths only; hidden layers are ReLU and the output is a sigmoid, which keeps images in the box.
    """
    widths = (math.prod(shape), 256, 128, 256)
    hidden = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(256, widths[0]), nn.Sigmoid(), nn.Unflatten(1, shape))
