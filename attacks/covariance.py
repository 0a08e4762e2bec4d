"""The covariance of images, estimated exactly, and Gaussian noise that has it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from advbench.attacks.rng import ExampleRNG

Form: TypeAlias = Literal["matrix", "displacement", "radial"]
FORMS: tuple[Form, ...] = ("matrix", "displacement", "radial")

_MOST_VALUES = 4096
"""The most values of an image whose covariance matrix is factored."""
_NEGLIGIBLE = 1e-10
_ROWS = 1024


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Covariance:
    """A covariance of images (c, h, w), in the form that noise is drawn from; float64.

    Either `factor`, (c h w, rank), whose product with its transpose is the covariance matrix, or `root`, the Hermitian
    square root of the spectrum of a field that is stationary on a torus of 2 h - 1 by 2 w - 1 pixels, complex,
    (2 h - 1, 2 w - 1, c, c), whose part of h by w pixels has the covariance function exactly. clipped: the share of negative
    eigenvalues in the sum of absolute ones, which were set to zero.
    """

    shape: tuple[int, int, int]
    factor: Tensor | None = None
    root: Tensor | None = None
    clipped: float = 0.0

    def sample(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        """Gaussian noise with this covariance, of the shape (n, c, h, w) and the dtype of `x`, from each stream of `rng`.

        Raises ValueError for images of another shape.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"Expected images of shape {self.shape}, as the covariance, got {tuple(x.shape[1:])}")
        if self.factor is not None:
            white = rng.normal((self.factor.shape[1],), torch.float64)
            return (white @ self.factor.T.to(x.device)).view(x.shape).to(x.dtype)
        root = self._root().to(x.device)
        height, width, channels, _ = root.shape
        spectrum = torch.fft.fft2(rng.normal((channels, height, width), torch.float64))
        field: Tensor = torch.fft.ifft2(torch.einsum("hwab,nbhw->nahw", root, spectrum)).real
        return field[..., : self.shape[1], : self.shape[2]].to(x.dtype)

    def _root(self) -> Tensor:
        if self.root is None:
            raise ValueError("Expected a covariance with a factor or a root, got neither")
        return self.root

    def values(self) -> dict[str, Tensor]:
        """The covariance as real tensors, by name."""
        found = {"shape": torch.tensor(self.shape), "clipped": torch.tensor(self.clipped, dtype=torch.float64)}
        return found | ({"factor": self.factor} if self.factor is not None else {"root": torch.view_as_real(self._root())})

    @staticmethod
    def of_values(values: Mapping[str, Tensor]) -> Covariance:
        """The covariance of `values`."""
        c, h, w = values["shape"].tolist()
        root = torch.view_as_complex(values["root"].contiguous()) if "root" in values else None
        return Covariance(shape=(c, h, w), factor=values.get("factor"), root=root, clipped=float(values["clipped"]))


def estimate(x: Tensor, form: Form = "matrix") -> Covariance:
    """The covariance of the images `x`, shape (n, c, h, w), about their mean image, scaled to a mean variance of 1.

    matrix: the covariance matrix itself. displacement: the mean over all pairs of pixels with one displacement, for each
    pair of channels (`covariance_function`). radial: the mean over all displacements of one rounded length, as Roth et al.
    2018 (arXiv:1805.08736) take it. Averaging may leave negative eigenvalues, which are set to zero and reported
    (`of_function`).

    Raises ValueError for another form, fewer than two images, images that are all alike, or more than 4096 values where a
    matrix has to be factored.
    """
    if form not in FORMS:
        raise ValueError(f"Expected `form` to be one of {', '.join(FORMS)}, got {form!r}")
    if len(x) < 2 or not (x != x[:1]).any():
        raise ValueError(f"Expected two images or more that differ, to estimate a covariance, got {len(x)}")
    c, h, w = x.shape[1:]
    if form == "matrix":
        return _normalised(_factored(covariance_matrix(x), (c, h, w)))
    function = covariance_function(x)
    if form == "radial":
        function = _radial(function)
    return _normalised(of_function(function / function[..., h - 1, w - 1].diagonal().mean()))


def of_function(function: Tensor) -> Covariance:
    """The covariance of a covariance function (c, c, 2 h - 1, 2 w - 1), laid out as that of `covariance_function`.

    It is sampled by circulant embedding where that is positive, in O(c h w log(h w)) per image, else by a factor of its
    matrix, whose negative eigenvalues are set to zero and reported.

    Raises ValueError for images of more than 4096 values whose embedding is not positive.
    """
    function = function.to(torch.float64)
    shape = (len(function), (function.shape[-2] + 1) // 2, (function.shape[-1] + 1) // 2)
    root = _embedded(function)
    if root is not None:
        return Covariance(shape=shape, root=root)
    if math.prod(shape) > _MOST_VALUES:
        raise ValueError(
            f"Expected a covariance function whose embedding on a torus is positive, or images of at most {_MOST_VALUES} "
            f"values, got {math.prod(shape)}: shorten its range"
        )
    return _factored(stationary_matrix(function), shape)


def covariance_matrix(x: Tensor) -> Tensor:
    """The covariance of the flattened images about their mean, (c h w, c h w), float64.

    Raises ValueError for images of more than 4096 values.
    """
    _check_size(x[0:1].numel())
    mean = x.mean(dim=0, dtype=torch.float64)
    moments = torch.zeros(mean.numel(), mean.numel(), dtype=torch.float64)
    for part in _parts(x):
        rows = (part.double() - mean).flatten(1)
        moments += rows.T @ rows
    return moments / len(x)


def covariance_function(x: Tensor) -> Tensor:
    """The covariance of two values by their channels and displacement, (c, c, 2 h - 1, 2 w - 1), float64.

    Entry [a, b, i, j] is the mean over the images and over all pixels p that have a pixel p + (i - h + 1, j - w + 1), of
    channel a there times channel b at p, both about their mean image. Worked by zero-padded Fourier transforms.
    """
    c, h, w = x.shape[1:]
    mean = x.mean(dim=0, dtype=torch.float64)
    total = torch.zeros(c, c, 2 * h - 1, 2 * w - 1, dtype=torch.float64)
    for part in _parts(x):
        spectrum = torch.fft.fft2(part.double() - mean, s=(2 * h - 1, 2 * w - 1))
        total += torch.fft.ifft2(torch.einsum("nahw,nbhw->abhw", spectrum, spectrum.conj())).real
    pairs = (h - _offsets(h).abs()).unsqueeze(1) * (w - _offsets(w).abs())
    function: Tensor = torch.fft.fftshift(total, dim=(2, 3)) / (len(x) * pairs)
    return function


def stationary_matrix(function: Tensor) -> Tensor:
    """The matrix (c h w, c h w) of a covariance function (c, c, 2 h - 1, 2 w - 1).

    Raises ValueError for images of more than 4096 values.
    """
    c, _, rows, columns = function.shape
    h, w = (rows + 1) // 2, (columns + 1) // 2
    _check_size(c * h * w)
    down = (torch.arange(h).unsqueeze(1) - torch.arange(h) + h - 1).view(h, 1, h, 1)
    right = (torch.arange(w).unsqueeze(1) - torch.arange(w) + w - 1).view(1, w, 1, w)
    return function[:, :, down, right].permute(0, 2, 3, 1, 4, 5).reshape(c * h * w, c * h * w)


def _radial(function: Tensor) -> Tensor:
    """The mean over all pairs of pixels whose distance rounds to the same number, put back at every displacement."""
    c, _, rows, columns = function.shape
    down, right = _offsets((rows + 1) // 2), _offsets((columns + 1) // 2)
    pairs = ((rows + 1) // 2 - down.abs()).unsqueeze(1) * ((columns + 1) // 2 - right.abs())
    ring = torch.hypot(down.unsqueeze(1).double(), right.double()).round().to(torch.int64).flatten()
    weights = torch.zeros(int(ring.max()) + 1, dtype=torch.float64).index_add_(0, ring, pairs.flatten().double())
    sums = torch.zeros(c, c, len(weights), dtype=torch.float64).index_add_(2, ring, (function * pairs).flatten(2))
    means = sums / weights
    # A distance has no direction, so the function of (a, b) is that of (b, a).
    return ((means + means.transpose(0, 1)) / 2)[:, :, ring].view_as(function)


def _embedded(function: Tensor) -> Tensor | None:
    """The square root of the spectrum on the torus, (2 h - 1, 2 w - 1, c, c); None where it is not positive."""
    spectrum = torch.fft.fft2(torch.fft.ifftshift(function, dim=(2, 3))).permute(2, 3, 0, 1)
    values, vectors = torch.linalg.eigh((spectrum + spectrum.mH) / 2)
    if values.min() < -_NEGLIGIBLE * values.max():
        return None
    root: Tensor = (vectors * values.clamp(min=0).sqrt().unsqueeze(-2)) @ vectors.mH
    return root


def _factored(matrix: Tensor, shape: tuple[int, int, int]) -> Covariance:
    """The positive part of a symmetric matrix, by its eigenvectors."""
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > _NEGLIGIBLE * values.max()
    factor = vectors[:, kept] * values[kept].sqrt()
    return Covariance(shape=shape, factor=factor, clipped=float(-values.clamp(max=0).sum() / values.abs().sum()))


def _normalised(covariance: Covariance) -> Covariance:
    """The covariance whose factor has a mean variance of 1; a root is that of a function which has it already."""
    if covariance.factor is None:
        return covariance
    return replace(covariance, factor=covariance.factor / covariance.factor.square().sum(dim=1).mean().sqrt())


def _parts(x: Tensor) -> Iterator[Tensor]:
    """The images, some at a time."""
    return (x[start : start + _ROWS] for start in range(0, len(x), _ROWS))


def _offsets(size: int) -> Tensor:
    return torch.arange(1 - size, size)


def _check_size(values: int) -> None:
    if values > _MOST_VALUES:
        raise ValueError(f"Expected images of at most {_MOST_VALUES} values for a covariance matrix, got {values}")
