"""Purifiers ready to be timed, beside the passes of their own networks that no purifier of so many steps can avoid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advbench.attacks.rng import ExampleRNG
from advbench.defenses.defended import Defended
from advbench.defenses.inference.defense_gan import DefenseGAN
from advbench.defenses.inference.denoiser import Denoiser
from advbench.defenses.inference.malade import MALADE
from advbench.zoo.architectures.defense_gan import convolutional_generator
from advbench.zoo.data import DataSet, Split
from advbench.zoo.training import seeded

SHAPE = (1, 28, 28)
"""That of the paper's images."""


@dataclass(frozen=True, slots=True, eq=False)
class PurifierCase:
    """A purifier of so many steps. clean: purifies images. floor: the passes that it cannot avoid; `passes` names them."""

    name: str
    clean: Callable[[], object]
    floor: Callable[[], object]
    passes: str


def malade_case(denoiser: nn.Module, steps: int, batch: int, device: torch.device) -> PurifierCase:
    """MALADE's Langevin steps on random images, and as many forwards of its denoiser."""
    inputs = {"base": Defended(nn.Identity()), "denoiser": Defended(denoiser)}
    defense = MALADE(steps=steps, step_size=0.4, noise=0.05)
    purify, x, rng = _built(defense.build(nn.Identity, _shapes(), inputs), batch, device)

    def floor() -> None:
        for _ in range(steps):
            denoiser(x)

    return PurifierCase(f"MALADE, N={steps}", lambda: purify(x, rng), torch.no_grad()(floor), f"{steps} forwards")


def defense_gan_case(generator: nn.Module, steps: int, batch: int, device: torch.device) -> PurifierCase:
    """Defense-GAN's descent from one start on random images, and as many passes of its generator to the latent vector."""
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

    return PurifierCase(
        f"Defense-GAN, L={steps}", lambda: purify(x, rng), floor, f"{steps} forwards and backwards, 1 forward"
    )


CASES: Mapping[str, Callable[[nn.Module, int, int, torch.device], PurifierCase]] = {
    "malade": malade_case,
    "defense-gan": defense_gan_case,
}
"""name of a purifier -> (its network, steps, images, device) -> the case."""


def network(purifier: str, device: torch.device) -> nn.Module:
    """The untrained network of a purifier of `CASES`, of the size that its paper has."""
    with seeded(0, device):
        made: nn.Module = Denoiser(SHAPE) if purifier == "malade" else convolutional_generator(SHAPE)
    return made.to(device).eval()


def _built(defended: Defended, batch: int, device: torch.device) -> tuple[Callable[..., Tensor], Tensor, ExampleRNG]:
    """A defense's purifier without gradients, random images, and their random numbers."""
    defended.modules().to(device).eval()
    purifier: nn.Module = defended.model.purifier  # type: ignore[assignment]
    rng = ExampleRNG.make(0, "throughput", torch.arange(batch, device=device))
    return torch.no_grad()(purifier), rng.uniform(SHAPE), rng


def _shapes() -> DataSet:
    """Nothing but the shape of the images."""
    none = Split.of(torch.zeros(0, *SHAPE), torch.zeros(0, dtype=torch.int64))
    return DataSet("shapes", none, none, none, 10, {}, fingerprint="none")
