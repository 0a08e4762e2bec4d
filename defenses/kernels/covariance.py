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
    """The cross-channel power spectrum of images (n, c, h, w) on their torus (`torus_size`), averaged over the images.

    Returns (c, c, p, q / 2 + 1), complex, for a torus of p x q: conj(X_a) X_b. It is linear in x x^T, so that running
    averages may be kept of it.
    """
    total = torch.zeros(())
    for rows in parts(x):
        total = _add_products(total, padded_fft(x[rows]))
    return total / len(x)


def averaged(spectrum: Tensor, size: tuple[int, int]) -> Tensor:
    """The covariance function whose sums over pixel pairs have the power `spectrum`; size: the images' height and width."""
    h, w = size
    return from_torus(spectrum, size) / pairs(h, w).to(spectrum.real)


def from_torus(spectrum: Tensor, size: tuple[int, int]) -> Tensor:
    """The function of displacement (c, c, 2h - 1, 2w - 1) whose transform on the torus is `spectrum`.

    spectrum: (c, c, p, q / 2 + 1) for a torus of p x q. size: the images' height and width.
    """
    h, w = size
    # No displacement wraps around onto another. Negative ones stand at the end of each axis, and the roll brings
    # displacement zero to the middle.
    torus: Tensor = torch.fft.irfft2(spectrum, s=torus_size(h, w))
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
    # Pixel p sees a window of the function, which moves back as p moves on: entry [a, p, b, q] stands at q - p.
    windows = function.unfold(2, h, 1).unfold(3, w, 1).permute(0, 2, 3, 1, 4, 5)
    return windows.flip(1, 2).reshape(c * h * w, c * h * w)


def torus_size(height: int, width: int) -> tuple[int, int]:
    """The torus on which images of this size are transformed: no displacement wraps around, and both sides transform fast.

    Each is the smallest even number without prime factors above 7 that is at least twice the image's side less one: an image
    of 97 x 97 pixels transforms four times faster on 196 x 196 than on 194 x 194, for 194 = 2 x 97.

    >>> torus_size(28, 97)
    (56, 196)
    """
    return _fast(2 * height - 1), _fast(2 * width - 1)


def padded_fft(x: Tensor) -> Tensor:
    """The transform of images (n, c, h, w) padded with zeros to a torus of p x q: (n, c, p, q / 2 + 1), complex.

    Each column's frequencies stand side by side in memory, as the transform leaves them (`by_columns`). Rows of zeros are
    not transformed.
    """
    p, q = torus_size(x.shape[-2], x.shape[-1])
    columns: Tensor = torch.fft.fft(torch.fft.rfft(x, n=q).mT, n=p)
    return columns.mT


def cropped_ifft(spectrum: Tensor, size: tuple[int, int]) -> Tensor:
    """The images (n, c, h, w) at the corner of what `padded_fft` transforms back to; size: height and width."""
    h, w = size
    columns = torch.fft.ifft(spectrum.mT)[..., :h]
    images: Tensor = torch.fft.irfft(columns.mT, n=torus_size(h, w)[1])[..., :w]
    return images


def by_columns(spectrum: Tensor) -> Tensor:
    """The same values (..., p, q / 2 + 1) in the order of `padded_fft`; a product of two orders waits for memory."""
    return spectrum.mT.contiguous().mT


def parts(x: Tensor) -> list[slice]:
    """The images (n, c, h, w) in parts that are transformed together, so that their spectra fit a processor's cache."""
    p, q = torus_size(x.shape[2], x.shape[3])
    spectrum = x.shape[1] * p * (q // 2 + 1) * 2 * x.element_size()
    most = max(1, _SPECTRUM_BYTES[not traits(x.device).host] // spectrum)
    return [slice(start, start + most) for start in range(0, len(x), most)]


_SPECTRUM_BYTES = (2**20, 2**28)
"""The memory of the spectra that are worked on together, on a CPU and on a GPU."""


def _offsets(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where in a function the displacements between pixels p and q stand: rows (h, 1, h, 1) and columns (1, w, 1, w)."""
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    dy, dx = y.unsqueeze(0) - y.unsqueeze(1) + height - 1, x.unsqueeze(0) - x.unsqueeze(1) + width - 1
    return dy.view(height, 1, height, 1), dx.view(1, width, 1, width)


def _add_products(total: Tensor, spectrum: Tensor) -> Tensor:
    """`total` (c, c, p, q / 2 + 1), a scalar 0 at first, plus conj(X_a) X_b summed over the images of `spectrum`."""
    conjugate = spectrum.conj().resolve_conj()
    if spectrum.shape[1] > 1 and traits(spectrum.device).host:
        # Image by image into one total, which stays in the cache; a GPU waits for launches, and one channel for the loop.
        total = total if total.ndim else torch.zeros_like(spectrum[0].mT.expand(spectrum.shape[1], -1, -1, -1)).mT
        for image, other in zip(conjugate, spectrum, strict=True):
            total.addcmul_(image.unsqueeze(1), other)
        return total
    found = torch.stack([(conjugate[:, a : a + 1] * spectrum).sum(dim=0) for a in range(spectrum.shape[1])])
    return found + total if total.ndim else found


def _fast(least: int) -> int:
    """The smallest even number >= `least` whose prime factors are 2, 3, 5 and 7."""
    candidate = least + least % 2
    while _rest(candidate) > 1:
        candidate += 2
    return candidate


def _rest(number: int) -> int:
    """What remains of a number once its factors 2, 3, 5 and 7 are divided out."""
    for prime in (2, 3, 5, 7):
        while number % prime == 0:
            number //= prime
    return number


def _size(function: Tensor) -> tuple[int, int]:
    return (function.shape[-2] + 1) // 2, (function.shape[-1] + 1) // 2


def _distances(function: Tensor) -> Tensor:
    """The rounded distance of every displacement, shape (2h - 1, 2w - 1), int64; no distance lies midway between two."""
    h, w = _size(function)
    dy, dx = torch.arange(1 - h, h).view(-1, 1), torch.arange(1 - w, w)
    return torch.hypot(dy.to(torch.float64), dx.to(torch.float64)).round().to(torch.int64)
