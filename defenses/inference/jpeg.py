"""JPEG compression of the input, by the codec itself, and a differentiable stand-in for the attacker."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from advbench.defenses.defended import Defended
from advbench.defenses.inference.at_test_time import TestTimeDefense
from advbench.defenses.inference.bit_depth import check_range, soft_round
from advbench.defenses.inference.composition import purified
from advbench.zoo.data import DataSet

Tables = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class JPEG(TestTimeDefense):
    """JPEG compression of the input, Guo et al. 2018, arXiv:1711.00117; also Dziugaite et al. 2016, arXiv:1608.00853.

    The images are written and read by Pillow's codec (libjpeg), colour with its usual halved chroma (4:2:0); images of other
    than one or three channels are written channel by channel. There is no faithful surrogate: the attacker has the codec's
    output with the Jacobian of the identity, and with that of `SoftJPEG`.

    quality: of the codec, 1 to 100; 75 in both papers. base: the spec of the defense that trained the model behind it.
    """

    quality: int = 75
    base: str = "none"

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ValueError(f"Expected `quality` in 1..100, got {self.quality}")

    def check(self, data: DataSet) -> None:
        """ValueError for images without a range of pixels."""
        check_range(data)

    def wrap(self, inputs: Mapping[str, Defended]) -> Defended:
        """The codec in front of ``inputs["base"]``."""
        substitutes = {"soft": SoftJPEG(self.quality)}
        codec = Compressed(self.quality)
        return purified(inputs["base"], codec, stochastic=False, differentiable=False, substitutes=substitutes)


class Compressed(nn.Module):
    """Images (n, c, h, w) in [0, 1], written as 8-bit JPEG files and read back."""

    def __init__(self, quality: int) -> None:
        super().__init__()
        self.quality = quality

    def extra_repr(self) -> str:
        """What the structure is."""
        return f"quality={self.quality}"

    def forward(self, x: Tensor) -> Tensor:
        """What the codec hands back, multiples of 1/255; a constant, as far as gradients go."""
        pixels = x.detach().cpu().to(torch.float64).clamp(0, 1).mul(255).round().to(torch.uint8)
        read = torch.from_numpy(np.stack([_through_codec(image, self.quality) for image in pixels.numpy()]))
        return read.to(x.device).to(x.dtype) / 255


def _through_codec(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """An image (c, h, w), written and read."""
    if len(image) == 3:
        return _read(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))), quality).transpose(2, 0, 1)
    return np.stack([_read(Image.fromarray(channel), quality) for channel in image])


def _read(picture: Image.Image, quality: int) -> NDArray[np.uint8]:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    with Image.open(file) as found:
        return np.asarray(found)


class Rounding(Protocol):
    """How coefficients (in quantisation steps) are rounded."""

    def __call__(self, x: Tensor) -> Tensor:
        """Of the same shape."""
        ...


class SoftJPEG(nn.Module):
    """A differentiable JPEG, Shin and Song 2017, "JPEG-resistant adversarial images": images (n, c, h, w) -> the same shape.

    What the codec does, its transforms in floating point: to luma and chroma, chroma halved and later interpolated (three
    channels only), blocks of 8 x 8 (the last row and column repeated where the size is no multiple), cosine transform,
    division by the quality's tables, rounding, and back. Coefficients are rounded exactly forward and have `soft_round`'s
    slope backward; with a slope of one the whole of a grayscale image would have the Jacobian of the identity. Bytes, which
    are rounded and clipped on the way, have that Jacobian, for a clipped pixel would hide its gradient.

    quality: 1 to 100. round: of coefficients.
    """

    cosines: Tensor
    luma: Tensor
    chroma: Tensor

    def __init__(self, quality: int, round: Rounding = soft_round) -> None:
        super().__init__()
        self.quality = quality
        self.round = round
        luma, chroma = (torch.tensor(table, dtype=torch.float64).view(8, 8) for table in tables(quality))
        for name, value in {"cosines": cosine_basis(), "luma": luma, "chroma": chroma}.items():
            self.register_buffer(name, value.float() if name != "cosines" else value, persistent=False)

    def extra_repr(self) -> str:
        """What the structure is."""
        return f"quality={self.quality}"

    def forward(self, x: Tensor) -> Tensor:
        """The images as the codec gives them, up to its integer arithmetic."""
        pixels = _bytes(x * 255)
        return (self._colour(pixels) if x.shape[1] == 3 else self._plane(pixels, self.luma)) / 255

    def _colour(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[2:]
        centre = pixels.new_tensor((0.0, _CENTRE, _CENTRE)).view(1, 3, 1, 1)
        planes = _bytes(_mixed(pixels, _TO_YCC) + centre)
        luma = self._plane(planes[:, :1], self.luma)
        chroma = self._plane(_bytes(_ties(_halved(planes[:, 1:]), 0.125)), self.chroma)[..., : -(-width // 2)]
        chroma = _bytes(_ties(_doubled(_doubled(chroma, dim=2), dim=3), -1 / 32))[:, :, :height, :width]
        return _bytes(_mixed(torch.cat((luma, chroma), dim=1) - centre, _FROM_YCC))

    def _plane(self, values: Tensor, table: Tensor) -> Tensor:
        """Planes (n, c, h, w) through transform, rounding and back."""
        n, c, h, w = values.shape
        padded = _extended(_extended(values - _CENTRE, -h % 8, dim=2), -w % 8, dim=3)
        rows, columns = padded.shape[2] // 8, padded.shape[3] // 8
        blocks = padded.view(n, c, rows, 8, columns, 8).transpose(3, 4)
        basis, steps = self.cosines.to(values.dtype), table.to(values.dtype)
        coefficients = self.round(basis @ blocks @ basis.T / steps) * steps
        back = (basis.T @ coefficients @ basis).transpose(3, 4).reshape(n, c, rows * 8, columns * 8)
        return _bytes(back[:, :, :h, :w] + _CENTRE)


_LUMA = (
    *(16, 11, 10, 16, 24, 40, 51, 61),
    *(12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56),
    *(14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77),
    *(24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101),
    *(72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    *(17, 18, 24, 47, 99, 99, 99, 99),
    *(18, 21, 26, 66, 99, 99, 99, 99),
    *(24, 26, 56, 99, 99, 99, 99, 99),
    *(47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 32),
)
"""The quantisation tables of the standard, ITU-T T.81, annex K, row by row."""

_TO_YCC = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)
_FROM_YCC = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))
"""JFIF's colours, chroma around zero."""

_CENTRE = 128.0
"""What is taken off a byte before the transform, and where gray lies in chroma."""


def tables(quality: int) -> Tables:
    """The steps by which luma and chroma coefficients are divided at a quality of 1 to 100, row by row, as in libjpeg."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    luma, chroma = (tuple(min(255, max(1, (each * scale + 50) // 100)) for each in table) for table in (_LUMA, _CHROMA))
    return luma, chroma


def cosine_basis() -> Tensor:
    """The orthonormal cosine transform of 8 values, (8, 8), float64, frequencies in rows."""
    place = torch.arange(8, dtype=torch.float64)
    waves = torch.cos(math.pi / 8 * (place + 0.5) * place.unsqueeze(1)) / 2
    waves[0] /= math.sqrt(2)
    return waves


def _bytes(x: Tensor) -> Tensor:
    """The nearest whole numbers in [0, 255], with the Jacobian of the identity."""
    return x + (x.detach().clamp(0, 255).round() - x.detach())


def _ties(x: Tensor, by: float) -> Tensor:
    """`x` moved by -`by` in even columns and by `by` in odd ones, so that halves round as libjpeg has them."""
    return x + by * (2 * (torch.arange(x.shape[3], device=x.device) % 2) - 1).to(x.dtype)


def _mixed(x: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    """Channels of images (n, 3, h, w), mixed by a matrix."""
    weights = torch.tensor(matrix, dtype=x.dtype, device=x.device)
    return torch.einsum("dc,nchw->ndhw", weights, x)


def _extended(x: Tensor, more: int, *, dim: int) -> Tensor:
    """`x` with its last row or column repeated `more` times."""
    last = x.narrow(dim, x.shape[dim] - 1, 1)
    return torch.cat((x, *([last] * more)), dim=dim)


def _halved(x: Tensor) -> Tensor:
    """The means of 2 x 2 pixels; the last row is repeated where their number is odd, the last column to fill its blocks."""
    whole = _extended(_extended(x, x.shape[2] % 2, dim=2), -x.shape[3] % 16, dim=3)
    return nn.functional.avg_pool2d(whole, 2)


def _doubled(x: Tensor, *, dim: int) -> Tensor:
    """Twice as many values along an axis, each 3/4 of the nearer and 1/4 of the farther old one, as libjpeg interpolates."""
    length = x.shape[dim]
    before = torch.cat((x.narrow(dim, 0, 1), x.narrow(dim, 0, length - 1)), dim=dim)
    after = torch.cat((x.narrow(dim, 1, length - 1), x.narrow(dim, length - 1, 1)), dim=dim)
    pairs = torch.stack(((3 * x + before) / 4, (3 * x + after) / 4), dim=dim + 1)
    return pairs.flatten(dim, dim + 1)
