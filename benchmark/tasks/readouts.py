"""A readout of its own for every image, on the features of a whole defended pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from advbench.attacks.access import PerExample
from advbench.attacks.rng import ExampleRNG
from advbench.defenses.inference.composition import call

RIDGE = 0.1
"""What is added to the variance of every feature, a share of their mean variance."""
_FLOOR = 1e-3
"""The least lead of the clean image's label, where the model itself hardly decides."""
_ALIKE = 1e-4
"""By how much features may differ, relatively, between batches."""


@dataclass(frozen=True, slots=True, eq=False)
class Readouts:
    """Linear readouts, one for each of n examples: the lead of the second of two labels is ``w f + b``.

    index: the examples' data-set indices, ascending, (n,). weight: w, (n, d). bias: b, (n,). offset: added to the lead that
    leaves the pipeline, (n,).
    """

    index: Tensor
    weight: Tensor
    bias: Tensor
    offset: Tensor

    def select(self, rows: Tensor) -> Readouts:
        """The readouts of the given rows: a bool mask or ascending int64 positions."""
        return Readouts(self.index[rows], self.weight[rows], self.bias[rows], self.offset[rows])

    def rows(self, index: Tensor) -> Tensor:
        """The rows of the examples of these data-set indices, (m,) int64. KeyError for an example without a readout."""
        rows = torch.searchsorted(self.index, index).clamp(max=len(self.index) - 1)
        if not torch.equal(self.index[rows], index):
            raise KeyError("Expected examples that have a readout, got others")
        return rows

    def logits(self, features: Tensor, rows: Tensor) -> Tensor:
        """Two logits (m, 2), whose difference is the lead, of features (m, d) of the examples of `rows`, (m,)."""
        weight, bias = self.weight.to(features.dtype), self.bias.to(features.dtype)
        return _pair((features * weight[rows]).sum(dim=1) + bias[rows])


class Binary(PerExample):
    """A pipeline that answers each example with two labels, through the example's own readout.

    pipeline: images (n, c, h, w) -> logits (n, classes); called with the rng too where `stochastic`. layer: the linear layer
    of the pipeline in whose place the readouts stand, everything else staying as it is; None where they stand behind the
    logits. Called as ``binary(x, rng)``; ``rng.index`` says which examples the images are of. The readouts stand there while
    gradients come back too, for pipelines that ask their classifier again on the way.
    """

    def __init__(self, pipeline: nn.Module, layer: nn.Linear | None, readouts: Readouts, *, stochastic: bool) -> None:
        super().__init__()
        self.pipeline = pipeline
        self.layer = layer
        self.readouts = readouts
        self.stochastic = stochastic
        self._standing = ExitStack()

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        """Logits, (n, 2), of images (n, c, h, w)."""
        rows = self.readouts.rows(rng.index)
        if self.layer is None:
            logits = self.readouts.logits(call(self.pipeline, x, rng, self.stochastic), rows)
        else:
            logits = self._replaced(self.layer, x, rng, rows)
        return logits + _pair(self.readouts.offset.to(logits.dtype)[rows])

    def _replaced(self, layer: nn.Linear, x: Tensor, rng: ExampleRNG, rows: Tensor) -> Tensor:
        """The pipeline's answer with the readouts in place of the layer, now and when its gradient is asked for."""

        def stand(*_: Tensor) -> None:
            self._standing.close()
            self._standing.enter_context(
                replaced(layer, lambda f: self.readouts.logits(f, rows.repeat(len(f) // max(1, len(rows)))))
            )

        def leave(*_: Tensor) -> None:
            self._standing.close()

        given = x.view_as(x)
        stand()
        try:
            logits = call(self.pipeline, given, rng, self.stochastic)
        finally:
            leave()
        if logits.requires_grad and given.requires_grad:
            logits.register_hook(stand)  # type: ignore[no-untyped-call]
            given.register_hook(leave)  # type: ignore[no-untyped-call]
        return logits


def _pair(lead: Tensor) -> Tensor:
    return torch.stack((-lead / 2, lead / 2), dim=1)


@contextmanager
def replaced(layer: nn.Module, instead: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Have `layer` answer with what `instead` makes of its input, inside."""

    def hook(_: nn.Module, given: tuple[Tensor, ...], __: Tensor) -> Tensor:
        return instead(given[0])

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


# --- where the features are


def last_linear(pipelines: Sequence[tuple[nn.Module, bool]], x: Tensor, rng: ExampleRNG) -> nn.Linear | None:
    """The linear layer through whose output alone the images reach the logits of all pipelines; None if there is none.

    pipelines: each with whether it is stochastic. It is found by running the first on a few images x, (n, c, h, w): the last
    `torch.nn.Linear` that is called. Its input may have several copies of the batch, one after the other, as where
    predictions are averaged. Convolutional heads, ensembles of networks and layers that other code calls have none.
    """
    (first, stochastic), *_ = pipelines
    called: list[nn.Linear] = []
    handles = [
        module.register_forward_hook(lambda module, given, out: called.append(module))  # noqa: ARG005
        for module in first.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad():
            call(first, x, rng, stochastic)
    finally:
        for handle in handles:
            handle.remove()
    if not called or not all(_stands_for(called[-1], *each, x, rng) for each in pipelines):
        return None
    return called[-1]


def _stands_for(layer: nn.Linear, pipeline: nn.Module, stochastic: bool, x: Tensor, rng: ExampleRNG) -> bool:
    """Whether a pipeline's two logits depend on `layer` alone, which is given whole copies of the batch."""
    order = torch.arange(len(x), device=x.device).flip(0)
    try:
        with torch.no_grad():
            with replaced(layer, lambda f: f.new_zeros(*f.shape[:-1], 2)):
                blank = call(pipeline, x, rng, stochastic)
            features = _inputs(layer, pipeline, stochastic, x, rng)
            again = _inputs(layer, pipeline, stochastic, x[order], rng.select(order))
    except (RuntimeError, ValueError, IndexError):
        return False
    if blank.shape != (len(x), 2) or not torch.allclose(blank, blank[:1].expand_as(blank)):
        return False
    if not features or any(each.ndim != 2 or len(each) % len(x) for each in features):
        return False
    one, other = (torch.stack([each.view(-1, len(x), each.shape[1]) for each in side]) for side in (features, again))
    scale = float(one.abs().amax())
    return torch.allclose(one.flip(2), other, rtol=_ALIKE, atol=_ALIKE * scale)


def _inputs(layer: nn.Linear, pipeline: nn.Module, stochastic: bool, x: Tensor, rng: ExampleRNG) -> list[Tensor]:
    """What `layer` is given in each of its calls."""
    found: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, given: found.append(given[0].detach()))
    try:
        call(pipeline, x, rng, stochastic)
    finally:
        handle.remove()
    return found


def features_of(
    pipeline: nn.Module, layer: nn.Linear | None, x: Tensor, rng: ExampleRNG, *, stochastic: bool
) -> tuple[Tensor, Tensor]:
    """The features (n, d), means over the copies of the batch, and the margin of the first label over the second, (n,).

    Both float64; of images x, (n, c, h, w).
    """
    with torch.no_grad():
        if layer is None:
            features = call(pipeline, x, rng, stochastic).double()
            logits = features
        else:
            given = torch.cat(_inputs(layer, pipeline, stochastic, x, rng))
            features = given.double().view(-1, len(x), given.shape[1]).mean(dim=0)
            logits = nn.functional.linear(features, layer.weight.double(), _double(layer.bias))
    top = logits.topk(2, dim=1).values
    return features, top[:, 0] - top[:, 1]


def _double(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.double()


# --- what separates two kinds of points


@dataclass(frozen=True, slots=True, eq=False)
class Separation:
    """For each of n examples the hyperplane between its inner points and a point beyond them.

    weight: (n, d). highest: the largest w f of an inner point, beyond: w f of the point beyond, clean: that of the first
    inner point; all (n,).
    """

    weight: Tensor
    highest: Tensor
    beyond: Tensor
    clean: Tensor

    @property
    def gap(self) -> Tensor:
        """How far the point beyond is from all inner ones, a share of its distance to the first, (n,)."""
        return (self.beyond - self.highest) / (self.beyond - self.clean).clamp(min=torch.finfo(self.beyond.dtype).tiny)

    def readouts(self, index: Tensor, margin: Tensor, closeness: float) -> Readouts:
        """Readouts that are zero at a share `closeness` of the way from the highest inner point to the point beyond.

        They are scaled so that the first inner point's label leads by `margin`, (n,), as with the model itself.
        """
        zero = self.highest + closeness * (self.beyond - self.highest)
        scale = margin.clamp(min=_FLOOR) / (zero - self.clean)
        return Readouts(index, self.weight * scale.unsqueeze(1), -zero * scale, torch.zeros_like(scale))


def separate(inner: Tensor, beyond: Tensor, ridge: float = RIDGE) -> Separation:
    """Fisher's linear discriminant (1936) of many inner points and one point beyond them, for each of n examples.

    ``w = (S + r I)^-1 (beyond - mean)``, S the covariance of the inner points and r a share `ridge` of its mean eigenvalue;
    worked by Woodbury's identity, since features outnumber points. Shapes (n, points, d) and (n, d), float64.
    """
    mean = inner.mean(dim=1, keepdim=True)
    centred, ahead = inner - mean, beyond - mean.squeeze(1)
    points, d = inner.shape[1:]
    gram = centred @ centred.mT
    shift = ridge * gram.diagonal(dim1=1, dim2=2).sum(dim=1) / d
    shift = shift.where(shift > 0, 1.0).view(-1, 1, 1)
    eye = torch.eye(points, dtype=inner.dtype, device=inner.device)
    across = torch.linalg.solve(gram + shift * eye, centred @ ahead.unsqueeze(2))
    weight = (ahead - (centred.mT @ across).squeeze(2)) / shift.view(-1, 1) * points
    scores = (inner @ weight.unsqueeze(2)).squeeze(2)
    return Separation(weight, scores.amax(dim=1), (beyond * weight).sum(dim=1), scores[:, 0])


def best_of(candidates: Sequence[Separation], allowed: Tensor) -> tuple[Separation, Tensor]:
    """For each of n examples the separation with the largest gap among those `allowed`, (candidates, n) bool.

    Returns with them which candidates they are, (n,) int64, the first if none is allowed.
    """
    gaps = torch.stack([one.gap for one in candidates]).masked_fill(~allowed, -torch.inf)
    choice, rows = gaps.argmax(dim=0), torch.arange(gaps.shape[1], device=gaps.device)
    fields = ("weight", "highest", "beyond", "clean")
    return Separation(*(torch.stack([getattr(one, name) for one in candidates])[choice, rows] for name in fields)), choice


def shifted(readouts: Readouts, offset: Tensor) -> Readouts:
    """The readouts with another offset, (n,)."""
    return replace(readouts, offset=offset)
