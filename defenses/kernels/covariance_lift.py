"""Covariances made positive semi-definite: the image's own matrix is tested, and only what is indefinite is changed.

Averaging a covariance along displacements (Roth et al. 2018, arXiv:1805.08736, section 4) can lose positive
semi-definiteness, and a penalty with a negative eigenvalue would reward gradients. What counts is the matrix over the pixels
of an image: its function wrapped on a torus can be indefinite where the matrix is not, as that of exp(-r / 16) is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from advbench.defenses.kernels.covariance import torus_size

LARGEST_TESTED = 1024
"""The most values (c h w) of an image whose matrix is factored, in 5 ms, and where it must be lifted decomposed, in 70 ms
(784 values, single precision, one CPU thread)."""

ROUNDS = 20
"""Projections of a larger image's covariance."""


def lift_matrix(matrix: Tensor) -> tuple[Tensor, float]:
    """The nearest positive semi-definite matrix (d, d) in the Frobenius norm, and the share of the spectrum that was lifted.

    The share is that of the negative eigenvalues in the sum of all magnitudes, in [0, 1]; 0, and `matrix` itself, where a
    Cholesky factorisation tells that it is positive semi-definite up to rounding.
    """
    slack = torch.finfo(matrix.dtype).eps * float(matrix.diagonal().sum())
    if int(torch.linalg.cholesky_ex(_shifted(matrix, slack))[1]) == 0 or not matrix.any():
        return matrix, 0.0
    return _decomposed(matrix)


def lift_function(function: Tensor, rounds: int = ROUNDS) -> tuple[Tensor, float]:
    """A covariance function (c, c, 2h - 1, 2w - 1) near to `function` whose matrix is positive semi-definite, and the share.

    For images whose matrix is too large: alternating projections (von Neumann) between the functions on a torus without
    wrapping that are positive semi-definite there and those that are `function` where displacements lie in the image. A
    cropped torus is positive semi-definite. The share is what the last projection lifted, in [0, 1]: of exp(-r / 16) on
    3 x 32 x 32 it is 10% after one round and 0.2% after twenty.
    """
    torus, share = wrapped(function), 0.0
    for _ in range(rounds):
        spectrum, share = lift_spectrum(torch.fft.rfft2(torus))
        lifted = torch.fft.irfft2(spectrum, s=torus.shape[-2:])
        if share == 0:
            break
        torus = _restored(lifted, function)
    return cropped(lifted, function), share


def lift_spectrum(spectrum: Tensor) -> tuple[Tensor, float]:
    """The positive semi-definite part of a spectrum (c, c, p, q / 2 + 1), and the share of its mass that was negative."""
    matrices = spectrum.permute(2, 3, 0, 1)
    weight = multiplicity(matrices.real, spectrum.shape[-1] - 1).expand(matrices.shape[:2])
    # Factoring by Cholesky is some twenty times faster than eigenvalues, which only indefinite matrices need.
    indefinite = torch.linalg.cholesky_ex(matrices)[1] != 0
    if not indefinite.any():
        return spectrum, 0.0
    lifted, values = with_eigenvalues(matrices[indefinite], lambda values: values.clamp_min(0))
    negative = (values.clamp_max(0).sum(dim=1) * weight[indefinite]).sum().neg()
    trace = (matrices.real.diagonal(dim1=2, dim2=3).sum(dim=2) * weight).sum()
    matrices = matrices.clone()
    matrices[indefinite] = lifted
    # The mass, the sum of all magnitudes, is the trace plus twice what is negative.
    mass = float(trace + 2 * negative)
    return matrices.permute(2, 3, 0, 1).contiguous(), float(negative) / mass if mass > 0 else 0.0


def with_eigenvalues(matrices: Tensor, change: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Hermitian matrices (..., c, c) with `change` applied to their eigenvalues, and the eigenvalues before it (..., c)."""
    if matrices.shape[-1] == 1:
        values = matrices.real.squeeze(-1)
        return change(values).unsqueeze(-1).to(matrices.dtype), values
    values, vectors = torch.linalg.eigh(matrices)
    return vectors * change(values).unsqueeze(-2).to(matrices.dtype) @ vectors.mH, values


def wrapped(function: Tensor) -> Tensor:
    """A covariance function (c, c, 2h - 1, 2w - 1) on the image's torus (`torus_size`), (c, c, p, q), origin first."""
    rows, columns = function.shape[-2:]
    p, q = torus_size(rows // 2 + 1, columns // 2 + 1)
    padded: Tensor = torch.nn.functional.pad(function, (0, q - columns, 0, p - rows))
    return padded.roll((-(rows // 2), -(columns // 2)), (-2, -1))


def cropped(torus: Tensor, like: Tensor) -> Tensor:
    """The displacements of a function on the torus (c, c, p, q) that `like` has, (c, c, 2h - 1, 2w - 1)."""
    rows, columns = like.shape[-2:]
    return torus.roll((rows // 2, columns // 2), (-2, -1))[..., :rows, :columns]


def multiplicity(like: Tensor, width: int) -> Tensor:
    """How often each column of a half spectrum stands in the whole one, shape (w + 1,): once, twice, ..., twice, once."""
    weight = torch.full((width + 1,), 2, dtype=like.dtype, device=like.device)
    weight[0] = weight[-1] = 1
    return weight


def _restored(torus: Tensor, function: Tensor) -> Tensor:
    """A function on the torus with `function` back where displacements lie in the image."""
    rows, columns = function.shape[-2:]
    middle = torus.roll((rows // 2, columns // 2), (-2, -1))
    middle[..., :rows, :columns] = function
    return middle.roll((-(rows // 2), -(columns // 2)), (-2, -1))


def _shifted(matrix: Tensor, slack: float) -> Tensor:
    shifted = matrix.clone()
    shifted.diagonal().add_(slack)
    return shifted


def _decomposed(matrix: Tensor) -> tuple[Tensor, float]:
    values, vectors = torch.linalg.eigh(matrix)
    negative = values.clamp_max(0)
    mass = float(values.abs().sum())
    below = negative < 0
    part = vectors[:, below]
    return matrix - (part * negative[below]) @ part.T, float(-negative.sum()) / mass if mass > 0 else 0.0
