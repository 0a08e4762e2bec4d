"""Srinivasan et al. 2018 (arXiv:1805.12017), table 6: what a step of MALADE costs beside one of Defense-GAN."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from advbench.attacks.access import frozen
from advbench.benches.purification import CASES, network
from advbench.clocks import device_name, resolve_devices, single_thread
from advbench.devices import synchronise
from advbench.reproduction.findings import Findings
from advbench.reproduction.papers.malade2018.nets import table
from advbench.reproduction.study import Comparison, Inequality, Ours, Pair, Scale, Settings, Study, claim_of

STEPS = (10, 25, 50)
_REPEATS = 2


def _runs(_: Scale) -> Mapping[str, Settings]:
    return {}


def _compare(findings: Findings) -> Sequence[Comparison]:
    printed, device = table("table6"), resolve_devices("auto")[0]
    found = {steps: tuple(zip(*(_seconds(steps, device) for _ in findings.seeds), strict=True)) for steps in STEPS}
    rows, parts = [], []
    for steps, (malade, gan) in found.items():
        ratio = tuple(b / a for a, b in zip(malade, gan, strict=True))
        paper = next(row for row in printed.rows if row[0] == steps)
        cells = (
            Pair(float(paper[1]), Ours(malade)),
            Pair(float(paper[3]), Ours(gan)),
            Pair(float(paper[3]) / float(paper[1]), Ours(ratio)),
        )
        rows.append((f"N = {steps}", cells))
        parts.append(Inequality(f"Defense-GAN / MALADE, N = {steps}", ratio, 3.0))
    claim = claim_of("malade2018.claim.time", parts)
    columns = (("MALADE", "s"), ("Defense-GAN", "s"), ("Defense-GAN / MALADE", "times"))
    note = f"one image on {device_name(device)}, one thread; each value is the fastest of {_REPEATS}, once per training seed"
    return (Comparison(printed.caption, columns, tuple(rows), (claim,), (note,)),)


def _seconds(steps: int, device: torch.device) -> tuple[float, float]:
    """Seconds of MALADE and of Defense-GAN on one image, untrained networks of the papers' sizes, taking turns."""
    networks = {purifier: network(purifier, device) for purifier in ("malade", "defense-gan")}
    with frozen(nn.ModuleList(networks.values())), single_thread():
        calls = [CASES[purifier](net, steps, 1, device).clean for purifier, net in networks.items()]
        best = [math.inf, math.inf]
        for _ in range(_REPEATS + 1):
            best = [min(least, _timed(call, device)) for least, call in zip(best, calls, strict=True)]
    return best[0], best[1]


def _timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call: of the process on a CPU, which other work does not lengthen, of the clock elsewhere."""
    synchronise(device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    call()
    synchronise(device)
    return clock() - start


def _differs(_: Scale) -> Sequence[str]:
    return (
        "another machine: the ratio is what can be compared; purification alone, one image, untrained networks",
        "the denoiser's filters are not in the paper (32, 64, 32, 32 of 4 x 4 here), the generator is that of the code of "
        "Samangouei et al. 2018",
    )


STUDIES = (Study("malade2018.table6", "table 6: seconds by the number of steps", _runs, _compare, _differs),)
