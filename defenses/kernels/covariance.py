"""Covariance as a function of pixel displacement, with cross-channel terms (Roth et al. 2018, arXiv:1805.08736, section 4).

A covariance function holds, for channels a and b and a displacement (dy, dx) in pixels, the mean of x_a(p) x_b(p + (dy, dx))
over all pixels p for which both lie in the image. Its shape is (c, c, 2h - 1, 2w - 1), displacement zero in the middle:
entry [a, b, h - 1 + dy, w - 1 + dx]. Reversing the displacement exchanges the channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from advbench.devices import traits


def autocorrelation(x: Tensor) -> Tensor:
    """The covariance function of the raw second moments of images (n, c, h, w), averaged over the images.

    By FFT in O(n c d log d), equal to averaging the dense matrix E[x x^T] along displacements.

    An image of one row (1, 2): its pixels are 1 and 4 squared on average 2.5, and 2 as the product of neighbours.

    >>> autocorrelation(torch.tensor([[[[1.0, 2.0]]]]).double()).flatten()
    tensor([2.0000, 2.5000, 2.0000], dtype=torch.float64)
    """
    return averaged(power(x), (x.shape[2], x.shape[3]))


def along_displacements(matrix: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The covariance function that averages a dense matrix (c h w, c h w); shape: channels, height, width."""
    c, h, w = shape
    dy, dx = _offsets(h, w, matrix.device)
    place = ((dy * (2 * w - 1)) + dx).expand(h, w, h, w).flatten()
    entries = matrix.view(c, h * w, c, h * w).transpose(1, 2).flatten(2)
    sums = matrix.new_zeros(c, c, (2 * h - 1) * (2 * w - 1)).index_add_(2, place, entries)
    return sums.view(c, c, 2 * h - 1, 2 * w - 1) / pairs(h, w).to(matrix)


def power(x: Tensor) -> Tensor:
    """The cross-channel power spectrum of images (n, c, h, w) on a torus of twice the side, averaged over the images.

    Returns (c, c, 2h, w + 1), complex: conj(X_a) X_b. It is linear in x x^T, so that running averages may be kept of it.
    """
    n, c = x.shape[:2]
    total = torch.zeros(())
    for rows in parts(x):
        spectrum = padded_fft(x[rows])
        # The matrix over channels is Hermitian at each frequency, so that half of the products are conjugates of the others.
        upper = [[(spectrum[:, a].conj() * spectrum[:, b]).sum(dim=0) for b in range(a, c)] for a in range(c)]
        full = [[upper[a][b - a] if b >= a else upper[b][a - b].conj() for b in range(c)] for a in range(c)]
        total = total.to(spectrum) + torch.stack([torch.stack(row) for row in full])
    return total / n


def averaged(spectrum: Tensor, size: tuple[int, int]) -> Tensor:
    """The covariance function whose sums over pixel pairs have the power `spectrum`; size: the images' height and width."""
    h, w = size
    return from_torus(spectrum, size) / pairs(h, w).to(spectrum.real)


def from_torus(spectrum: Tensor, size: tuple[int, int]) -> Tensor:
    """The function of displacement (c, c, 2h - 1, 2w - 1) whose transform on the torus is `spectrum`, (c, c, 2h, w + 1)."""
    h, w = size
    # At twice the side no displacement wraps around onto another. Negative ones stand at the end of each axis, and the roll
    # brings displacement zero to the middle.
    torus: Tensor = torch.fft.irfft2(spectrum, s=(2 * h, 2 * w))
    return torus.roll((h - 1, w - 1), (-2, -1))[..., : 2 * h - 1, : 2 * w - 1]


def pairs(height: int, width: int) -> Tensor:
    """How many pairs of pixels have each displacement, shape (2h - 1, 2w - 1), float64: (h - |dy|) (w - |dx|)."""
    dy, dx = torch.arange(1 - height, height), torch.arange(1 - width, width)
    return torch.outer(height - dy.abs(), width - dx.abs()).to(torch.float64)


def radial_profile(function: Tensor) -> Tensor:
    """The mean over all pixel pairs of one rounded distance, shape (c, c, longest distance + 1).

    Worked on the CPU, where a sum by distance is the same in every run.
    """
    distance = _distances(function)
    weight = pairs(*_size(function)).flatten()
    sums = torch.zeros(*function.shape[:2], int(distance.max()) + 1, dtype=torch.float64)
    sums.index_add_(2, distance.flatten(), function.detach().cpu().to(torch.float64).flatten(2) * weight)
    return (sums / torch.bincount(distance.flatten(), weights=weight).clamp_min(1)).to(function)


def radial(function: Tensor) -> Tensor:
    """The covariance function that depends on the rounded distance of two pixels alone, as in the paper; same shape."""
    return radial_profile(function)[:, :, _distances(function).to(function.device)]


def exponential(shape: tuple[int, int, int], decay_length: float, channel_correlation: float) -> Tensor:
    """exp(-r / decay_length) of the distance r within a channel, times `channel_correlation` between channels; float64.

    shape: channels, height, width. decay_length: in pixels, > 0. channel_correlation: in [0, 1].

    >>> exponential((1, 1, 3), decay_length=2.0, channel_correlation=0.0).flatten()  # at distances 2, 1, 0, 1, 2
    tensor([0.3679, 0.6065, 1.0000, 0.6065, 0.3679], dtype=torch.float64)
    """
    c, h, w = shape
    dy, dx = torch.arange(1 - h, h).view(-1, 1), torch.arange(1 - w, w)
    decay = torch.exp(-torch.hypot(dy.to(torch.float64), dx.to(torch.float64)) / decay_length)
    channels = torch.full((c, c), channel_correlation, dtype=torch.float64).fill_diagonal_(1)
    return channels.view(c, c, 1, 1) * decay


def decay_length(function: Tensor) -> float:
    """The distance in pixels at which the covariance within channels first falls below 1 / e of that at distance zero.

    From the radial profile averaged over the channels, straight between whole distances; infinity where it never falls so
    far, NaN if there is no variance.

    Close to the length of an exponential decay, which is rounded to whole distances:

    >>> round(decay_length(exponential((1, 32, 32), decay_length=2.5, channel_correlation=0.0)), 1)
    2.4
    """
    profile = radial_profile(function).diagonal().mean(dim=1).double()
    if not profile[0] > 0:
        return math.nan
    share = profile / profile[0]
    below = (share < 1 / math.e).nonzero()
    if not len(below):
        return math.inf
    r = int(below[0])
    before, after = float(share[r - 1]), float(share[r])
    return r - 1 + (before - 1 / math.e) / (before - after)


def matrix_of(function: Tensor) -> Tensor:
    """The dense matrix of a covariance function, shape (c h w, c h w), whose entries depend on displacements alone."""
    c = len(function)
    h, w = _size(function)
    dy, dx = _offsets(h, w, function.device)
    return function[:, :, dy, dx].permute(0, 2, 3, 1, 4, 5).reshape(c * h * w, c * h * w)


def padded_fft(x: Tensor) -> Tensor:
    """The transform of images (n, c, h, w) padded with zeros to twice the side: (n, c, 2h, w + 1), complex."""
    h, w = x.shape[-2:]
    spectrum: Tensor = torch.fft.fft(torch.fft.rfft(x, n=2 * w), n=2 * h, dim=-2)
    return spectrum


def parts(x: Tensor) -> list[slice]:
    """The images (n, c, h, w) in parts that are transformed together, so that their spectra fit a processor's cache."""
    c, h, w = x.shape[1:]
    most = max(1, _SPECTRUM_BYTES[not traits(x.device).host] // (c * 2 * h * (w + 1) * 2 * x.element_size()))
    return [slice(start, start + most) for start in range(0, len(x), most)]


_SPECTRUM_BYTES = (2**19, 2**28)
"""The memory of the spectra that are worked on together, on a CPU and on a GPU."""


def _offsets(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where in a function the displacements between pixels p and q stand: rows (h, 1, h, 1) and columns (1, w, 1, w)."""
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    dy, dx = y.unsqueeze(0) - y.unsqueeze(1) + height - 1, x.unsqueeze(0) - x.unsqueeze(1) + width - 1
    return dy.view(height, 1, height, 1), dx.view(1, width, 1, width)


def _size(function: Tensor) -> tuple[int, int]:
    return (function.shape[-2] + 1) // 2, (function.shape[-1] + 1) // 2


def _distances(function: Tensor) -> Tensor:
    """The rounded distance of every displacement, shape (2h - 1, 2w - 1), int64; no distance lies midway between two."""
    h, w = _size(function)
    dy, dx = torch.arange(1 - h, h).view(-1, 1), torch.arange(1 - w, w)
    return torch.hypot(dy.to(torch.float64), dx.to(torch.float64)).round().to(torch.int64)
