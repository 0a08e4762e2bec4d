"""What cleaning an image costs: MALADE and Defense-GAN with one restart, by their number of steps N.

Table 6 of Srinivasan et al. 2018 (arXiv:1805.12017) prints seconds of one GPU for N = 10, 25, 50; their ratio, Defense-GAN's
by MALADE's, is what another machine can be compared by (5.4, 4.4 and 4.9). The floor of each is what its own networks need
for so many steps and nothing else: N forwards of the denoiser; N forwards and backwards to the latent vector of the
generator, and the forward of the chosen image. Purification alone is timed, one image at a time and in a batch; weights do
not matter, so untrained networks of the papers' sizes serve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advbench.attacks.access import frozen
from advbench.attacks.rng import ExampleRNG
from advbench.benches import Row, fastest, peak_bytes
from advbench.clocks import device_name
from advbench.defenses.defended import Defended
from advbench.defenses.inference.defense_gan import DefenseGAN
from advbench.defenses.inference.denoiser import Denoiser
from advbench.defenses.inference.malade import MALADE
from advbench.zoo.architectures.defense_gan import convolutional_generator
from advbench.zoo.data import DataSet, Split
from advbench.zoo.training import seeded

STEPS = (10, 25, 50)
BATCHES = {"cpu": (1, 16), "cuda": (1, 256)}
"""One image, for its delay, and a batch, for throughput."""
WITHIN_FLOOR = 1.2
"""Bar of a purifier: times its own networks' passes."""
SHAPE = (1, 28, 28)


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A purifier of so many steps. clean: purifies images. floor: the passes that it cannot avoid; `passes` names them."""

    name: str
    clean: Callable[[], object]
    floor: Callable[[], object]
    passes: str


def rows(device: torch.device) -> Iterator[Row]:
    """Every ratio of the bench on `device`, as it is measured."""
    with seeded(0, device):
        denoiser, generator = Denoiser(SHAPE).to(device).eval(), convolutional_generator(SHAPE).to(device).eval()
    with frozen(nn.ModuleList([denoiser, generator])):
        for batch in BATCHES[device.type]:
            for steps in STEPS:
                yield from _compared(
                    _malade(denoiser, steps, batch, device), _defense_gan(generator, steps, batch, device), batch, device
                )


def _compared(malade: Case, gan: Case, batch: int, device: torch.device) -> Iterator[Row]:
    """Each purifier beside its floor and in seconds per image, and the two beside each other, measured in turns."""
    cases, measure = (malade, gan), "one image" if batch == 1 else f"{batch} images"
    calls = {f"{kind} {case.name}": getattr(case, kind) for case in cases for kind in ("clean", "floor")}
    seconds = fastest(calls, device, rounds=10, seconds=6)
    name = device_name(device)
    for case in cases:
        spent = seconds[f"clean {case.name}"]
        yield Row(
            case=case.name,
            measure=measure,
            device=name,
            against=case.passes,
            seconds=spent,
            reference_seconds=seconds[f"floor {case.name}"],
            bar=WITHIN_FLOOR,
            peak_bytes=peak_bytes(case.clean, device),
        )
        yield Row(
            case=case.name,
            measure=measure,
            device=name,
            against="a millisecond an image",
            seconds=spent,
            reference_seconds=batch * 1e-3,
        )
    yield Row(
        case=gan.name,
        measure=measure,
        device=name,
        against=malade.name,
        seconds=seconds[f"clean {gan.name}"],
        reference_seconds=seconds[f"clean {malade.name}"],
    )


def _malade(denoiser: nn.Module, steps: int, batch: int, device: torch.device) -> Case:
    """MALADE's Langevin steps, and as many forwards of its denoiser."""
    inputs = {"base": Defended(nn.Identity()), "denoiser": Defended(denoiser)}
    defense = MALADE(steps=steps, step_size=0.4, noise=0.05)
    purify, x, rng = _built(defense.build(nn.Identity, _shapes(), inputs), batch, device)

    def floor() -> None:
        for _ in range(steps):
            denoiser(x)

    return Case(f"MALADE, N={steps}", lambda: purify(x, rng), _without_gradients(floor), f"{steps} forwards")


def _defense_gan(generator: nn.Module, steps: int, batch: int, device: torch.device) -> Case:
    """Defense-GAN's descent from one start, and as many passes of its generator."""
    inputs = {"base": Defended(nn.Identity()), "generator": Defended(generator)}
    defense = DefenseGAN(steps=steps, restarts=1)
    purify, x, rng = _built(defense.build(nn.Identity, _shapes(), inputs), batch, device)
    z = torch.randn(batch, int(generator.latent), device=device)  # type: ignore[arg-type]

    def floor() -> None:
        for _ in range(steps):
            free = z.clone().requires_grad_()
            images = generator(free)
            torch.autograd.grad(images, free, x)
        with torch.no_grad():
            generator(z)

    return Case(f"Defense-GAN, L={steps}", lambda: purify(x, rng), floor, f"{steps} forwards and backwards, 1 forward")


def _built(defended: Defended, batch: int, device: torch.device) -> tuple[Callable[..., Tensor], Tensor, ExampleRNG]:
    """A defense's purifier, random images, and their random numbers."""
    defended.modules().to(device).eval()
    purifier: nn.Module = defended.model.purifier  # type: ignore[assignment]
    rng = ExampleRNG.make(0, "throughput", torch.arange(batch, device=device))
    return _without_gradients(purifier), rng.uniform(SHAPE), rng


def _without_gradients(call: Callable[..., object]) -> Callable[..., Tensor]:
    return torch.no_grad()(call)  # type: ignore[no-any-return]


def _shapes() -> DataSet:
    """Nothing but the shape of the images."""
    none = Split.of(torch.zeros(0, *SHAPE), torch.zeros(0, dtype=torch.int64))
    return DataSet("shapes", none, none, none, 10, {}, fingerprint="none")
