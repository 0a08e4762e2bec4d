"""Squared Frobenius norms of one layer's Jacobian, per example, in closed form: the Jacobian itself is never built.

A layer is an affine map, an elementwise nonlinearity and at most a choice of winners (max pooling), the h_j = f(h_{j-1}) of
Gu and Rigazio 2014 (arXiv:1412.5068, section 4). Row u of its Jacobian is the slope of unit u times row u of the affine map,
so that ``||J||_F^2 = sum over units of slope_u^2 * ||row_u||^2``. Layers differ in what a row is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_CHUNK_BYTES = 2**20
"""Size of the buffer that a pass over a batch works in on the CPU: a core's second-level cache."""


def dense_rows(weight: Tensor) -> Tensor:
    """Squared norms of the rows of a dense layer, shape (out,); `weight` is (out, in)."""
    return _DenseRows.apply(weight)  # type: ignore[no-any-return]


def convolution_rows(conv: nn.Conv2d, height: int, width: int) -> Tensor:
    """Squared norms of the rows of a zero-padded convolution, shape (channels, out height, out width).

    Each is the sum of the squared filter weights that fall on the image, borders exact, for any stride, padding, dilation
    and groups: the convolution of an image of ones with the squared filter. The image of ones separates into rows and
    columns, so that the convolution is two small matrix products. height, width: of the image that the convolution reads.
    """
    taps = conv.weight.square().sum(dim=1)
    (top, bottom), (left, right) = margins(conv)
    rows = _on_image(height, taps, conv.stride[0], conv.dilation[0], top, bottom, taps.shape[1])
    columns = _on_image(width, taps, conv.stride[1], conv.dilation[1], left, right, taps.shape[2])
    return rows @ taps @ columns.T


def margins(conv: nn.Conv2d) -> tuple[tuple[int, int], tuple[int, int]]:
    """The zeros that a convolution adds: (above, below), (left, right)."""
    if conv.padding == "valid":
        return (0, 0), (0, 0)
    if isinstance(conv.padding, str):  # "same": an odd zero goes below and to the right
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return (total[0] // 2, total[0] - total[0] // 2), (total[1] // 2, total[1] - total[1] // 2)
    return (int(conv.padding[0]), int(conv.padding[0])), (int(conv.padding[1]), int(conv.padding[1]))


def _on_image(size: int, like: Tensor, stride: int, dilation: int, before: int, after: int, kernel: int) -> Tensor:
    """1 where tap k of output position i falls on the image and 0 where it falls on the padding, shape (out, kernel)."""
    out = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
    position = torch.arange(out, device=like.device).unsqueeze(1) * stride - before
    position = position + torch.arange(kernel, device=like.device) * dilation
    return ((position >= 0) & (position < size)).to(like.dtype)


def masked_norms(rows: Tensor, y: Tensor, index: Tensor | None = None) -> Tensor:
    """Squared Jacobian norms of a ReLU layer, shape (n,): the rows of the active units alone.

    rows: squared norms of the affine map's rows, shape (*units). y: what the ReLU puts out, >= 0, shape (n, *units).
    index: of max pooling behind the layer, shape (n, channels, height, width), int64 positions in a channel's map; `y` is
    then pooled and `rows` is not. Differentiable in `rows`; the mask is locally constant.
    """
    if index is None:
        return _MaskedNorms.apply(rows.flatten(), y.detach().flatten(1))  # type: ignore[no-any-return]
    return weighted_norms(rows, y.detach().sign(), index)


def weighted_norms(rows: Tensor, squared_slopes: Tensor, index: Tensor | None = None) -> Tensor:
    """Squared Jacobian norms of a layer with any squared slopes >= 0, shape (n,); differentiable in both.

    rows and index as in `masked_norms`; squared_slopes: shape (n, *units), pooled where there is an `index`.
    """
    if index is None:
        return squared_slopes.flatten(1) @ rows.flatten()
    return _PooledNorms.apply(rows.flatten(1), squared_slopes.flatten(2), index.flatten(2))  # type: ignore[no-any-return]


def softmax_norms(weight: Tensor, logits: Tensor) -> Tensor:
    """``||(diag(p) - p p^T) W||_F^2`` with p the softmax of the logits, shape (n,): the Jacobian of a softmax layer.

    Row k is ``p_k (w_k - sum_j p_j w_j)``, whose norm needs the Gram matrix of W alone. weight: (classes, in). logits:
    (n, classes). Differentiable in both.
    """
    gram = weight @ weight.T
    p = logits.softmax(dim=1)
    towards = p @ gram
    distances = gram.diagonal() - 2 * towards + (p * towards).sum(dim=1, keepdim=True)
    return (p.square() * distances.clamp_min(0)).sum(dim=1)


class _DenseRows(torch.autograd.Function):
    """Squared row norms in one pass over the matrix, without its square beside it."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        norms: Tensor = torch.linalg.vector_norm(weight, dim=1)
        return norms.square_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        weight: Tensor = ctx.saved_tensors[0]
        return weight * (2 * gradient).unsqueeze(1)


class _MaskedNorms(torch.autograd.Function):
    """``(y > 0) @ rows``, the mask made and used in the cache: one read of `y` each way and nothing of its size written."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        norms = rows.new_empty(len(y))
        for part, mask in _masks(y):
            torch.mv(mask, rows, out=norms[part])
        return norms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        total = y.new_zeros(y.shape[1])
        for part, mask in _masks(y):
            total.addmv_(mask.T, gradient[part])
        return total, None


class _PooledNorms(torch.autograd.Function):
    """The sum of slopes times the rows of the winning positions: rows (c, map), slopes and index (n, c, pooled map)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, slopes: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(rows, slopes, index)
        return _winners(rows, index).mul_(slopes).sum(dim=(1, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        rows, slopes, index = ctx.saved_tensors
        total = torch.zeros_like(rows)
        won = rows.new_empty(min(len(index), _rows_per_chunk(rows)), *rows.shape)
        for start in range(0, len(index), len(won)):
            part = slice(start, start + len(won))
            here = won[: len(index[part])].zero_().scatter_add_(2, index[part], slopes[part])
            total.view(-1).addmv_(here.flatten(1).T, gradient[part])
        wanted = ctx.needs_input_grad[1]
        return total, _winners(rows, index).mul_(gradient.view(-1, 1, 1)) if wanted else None, None


def _winners(rows: Tensor, index: Tensor) -> Tensor:
    return rows.expand(len(index), *rows.shape).gather(2, index)


def _masks(y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Parts of a batch `y` >= 0, (n, units), with 1 where it is positive; the same memory serves every part."""
    size = min(len(y), _rows_per_chunk(y[0]))
    buffer = torch.empty_like(y[:size])
    for start in range(0, len(y), size):
        part = slice(start, start + size)
        yield part, torch.sign(y[part], out=buffer[: len(y[part])])


def _rows_per_chunk(example: Tensor) -> int:
    """Examples of this size that fit the buffer; all of them on a GPU, where launches cost more than memory."""
    if example.device.type != "cpu":
        return 2**31
    return max(1, _CHUNK_BYTES // max(1, example.numel() * example.element_size()))
