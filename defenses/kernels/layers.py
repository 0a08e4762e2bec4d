"""The layers of a network and their Jacobian norms beside the logits, in one forward pass.

A layer is an affine map with what follows it up to the next one: h_j = f(h_{j-1}) of Gu and Rigazio 2014 (arXiv:1412.5068).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from advbench.defenses.kernels.dense_penalty import dense_penalty
from advbench.defenses.kernels.jacobian import (
    Interior,
    convolution_rows,
    dense_masked_norms,
    dense_rows,
    masked_norms,
    softmax_norms,
    weighted_norms,
)
from advbench.defenses.kernels.projection import check_output, projected_norms

SQUARED_SLOPES: Mapping[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU: lambda h: h.detach().sign(),
    nn.Sigmoid: lambda h: (h - h.square()).square(),
    nn.Tanh: lambda h: (1 - h.square()).square(),
}
"""The squared slope of a nonlinearity as a function of its output."""

_NEUTRAL = (nn.Identity, nn.Dropout, nn.Dropout2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One layer: an affine map and what follows it, or a block without a closed form. name: the first module's."""

    name: str
    modules: tuple[nn.Module, ...]

    def __call__(self, h: Tensor) -> Tensor:
        """The layer's output."""
        for module in self.modules:
            h = module(h)
        return h

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(type(module).__name__ for module in self.modules)})"


@dataclass(frozen=True, slots=True, eq=False)
class Layers:
    """A network cut into layers. prepare: what comes before the first affine map (flattening, standardisation)."""

    prepare: Layer
    layers: tuple[Layer, ...]


def layers_of(model: nn.Module) -> Layers:
    """Cut a network into layers, which share its modules; a network that is no `nn.Sequential` is one layer.

    Modules without parameters ahead of the first affine map belong to no layer: h_0 is what that map reads.
    Raises ValueError for a network without parameters.
    """
    modules = _flat(model, "")
    starts = [position for position, (_, module) in enumerate(modules) if _has_parameters(module)]
    if not starts:
        raise ValueError("Expected a model with layers that have parameters, got none")
    cut = [Layer(modules[a][0], tuple(m for _, m in modules[a:b])) for a, b in pairwise([*starts, len(modules)])]
    return Layers(Layer("", tuple(module for _, module in modules[: starts[0]])), tuple(cut))


def layer_jacobians(
    model: nn.Module,
    x: Tensor,
    *,
    output: str = "softmax",
    projections: int = 1,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits (n, classes) and, by layer, the squared Frobenius norm of dh_j/dh_{j-1}, shape (n,), in one forward pass.

    Exact in closed form for dense layers and zero-padded convolutions under the nonlinearities of `SQUARED_SLOPES` and max
    pooling. Batch normalisation is folded in with its statistics as constants, dropout is left out. The norms are
    differentiable in the weights, and the logits are those of ``model(x)``. Any other layer (average pooling, whose rows
    overlap; another padding; a residual block) is estimated by `projected_norms`, with a warning; that estimate
    differentiates through batch statistics and drawn dropout masks.

    x: images (n, ...). output: whether the last layer ends in its `softmax` or its `logits`. projections, generator: of
    the estimates.

    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    >>> for layer in (net[0], net[2]):
    ...     layer.weight.data = torch.tensor([[3.0, 4.0], [0.0, -2.0]])
    >>> logits, norms = layer_jacobians(net, torch.tensor([[1.0, 1.0]]), output="logits")  # the second unit is off
    >>> {name: norm.item() for name, norm in norms.items()}
    {'0': 25.0, '2': 29.0}
    """
    logits, found = _run(model, x, output, projections, generator)
    return logits, {name: _norms_of(each) for name, each in found.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Contraction:
    """What `contraction` finds in one forward pass.

    logits: (n, classes). penalty: a scalar. weights: of the dense layers that were worked out together. squares: the sum of
    those weights' squares, a scalar; None if there were no such layers.
    """

    logits: Tensor
    penalty: Tensor
    weights: tuple[Tensor, ...]
    squares: Tensor | None


def contraction(
    model: nn.Module,
    x: Tensor,
    coefficients: Sequence[float],
    *,
    output: str = "softmax",
    projections: int = 1,
    generator: torch.Generator | None = None,
) -> Contraction:
    """The logits and ``sum over layers of coefficient * mean ||dh_j/dh_{j-1}||_F^2`` over the images, in one forward pass.

    coefficients: one for all layers or one per layer. The other arguments are those of `layer_jacobians`, whose norms the
    penalty is made of; dense layers that end in a ReLU or under the softmax are worked out together by `dense_penalty`.
    Raises ValueError for another number of coefficients.
    """
    logits, found = _run(model, x, output, projections, generator)
    layers = list(found.values())
    if len(coefficients) not in (1, len(layers)):
        raise ValueError(f"Expected a `coefficient` for each of the {len(layers)} layers, got {len(coefficients)}")
    of = list(zip(layers, coefficients if len(coefficients) > 1 else [coefficients[0]] * len(layers), strict=True))
    dense = [(each, coefficient) for each, coefficient in of if isinstance(each, _Closed) and each.dense]
    others = [
        coefficient * _norms_of(each).mean() for each, coefficient in of if not isinstance(each, _Closed) or not each.dense
    ]
    if not dense:
        return Contraction(logits, torch.stack(others).sum(), (), None)
    pairs = [each.pair for each, _ in dense]
    weights, softmax = [weight for weight, _ in pairs], any(each.softmax for each, _ in dense)
    penalty, squares = dense_penalty(weights, [y for _, y in pairs], [c for _, c in dense], softmax=softmax)
    penalty = torch.stack([penalty, *others]).sum() if others else penalty
    return Contraction(logits, penalty, tuple(weights), squares)


def has_closed_form(layer: Layer, *, softmax: bool) -> bool:
    """Whether the layer's Jacobian norm is computed exactly; `softmax`: under a softmax."""
    affine, *rest = layer.modules
    kept = [module for module in rest if not _is(module, *_NEUTRAL)]
    if softmax:
        return _is(affine, nn.Linear) and all(_is(module, *_NORMS, nn.Flatten) for module in kept)
    if _is(affine, nn.Conv2d):
        if affine.padding_mode != "zeros":
            return False
        flat = [position for position, module in enumerate(kept) if _is(module, nn.Flatten)]
        maps, units = (kept[: flat[0]], kept[flat[0] + 1 :]) if flat else (kept, [])
        return all(_is(module, *SQUARED_SLOPES, nn.BatchNorm2d) or _is_pool(module) for module in maps) and all(
            _is(module, *SQUARED_SLOPES, nn.Flatten) for module in units
        )
    return _is(affine, nn.Linear) and all(_is(module, *SQUARED_SLOPES, nn.BatchNorm1d, nn.Flatten) for module in kept)


def _flat(module: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    """The modules that nested `nn.Sequential` run one after the other (one module as often as it runs), with their names."""
    if not _is(module, nn.Sequential):
        return [(name, module)]
    prefix = f"{name}." if name else ""
    found = []
    for key, child in module._modules.items():
        if child is not None:
            found += _flat(child, prefix + key)
    return found


def _has_parameters(module: nn.Module) -> bool:
    """Whether the module begins a layer: it has parameters, and is not the batch normalisation of the layer before it."""
    if isinstance(module, _NORMS):
        return False
    own = any(parameter is not None for parameter in module._parameters.values())
    return own or (bool(module._modules) and next(module.parameters(), None) is not None)


def _is(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether the module is of one of these kinds and computes what that kind computes."""
    own = type(module)
    return own in kinds or any(isinstance(module, kind) and own.forward is kind.forward for kind in kinds)


def _is_pool(module: nn.Module) -> bool:
    return _is(module, nn.MaxPool2d) and not module.return_indices


def _run(
    model: nn.Module, x: Tensor, output: str, projections: int, generator: torch.Generator | None
) -> tuple[Tensor, dict[str, _Closed | Tensor]]:
    """The logits and, by layer, what its norms come from or, without a closed form, estimates of them."""
    check_output(output)
    cut = layers_of(model)
    h, found = cut.prepare(x), dict[str, _Closed | Tensor]()
    for layer in cut.layers:
        softmax = output == "softmax" and layer is cut.layers[-1]
        if has_closed_form(layer, softmax=softmax) and h.ndim == (4 if isinstance(layer.modules[0], nn.Conv2d) else 2):
            found[layer.name] = ran = _closed(layer, h, softmax)
            h = ran.z
        else:
            h, found[layer.name] = _estimated(layer, h, softmax, projections, generator)
    return h, found


@dataclass(frozen=True, slots=True, eq=False)
class _Closed:
    """A layer with a closed form, which has run.

    z: its output. size: its input's, (height, width) of images. scale: what batch normalisation multiplies each channel
    with. outputs: the nonlinearities and what they put out, at the winners behind pooling. index: the winners' positions in
    the affine map's output. interior: see `Interior`. softmax: whether its norms are those under a softmax.
    """

    affine: nn.Linear | nn.Conv2d
    z: Tensor
    size: tuple[int, ...]
    scale: Tensor | None
    outputs: tuple[tuple[nn.Module, Tensor], ...]
    index: Tensor | None
    interior: Interior | None
    softmax: bool

    @property
    def dense(self) -> bool:
        """Whether the layer is a dense one that ends in a ReLU or under a softmax, as `dense_penalty` takes them."""
        if self.softmax:
            return True
        masked = self.scale is None and isinstance(self.affine, nn.Linear) and len(self.outputs) == 1
        return masked and _is(self.outputs[0][0], nn.ReLU)

    @property
    def weight(self) -> Tensor:
        """The dense layer's weight, batch normalisation folded in."""
        return self.affine.weight if self.scale is None else self.affine.weight * self.scale.unsqueeze(1)

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """What `dense_penalty` takes of a dense layer: its weight, and its logits or its ReLU's outputs."""
        return self.weight, self.z if self.softmax else self.outputs[0][1]

    def norms(self) -> Tensor:
        """The squared Jacobian norms, shape (n,)."""
        if self.softmax:
            return softmax_norms(self.weight, self.z)
        if self.dense:
            return dense_masked_norms(self.weight, self.outputs[0][1])
        affine = self.affine
        rows = dense_rows(affine.weight) if isinstance(affine, nn.Linear) else convolution_rows(affine, *self.size)
        if self.scale is not None:
            rows = rows * self.scale.square().view(-1, *[1] * (rows.ndim - 1))
        return self._of_rows(rows)

    def _of_rows(self, rows: Tensor) -> Tensor:
        """The norms from those of the affine map's rows."""
        if not self.outputs and self.index is None:
            return rows.sum().expand(len(self.z))
        n, units = len(self.z), rows.shape if self.index is None else self.index.shape[1:]
        if len(self.outputs) == 1 and _is(self.outputs[0][0], nn.ReLU):
            return masked_norms(rows, self.outputs[0][1].reshape(n, *units), self.index, self.interior)
        slopes = rows.new_ones(n, *units)
        for module, h in self.outputs:
            slopes = slopes * _squared_slopes(module, h).reshape(n, *units)
        return weighted_norms(rows, slopes, self.index)


def _norms_of(found: _Closed | Tensor) -> Tensor:
    return found.norms() if isinstance(found, _Closed) else found


def _closed(layer: Layer, h: Tensor, softmax: bool) -> _Closed:
    """Run a layer that has a closed form."""
    affine, *rest = layer.modules
    assert isinstance(affine, nn.Linear | nn.Conv2d)
    z, size = affine(h), tuple(h.shape[-2:])
    scale: Tensor | None = None
    outputs: list[tuple[nn.Module, Tensor]] = []
    index: Tensor | None = None
    interior = Interior.of(affine, *size) if isinstance(affine, nn.Conv2d) else None
    for module in rest:
        before = z
        if isinstance(module, nn.MaxPool2d):
            z, winners = _pool(module, before)
            outputs = [(kind, z if out is before else _at(out, winners)) for kind, out in outputs]
            index = winners if index is None else _at(index, winners)
            interior = None if interior is None else interior.pooled(module)
            continue
        if isinstance(module, _NORMS):
            factor = _normalisation(module, before)
            scale = factor if scale is None else scale * factor
        z = module(before)
        if _is(module, *SQUARED_SLOPES):
            outputs.append((module, z))
    return _Closed(affine, z, size, scale, tuple(outputs), index, interior, softmax)


def _squared_slopes(module: nn.Module, h: Tensor) -> Tensor:
    return next(slopes for kind, slopes in SQUARED_SLOPES.items() if isinstance(module, kind))(h)


def _pool(module: nn.MaxPool2d, h: Tensor) -> tuple[Tensor, Tensor]:
    """The winners' values and their positions in each channel's map, (n, channels, height, width) both."""
    window = (module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)
    z, winners = nn.functional.max_pool2d(h, *window, return_indices=True)
    return z, winners


def _at(values: Tensor, winners: Tensor) -> Tensor:
    """`values`, (n, channels, height, width), at the winners' positions."""
    return values.flatten(2).gather(2, winners.flatten(2)).view_as(winners)


def _normalisation(module: nn.Module, h: Tensor) -> Tensor:
    """What a batch normalisation multiplies each channel of its input `h` with, its statistics as constants."""
    assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    if module.training or module.running_var is None:
        variance = h.detach().transpose(0, 1).flatten(1).var(dim=1, correction=0)
    else:
        variance = module.running_var
    factor = (variance + module.eps).rsqrt()
    return factor * module.weight if module.affine else factor


def _estimated(
    layer: Layer, h: Tensor, softmax: bool, projections: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """The layer's output and unbiased estimates of its norms."""
    warnings.warn(
        f"No closed form for the Jacobian of layer {layer}{' under softmax' if softmax else ''}: "
        f"estimated by {projections} random projection{'s' * (projections > 1)}",
        stacklevel=3,
    )
    with torch.enable_grad():
        inputs = h if h.requires_grad else h.detach().requires_grad_()
        z = layer(inputs)
        y = z.softmax(dim=1) if softmax else z
    norms = projected_norms(y, inputs, projections=projections, generator=generator)
    return (z, norms) if torch.is_grad_enabled() else (z.detach(), norms)
