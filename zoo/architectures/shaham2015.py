"""The networks of Shaham et al. 2015 (arXiv:1511.05432), with sizes and inputs as in the authors' Torch scripts."""

from __future__ import annotations

import math

from torch import nn

from advbench.zoo.architectures.sizes import flat_features
from advbench.zoo.preprocessing import LumaContrast, Standardise


def convnet(shape: tuple[int, int, int], n_classes: int) -> nn.Sequential:
    """MNIST convnet, 32 and 64 filters of 5 x 5 and 200 dense units (Shaham et al. 2015, arXiv:1511.05432).

    Inputs are standardised by the mean and the standard deviation of all training pixels. The paper pads MNIST to 32 x 32;
    28 x 28 gives the same 256 features.
    """
    return _convnet(shape, n_classes, Standardise(None))


def convnet_bn(shape: tuple[int, int, int], n_classes: int) -> nn.Sequential:
    """MNIST convnet with batch norm of its input, without learned scale (Shaham et al. 2015, arXiv:1511.05432).

    The authors' scripts train robust networks with this layer and the baseline without; the paper does not mention it. Both
    networks serve to tell its effect from that of the training.
    """
    return _convnet(shape, n_classes, Standardise(None), nn.BatchNorm2d(shape[0], affine=False))


def _convnet(shape: tuple[int, int, int], n_classes: int, *inputs: nn.Module) -> nn.Sequential:
    body = nn.Sequential(
        *inputs,
        nn.Conv2d(shape[0], 32, 5),
        nn.ReLU(),
        nn.MaxPool2d(3),
        nn.Conv2d(32, 64, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
    features = flat_features(body, shape, "shaham2015/convnet")
    return nn.Sequential(*body, nn.Linear(features, 200), nn.ReLU(), nn.Linear(200, n_classes))


_BLOCKS = ((64, 0.3, 64), (128, 0.4, 128), (256, 0.4, 256, 0.4, 256), (512, 0.4, 512, 0.4, 512), (512, 0.4, 512, 0.4, 512))
"""Filters of each convolution (whole numbers) and dropout between them (shares); max pooling by two after each block."""


def vgg(shape: tuple[int, int, int], n_classes: int) -> nn.Sequential:
    """CIFAR VGG with batch normalisation and dropout, 13 convolutions (Shaham et al. 2015, arXiv:1511.05432).

    Inputs are YUV with local contrast normalisation. Pooling rounds up, as in the original, so that 28 x 28 images end in a
    map of 1 x 1 too. Convolutions start from a normal distribution with variance 2 / (9 x filters), biases from zero.
    """
    layers: list[nn.Module] = [LumaContrast(shape[0])]
    channels = shape[0]
    for block in _BLOCKS:
        for entry in block:
            if isinstance(entry, float):
                layers.append(nn.Dropout(entry))
                continue
            layers += [_convolution(channels, entry), nn.BatchNorm2d(entry, eps=1e-3), nn.ReLU()]
            channels = entry
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    body = nn.Sequential(*layers, nn.Flatten())
    features = flat_features(body, shape, "shaham2015/vgg")
    dense = (nn.Dropout(0.5), nn.Linear(features, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Dropout(0.5))
    return nn.Sequential(*body, *dense, nn.Linear(512, n_classes))


def _convolution(channels: int, filters: int) -> nn.Conv2d:
    convolution = nn.Conv2d(channels, filters, 3, padding=1)
    nn.init.normal_(convolution.weight, std=math.sqrt(2 / (9 * filters)))
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution
