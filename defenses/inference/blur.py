"""Gaussian blur of the input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from advbench.attacks.rng import ExampleRNG
from advbench.defenses.defended import Defended
from advbench.defenses.inference.at_test_time import TestTimeDefense
from advbench.defenses.inference.composition import call, in_front_of
from advbench.zoo.data import DataSet


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianBlur(TestTimeDefense):
    """Gaussian blur of the input at test time, Gu and Rigazio 2014, arXiv:1412.5068.

    kernel_size: pixels on a side, odd; 5 and 11 in the paper. sigma: standard deviation in pixels; None is OpenCV's rule
    ``0.3 * ((kernel_size - 1) / 2 - 1) + 0.8`` (1.1 at size 5, 2.0 at size 11). The paper prints neither the deviation nor
    the border; here the image is mirrored at its border pixels. base: the spec of the defense that trained the model
    behind the blur.
    """

    kernel_size: int = 5
    sigma: float | None = None
    base: str = "none"

    def __post_init__(self) -> None:
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"Expected `kernel_size` odd and >= 1, got {self.kernel_size}")
        if self.sigma is not None and not (math.isfinite(self.sigma) and self.sigma > 0):
            raise ValueError(f"Expected `sigma` > 0, got {self.sigma}")

    def kernel(self) -> Tensor:
        """The weights along one axis, shape (kernel_size,), float64, of sum 1."""
        sigma = 0.3 * ((self.kernel_size - 1) / 2 - 1) + 0.8 if self.sigma is None else self.sigma
        offset = torch.arange(self.kernel_size, dtype=torch.float64) - self.kernel_size // 2
        return (-0.5 * (offset / sigma).square()).softmax(dim=0)

    def check(self, data: DataSet) -> None:
        """ValueError if the images are too small for the kernel."""
        if self.kernel_size // 2 >= min(data.shape[1:]):
            raise ValueError(
                f"Expected `kernel_size` < {2 * min(data.shape[1:])} for images of {data.shape[1]}x{data.shape[2]}, "
                f"got {self.kernel_size}"
            )

    def wrap(self, inputs: Mapping[str, Defended]) -> Defended:
        """Blur in front of ``inputs["base"]``."""
        return in_front_of(
            inputs["base"], lambda model, stochastic: Blurred(model, self.kernel(), stochastic=stochastic), stochastic=False
        )


class Blurred(nn.Module):
    """A model behind a separable blur.

    base: images (n, c, h, w) -> logits (n, classes). kernel: weights along one axis, odd length. stochastic: whether `base`
    takes an rng.
    """

    kernel: Tensor

    def __init__(self, base: nn.Module, kernel: Tensor, *, stochastic: bool) -> None:
        super().__init__()
        self.base = base
        self.stochastic = stochastic
        self.register_buffer("kernel", kernel.float(), persistent=False)

    def forward(self, x: Tensor, rng: ExampleRNG | None = None) -> Tensor:
        """Logits (n, classes) of the blurred images."""
        return call(self.base, blur(x, self.kernel), rng, self.stochastic)


def blur(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve every channel of images (n, c, h, w) with `kernel` along both axes, mirrored at the border pixels.

    The mirrored borders are cut and flipped rather than padded: the backward of torch's reflection padding adds in no fixed
    order on a GPU.
    """
    size = len(kernel)
    weight = kernel.to(x.dtype)
    rows = mirrored(mirrored(x, size // 2, dim=2), size // 2, dim=3).flatten(0, 1).unsqueeze(1)
    columns = conv2d(rows, weight.view(1, 1, size, 1))
    return conv2d(columns, weight.view(1, 1, 1, size)).view_as(x)


def mirrored(x: Tensor, width: int, *, dim: int) -> Tensor:
    """`x` with `width` more pixels at both ends of an axis, mirrored about the border pixels (which are not repeated)."""
    length = x.shape[dim]
    before = x.narrow(dim, 1, width).flip(dim)
    after = x.narrow(dim, length - 1 - width, width).flip(dim)
    return torch.cat((before, x, after), dim=dim)
