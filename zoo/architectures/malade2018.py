"""The MNIST networks of Srinivasan et al. 2018 (arXiv:1805.12017); the paper feeds pixels in [0, 1] without normalisation.

The paper lists the kinds of layers only. Their sizes are those of Defense-GAN's models A to D (Samangouei et al. 2018,
arXiv:1805.06605), to which it compares itself by the same letters, without the dropout that it does not list.
"""

from __future__ import annotations

import math

from torch import nn

from advbench.zoo.architectures.sizes import flat_features


def a(shape: tuple[int, int, int], n_classes: int) -> nn.Sequential:
    """Classifier A, two convolutions and two dense layers (Srinivasan et al. 2018, arXiv:1805.12017)."""
    return _convolutional(
        [nn.Conv2d(shape[0], 64, 5, padding=2), nn.ReLU(), nn.Conv2d(64, 64, 5, stride=2), nn.ReLU()],
        shape,
        n_classes,
        hidden=128,
        name="malade2018/a",
    )


def b(shape: tuple[int, int, int], n_classes: int) -> nn.Sequential:
    """Classifier B, three convolutions and one dense layer (Srinivasan et al. 2018, arXiv:1805.12017)."""
    convolutions = [
        nn.Conv2d(shape[0], 64, 8, stride=2, padding=3),
        nn.ReLU(),
        nn.Conv2d(64, 128, 6, stride=2),
        nn.ReLU(),
        nn.Conv2d(128, 128, 5),
        nn.ReLU(),
    ]
    return _convolutional(convolutions, shape, n_classes, hidden=None, name="malade2018/b")


def c(shape: tuple[int, int, int], n_classes: int) -> nn.Sequential:
    """Classifier C, two convolutions and two dense layers (Srinivasan et al. 2018, arXiv:1805.12017)."""
    return _convolutional(
        [nn.Conv2d(shape[0], 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 64, 5, stride=2), nn.ReLU()],
        shape,
        n_classes,
        hidden=128,
        name="malade2018/c",
    )


def d(shape: tuple[int, int, int], n_classes: int) -> nn.Sequential:
    """Classifier D, two hidden ReLU layers of 200 units (Srinivasan et al. 2018, arXiv:1805.12017)."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(shape), 200),
        nn.ReLU(),
        nn.Linear(200, 200),
        nn.ReLU(),
        nn.Linear(200, n_classes),
    )


def _convolutional(
    convolutions: list[nn.Module], shape: tuple[int, int, int], n_classes: int, *, hidden: int | None, name: str
) -> nn.Sequential:
    body = nn.Sequential(*convolutions, nn.Flatten())
    features = flat_features(body, shape, name)
    if hidden is None:
        return nn.Sequential(*body, nn.Linear(features, n_classes))
    return nn.Sequential(*body, nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, n_classes))


def denoiser(shape: tuple[int, int, int]) -> nn.Sequential:
    """The denoising autoencoder (DAE, sDAE): images (n, c, h, w) -> images in (-1, 1).

    Two strided convolutions, two transposed ones and a last convolution, each followed by tanh as the paper lists; it gives
    no sizes, so 32, 64, 32, 32 filters of 4 x 4 with stride 2 and one filter of 3 x 3 per channel stand in.
    Raises ValueError unless height and width are multiples of 4.
    """
    if shape[1] % 4 or shape[2] % 4:
        raise ValueError(f"Expected height and width as multiples of 4, got {shape[1]}x{shape[2]}: pad the images")
    return nn.Sequential(
        nn.Conv2d(shape[0], 32, 4, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.Tanh(),
        nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
        nn.Tanh(),
        nn.ConvTranspose2d(32, 32, 4, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(32, shape[0], 3, padding=1),
        nn.Tanh(),
    )
