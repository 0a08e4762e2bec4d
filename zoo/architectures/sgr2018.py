"""The networks of Roth et al. 2018 (arXiv:1805.08736), those of Carlini and Wagner 2017 (arXiv:1608.04644) without dropout.

Each image is standardised to zero mean and unit variance inside the network.
"""

from __future__ import annotations

from torch import nn

from advbench.zoo.architectures.sizes import flat_features
from advbench.zoo.preprocessing import StandardisePerImage


def mnist_cnn(shape: tuple[int, int, int], n_classes: int) -> nn.Sequential:
    """MNIST CNN, convolutions of 32, 32, 64, 64 filters and 200, 200 dense units (Roth et al. 2018, arXiv:1805.08736)."""
    return _cnn(shape, n_classes, (32, 64, 200), "sgr2018/mnist-cnn")


def cifar_cnn(shape: tuple[int, int, int], n_classes: int) -> nn.Sequential:
    """CIFAR CNN, convolutions of 64, 64, 128, 128 filters and 256, 256 dense units (Roth et al. 2018, arXiv:1805.08736)."""
    return _cnn(shape, n_classes, (64, 128, 256), "sgr2018/cifar-cnn")


def _cnn(shape: tuple[int, int, int], n_classes: int, widths: tuple[int, int, int], name: str) -> nn.Sequential:
    """Two blocks of two unpadded 3 x 3 convolutions and max pooling by two, then two dense layers; all with ReLU."""
    first, second, dense = widths
    body = nn.Sequential(
        StandardisePerImage(),
        nn.Conv2d(shape[0], first, 3),
        nn.ReLU(),
        nn.Conv2d(first, first, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 3),
        nn.ReLU(),
        nn.Conv2d(second, second, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )
    features = flat_features(body, shape, name)
    head = (nn.Linear(features, dense), nn.ReLU(), nn.Linear(dense, dense), nn.ReLU(), nn.Linear(dense, n_classes))
    return nn.Sequential(*body, *head)
