"""What cleaning an image costs: MALADE and Defense-GAN with one restart, by their number of steps N.

Table 6 of Srinivasan et al. 2018 (arXiv:1805.12017) prints seconds of one GPU for N = 10, 25, 50; their ratio, Defense-GAN's
by MALADE's, is what another machine can be compared by (5.4, 4.4 and 4.9). The floor of each is what its own networks need
for so many steps and nothing else: N forwards of the denoiser; N forwards and backwards to the latent vector of the
generator, and the forward of the chosen image. Purification alone is timed, one image at a time and in a batch; weights do
not matter, so untrained networks of the papers' sizes serve.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from advbench.attacks.access import frozen
from advbench.benches import Row, fastest, peak_bytes
from advbench.clocks import device_name
from advbench.defenses.inference.denoiser import Denoiser
from advbench.purification import SHAPE, Case, defense_gan_case, malade_case
from advbench.zoo.architectures.defense_gan import convolutional_generator
from advbench.zoo.training import seeded

STEPS = (10, 25, 50)
BATCHES = {"cpu": (1, 16), "cuda": (1, 256)}
"""One image, for its delay, and a batch, for throughput."""
WITHIN_FLOOR = 1.2
"""Bar of a purifier: times its own networks' passes."""


def rows(device: torch.device) -> Iterator[Row]:
    """Every ratio of the bench on `device`, as it is measured."""
    with seeded(0, device):
        denoiser, generator = Denoiser(SHAPE).to(device).eval(), convolutional_generator(SHAPE).to(device).eval()
    with frozen(nn.ModuleList([denoiser, generator])):
        for batch in BATCHES[device.type]:
            for steps in STEPS:
                yield from _compared(
                    malade_case(denoiser, steps, batch, device),
                    defense_gan_case(generator, steps, batch, device),
                    batch,
                    device,
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
