"""What cleaning an image costs: MALADE and Defense-GAN with one restart, by their number of steps N.

Table 6 of Srinivasan et al. 2018 (arXiv:1805.12017) prints seconds of one GPU for N = 10, 25, 50; their ratio, Defense-GAN's
by MALADE's, is what another machine can be compared by. The floor of each is what its own networks need for so many steps
and nothing else: N forwards of the denoiser; N forwards and backwards to the latent vector of the generator, and the forward
of the chosen image. Purification alone is timed, one image at a time and in a batch; weights do not matter, so untrained
networks of the papers' sizes serve. Its memory is what it holds beyond its networks and the code that they run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import nn

from advbench.attacks.access import frozen
from advbench.benches.bench import BenchRow, fastest, fresh_peak_bytes
from advbench.benches.purification import CASES, PurifierCase, network
from advbench.clocks import device_name
from advbench.devices import traits
from advbench.results.papers import load

STEPS = (10, 25, 50)
HOST_BATCHES, ACCELERATOR_BATCHES = (1, 16), (1, 256)
"""One image, for its delay, and a batch, for throughput."""
WITHIN_FLOOR = 1.2
"""Bar of a purifier: times its own networks' passes."""
TURN_SECONDS = 0.1
"""Ten times the shortest call, so that code which runs once a call is met in the cache as that of the networks is."""


def rows(device: torch.device) -> Iterator[BenchRow]:
    """Every ratio of the bench on `device`, as it is measured."""
    networks = {purifier: network(purifier, device) for purifier in CASES}
    with frozen(nn.ModuleList(networks.values())):
        for batch in HOST_BATCHES if traits(device).host else ACCELERATOR_BATCHES:
            for steps in STEPS:
                cases = {purifier: make(networks[purifier], steps, batch, device) for purifier, make in CASES.items()}
                yield from _compared(cases, steps, batch, device)


def _compared(cases: Mapping[str, PurifierCase], steps: int, batch: int, device: torch.device) -> Iterator[BenchRow]:
    """Each purifier beside its floor, and the two beside each other, measured in turns."""
    measure, name = "one image" if batch == 1 else f"{batch} images", device_name(device)
    calls = {f"{kind} {purifier}": getattr(case, kind) for purifier, case in cases.items() for kind in ("clean", "floor")}
    seconds = fastest(calls, device, rounds=10, seconds=15, turn_seconds=TURN_SECONDS)
    for purifier, case in cases.items():
        yield BenchRow(
            case=case.name,
            measure=measure,
            device=name,
            against=case.passes,
            seconds=seconds[f"clean {purifier}"],
            reference_seconds=seconds[f"floor {purifier}"],
            bar=WITHIN_FLOOR,
            peak_bytes=fresh_peak_bytes(partial(_prepared, purifier, steps, batch, device), device),
            images=batch,
        )
    yield BenchRow(
        case=cases["defense-gan"].name,
        measure=measure,
        device=name,
        against=f"{cases['malade'].name} ({printed_ratio(steps):.1f} in the paper)",
        seconds=seconds["clean defense-gan"],
        reference_seconds=seconds["clean malade"],
    )


def _prepared(purifier: str, steps: int, batch: int, device: torch.device) -> Callable[[], object]:
    """A purifier ready to clean, its networks built and their code loaded by one step on one image."""
    net = network(purifier, device).requires_grad_(False)
    CASES[purifier](net, 1, 1, device).clean()
    return CASES[purifier](net, steps, batch, device).clean


def printed_ratio(steps: int) -> float:
    """Seconds of Defense-GAN by those of MALADE, as table 6 prints both."""
    printed = load("malade2018").tables["malade2018.table6"]
    row = dict(zip(printed.columns, next(row for row in printed.rows if row[0] == steps), strict=True))
    return float(row["defense_gan_mean"]) / float(row["malade_mean"])
