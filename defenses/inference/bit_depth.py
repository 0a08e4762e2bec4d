"""Fewer bits per pixel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advbench.defenses.defended import Defended
from advbench.defenses.inference.at_test_time import TestTimeDefense
from advbench.defenses.inference.composition import purified
from advbench.zoo.data import DataSet


@dataclass(frozen=True, slots=True, kw_only=True)
class BitDepth(TestTimeDefense):
    """Bit-depth reduction of the input, Xu et al. 2018, arXiv:1704.01155, and Guo et al. 2018, arXiv:1711.00117.

    Every pixel is rounded to one of 2**bits levels, evenly spaced from 0 to 1, halves to the even level. A rounding has no
    gradient, so that there is no faithful surrogate: the attacker has the rounded image with the Jacobian of the identity,
    and with the slopes of `soft_round`, which spend no budget on pixels far from where they would change.

    bits: per pixel and channel, 1 to 8; Xu et al. take 1 for MNIST and 5 for CIFAR-10, Guo et al. 3. base: the spec of the
    defense that trained the model behind it.
    """

    bits: int = 3
    base: str = "none"

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"Expected `bits` in 1..8, got {self.bits}")

    def check(self, data: DataSet) -> None:
        """ValueError for images without a range of pixels."""
        check_range(data)

    def wrap(self, inputs: Mapping[str, Defended]) -> Defended:
        """The rounding in front of ``inputs["base"]``."""
        substitutes = {"soft": SoftRounded(self.bits)}
        return purified(inputs["base"], Rounded(self.bits), stochastic=False, differentiable=False, substitutes=substitutes)


class Rounded(nn.Module):
    """Images (n, c, h, w) with 2**bits values per channel; what lies outside [0, 1] is clipped, as in an image file."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def extra_repr(self) -> str:
        """What the structure is."""
        return f"bits={self.bits}"

    def forward(self, x: Tensor) -> Tensor:
        """Images of the same shape, in [0, 1]."""
        return rounded(x, self.bits)


class SoftRounded(nn.Module):
    """The same as `Rounded` inside [0, 1], with the slopes of `soft_round`; images (n, c, h, w)."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def extra_repr(self) -> str:
        """What the structure is."""
        return f"bits={self.bits}"

    def forward(self, x: Tensor) -> Tensor:
        """Images of the same shape."""
        levels = float(2**self.bits - 1)
        return soft_round(x * levels) / levels


def soft_round(x: Tensor) -> Tensor:
    """The nearest integers, with the slope of ``round(x) + (x - round(x))^3``, Shin and Song 2017.

    From "JPEG-resistant adversarial images". The slope is 3 (x - round(x))^2: none at an integer, where a small change
    changes nothing, and 3/4 halfway.
    """
    nearest = x.detach().round()
    cubic = (x - nearest) ** 3
    return nearest + (cubic - cubic.detach())


def rounded(x: Tensor, bits: int) -> Tensor:
    """`x`, clipped to [0, 1], at the nearest of 2**bits evenly spaced levels, worked in float64."""
    levels = 2**bits - 1
    steps: Tensor = (x.to(torch.float64).clamp(0, 1) * levels).round()
    return steps.div(levels).to(x.dtype)


def check_range(data: DataSet) -> None:
    """ValueError unless the images of `data` have pixels in [0, 1]."""
    if data.box != (0.0, 1.0):
        raise ValueError(f"Expected images with pixels in [0, 1], got those of {data.name}: take a data set of images")
