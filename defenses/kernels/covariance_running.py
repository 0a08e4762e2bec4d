"""Running second moments of perturbations (Roth et al. 2018, arXiv:1805.08736): S <- (1 - beta) S + beta E[xi xi^T]."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from advbench.defenses.kernels.covariance import along_displacements, autocorrelation, averaged, power, radial
from advbench.defenses.kernels.covariance_operator import Covariance, DenseCovariance, operator_of

LARGEST_MATRIX = 4096
"""The most values (c h w) of an image whose full matrix is kept: 64 MiB in float32."""


class RunningMoments(ABC):
    """Exponentially weighted averages over batches of perturbations, of mean and raw second moments.

    The average starts from nothing and is divided by the sum of its weights, so that after t batches batch i weighs
    beta (1 - beta)^(t - i) / (1 - (1 - beta)^t): the first batches are not understated, and one batch stands for itself.

    shape: channels, height, width. beta: the weight of a new batch, in (0, 1].
    """

    def __init__(self, shape: tuple[int, int, int], beta: float) -> None:
        if not 0 < beta <= 1:
            raise ValueError(f"Expected `beta` in (0, 1], got {beta}")
        self.shape = shape
        self.beta = beta
        self.weight = 0.0
        self.mean = torch.zeros(())
        self.second = torch.zeros(())

    def update(self, xi: Tensor) -> None:
        """Take in a batch of perturbations (n, c, h, w), n >= 1, each of the same weight."""
        if len(xi) == 0 or tuple(xi.shape[1:]) != self.shape:
            raise ValueError(f"Expected perturbations of shape (n, *{self.shape}) with n >= 1, got {tuple(xi.shape)}")
        xi = xi.detach()
        self.weight = (1 - self.beta) * self.weight + self.beta
        share = self.beta / self.weight
        mean, second = xi.mean(dim=0), self._second(xi)
        if share == 1:
            self.mean, self.second = mean, second
        else:
            self.mean.lerp_(mean, share)
            self.second.lerp_(second, share)

    @abstractmethod
    def _second(self, xi: Tensor) -> Tensor:
        """The raw second moments of a batch, in the form that is kept."""

    @abstractmethod
    def function(self, *, centred: bool = False) -> Tensor:
        """The covariance function (c, c, 2h - 1, 2w - 1), about the running mean where `centred`."""

    @abstractmethod
    def covariance(self, *, centred: bool = False) -> Covariance:
        """The positive semi-definite operator, about the running mean where `centred`."""

    def _seen(self) -> None:
        if not self.weight:
            raise ValueError("Expected at least one batch of perturbations, got none: call `update` first")


class RunningMatrix(RunningMoments):
    """Running moments as the full matrix (c h w, c h w). Raises ValueError for images of more than 4096 values."""

    def __init__(self, shape: tuple[int, int, int], beta: float) -> None:
        super().__init__(shape, beta)
        d = shape[0] * shape[1] * shape[2]
        if d > LARGEST_MATRIX:
            raise ValueError(f"Expected at most {LARGEST_MATRIX} values for a full matrix, got {d}: use the function")

    def matrix(self, *, centred: bool = False) -> Tensor:
        """The matrix, about the running mean where `centred`: the second moments less the outer product of the mean."""
        self._seen()
        mean = self.mean.flatten()
        return self.second - torch.outer(mean, mean) if centred else self.second

    def covariance(self, *, centred: bool = False) -> DenseCovariance:
        """The matrix as an operator; nothing is clipped, for a matrix of moments is positive semi-definite."""
        return DenseCovariance(self.matrix(centred=centred), self.shape)

    def function(self, *, centred: bool = False) -> Tensor:
        """The matrix averaged along displacements, about the running mean where `centred`."""
        return along_displacements(self.matrix(centred=centred), self.shape)

    def _second(self, xi: Tensor) -> Tensor:
        flat = xi.flatten(1)
        return flat.T @ flat / len(xi)


class RunningFunction(RunningMoments):
    """Running moments as a function of displacement, kept as a power spectrum, O(d log d) per image.

    isotropic: whether the function is averaged over all displacements of one rounded distance, as in the paper.
    """

    def __init__(self, shape: tuple[int, int, int], beta: float, *, isotropic: bool = False) -> None:
        super().__init__(shape, beta)
        self.isotropic = isotropic

    def function(self, *, centred: bool = False) -> Tensor:
        """The covariance function (c, c, 2h - 1, 2w - 1), about the running mean where `centred`."""
        self._seen()
        function = averaged(self.second, self.shape[1:])
        if centred:
            function = function - autocorrelation(self.mean.unsqueeze(0))
        return radial(function) if self.isotropic else function

    def covariance(self, *, centred: bool = False) -> Covariance:
        """The function's operator, its negative spectrum lifted to zero."""
        return operator_of(self.function(centred=centred))

    def _second(self, xi: Tensor) -> Tensor:
        return power(xi)
