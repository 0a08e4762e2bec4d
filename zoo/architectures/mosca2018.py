"""The networks of Mosca and Magoulas 2018 (Soft Computing 22:3203, doi:10.1007/s00500-017-2998-4).

Batch normalisation follows every layer, the output layer too. Where the paper is silent (activations, padding, initial
weights), the authors' published configuration files are followed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn

from advbench.zoo.architectures.sizes import flat_features
from advbench.zoo.preprocessing import Whiten


def dnn(shape: tuple[int, int, int], n_classes: int) -> nn.Sequential:
    """MNIST DNN, 2500-2000-1500-1000-500 with batch norm and dropout (Mosca and Magoulas 2018, Soft Computing 22:3203).

    Weights start uniform in (-0.05, 0.05), biases at zero.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    widths = (math.prod(shape), 2500, 2000, 1500, 1000, 500)
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU(), nn.Dropout(0.5)]
    layers += [nn.Linear(widths[-1], n_classes), nn.BatchNorm1d(n_classes)]
    return _initialised(nn.Sequential(*layers), lambda weight: nn.init.uniform_(weight, -0.05, 0.05))


def cnn(shape: tuple[int, int, int], n_classes: int) -> nn.Sequential:
    """MNIST CNN, twice 64 filters of 5 x 5 and 1024 dense units (Mosca and Magoulas 2018, Soft Computing 22:3203).

    One pixel of padding before the first convolution, none before the second. Weights start Glorot uniform.
    """
    body = nn.Sequential(
        nn.Conv2d(shape[0], 64, 5, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 5),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
    dense = (nn.Linear(flat_features(body, shape, "mosca2018/cnn"), 1024), nn.BatchNorm1d(1024), nn.ReLU(), nn.Dropout(0.5))
    output = (nn.Linear(1024, n_classes), nn.BatchNorm1d(n_classes))
    return _initialised(nn.Sequential(*body, *dense, *output), nn.init.xavier_uniform_)


def all_cnn(shape: tuple[int, int, int], n_classes: int, *, whiten: bool = True) -> nn.Sequential:
    """CIFAR all-convolutional network on ZCA-whitened images (Mosca and Magoulas 2018, Soft Computing 22:3203).

    The layer list that the paper prints shrinks its map to nothing; this is the authors' runnable network of the same
    family, All-CNN-C (Springenberg et al. 2014, arXiv:1412.6806) with batch normalisation after each ReLU. The paper whitens
    the data set and perturbs whitened images; here the network whitens, so that perturbations are those of pixels, unless
    `whiten` is False, for a data set that is whitened already, such as ``cifar10-zca``.
    """
    strided = {2, 5}
    widths = (shape[0], 96, 96, 96, 192, 192, 192, 192, 192, n_classes)
    layers: list[nn.Module] = [Whiten(shape)] if whiten else []
    for position, (a, b) in enumerate(pairwise(widths)):
        kernel = 3 if position < 7 else 1
        stride = 2 if position in strided else 1
        layers += [nn.Conv2d(a, b, kernel, stride=stride, padding=kernel // 2), nn.ReLU(), nn.BatchNorm2d(b)]
        if position in strided:
            layers.append(nn.Dropout(0.5))
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return _initialised(nn.Sequential(*layers), nn.init.kaiming_normal_)


def _initialised(network: nn.Sequential, initialise: Callable[[Tensor], Tensor]) -> nn.Sequential:
    """Draw the weights of linear layers and convolutions by `initialise`, and set their biases to zero."""
    for layer in network:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            initialise(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network
