"""Input normalisation as the first module of a network, so that images outside it stay in [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SMALLEST_STD = 1e-3


class Standardise(nn.Module):
    """Subtract the training mean and divide by the training standard deviation.

    channels: statistics per channel; None takes one mean and one standard deviation over all pixels (global).
    The identity until `fit_statistics` is called, which the training loop does once before the first step.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int | None) -> None:
        super().__init__()
        shape = (1, 1, 1, 1) if channels is None else (1, channels, 1, 1)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))

    def fit_statistics(self, x: Tensor) -> None:
        """Take the mean and the standard deviation from training images `x`, shape (n, c, h, w)."""
        std, mean = torch.std_mean(x, dim=(0, 2, 3) if self.mean.shape[1] > 1 else (0, 1, 2, 3), correction=0)
        self.mean.copy_(mean.view(self.mean.shape))
        self.std.copy_(std.clamp_min(_SMALLEST_STD).view(self.std.shape))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, c, h, w) in [0, 1] to standardised ones."""
        return (x - self.mean) / self.std


class StandardisePerImage(nn.Module):
    """Give each image zero mean and unit variance over all its pixels and channels.

    The standard deviation is at least 1 / sqrt(number of pixels), as in TensorFlow's ``per_image_standardization``, so that
    a flat image has a finite gradient.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, c, h, w) in [0, 1] to standardised ones."""
        variance, mean = torch.var_mean(x, dim=(1, 2, 3), correction=0, keepdim=True)
        return (x - mean) / variance.clamp_min(1 / x[0].numel()).sqrt()


class Whiten(nn.Module):
    """ZCA whitening: remove the training mean and multiply with (C + epsilon I)^(-1/2), C the training covariance.

    shape: channels, height, width. epsilon: added to the covariance's eigenvalues, for pixels in [0, 1].
    The identity until `fit_statistics` is called, which the training loop does once before the first step.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, shape: tuple[int, int, int], epsilon: float = 0.1) -> None:
        super().__init__()
        self.epsilon = epsilon
        pixels = shape[0] * shape[1] * shape[2]
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("matrix", torch.eye(pixels))

    def fit_statistics(self, x: Tensor) -> None:
        """Take the mean and the covariance from training images `x`, shape (n, c, h, w)."""
        flat = x.flatten(1)
        mean = flat.mean(dim=0, dtype=self.matrix.dtype)
        covariance = torch.zeros_like(self.matrix)
        for start in range(0, len(flat), 4096):
            centred = flat[start : start + 4096] - mean
            covariance.addmm_(centred.T, centred, alpha=1 / len(flat))
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        self.mean.copy_(mean)
        self.matrix.copy_(vectors / (eigenvalues.clamp_min(0) + self.epsilon).sqrt() @ vectors.T)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, c, h, w) in [0, 1] to whitened ones."""
        return ((x.flatten(1) - self.mean) @ self.matrix).view(x.shape)


class LumaContrast(nn.Module):
    """YUV with local contrast normalisation of the luma and standardised chroma, the input of the torch7 CIFAR networks.

    Y loses its local mean and is divided by its local standard deviation (at least 1e-4), both under a Gaussian window of
    7 x 7 pixels whose standard deviation is 1.75 pixels; pixels beyond the border have no weight. U and V are standardised
    by their training statistics. Grey images are their own Y and have no chroma.
    channels: 1 or 3. Raises ValueError for other numbers of channels.
    """

    rgb_to_yuv: Tensor
    window: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ValueError(f"Expected images with 1 or 3 channels, got {channels}")
        matrix = [[0.299, 0.587, 0.114], [-0.14713, -0.28886, 0.436], [0.615, -0.51499, -0.10001]]
        offsets = torch.arange(-3.0, 4.0)
        window = torch.exp(-0.5 * (offsets / 1.75) ** 2)
        self.register_buffer("rgb_to_yuv", torch.tensor(matrix).view(3, 3, 1, 1), persistent=False)
        self.register_buffer("window", (window / window.sum()).view(1, 1, 7, 1), persistent=False)
        self.chroma = Standardise(2) if channels == 3 else None

    def fit_statistics(self, x: Tensor) -> None:
        """Take the chroma's mean and standard deviation from training images `x`, shape (n, c, h, w)."""
        if self.chroma is not None:
            self.chroma.fit_statistics(nn.functional.conv2d(x, self.rgb_to_yuv)[:, 1:])

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, c, h, w) in [0, 1] to normalised YUV, or normalised luma where c is 1."""
        if self.chroma is None:
            return self._normalise(x)
        yuv = nn.functional.conv2d(x, self.rgb_to_yuv)
        return torch.cat((self._normalise(yuv[:, :1]), self.chroma(yuv[:, 1:])), dim=1)

    def _normalise(self, luma: Tensor) -> Tensor:
        weight = self._blur(torch.ones_like(luma[:1]))
        centred = luma - self._blur(luma) / weight
        variance = self._blur(centred**2) / weight
        return centred / variance.clamp_min(1e-8).sqrt()

    def _blur(self, luma: Tensor) -> Tensor:
        columns = nn.functional.conv2d(luma, self.window, padding=(3, 0))
        return nn.functional.conv2d(columns, self.window.transpose(2, 3), padding=(0, 3))


def fit_statistics(model: nn.Module, x: Tensor) -> None:
    """Call ``fit_statistics(x)`` of the modules of `model` that have one; `x`: training images (n, c, h, w) in [0, 1].

    A module that has one also answers for the modules inside it.
    """
    fit = getattr(model, "fit_statistics", None)
    if fit is not None:
        with torch.no_grad():
            fit(x)
        return
    for child in model.children():
        fit_statistics(child, x)
