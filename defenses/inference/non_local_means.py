"""Non-local means of the input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from advbench.defenses.defended import Defended
from advbench.defenses.inference.at_test_time import TestTimeDefense
from advbench.defenses.inference.bit_depth import check_range
from advbench.defenses.inference.composition import checkpointed, purified
from advbench.zoo.data import DataSet


@dataclass(frozen=True, slots=True, kw_only=True)
class NonLocalMeans(TestTimeDefense):
    """Non-local means of the input (Buades et al. 2005), as a squeezer of features in Xu et al. 2018, arXiv:1704.01155.

    Every pixel becomes the mean of the pixels in the search window around it, each weighted by how much the patch around it
    looks like the patch around the pixel itself. The definition is that of OpenCV's ``fastNlMeansDenoising`` and, for three
    channels, ``fastNlMeansDenoisingColored``, which the authors call, in exact arithmetic: without its 8-bit images, and
    without its dropping weights below a thousandth. Differentiable as it is.

    search, patch, strength: width of the search window and of the patch in pixels, both odd, and the scale of the distances
    in 255ths of the range of pixels; the paper writes 11-3-4 and tries 11-3-2, 13-3-2 and 13-3-4 too, on CIFAR-10 and
    ImageNet and none on MNIST. base: the spec of the defense that trained the model behind it.
    """

    search: int = 11
    patch: int = 3
    strength: float = 4.0
    base: str = "none"

    def __post_init__(self) -> None:
        check_windows(self.search, self.patch, self.strength)

    def check(self, data: DataSet) -> None:
        """ValueError for images without a range of pixels, or that are smaller than the windows."""
        check_range(data)
        check_reach(self.search, self.patch, data)

    def wrap(self, inputs: Mapping[str, Defended]) -> Defended:
        """The filter in front of ``inputs["base"]``."""
        return purified(inputs["base"], NonLocal(self.search, self.patch, self.strength), stochastic=False)


class NonLocal(nn.Module):
    """Images (n, c, h, w) in [0, 1] -> filtered images of the same shape, in [0, 1].

    Three channels are RGB and are filtered in CIELAB, lightness with weights of its own and both colours with common ones,
    as OpenCV does, which takes pixels as linear intensities; any other number of channels has common weights. Means of
    colours that RGB has need not be such colours: they are clipped, and the slope of the clipping is taken as 1, or black
    and white pixels, which come back a rounding error outside, would hide their gradient.
    """

    def __init__(self, search: int, patch: int, strength: float) -> None:
        super().__init__()
        self.search = search
        self.patch = patch
        self.strength = strength

    def extra_repr(self) -> str:
        """What the structure is."""
        return f"search={self.search}, patch={self.patch}, strength={self.strength}"

    def forward(self, x: Tensor) -> Tensor:
        """The filtered images; the gradient is that of the means and of their weights, and passes the clipping."""
        if x.shape[1] != 3:
            return self._filtered(255 * x) / 255
        colours = lab(x)
        filtered = rgb(torch.cat((self._filtered(colours[:, :1]), self._filtered(colours[:, 1:])), dim=1))
        return filtered + (filtered.clamp(0, 1) - filtered).detach()

    def _filtered(self, x: Tensor) -> Tensor:
        return non_local_means(x, self.search, self.patch, self.strength)


def non_local_means(x: Tensor, search: int, patch: int, strength: float) -> Tensor:
    """Means over the search window of each pixel of images (n, c, h, w), weighted by the likeness of patches.

    The weight of the pixel at offset o is exp(-d^2(o) / strength^2), d^2(o) the squared difference between the two patches
    (means over their pixels and channels); beyond the border the image goes on in its mirror, without the border pixel a
    second time. In the units of `x`. Raises ValueError if the mirror would be left.
    """
    reach, half = search // 2, patch // 2
    h, w = x.shape[2:]
    margin = reach + half
    if margin >= min(h, w):
        raise ValueError(f"Expected windows that reach less than {min(h, w)} pixels, got {margin}")
    wide = functional.pad(x, (margin,) * 4, mode="reflect")
    own = wide[:, :, reach : reach + h + 2 * half, reach : reach + w + 2 * half]
    centre = search * search // 2

    def step(state: tuple[Tensor, ...], t: int) -> tuple[Tensor, ...]:
        """The weighted sum and the sum of the weights with one more offset in them; the centre is there from the start."""
        total, weights = state
        i, j = divmod(t if t < centre else t + 1, search)
        other = wide[:, :, i : i + h + 2 * half, j : j + w + 2 * half]
        distance = functional.avg_pool2d((own - other).square().mean(dim=1, keepdim=True), patch, stride=1)
        weight = (-distance / strength**2).exp()
        return total + weight * other[:, :, half : half + h, half : half + w], weights + weight

    total, weights = checkpointed(step, (x, torch.ones_like(x[:, :1])), search * search - 1)
    return total / weights


_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.950456, 1.0, 1.088754)
_KNEE, _SLOPE, _OFFSET = 0.008856, 7.787, 16 / 116


def lab(x: Tensor) -> Tensor:
    """CIELAB of linear RGB images (n, 3, h, w) in [0, 1], the white that of D65, scaled as OpenCV's 8-bit images are.

    Lightness in [0, 255]; both colours in their own units, around 0.
    """
    xyz = _mixed(x, _primaries())
    f = torch.where(xyz > _KNEE, xyz.clamp_min(_KNEE) ** (1 / 3), _SLOPE * xyz + _OFFSET)
    fx, fy, fz = f.unbind(dim=1)
    return torch.stack(((116 * fy - 16) * 2.55, 500 * (fx - fy), 200 * (fy - fz)), dim=1)


def rgb(x: Tensor) -> Tensor:
    """The inverse of `lab`: what lies outside the range of RGB comes out below 0 or above 1."""
    lightness, a, b = x.unbind(dim=1)
    fy = (lightness / 2.55 + 16) / 116
    f = torch.stack((fy + a / 500, fy, fy - b / 200), dim=1)
    xyz = torch.where(f > _SLOPE * _KNEE + _OFFSET, f**3, (f - _OFFSET) / _SLOPE)
    return _mixed(xyz, torch.linalg.inv(_primaries()))


def _primaries() -> Tensor:
    """RGB -> XYZ in units of the white, (3, 3), float64."""
    return torch.tensor(_XYZ, dtype=torch.float64) / torch.tensor(_WHITE, dtype=torch.float64).unsqueeze(1)


def _mixed(x: Tensor, matrix: Tensor) -> Tensor:
    """Channels (n, 3, h, w) multiplied by a matrix (3, 3)."""
    return torch.einsum("dc,nchw->ndhw", matrix.to(x), x)


def check_windows(search: int, patch: int, strength: float) -> None:
    """ValueError unless the windows have centres, and the strength is one."""
    if search < 3 or search % 2 == 0:
        raise ValueError(f"Expected `search` odd and >= 3, got {search}")
    if patch < 1 or patch % 2 == 0:
        raise ValueError(f"Expected `patch` odd and >= 1, got {patch}")
    if not 0 < strength < float("inf"):
        raise ValueError(f"Expected `strength` > 0, got {strength}")


def check_reach(search: int, patch: int, data: DataSet) -> None:
    """ValueError if the windows reach out of the mirrored images."""
    reach = search // 2 + patch // 2
    if reach >= min(data.shape[1:]):
        raise ValueError(
            f"Expected windows that reach less than {min(data.shape[1:])} pixels, got {reach}: take a smaller `search`"
        )
