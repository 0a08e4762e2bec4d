"""Augmentation while training: one smooth warp of each image, drawn for the example.

A warp maps every pixel of the new image to a point of the old one, where the old one is read bilinearly. It is linear in
the image, which the smooth gradient method uses to keep its updates in the frame of the image before augmentation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

Transform: TypeAlias = Callable[[Tensor], Tensor]
"""Images (n, c, h, w) -> images of the same shape; linear."""

Padding: TypeAlias = Literal["zeros", "border"]


class Stream(Protocol):
    """Random numbers that belong to examples; `advbench.attacks.rng.ExampleRNG` is one."""

    def fork(self, *names: str | int) -> Stream:
        """An independent stream for the same examples."""
        ...

    def uniform(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform numbers in [0, 1), shape (n, *shape)."""
        ...


def identity(x: Tensor) -> Tensor:
    """The images as they are."""
    return x


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """What may happen to an image; each number is drawn anew for each example in each step.

    rotation: largest angle in degrees. zoom: largest relative change of size. shift: largest translation in whole pixels,
    per axis. flip: whether half of the images are mirrored left to right. elastic: amplitude alpha of an elastic distortion
    in pixels, and sigma, the standard deviation in pixels of the Gaussian that smooths its field (Simard et al. 2003).
    padding: what lies beyond the image's border: `zeros`, or the `border` pixel continued.

    Raises ValueError for a number out of range.
    """

    rotation: float = 0.0
    zoom: float = 0.0
    shift: int = 0
    flip: bool = False
    elastic: tuple[float, float] | None = None
    padding: Padding = "zeros"

    def __post_init__(self) -> None:
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"Expected `rotation` in [0, 180] degrees, got {self.rotation}")
        if not 0 <= self.zoom < 1:
            raise ValueError(f"Expected `zoom` in [0, 1), got {self.zoom}")
        if self.shift < 0:
            raise ValueError(f"Expected `shift` >= 0 pixels, got {self.shift}")
        if self.elastic is not None and not (self.elastic[0] >= 0 and self.elastic[1] > 0):
            raise ValueError(f"Expected `elastic` as (alpha >= 0, sigma > 0), got {self.elastic}")

    def draw(self, shape: tuple[int, int, int], stream: Stream, dtype: torch.dtype = torch.float32) -> Transform:
        """The transform of a batch of images of `shape`, (c, h, w), whose numbers come from `stream`."""
        _, height, width = shape
        u = stream.uniform((5,), dtype)
        angle = (2 * u[:, 0] - 1) * math.radians(self.rotation)
        scale = 1 + (2 * u[:, 1] - 1) * self.zoom
        offset = (u[:, 2:4] * (2 * self.shift + 1)).floor() - self.shift
        mirror = torch.where(u[:, 4] < 0.5, -1.0, 1.0) if self.flip else torch.ones_like(scale)
        points = affine(height, width, angle=angle, scale=scale, offset=offset, mirror=mirror)
        if self.elastic is not None:
            noise = 2 * stream.fork("elastic").uniform((2, height, width), dtype) - 1
            points = points + elastic_field(noise, *self.elastic)
        return lambda x: resample(x, points, self.padding)


def affine(height: int, width: int, *, angle: Tensor, scale: Tensor, offset: Tensor, mirror: Tensor) -> Tensor:
    """Where each pixel of a rotated, zoomed, shifted or mirrored image is read, shape (n, 2, h, w): x and y in pixels.

    The origin is the image's centre. angle: counter-clockwise in radians, scale: above 1 enlarges, mirror: -1 mirrors left
    to right, all of shape (n,). offset: how far the content moves right and down in pixels, shape (n, 2).
    """
    y, x = torch.meshgrid(
        torch.arange(height, dtype=angle.dtype, device=angle.device) - (height - 1) / 2,
        torch.arange(width, dtype=angle.dtype, device=angle.device) - (width - 1) / 2,
        indexing="ij",
    )
    x, y = x - offset[:, 0].view(-1, 1, 1), y - offset[:, 1].view(-1, 1, 1)
    cosine, sine = ((f(angle) / scale).view(-1, 1, 1) for f in (torch.cos, torch.sin))
    return torch.stack(((cosine * x - sine * y) * mirror.view(-1, 1, 1), sine * x + cosine * y), dim=1)


def elastic_field(noise: Tensor, alpha: float, sigma: float) -> Tensor:
    """Displacements in pixels, shape (n, 2, h, w): `noise` in [-1, 1], smoothed by a Gaussian, times `alpha`.

    Simard et al. 2003 (ICDAR, section 2). The Gaussian is cut off at three `sigma`; beyond the border the noise is zero.
    """
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=noise.dtype, device=noise.device)
    window = torch.exp(-0.5 * (offsets / sigma) ** 2)
    window = (window / window.sum()).view(1, 1, -1, 1)
    flat = noise.flatten(0, 1).unsqueeze(1)
    smooth = nn.functional.conv2d(flat, window, padding=(radius, 0))
    smooth = nn.functional.conv2d(smooth, window.transpose(2, 3), padding=(0, radius))
    return alpha * smooth.view_as(noise)


def resample(x: Tensor, points: Tensor, padding: Padding) -> Tensor:
    """Read images (n, c, h, w) bilinearly at `points` (n, 2, h, w), pixels from the image's centre.

    Its gradient in the images adds up in no fixed order on CUDA, so that bits may differ there from run to run.
    """
    height, width = x.shape[2:]
    size = torch.tensor([width, height], dtype=x.dtype, device=x.device)
    grid = 2 * points.to(x.dtype).permute(0, 2, 3, 1) / size
    return nn.functional.grid_sample(x, grid, mode="bilinear", padding_mode=padding, align_corners=False)


AUGMENTATIONS: dict[str, Augmentation | None] = {
    "none": None,
    "elastic": Augmentation(elastic=(20.0, 5.0), rotation=7.5, zoom=0.2, shift=1),
    "rotate-zoom-flip": Augmentation(rotation=10.0, zoom=0.1, flip=True, padding="border"),
    "crop-flip": Augmentation(shift=4, flip=True),
}
"""Augmentations by name.

`elastic` is that of MNIST in Mosca and Magoulas 2018 (doi:10.1007/s00500-017-2998-4), whose numbers come from the
configuration of the authors' previous paper; `rotate-zoom-flip` is theirs for CIFAR, which the paper names without numbers
(10 degrees is the authors' neighbouring experiments' and a zoom of 0.1 that of one of them). `crop-flip` is CIFAR's usual
one: a crop from the image padded by 4 zeros, and a mirror image half of the time.
"""
