"""Gaussian noise with a given covariance function, exact wherever the function is positive semi-definite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from advbench.attacks.rng import ExampleRNG
from advbench.defenses.kernels.covariance import matrix_of
from advbench.defenses.kernels.covariance_operator import multiply, torus_spectrum, with_eigenvalues

LARGEST_FACTOR = 4096
"""The most values (c h w) of an image whose dense covariance is factored."""

_ROUNDING = 1e-10
"""How far below zero, as a share of the largest, an eigenvalue in float64 may be by rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class Sampler:
    """A square root of a covariance; build one with `Sampler.of`.

    method: `fft`, the root of a positive semi-definite embedding on a torus of twice the side, (c, c, 2h, w + 1) complex, in
    O(d log d) per image; `cholesky`, the lower factor (d, d) of the dense matrix; `low-rank`, the factor (d, r) of its
    positive part, where the function is not positive semi-definite itself. All in float64.
    """

    method: Literal["fft", "cholesky", "low-rank"]
    root: Tensor
    shape: tuple[int, int, int]

    @staticmethod
    def of(function: Tensor) -> Sampler:
        """The sampler of a covariance function (c, c, 2h - 1, 2w - 1), the cheapest that is exact.

        Raises ValueError where the embedding is not positive semi-definite and the image has more than 4096 values.
        """
        function = function.to(torch.float64)
        shape = (len(function), (function.shape[-2] + 1) // 2, (function.shape[-1] + 1) // 2)
        matrices = torus_spectrum(function).permute(2, 3, 0, 1)
        root, values = with_eigenvalues(matrices, lambda values: values.clamp_min(0).sqrt())
        if values.min() >= -_ROUNDING * values.max():
            return Sampler("fft", root.permute(2, 3, 0, 1).contiguous(), shape)
        d = shape[0] * shape[1] * shape[2]
        if d > LARGEST_FACTOR:
            raise ValueError(
                f"Expected a covariance whose embedding on a torus is positive semi-definite, or images of at most "
                f"{LARGEST_FACTOR} values, got {d}: shorten the decay length"
            )
        return Sampler(*_factor(matrix_of(function)), shape)

    def draw(self, rng: ExampleRNG, dtype: torch.dtype = torch.float32) -> Tensor:
        """One image of noise for each example of `rng`, shape (n, c, h, w); worked in float64."""
        c, h, w = self.shape
        root = self.root.to(rng.index.device)
        if self.method != "fft":
            noise = rng.normal((root.shape[1],), torch.float64) @ root.T
            return noise.view(-1, c, h, w).to(dtype)
        white = torch.fft.rfft2(rng.normal((c, 2 * h, 2 * w), torch.float64))
        torus: Tensor = torch.fft.irfft2(multiply(root, white), s=(2 * h, 2 * w))
        return torus[..., :h, :w].to(dtype)


def _factor(matrix: Tensor) -> tuple[Literal["cholesky", "low-rank"], Tensor]:
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not failed:
        return "cholesky", factor
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > _ROUNDING * values[-1]
    return "low-rank", vectors[:, kept] * values[kept].sqrt()
