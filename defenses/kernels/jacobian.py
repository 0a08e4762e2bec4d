"""Squared Frobenius norms of one layer's Jacobian, per example, in closed form: the Jacobian itself is never built.

A layer is an affine map, an elementwise nonlinearity and at most a choice of winners (max pooling), the h_j = f(h_{j-1}) of
Gu and Rigazio 2014 (arXiv:1412.5068, section 4). Row u of its Jacobian is the slope of unit u times row u of the affine map,
so that ``||J||_F^2 = sum over units of slope_u^2 * ||row_u||^2``. Layers differ in what a row is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from advbench.defenses.kernels.autograd import AutogradContext, once_differentiable

_CHUNK_BYTES = 2**20
"""Size of the buffer that a pass over a batch works in on the CPU: a core's second-level cache."""


def dense_rows(weight: Tensor) -> Tensor:
    """Squared norms of the rows of a dense layer, shape (out,); `weight` is (out, in).

    >>> dense_rows(torch.tensor([[3.0, 4.0], [0.0, 2.0]])).tolist()
    [25.0, 4.0]
    """
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


@dataclass(frozen=True, slots=True)
class Interior:
    """Where the rows of a convolution are all alike within a channel, because no tap falls on the padding.

    row, column: one such position in the convolution's map. top, bottom, left, right: the range of such positions in the
    layer's output, pooled or not: rows top to bottom - 1, columns left to right - 1.
    """

    row: int
    column: int
    top: int
    bottom: int
    left: int
    right: int

    @staticmethod
    def of(conv: nn.Conv2d, height: int, width: int) -> Interior | None:
        """That of a convolution of an image of this size; None where it has none."""
        ranges = [
            (-(-before // stride), (size - 1 - dilation * (kernel - 1) + before) // stride + 1)
            for size, (before, _), stride, dilation, kernel in zip(
                (height, width), margins(conv), conv.stride, conv.dilation, conv.kernel_size, strict=True
            )
        ]
        (top, bottom), (left, right) = ranges
        return Interior(top, left, top, bottom, left, right) if top < bottom and left < right else None

    def pooled(self, pool: nn.MaxPool2d) -> Interior | None:
        """That behind max pooling: the windows which lie inside."""

        def inside(start: int, end: int, axis: int) -> tuple[int, int]:
            size, padding, dilation = (_of_axis(v, axis) for v in (pool.kernel_size, pool.padding, pool.dilation))
            stride = _of_axis(pool.stride, axis)
            return -(-(start + padding) // stride), (end - 1 - dilation * (size - 1) + padding) // stride + 1

        (top, bottom), (left, right) = inside(self.top, self.bottom, 0), inside(self.left, self.right, 1)
        return Interior(self.row, self.column, top, bottom, left, right) if top < bottom and left < right else None

    def border(self, maps: Tensor) -> Tensor:
        """All values of maps (n, channels, height, width) outside, shape (n, channels, number)."""
        sides = (
            maps[..., : self.top, :],
            maps[..., self.bottom :, :],
            maps[..., self.top : self.bottom, : self.left],
            maps[..., self.top : self.bottom, self.right :],
        )
        return torch.cat([side.flatten(-2) for side in sides], dim=-1)


def masked_norms(rows: Tensor, y: Tensor, index: Tensor | None = None, interior: Interior | None = None) -> Tensor:
    """Squared Jacobian norms of a ReLU layer, shape (n,): the rows of the active units alone.

    rows: squared norms of the affine map's rows, shape (*units). y: the ReLU's outputs, >= 0, shape (n, *units).
    index: of max pooling behind the layer, shape (n, channels, height, width), int64 positions in a channel's map; `y` is
    then pooled and `rows` is not. interior: of a convolution with pooling behind it; there it is enough to count the active
    units of each channel. Differentiable in `rows`; the mask is locally constant.

    Two units with rows of squared norms 25 and 4: the first image has both active, the second the latter alone.

    >>> masked_norms(torch.tensor([25.0, 4.0]), torch.tensor([[0.7, 0.1], [0.0, 0.1]])).tolist()
    [29.0, 4.0]
    """
    y = y.detach()
    if index is None:
        return _MaskedNorms.apply(rows.flatten(), y.flatten(1))  # type: ignore[no-any-return]
    if interior is None:
        return _pooled_norms(rows, y.sign().transpose(0, 1).flatten(2), index.transpose(0, 1).flatten(2))
    # Inside, all rows of a channel have one norm, so that the number of active units is enough. Only at the border does the
    # norm depend on where the winner of a pooling window stood.
    norms = _counts(y, interior) @ rows[:, interior.row, interior.column]
    border, places = (interior.border(maps.transpose(0, 1)) for maps in (y, index))
    return norms + _pooled_norms(rows, border.sign_(), places) if border.numel() else norms


def weighted_norms(rows: Tensor, squared_slopes: Tensor, index: Tensor | None = None) -> Tensor:
    """Squared Jacobian norms of a layer with any squared slopes >= 0, shape (n,); differentiable in both.

    rows and index as in `masked_norms`; squared_slopes: shape (n, *units), pooled where there is an `index`.
    """
    if index is None:
        return squared_slopes.flatten(1) @ rows.flatten()
    return _pooled_norms(rows, squared_slopes.transpose(0, 1).flatten(2), index.transpose(0, 1).flatten(2))


def softmax_norms(weight: Tensor, logits: Tensor) -> Tensor:
    """``||(diag(p) - p p^T) W||_F^2`` with p the softmax of the logits, shape (n,): the Jacobian of a softmax layer.

    Row k is ``p_k (w_k - sum_j p_j w_j)``, whose norm needs the Gram matrix of W alone. weight: (classes, in). logits:
    (n, classes). Differentiable in both.
    """
    return _SoftmaxNorms.apply(weight, logits)  # type: ignore[no-any-return]


def dense_masked_norms(weight: Tensor, y: Tensor) -> Tensor:
    """``masked_norms(dense_rows(weight), y)`` in one step; weight: (out, in), y: (n, out)."""
    return _DenseMaskedNorms.apply(weight, y.detach())  # type: ignore[no-any-return]


class _DenseRows(torch.autograd.Function):
    """Squared row norms in one pass over the matrix, without its square beside it."""

    @staticmethod
    def forward(ctx: AutogradContext, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        norms: Tensor = torch.linalg.vector_norm(weight, dim=1)
        return norms.square_()

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, gradient: Tensor) -> Tensor:
        weight: Tensor = ctx.saved_tensors[0]
        return weight * (2 * gradient).unsqueeze(1)


class _MaskedNorms(torch.autograd.Function):
    """``(y > 0) @ rows``, the mask made and used in the cache: one read of `y` each way and nothing of its size written."""

    @staticmethod
    def forward(ctx: AutogradContext, rows: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        return _masked_sums(y, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, gradient: Tensor) -> tuple[Tensor, None]:
        return _masked_totals(ctx.saved_tensors[0], gradient), None


class _DenseMaskedNorms(torch.autograd.Function):
    """`_DenseRows` and `_MaskedNorms` in one: small layers cost what their launches cost."""

    @staticmethod
    def forward(ctx: AutogradContext, weight: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(weight, y)
        return _masked_sums(y, torch.linalg.vector_norm(weight, dim=1).square_())

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, gradient: Tensor) -> tuple[Tensor, None]:
        weight, y = ctx.saved_tensors
        return weight * _masked_totals(y, gradient).mul_(2).unsqueeze(1), None


class _SoftmaxNorms(torch.autograd.Function):
    """``sum_k p_k^2 (G_kk - 2 (G p)_k + p^T G p)`` with G = W W^T, derivatives by hand: launches are all that it costs.

    Of 200-10 and 128 images the bytes take a microsecond and one launch on a CPU four, so that the limit cannot be reached:
    these are 10 launches there and 16 back. Squaring the softmax's Jacobians, (n, classes, classes), takes 15 in all and
    more time: 1.2 times as much at 10 classes, 3 times at 32. A penalty needs the mean alone (`dense_penalty`).
    """

    @staticmethod
    def forward(ctx: AutogradContext, weight: Tensor, logits: Tensor) -> Tensor:
        terms = _SoftmaxTerms.of(weight, logits)
        ctx.save_for_backward(weight, *terms)
        norms: Tensor = torch.linalg.vecdot(terms.squares, terms.distances)
        return norms.clamp_min_(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, gradient: Tensor) -> tuple[Tensor, Tensor]:
        weight, *terms = ctx.saved_tensors
        return _SoftmaxTerms(*terms).gradients(weight, gradient.unsqueeze(1))


class _SoftmaxTerms(NamedTuple):
    """What the norms under a softmax and their derivatives are made of.

    p: the softmax, (n, classes). gram: W W^T, (classes, classes). towards: p W W^T. distances: of each class's weights to
    their mean under p, squared. squares: p^2. The last three are of shape (n, classes).
    """

    p: Tensor
    gram: Tensor
    towards: Tensor
    distances: Tensor
    squares: Tensor

    @staticmethod
    def of(weight: Tensor, logits: Tensor) -> _SoftmaxTerms:
        """Those of weights (classes, in) and logits (n, classes)."""
        p, gram = logits.softmax(dim=1), weight @ weight.T
        towards = p @ gram
        distances = torch.add(gram.diagonal(), towards, alpha=-2).add_(torch.linalg.vecdot(p, towards).unsqueeze(1))
        return _SoftmaxTerms(p, gram, towards, distances, p * p)

    def gradients(self, weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Those in the weights and the logits; gradient: in each norm, (n, 1)."""
        total, weighted = self.squares.sum(dim=1, keepdim=True), gradient * self.p
        squares = weighted * self.p
        in_gram = torch.addcmul(squares, total, weighted, value=-0.5).T @ self.p
        in_gram = in_gram + in_gram.T
        in_gram.diagonal().sub_(squares.sum(dim=0))
        in_p = (self.p * self.distances).addmm_(self.squares, self.gram, alpha=-1).addcmul_(total, self.towards)
        in_logits = in_p.sub_(torch.linalg.vecdot(in_p, self.p).unsqueeze(1)).mul_(weighted)
        return (in_gram @ weight).mul_(-2), in_logits.mul_(2)


def _counts(y: Tensor, interior: Interior) -> Tensor:
    """The number of positive values of each channel of `y` >= 0 in the interior, shape (n, channels)."""
    counts, where = y.new_empty(y.shape[:2]), y.new_zeros(y.shape[2:])
    where[interior.top : interior.bottom, interior.left : interior.right] = 1
    for part, mask in _masks(y, _rows_per_chunk(y[0])):
        torch.mv(mask.view(-1, where.numel()), where.view(-1), out=counts[part].view(-1))
    return counts


def _of_axis(value: int | tuple[int, ...], axis: int) -> int:
    return value if isinstance(value, int) else value[axis]


def _masked_sums(y: Tensor, rows: Tensor) -> Tensor:
    """``(y > 0) @ rows`` of `y` >= 0, shape (n,)."""
    size = _rows_per_chunk(y[0])
    if len(y) <= size:
        return y.sign() @ rows
    norms = rows.new_empty(len(y))
    for part, mask in _masks(y, size):
        torch.mv(mask, rows, out=norms[part])
    return norms


def _masked_totals(y: Tensor, gradient: Tensor) -> Tensor:
    """``gradient @ (y > 0)`` of `y` >= 0, shape (units,)."""
    size = _rows_per_chunk(y[0])
    if len(y) <= size:
        return gradient @ y.sign()
    total = y.new_zeros(y.shape[1])
    for part, mask in _masks(y, size):
        total.addmv_(mask.T, gradient[part])
    return total


def _pooled_norms(rows: Tensor, slopes: Tensor, index: Tensor) -> Tensor:
    """Slopes times the rows at the winners, summed, shape (n,); rows (c, h, w), slopes and index (c, n, winners)."""
    return _PooledNorms.apply(rows.flatten(1), slopes.contiguous(), index.contiguous())  # type: ignore[no-any-return]


class _PooledNorms(torch.autograd.Function):
    """See `_pooled_norms`; channels first, because picking and summing cost by the run, and a channel is one run then."""

    @staticmethod
    def forward(ctx: AutogradContext, rows: Tensor, slopes: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(rows, slopes, index)
        won = rows.gather(1, index.flatten(1)).view_as(slopes)
        return won.mul_(slopes).sum(dim=2).sum(dim=0)

    @staticmethod
    @once_differentiable
    def backward(ctx: AutogradContext, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        rows, slopes, index = ctx.saved_tensors
        gradient = gradient.view(1, -1, 1)
        total = torch.zeros_like(rows).scatter_add_(1, index.flatten(1), (slopes * gradient).flatten(1))
        if not ctx.needs_input_grad[1]:
            return total, None, None
        return total, rows.gather(1, index.flatten(1)).view_as(slopes).mul_(gradient), None


def _masks(y: Tensor, size: int) -> Iterator[tuple[slice, Tensor]]:
    """Parts of `size` examples of `y` >= 0 with 1 where it is positive; the same memory serves every part."""
    buffer = y.new_empty(y[:size].shape)
    for start in range(0, len(y), size):
        part = slice(start, start + size)
        yield part, torch.sign(y[part], out=buffer[: len(y[part])])


def _rows_per_chunk(example: Tensor) -> int:
    """Examples of this size that fit the buffer; all of them on a GPU, where launches cost more than memory."""
    if example.device.type != "cpu":
        return 2**31
    return max(1, _CHUNK_BYTES // max(1, example.numel() * 4))
