"""Autoencoders in front of the nets of Gu & Rigazio 2014 (arXiv:1412.5068): tables 3 and 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from advbench.registry.specs import Spec
from advbench.reproduction.findings import Findings
from advbench.reproduction.measured import SeedFigure
from advbench.reproduction.oblivious import crafted, distortion, scored
from advbench.reproduction.papers.gu2014.attacker import (
    SHOWN,
    adaptive_error,
    clean_error,
    differs,
    known_run,
    oblivious_error,
    printed_distortion,
    run_of,
    table_of,
    verdict_of_the_attacker,
)
from advbench.reproduction.papers.gu2014.nets import NETS, attacked, found, plain, plain_runs, training_of
from advbench.reproduction.study import Comparison, Ours, Pair, Scale, Settings, Study, above, at_most, claim_of

_STACK: Mapping[Scale, Settings] = {
    "smoke": {"n_examples": 15, "calibration_examples": 15},
    "small": {"n_examples": 60, "calibration_examples": 40},
    "full": {},
}
"""What the paper's L-BFGS is run on where an autoencoder stands in front of the net."""
_STACKED: Mapping[Scale, tuple[str, ...]] = {"smoke": ("N100-100-10",), "small": SHOWN["small"], "full": SHOWN["full"]}
"""The nets whose stack with an autoencoder it is run on."""
_CRAFTED: Mapping[Scale, int | None] = {"smoke": 40, "small": 1000, "full": None}
"""The training images whose adversarials an autoencoder learns to restore."""
_CRAFTER: Mapping[Scale, str] = {"smoke": "deepfool", "small": "lbfgs", "full": "lbfgs"}
"""The attack that makes these adversarials."""
_DEVIATIONS = (0.1, 0.5)


# --- table 3


def _restorer(scale: Scale, net: str, source: str) -> Spec:
    """The autoencoder of `source`'s adversarials in front of `net`."""
    arguments = {
        "source": training_of(source),
        "source_architecture": NETS[source],
        "attack": _CRAFTER[scale],
        "images": _CRAFTED[scale],
        "base": training_of(net),
    }
    return Spec.of("autoencoder", arguments)


def _stacked(net: str) -> str:
    """The name of the run of the paper's attack on a net behind the autoencoder of its own adversarials."""
    return f"{net}, stack"


def _stack_run(scale: Scale, net: str) -> Settings:
    return {**attacked(scale, [net], [str(_restorer(scale, net, net))]), **_STACK[scale]}


def _table3_runs(scale: Scale) -> Mapping[str, Settings]:
    nets = SHOWN[scale]
    crossed = {run_of(net): known_run(scale, net, [_restorer(scale, net, source) for source in nets]) for net in nets}
    return {**plain_runs(scale, nets), **crossed, **{_stacked(net): _stack_run(scale, net) for net in _STACKED[scale]}}


def _table3(findings: Findings) -> Sequence[Comparison]:
    table, nets = table_of("table3"), found(findings)
    behind = {net: Spec.of("autoencoder", {"source_architecture": NETS[net]}) for net in nets}
    shown = {(net, source): oblivious_error(findings, net, behind[source]) for net in nets for source in nets}
    known = {(net, source): adaptive_error(findings, net, behind[source]) for net in nets for source in nets}
    bare = {net: adaptive_error(findings, net, None) for net in nets}
    clean = {net: clean_error(findings, net, behind[net]) for net in nets}
    near = {net: _stack_distortion(findings, net) for net in nets if _stacked(net) in findings.runs}

    def printed(row: str, values: Mapping[str, Sequence[float]]) -> tuple[str, tuple[Pair, ...]]:
        return row, tuple(_pair(table.cell(f"ae_from_{net}", row), values.get(net)) for net in nets)

    rows = (
        *(printed(net, {source: shown[net, source] for source in nets}) for net in nets),
        printed("test_error_clean", clean),
        printed("avg_adv_distortion", {net: stack for net, (stack, _) in near.items()}),
        (
            "distortion without the autoencoder",
            tuple(_pair(printed_distortion(net), near.get(net, (None, None))[1]) for net in nets),
        ),
    )
    transfer = claim_of(
        "gu2014.claim.ae_transfer",
        (at_most(f"{net} behind {source}", shown[net, source], 10.0) for net, source in shown),
    )
    weaker = claim_of(
        "gu2014.claim.stack_weaker",
        (above(f"{net} - its stack", alone, stack) for net, (stack, alone) in near.items()),
    )
    adaptive, line = verdict_of_the_attacker(
        "autoencoder",
        [(f"{net} behind {source}", e, known[net, source], bare[net]) for (net, source), e in shown.items()],
    )
    columns = tuple((f"AE from {net}", "% (distortions RMS)") for net in nets)
    note = "distortions are those of the paper's L-BFGS, with a constant of its own for the stack, on the same images"
    attacks = tuple((net, tuple(Pair(None, Ours(known[net, source])) for source in nets)) for net in nets)
    last = ("no autoencoder", tuple(Pair(None, Ours(bare[net])) for net in nets))
    return (
        Comparison(table.caption, columns, rows, (transfer, weaker), (note,)),
        Comparison(
            "Error where the stack itself is attacked (the last row: the column's net without an autoencoder)",
            tuple((f"AE from {net}", "%") for net in nets),
            (*attacks, last),
            (adaptive,),
            (line,),
        ),
    )


def _pair(paper: float, ours: Sequence[float] | None) -> Pair:
    return Pair(paper, None if ours is None else Ours(ours))


def _stack_distortion(findings: Findings, net: str) -> tuple[SeedFigure, SeedFigure]:
    """The mean distortions of the paper's attack on the stack and on the bare net, on the same images, by seed."""
    run, bare = findings[_stacked(net)], findings[net]
    clean, all_of_bare = scored(run), scored(bare)
    rows = torch.isin(all_of_bare.index, clean.index)
    stacks, nets = [], []
    for seed in findings.seeds:
        stack, alone = (each.one(seed=seed, matrix="white-box", attack="lbfgs") for each in (run, bare))
        stacks.append(distortion(run.defended(stack), clean, crafted(run, stack), seed=seed))
        shown = crafted(bare, alone).select(rows)
        nets.append(distortion(bare.defended(alone), all_of_bare.select(rows), shown, seed=seed))
    return SeedFigure.of(stacks), SeedFigure.of(nets)


# --- table 4


def _denoiser(net: str, sigma: float) -> Spec:
    return Spec.of("denoising-autoencoder", {"sigma": sigma, "base": training_of(net)})


def _table4_runs(scale: Scale) -> Mapping[str, Settings]:
    nets = SHOWN[scale]
    denoised = {run_of(net): known_run(scale, net, [_denoiser(net, sigma) for sigma in _DEVIATIONS]) for net in nets}
    return {**plain_runs(scale, nets), **denoised}


def _table4(findings: Findings) -> Sequence[Comparison]:
    table, nets, judged = table_of("table4"), found(findings), []
    rows: list[tuple[str, tuple[Pair, ...]]] = []
    shown: dict[tuple[str, float], SeedFigure] = {}
    for sigma in _DEVIATIONS:
        clean = {net: clean_error(findings, net, _denoiser(net, sigma)) for net in nets}
        known = {net: adaptive_error(findings, net, _denoiser(net, sigma)) for net in nets}
        shown |= {(net, sigma): oblivious_error(findings, net, _denoiser(net, sigma)) for net in nets}
        name = f"DAE sigma={sigma}"
        rows += [
            (name, tuple(Pair(table.cell(net, name), Ours(shown[net, sigma])) for net in nets)),
            (f"{name}, clean", tuple(Pair(None, Ours(clean[net])) for net in nets)),
            (f"{name}, attacked itself", tuple(Pair(None, Ours(known[net])) for net in nets)),
        ]
        judged += [
            (f"{net}, sigma {sigma}", shown[net, sigma], known[net], adaptive_error(findings, net, None)) for net in nets
        ]
    before = {net: plain(findings, net, "adversarial_error") for net in nets}
    rows += [
        ("no defense", tuple(Pair(table_of("table1").cell("adv_error", net), Ours(before[net])) for net in nets)),
        ("no defense, attacked itself", tuple(Pair(None, Ours(adaptive_error(findings, net, None))) for net in nets)),
    ]
    weak, strong = _DEVIATIONS
    claim = claim_of(
        "gu2014.claim.dae",
        (
            part
            for net in nets
            for part in (
                above(f"sigma {strong} - sigma {weak}, {net}", shown[net, strong], shown[net, weak]),
                above(f"no defense - sigma {strong}, {net}", before[net], shown[net, strong]),
            )
        ),
    )
    adaptive, line = verdict_of_the_attacker("dae", judged)
    return (Comparison(table.caption, tuple((net, "%") for net in nets), tuple(rows), (claim, adaptive), (line,)),)


STUDIES = (
    Study("gu2014.table3", "table 3: autoencoders across nets", _table3_runs, _table3, differs),
    Study("gu2014.table4", "table 4: denoising autoencoders", _table4_runs, _table4, differs),
)
