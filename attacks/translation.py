"""Momentum steps along smoothed gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.access import Evaluation, WhiteBox
from advbench.attacks.iterates import Search
from advbench.attacks.momentum import MIFGSM


@dataclass(frozen=True, slots=True, kw_only=True)
class TIFGSM(MIFGSM):
    """Momentum steps with translation-invariant gradients, TI-MI-FGSM (Dong et al. 2019, arXiv:1904.02884).

    The gradient is convolved with a Gaussian kernel before anything else, which approximates the mean gradient over shifted
    images. decay 0 gives TI-BIM; one step of size 1 gives TI-FGSM.

    kernel_size: the kernel's side, odd; it ends at three standard deviations, as in the authors' code (15 for images of 299
    pixels). The other fields and the costs are those of `MIFGSM`.
    """

    kernel_size: int = 15

    def __post_init__(self) -> None:
        MIFGSM.__post_init__(self)
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"Expected `kernel_size` to be odd and at least 1, got {self.kernel_size}")

    def _evaluate(self, search: Search[WhiteBox], x_adv: Tensor, step: int) -> Evaluation:
        evaluation = MIFGSM._evaluate(self, search, x_adv, step)
        return Evaluation(evaluation.loss, smoothed(evaluation.gradient, self.kernel_size), evaluation.logits)


def smoothed(gradient: Tensor, kernel_size: int) -> Tensor:
    """Each channel convolved with the Gaussian kernel, zeros beyond the edges, shape (n, c, h, w), of `balls.finite`."""
    n, c, h, w = gradient.shape
    kernel, half = gaussian(kernel_size).to(gradient), kernel_size // 2
    planes = balls.finite(gradient).reshape(n * c, 1, h, w)
    planes = torch.nn.functional.conv2d(planes, kernel.view(1, 1, -1, 1), padding=(half, 0))
    return torch.nn.functional.conv2d(planes, kernel.view(1, 1, 1, -1), padding=(0, half)).view(n, c, h, w)


def gaussian(kernel_size: int) -> Tensor:
    """One side of the separable kernel: a normal density from -3 to 3 standard deviations, sum 1, shape (kernel_size,)."""
    weights = torch.exp(-(torch.linspace(-3, 3, kernel_size, dtype=torch.float64) ** 2) / 2)
    return weights / weights.sum()
