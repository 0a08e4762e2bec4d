"""Layer Jacobians: the closed forms beside the bandwidth limit and `torch.func.jacrev`, and what training with them costs.

A case is a layer that has already run: its output is there, and the norms are what is timed. The bandwidth limit is the
time in which a copy moves the bytes that a pass cannot avoid: forward, the weights and the output (and the winners of max
pooling) read; backward, the same once more and the gradients written. The copy is of a large buffer and takes turns with the
kernel, so that neither finds its data in the cache. A small layer's limit is below the cost of launching anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advbench.benches.bench import COPY_BYTES, BenchRow, copier, fastest, peak_bytes
from advbench.clocks import device_name
from advbench.defenses.defended import Defense
from advbench.defenses.kernels.jacobian import (
    Interior,
    convolution_rows,
    dense_masked_norms,
    dense_rows,
    masked_norms,
    softmax_norms,
    weighted_norms,
)
from advbench.defenses.kernels.layers import SQUARED_SLOPES
from advbench.defenses.training.deep_contractive import DeepContractive
from advbench.defenses.training.gaussian_noise import GaussianNoise
from advbench.defenses.training.pretrained import ContractivePretraining, SparsePretraining
from advbench.defenses.training.trained import Trained
from advbench.defenses.training.weight_decay import WeightDecay
from advbench.registry import registry
from advbench.registry.specs import Spec
from advbench.zoo.data import DataSet, Split
from advbench.zoo.training import Budget, Step, seeded

BATCH = 128
WITHIN_LIMIT = 3.0
"""Bar of the closed forms on the CPU: times the bandwidth limit, forward and backward."""

WITHIN_PLAIN = 1.3
"""Bar of a training step with the penalty on the CPU: times plain training's."""

JACREV_BYTES = 2**29
"""Memory that `torch.func.jacrev` is given for its Jacobians and what they are made from."""

JACREV_ROWS = 256
"""Rows that `torch.func.jacrev` makes at a time where it cannot make all of them."""

PASSES = ("forward", "forward + backward")


@dataclass(frozen=True, slots=True, eq=False)
class JacobianCase:
    """A layer that has run.

    norms: computes its Jacobian's norms. leaves: what they are differentiated in, weights first. reads: bytes that a pass
    has to read. layer, inputs: for the rival. units: what the affine map puts out for an example. bar: whether the layer is
    one of the papers', so that it has to stay within the bar; the softmax layer cannot, whose limit is below one launch.
    """

    name: str
    norms: Callable[[], Tensor]
    leaves: tuple[Tensor, ...]
    reads: int
    layer: Callable[[Tensor], Tensor]
    inputs: Tensor
    units: int
    bar: bool

    def bytes(self, backward: bool) -> int:
        """Bytes that a forward pass, or a forward and a backward pass, cannot avoid to move."""
        norms = 4 * BATCH
        return (self.reads + norms) * (1 + backward) + backward * sum(_size(leaf) for leaf in self.leaves)


def rows(device: torch.device) -> Iterator[BenchRow]:
    """Every ratio of the bench on `device`, as it is measured."""
    for make in CASES:
        with seeded(0, device):
            case = make(device)
        yield from _against_the_limit(case, device)
        yield from _against_jacrev(case, device)
    for architecture in ("n100-100-10", "n200-200-10", "ae400-10", "convnet"):
        yield from _training(f"gu2014/{architecture}", device)


def _against_the_limit(case: JacobianCase, device: torch.device) -> Iterator[BenchRow]:
    """A pass beside the bandwidth limit and, where that is below one launch, beside the smallest launch that there is."""
    calls = {name: _call(case, backward) for backward, name in enumerate(PASSES)}
    one = torch.zeros(1, device=device)
    seconds = fastest({**calls, "copy": copier(device), "launch": lambda: one.add_(1)}, device)
    for backward, name in enumerate(PASSES):
        limit = case.bytes(bool(backward)) * seconds["copy"] / COPY_BYTES
        yield BenchRow(
            case=case.name,
            measure=name,
            device=device_name(device),
            against="bandwidth limit",
            seconds=seconds[name],
            reference_seconds=limit,
            bar=WITHIN_LIMIT if case.bar and backward and device.type == "cpu" else None,
            peak_bytes=peak_bytes(calls[name], device),
        )
        if limit < seconds["launch"]:
            yield BenchRow(
                case=case.name,
                measure=name,
                device=device_name(device),
                against="one launch, which takes longer than the limit",
                seconds=seconds[name],
                reference_seconds=seconds["launch"],
            )


def _against_jacrev(case: JacobianCase, device: torch.device) -> Iterator[BenchRow]:
    """`torch.func.jacrev` at the largest batch that fits, for as many examples.

    Where not one example fits with all that its gradients in the weights need, the forward pass of one example, some rows
    at a time; nothing where not even one Jacobian fits.
    """
    outputs, inputs = case.layer(case.inputs[:1]).numel(), case.inputs[0].numel()
    batch = min(BATCH, JACREV_BYTES // (4 * outputs * (inputs + 2 * case.units)))
    backward = batch > 0
    if not backward and 4 * outputs * inputs > JACREV_BYTES:
        return
    jacobian = torch.func.jacrev(
        lambda h: case.layer(h.unsqueeze(0)).squeeze(0), chunk_size=None if backward else JACREV_ROWS
    )

    def dense() -> object:
        if not backward:
            with torch.no_grad():
                return jacobian(case.inputs[0]).square().sum()
        jacobians: Tensor = torch.func.vmap(jacobian)(case.inputs[:batch])
        return torch.autograd.grad(jacobians.flatten(1).square().sum(dim=1).mean(), case.leaves[0])

    seconds = fastest({"closed": _call(case, backward), "dense": dense}, device, rounds=5, seconds=2)
    yield BenchRow(
        case=case.name,
        measure=PASSES[backward],
        device=device_name(device),
        against=f"torch.func.jacrev, {max(1, batch)} at a time",
        seconds=seconds["closed"],
        reference_seconds=seconds["dense"] * BATCH / max(1, batch),
        peak_bytes=peak_bytes(dense, device),
    )


def _call(case: JacobianCase, backward: bool | int) -> Callable[[], object]:
    def forward_and_backward() -> object:
        return torch.autograd.grad(case.norms().mean(), case.leaves)

    return forward_and_backward if backward else case.norms


def _dense(width: int, out: int, kind: type[nn.Module], name: str) -> Callable[[torch.device], JacobianCase]:
    def make(device: torch.device) -> JacobianCase:
        linear, nonlinearity = nn.Linear(width, out).to(device), kind()
        inputs = torch.rand(BATCH, width, device=device)
        h = nonlinearity(linear(inputs)).detach()

        def norms() -> Tensor:
            if kind is nn.ReLU:
                return dense_masked_norms(linear.weight, h)
            return weighted_norms(dense_rows(linear.weight), SQUARED_SLOPES[kind](h))

        leaves = (linear.weight,) if kind is nn.ReLU else (linear.weight, h.requires_grad_())
        reads = _size(linear.weight) + _size(h)
        text = f"{name}: dense {width}-{out}, {kind.__name__}"
        return JacobianCase(text, norms, leaves, reads, lambda x: nonlinearity(linear(x)), inputs, out, True)

    return make


def _softmax(width: int, classes: int, name: str) -> Callable[[torch.device], JacobianCase]:
    def make(device: torch.device) -> JacobianCase:
        linear = nn.Linear(width, classes).to(device)
        inputs = torch.rand(BATCH, width, device=device)
        logits = linear(inputs).detach().requires_grad_()
        return JacobianCase(
            f"{name}: dense {width}-{classes}, softmax",
            lambda: softmax_norms(linear.weight, logits),
            (linear.weight, logits),
            _size(linear.weight) + _size(logits),
            lambda x: linear(x).softmax(dim=1),
            inputs,
            classes,
            False,
        )

    return make


def _convolution(
    shape: tuple[int, int, int], conv: Callable[[], nn.Conv2d], pool: nn.MaxPool2d | None, name: str, bar: bool
) -> Callable[[torch.device], JacobianCase]:
    def make(device: torch.device) -> JacobianCase:
        layer = conv().to(device)
        inputs = torch.rand(BATCH, *shape, device=device)
        index: Tensor | None = None
        with torch.no_grad():
            y = layer(inputs).relu_()
            units, interior = y[0].numel(), Interior.of(layer, *shape[1:])
            if pool is not None:
                window = (pool.kernel_size, pool.stride, pool.padding)
                interior = None if interior is None else interior.pooled(pool)
                y, index = nn.functional.max_pool2d(y, *window, return_indices=True)

        def run(x: Tensor) -> Tensor:
            z = layer(x).relu()
            return z if pool is None else pool(z)  # type: ignore[no-any-return]

        c, h, w = shape
        text = f"{name}: {h}x{w}x{c}, {layer.out_channels} filters {layer.kernel_size[0]}x{layer.kernel_size[1]}"
        return JacobianCase(
            text + ("" if pool is None else f", max pool {pool.kernel_size}"),
            lambda: masked_norms(convolution_rows(layer, h, w), y, index, interior),
            (layer.weight,),
            _size(layer.weight) + _size(y) + (0 if index is None else _size(index)),
            run,
            inputs,
            units,
            bar,
        )

    return make


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


CASES: tuple[Callable[[torch.device], JacobianCase], ...] = (
    _dense(784, 100, nn.ReLU, "N100"),
    _dense(784, 200, nn.ReLU, "N200"),
    _dense(200, 200, nn.ReLU, "N200"),
    _softmax(200, 10, "N200"),
    _dense(784, 400, nn.Sigmoid, "AE400"),
    _convolution((1, 28, 28), lambda: nn.Conv2d(1, 32, 5, padding=2), nn.MaxPool2d(2), "ConvNet", True),
    _convolution((32, 14, 14), lambda: nn.Conv2d(32, 64, 5, padding=2), nn.MaxPool2d(2), "ConvNet", True),
    _dense(3136, 200, nn.ReLU, "ConvNet"),
    _convolution((1, 28, 28), lambda: nn.Conv2d(1, 32, 5, padding=2), None, "no pooling", False),
    _convolution((3, 32, 32), lambda: nn.Conv2d(3, 64, 3, padding=1), None, "CIFAR", False),
    _convolution((3, 64, 64), lambda: nn.Conv2d(3, 64, 3, padding=1), nn.MaxPool2d(2), "64 pixels", False),
    _convolution(
        (3, 224, 224),
        lambda: nn.Conv2d(3, 64, 7, stride=2, padding=3),
        nn.MaxPool2d(3, stride=2, padding=1),
        "ImageNet stem",
        False,
    ),
)


def _training(name: str, device: torch.device) -> Iterator[BenchRow]:
    """A training step of each defense over one of plain training, and whole trainings of those that train twice."""

    def architecture() -> nn.Module:
        return registry.build_network(Spec(name), (1, 28, 28), 10)

    data, budget = _random_images(8 * BATCH), Budget(epochs=1, batch_size=BATCH)
    with seeded(0, device):
        steps = {key: _stepper(defense, architecture().to(device), data) for key, defense in (BASELINE | OBJECTIVES).items()}

    def fit(defense: Defense) -> Callable[[], object]:
        return lambda: defense.fit(architecture, data, inputs={}, seed=0, device=device, budget=budget)

    trainings = {key: fit(defense) for key, defense in (BASELINE | PRETRAININGS).items()}
    for measure, calls in (("training step", steps), ("training", trainings)):
        seconds = fastest(calls, device, rounds=200, seconds=8)
        for key in list(calls)[1:]:
            yield BenchRow(
                case=f"{name}, {key}",
                measure=measure,
                device=device_name(device),
                against=next(iter(BASELINE)),
                seconds=seconds[key],
                reference_seconds=seconds[next(iter(BASELINE))],
                bar=WITHIN_PLAIN if key == "deep-contractive" and device.type == "cpu" else None,
            )


def _stepper(defense: Trained, model: nn.Module, data: DataSet) -> Callable[[], object]:
    """A call that takes one training step, as the training loop does."""
    device = next(model.parameters()).device
    x, y, index = (tensor[:BATCH].to(device) for tensor in (data.train.x, data.train.y, data.train.index))
    optimizer, step = torch.optim.Adam(model.parameters()), Step(0, 0, 0, index)

    def call() -> None:
        terms = defense.objective(model, x, y, step)
        loss = sum(terms.values(), start=torch.zeros((), device=device))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return call


BASELINE: dict[str, Trained] = {"plain training": WeightDecay()}
"""The papers' plain training has weight decay too."""

OBJECTIVES: dict[str, Trained] = {
    "deep-contractive": DeepContractive(coefficient=1e-4),
    "deep-contractive, noise": DeepContractive(coefficient=1e-4, noise=0.1),
    "deep-contractive, whole network": DeepContractive(coefficient=1e-4, jacobian="network"),
    "gaussian-noise": GaussianNoise(),
    "gaussian-noise, all layers": GaussianNoise(layers="all"),
}

PRETRAININGS: dict[str, Trained] = {
    "sparse-pretraining": SparsePretraining(),
    "contractive-pretraining": ContractivePretraining(),
}


def _random_images(n: int) -> DataSet:
    """Random images of MNIST's size with random labels."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(n, 1, 28, 28, generator=generator), torch.randint(10, (n,), generator=generator)
    train, few = Split.of(x, y), Split.of(x[:BATCH], y[:BATCH])
    return DataSet("random", train, few, few, 10, {"linf": math.inf}, fingerprint="random")
