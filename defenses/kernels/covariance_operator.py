"""Products S g and quadratic forms g^T S g with a covariance S of image perturbations, by FFT or by a dense matrix.

`operator_of` makes a function's operator positive semi-definite (`advbench.defenses.kernels.covariance_lift`) and says how
much of the spectrum was lifted for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from advbench.defenses.kernels.autograd import AutogradContext
from advbench.defenses.kernels.covariance import (
    by_columns,
    cropped_ifft,
    from_torus,
    matrix_of,
    padded_fft,
    parts,
    torus_size,
)
from advbench.defenses.kernels.covariance_lift import LARGEST_TESTED, lift_function, lift_matrix, multiplicity, wrapped

LARGEST_DENSE: Mapping[str, int] = {"cpu": 800}
"""The most values (c h w) of an image for which a dense product beats one by FFT, by torch's name of the device.

A rule and no timing at run time, so that the same run gives the same numbers. For a CPU it was measured on AVX2, one thread,
batches of 16 and 128: at 1 x 28 x 28 the dense product takes 0.84 and 0.92 times as long, at 3 x 16 x 16 1.0 and 1.1, at
1 x 32 x 32 1.8. A kind of device that is not listed has the CPU's.
"""


@dataclass(frozen=True, slots=True, eq=False)
class DenseCovariance:
    """A positive semi-definite matrix of shape (c h w, c h w); shape: channels, height, width.

    clipped: the share of the spectrum's mass that was negative and was lifted to zero, in [0, 1].
    """

    matrix: Tensor
    shape: tuple[int, int, int]
    clipped: float = 0.0

    @property
    def mean_diagonal(self) -> float:
        """The mean variance of a pixel."""
        return float(self.matrix.diagonal().mean())

    def scaled(self, factor: float) -> DenseCovariance:
        """`factor` times the covariance."""
        return replace(self, matrix=self.matrix * factor)

    def times(self, g: Tensor) -> Tensor:
        """S g for each image, (n, c, h, w) of the operator's dtype."""
        return (g.flatten(1) @ self.matrix).view(g.shape)

    def form(self, g: Tensor) -> Tensor:
        """g^T S g of each image, shape (n,), never negative."""
        return _inner(g, self.times(g))


@dataclass(frozen=True, slots=True, eq=False)
class SpectralCovariance:
    """A block-circulant matrix on a torus of p x q (`torus_size`), cropped to the image; in O(d log d), never formed.

    spectrum: (c, c, p, q / 2 + 1), at each frequency Hermitian in the channels; the cropped matrix is positive
    semi-definite. shape: channels, height, width. clipped: the share of the spectrum's mass that was negative and was lifted
    to zero, in [0, 1].
    """

    spectrum: Tensor
    shape: tuple[int, int, int]
    clipped: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "spectrum", by_columns(self.spectrum))

    @property
    def mean_diagonal(self) -> float:
        """The mean variance of a pixel."""
        density = self.spectrum.real.diagonal().sum(dim=(0, 2))
        return float(self._over_torus(density)) / self.shape[0]

    def scaled(self, factor: float) -> SpectralCovariance:
        """`factor` times the covariance."""
        return replace(self, spectrum=self.spectrum * factor)

    def times(self, g: Tensor) -> Tensor:
        """S g for each image, (n, c, h, w) of the operator's dtype."""
        product = torch.empty_like(g)
        for rows in parts(g):
            product[rows] = cropped_ifft(multiply(self.spectrum, padded_fft(g[rows])), self.shape[1:])
        return product

    def form(self, g: Tensor) -> Tensor:
        """g^T S g of each image, shape (n,), never negative; one transform, for no image comes back."""
        forms = [self._energy(padded_fft(g[rows])) for rows in parts(g)]
        return torch.cat(forms).clamp_min(0) if forms else g.new_zeros(0)

    def function(self) -> Tensor:
        """The covariance function of the cropped matrix, shape (c, c, 2h - 1, 2w - 1)."""
        return from_torus(self.spectrum.conj(), self.shape[1:])

    def _energy(self, transformed: Tensor) -> Tensor:
        """The form of each image from its transform (n, c, p, q / 2 + 1), by Parseval's theorem."""
        pair = (torch.view_as_real(each.mT).flatten(3) for each in (multiply(self.spectrum, transformed), transformed))
        return self._over_torus(torch.linalg.vecdot(*pair).sum(dim=1))

    def _over_torus(self, density: Tensor) -> Tensor:
        """The mean over the torus of what its columns' frequencies hold, (..., q / 2 + 1)."""
        p, q = torus_size(*self.shape[1:])
        return density @ multiplicity(density, q // 2) / (p * q)


Covariance: TypeAlias = DenseCovariance | SpectralCovariance
"""What `quadratic_form` takes: a positive semi-definite operator on images."""


def operator_of(function: Tensor) -> Covariance:
    """The operator of a covariance function (c, c, 2h - 1, 2w - 1), positive semi-definite always.

    Of at most `LARGEST_TESTED` values its matrix is factored by Cholesky: the function's own matrix serves unless it is
    indefinite, in which case its negative eigenvalues are set to zero. The covariance of larger images is projected on a
    torus. Dense for small images (`LARGEST_DENSE`), and for those whose matrix was lifted, which displacements no longer
    tell.
    """
    shape = (len(function), (function.shape[-2] + 1) // 2, (function.shape[-1] + 1) // 2)
    if shape[0] * shape[1] * shape[2] > LARGEST_TESTED:
        positive, clipped = lift_function(function)
        return SpectralCovariance(torus_spectrum(positive), shape, clipped)
    own = matrix_of(function)
    matrix, clipped = lift_matrix(own)
    if matrix is own and not dense_pays(shape, function.device):
        return SpectralCovariance(torus_spectrum(function), shape)
    return DenseCovariance(matrix, shape, clipped)


def dense_pays(shape: tuple[int, int, int], device: torch.device) -> bool:
    """Whether a dense product is the faster one on `device`, by `LARGEST_DENSE`; shape: channels, height, width.

    >>> [dense_pays(shape, torch.device("cpu")) for shape in ((1, 28, 28), (3, 32, 32))]
    [True, False]
    """
    return shape[0] * shape[1] * shape[2] <= LARGEST_DENSE.get(device.type, LARGEST_DENSE["cpu"])


def unit_diagonal(covariance: Covariance) -> Covariance:
    """The covariance with a mean variance of one; one without any variance stays as it is."""
    scale = covariance.mean_diagonal
    return covariance.scaled(1 / scale) if scale > 0 else covariance


def quadratic_form(covariance: Covariance, g: Tensor) -> Tensor:
    """g^T S g of images (n, c, h, w), shape (n,), never negative; its gradient in `g` is 2 S g.

    Where a gradient is wanted S g is worked out at once and kept, so that the backward pass is one multiplication.
    Raises ValueError for images of another shape.
    """
    if tuple(g.shape[1:]) != covariance.shape:
        raise ValueError(f"Expected images of shape {covariance.shape}, got {tuple(g.shape[1:])}")
    return _QuadraticForm.apply(g, covariance)  # type: ignore[no-any-return]


class _QuadraticForm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: AutogradContext, g: Tensor, covariance: Covariance) -> Tensor:
        if not ctx.needs_input_grad[0]:
            return covariance.form(g)
        product = covariance.times(g)
        ctx.save_for_backward(product)
        return _inner(g, product)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: AutogradContext, weight: Tensor) -> tuple[Tensor, None]:
        (product,) = ctx.saved_tensors
        return 2 * weight.view(-1, 1, 1, 1) * product, None


def _inner(g: Tensor, product: Tensor) -> Tensor:
    """<g, S g> by image; what is below zero is rounding, for S is positive semi-definite."""
    forms: Tensor = torch.linalg.vecdot(g.flatten(1), product.flatten(1))
    return forms.clamp_min(0)


def torus_spectrum(function: Tensor) -> Tensor:
    """The spectrum (c, c, p, q / 2 + 1), complex, of a covariance function wrapped on the image's torus of p x q."""
    spectrum: Tensor = torch.fft.rfft2(wrapped(function)).conj().resolve_conj()
    return spectrum


def multiply(spectrum: Tensor, transformed: Tensor) -> Tensor:
    """The product, frequency by frequency, of matrices (c, c, p, q) with transformed images (n, c, p, q)."""
    product = transformed[:, :1] * spectrum[:, 0]
    for channel in range(1, len(spectrum)):
        product.addcmul_(transformed[:, channel : channel + 1], spectrum[:, channel])
    return product
