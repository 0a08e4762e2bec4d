"""Covariance kernels: g^T S g beside the dense matrix, the transforms that it needs and the bandwidth limit; SGR's steps.

A case is a batch of gradients and a covariance function, and its kernel the form that `operator_of` chooses on the device.
The transforms are those that an FFT cannot avoid, done alone and in the same parts: one for the form, one more, back, for
its gradient. What the kernel takes beyond them is the product with the spectrum and the inner product.

The bandwidth limit is the time in which a copy moves the bytes that a pass cannot avoid: forward, the gradients and the
spectrum read; backward, the gradients of the form written besides. The copy is of a large buffer and takes turns with the
kernel. Arithmetic, not memory, is what the transforms wait for: an FFT of d values makes some 5 d log2(d) operations.
No form comes near the limit: the transforms alone take some forty times as long.

A training step with a penalty on input gradients goes through a double backward pass. Of a network of convolutions and ReLUs
plain training makes three passes of equal work (forward, gradients of the features, gradients of the weights), and a double
backward pass adds three more at least. Twice the time of plain training is its limit, for any covariance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advbench.benches.bench import COPY_BYTES, BenchRow, copier, fastest, peak_bytes
from advbench.clocks import device_name
from advbench.defenses.kernels.covariance import cropped_ifft, exponential, matrix_of, padded_fft, parts
from advbench.defenses.kernels.covariance_operator import (
    Covariance,
    DenseCovariance,
    SpectralCovariance,
    dense_pays,
    quadratic_form,
    torus_spectrum,
    unit_diagonal,
)
from advbench.defenses.kernels.covariance_running import RunningFunction
from advbench.defenses.training.gradient_norm import GradientNorm
from advbench.defenses.training.linearised import linearise
from advbench.defenses.training.plain import Plain
from advbench.defenses.training.structured_gradient import SGR, SGRFGSM, SGRPGD
from advbench.registry import registry
from advbench.registry.specs import Spec
from advbench.zoo.data import Split
from advbench.zoo.training import Objective, Step, seeded

CASES: tuple[tuple[int, tuple[int, int, int]], ...] = (
    (128, (1, 8, 8)),
    (128, (1, 28, 28)),
    (128, (3, 32, 32)),
    (32, (3, 64, 64)),
    (16, (3, 224, 224)),
)
"""Images in a batch, and their shape."""

NETWORKS = (("sgr2018/mnist-cnn", 128, (1, 28, 28)), ("sgr2018/cifar-cnn", 64, (3, 32, 32)))
"""Architecture, batch size and shape of the training steps."""

LARGEST_MATRIX = 12288
"""The largest d whose dense matrix, of d^2 numbers, is given memory: 576 MiB."""

WITHIN_PLAIN = 1.3
"""Bar of a training step on the CPU: times plain training's."""

WITHIN_TRANSFORMS = 1.5
"""Bar of the form with its gradient on the CPU: times the transforms there and back."""

WITHIN_DENSE = 1.0
"""Bar on the CPU: times the dense matrix's."""

MOST_BYTES = 2 * 2**30
"""Bar of the memory at 3 x 224 x 224."""

PASSES = ("forward", "forward + backward")

TRANSFORMS = ("the transform there", "the transforms there and back")
"""What each of the passes is beside."""


@dataclass(frozen=True, slots=True, eq=False)
class CovarianceCase:
    """A batch of gradients g, a covariance function in float32, and the operator by FFT."""

    name: str
    g: Tensor
    function: Tensor
    spectral: SpectralCovariance

    @staticmethod
    def make(n: int, shape: tuple[int, int, int], device: torch.device) -> CovarianceCase:
        """Normal gradients under a covariance that decays within two pixels."""
        c, h, w = shape
        function = exponential(shape, 2.0, 0.5).to(device, torch.float32)
        g = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0)).to(device)
        return CovarianceCase(f"{h}x{w}x{c}, {n} images", g, function, SpectralCovariance(torus_spectrum(function), shape))

    def bytes(self, backward: bool) -> int:
        """Bytes that a forward pass, or a forward and a backward pass, cannot avoid to move."""
        return _size(self.g) * (1 + backward) + _size(self.spectral.spectrum)


def rows(device: torch.device) -> Iterator[BenchRow]:
    """Every ratio of the bench on `device`, as it is measured."""
    for n, shape in CASES:
        case = CovarianceCase.make(n, shape, device)
        yield from _forms(case, device)
        yield from _renewal(case, device)
    for architecture, n, shape in NETWORKS:
        yield from _steps(architecture, n, shape, device)


def _forms(case: CovarianceCase, device: torch.device) -> Iterator[BenchRow]:
    """The chosen form beside its limits, and the one by FFT beside the dense one if that is chosen."""
    d, chosen = case.g[0].numel(), "dense" if dense_pays(case.spectral.shape, device) else "FFT"
    operators: dict[str, Covariance] = {"FFT": case.spectral}
    if d <= LARGEST_MATRIX:
        operators["dense"] = DenseCovariance(matrix_of(case.function), case.spectral.shape)
    for backward, measure in enumerate(PASSES):
        forms = {name: _call(case.g, operator, bool(backward)) for name, operator in operators.items()}
        others = {"transforms": _transforms(case.g, bool(backward)), "copy": copier(device)}
        seconds = fastest(forms | others, device, rounds=60, seconds=4)
        peak = peak_bytes(forms[chosen], device)
        for against, reference, bar in _references(case, bool(backward), seconds):
            yield BenchRow(
                case=f"{case.name}, {chosen}",
                measure=measure,
                device=device_name(device),
                against=against,
                seconds=seconds[chosen],
                reference_seconds=reference,
                bar=bar if device.type == "cpu" else None,
                peak_bytes=peak,
            )
        if chosen == "dense":
            yield BenchRow(
                case=f"{case.name}, FFT",
                measure=measure,
                device=device_name(device),
                against="the dense form, which is chosen",
                seconds=seconds["FFT"],
                reference_seconds=seconds["dense"],
            )
        if d > LARGEST_MATRIX:
            yield _memory(case, measure, peak, device)


def _references(
    case: CovarianceCase, backward: bool, seconds: Mapping[str, float]
) -> Iterator[tuple[str, float, float | None]]:
    """What a form is held beside: its name, its seconds and the bar on the CPU."""
    yield "bandwidth limit", case.bytes(backward) * seconds["copy"] / COPY_BYTES, None
    yield TRANSFORMS[backward], seconds["transforms"], WITHIN_TRANSFORMS if backward else None
    if "dense" in seconds:
        d = case.g[0].numel()
        yield f"dense matrix of {4 * d * d / 2**20:.3g} MiB", seconds["dense"], WITHIN_DENSE


def _memory(case: CovarianceCase, measure: str, peak: int, device: torch.device) -> BenchRow:
    return BenchRow(
        case=case.name,
        measure=f"peak memory, {measure}",
        device=device_name(device),
        against="2 GiB",
        seconds=peak,
        reference_seconds=MOST_BYTES,
        bar=1.0,
    )


def _transforms(g: Tensor, back: bool) -> Callable[[], object]:
    """What an FFT cannot avoid: every image's padded transform, and where `back` the one that returns it."""

    def call() -> object:
        out = torch.empty_like(g)
        for rows in parts(g):
            spectrum = padded_fft(g[rows])
            if back:
                out[rows] = cropped_ifft(spectrum, (g.shape[2], g.shape[3]))
        return out

    return call


def _renewal(case: CovarianceCase, device: torch.device) -> Iterator[BenchRow]:
    """What a running covariance costs in each step: one more batch, and the operator of what it has become."""
    running = RunningFunction(case.spectral.shape, 0.1)

    def renew() -> object:
        running.update(case.g)
        return running.covariance()

    calls = {"renewal": renew, "form": _call(case.g, case.spectral, True)}
    seconds = fastest(calls, device, rounds=60, seconds=4)
    yield BenchRow(
        case=case.name,
        measure="running covariance renewed",
        device=device_name(device),
        against="form, forward + backward",
        seconds=seconds["renewal"],
        reference_seconds=seconds["form"],
        peak_bytes=peak_bytes(renew, device),
    )


def _call(g: Tensor, covariance: Covariance, backward: bool) -> Callable[[], object]:
    def forward() -> object:
        return quadratic_form(covariance, g)

    def forward_and_backward() -> object:
        leaf = g.requires_grad_()
        return torch.autograd.grad(quadratic_form(covariance, leaf).mean(), leaf)

    return forward_and_backward if backward else torch.no_grad()(forward)


def _steps(architecture: str, n: int, shape: tuple[int, int, int], device: torch.device) -> Iterator[BenchRow]:
    """Steps of the training loop: loss, backward pass and Adam. The penalty's own ascents are measured apart."""
    generator = torch.Generator().manual_seed(0)
    images = Split.of(torch.rand(n, *shape, generator=generator), torch.randint(10, (n,), generator=generator)).to(device)
    with seeded(0, device):
        model = registry.build_network(Spec(architecture), shape, 10).to(device).train()
    step = Step(0, 0, 0, images.index)
    sgr = SGR().start(images)
    calls = {
        "plain": _step(model, images, step, Plain().objective),
        "gradient-norm": _step(model, images, step, GradientNorm().objective),
        "sgr": _step(model, images, step, sgr),
        "covariance and form alone": _penalty_alone(model, images),
        "FGSM perturbations alone": lambda: SGRFGSM(epsilon=0.1).perturbations(model, images.x, step),
        "PGD perturbations alone": lambda: SGRPGD(epsilon=0.1).perturbations(model, images.x, step),
    }
    seconds = fastest(calls, device, rounds=30, seconds=45)
    against = {"plain": "plain training", "gradient-norm": "gradient norm, the double backward pass alone"}
    for name, reference in [(name, "plain") for name in calls if name != "plain"] + [("sgr", "gradient-norm")]:
        asked = name == "sgr" and reference == "plain" and device.type == "cpu"
        yield BenchRow(
            case=f"{architecture}, {n} images, {name}",
            measure="training step",
            device=device_name(device),
            against=against[reference],
            seconds=seconds[name],
            reference_seconds=seconds[reference],
            bar=WITHIN_PLAIN if asked else None,
        )


def _step(model: nn.Module, images: Split, step: Step, objective: Objective) -> Callable[[], object]:
    # Steps of length zero, so that every call does the same work on the same weights.
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)

    def call() -> None:
        optimizer.zero_grad()
        terms = objective(model, images.x, images.y, step)
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return call


def _penalty_alone(model: nn.Module, images: Split) -> Callable[[], object]:
    """The part of a step that belongs to the covariance: renewal, and the form with its gradient, of a given gradient."""
    gradient = linearise(model, images.x, images.y, differentiable=False)[1]
    c, h, w = images.x.shape[1:]
    running = RunningFunction((c, h, w), SGR().beta, isotropic=True)

    def call() -> object:
        running.update(gradient.sign())
        return _call(gradient, unit_diagonal(running.covariance()), True)()

    return call


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
