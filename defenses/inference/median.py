"""Median smoothing of the input."""

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
class MedianSmoothing(TestTimeDefense):
    """Median smoothing of the input, Xu et al. 2018, arXiv:1704.01155.

    Every pixel becomes the median of the window around it, channel by channel, borders repeated in the mirror. Of an even
    number of values the median is the upper of the two in the middle, and an even window reaches one pixel farther up and
    left than down and right, as in `scipy.ndimage.median_filter`, which the authors use.

    size: pixels on a side; 2 in the paper (3 is tried too). base: the spec of the defense that trained the model behind it.
    """

    size: int = 2
    base: str = "none"

    def __post_init__(self) -> None:
        check_size("size", self.size)

    def check(self, data: DataSet) -> None:
        """ValueError if the images are smaller than the window."""
        check_fits(self.size, data)

    def wrap(self, inputs: Mapping[str, Defended]) -> Defended:
        """The smoothing in front of ``inputs["base"]``."""
        return purified(inputs["base"], Median(self.size), stochastic=False)


class Median(nn.Module):
    """Images (n, c, h, w) -> images of the same shape, each pixel the median of the size x size window around it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def extra_repr(self) -> str:
        """What the structure is."""
        return f"size={self.size}"

    def forward(self, x: Tensor) -> Tensor:
        """The smoothed images; the gradient goes to the pixel that is the median."""
        return median_filter(x, self.size)


def median_filter(x: Tensor, size: int) -> Tensor:
    """The median of the window around each pixel of images (n, c, h, w), borders mirrored with the border pixel repeated."""
    before, after = size // 2, (size - 1) // 2
    h, w = x.shape[2:]
    wide = _mirrored(_mirrored(x, before, after, dim=2), before, after, dim=3)
    windows = torch.stack([wide[:, :, i : i + h, j : j + w] for i in range(size) for j in range(size)])
    return windows.sort(dim=0, stable=True).values[size * size // 2]


def _mirrored(x: Tensor, before: int, after: int, *, dim: int) -> Tensor:
    """`x` with pixels added at both ends of an axis, in the mirror, border pixels repeated."""
    length = x.shape[dim]
    first, last = x.narrow(dim, 0, before).flip(dim), x.narrow(dim, length - after, after).flip(dim)
    return torch.cat((first, x, last), dim=dim)


def check_size(name: str, size: int) -> None:
    """ValueError unless `size` is a window that smooths."""
    if size < 2:
        raise ValueError(f"Expected `{name}` >= 2, got {size}")


def check_fits(size: int, data: DataSet) -> None:
    """ValueError if the images are smaller than the window."""
    if size > min(data.shape[1:]):
        raise ValueError(f"Expected a window within images of {data.shape[1]}x{data.shape[2]}, got {size}x{size}")
