"""Autoencoders in front of the nets of Gu & Rigazio 2014 (arXiv:1412.5068): tables 3 and 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from advbench.registry.specs import Spec
from advbench.reports.section import ImageGrid
from advbench.reproduction.findings import Findings
from advbench.reproduction.measured import SeedFigure
from advbench.reproduction.oblivious import crafted, distortion, scored
from advbench.reproduction.papers.gu2014.attacker import (
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
from advbench.reproduction.papers.gu2014.nets import (
    NETS,
    attacked,
    cell_of,
    few_seeds,
    found,
    plain,
    plain_runs,
    seeds_of,
    shown,
    training_of,
)
from advbench.reproduction.papers.gu2014.pictures import two_models
from advbench.reproduction.study import EVERY_SCALE, Comparison, Ours, Pair, Scale, Settings, Study, above, at_most, claim_of

_STACK: Mapping[Scale, Settings] = {
    "smoke": {"n_examples": 15, "calibration_examples": 15},
    "small": {"n_examples": 200},
    "medium": {"n_examples": 200},
    "full": {},
}
"""What the paper's L-BFGS is run on where an autoencoder stands in front of the net."""
_CRAFTED: Mapping[Scale, int | None] = {"smoke": 40, "small": 6000, "medium": 6000, "full": None}
"""The training images whose adversarials an autoencoder learns to restore; of the ConvNet at medium 1,000."""
_CRAFTER: Mapping[Scale, str] = {"smoke": "deepfool", "small": "lbfgs", "medium": "lbfgs", "full": "lbfgs"}
"""The attack that makes these adversarials."""
DEVIATIONS = (0.1, 0.5)
"""Of the noise that denoising autoencoders learn from."""


# --- table 3


def _sources(scale: Scale) -> tuple[str, ...]:
    """The nets whose adversarials autoencoders learn from: crafting those of the ConvNet takes minutes."""
    return tuple(net for net in shown(scale) if (scale, net) != ("small", "ConvNet"))


def restorer(scale: Scale, net: str, source: str) -> Spec:
    """The autoencoder of `source`'s adversarials in front of `net`."""
    arguments = {
        "source": training_of(source),
        "source_architecture": NETS[source],
        "attack": _CRAFTER[scale],
        "images": 1000 if (scale, source) == ("medium", "ConvNet") else _CRAFTED[scale],
        "base": training_of(net),
    }
    return Spec.of("autoencoder", arguments)


def _stacked(net: str) -> str:
    """The name of the run of the paper's attack on a net behind the autoencoder of its own adversarials."""
    return f"{net}, stack"


def _stack_run(scale: Scale, net: str) -> Settings:
    """The paper's attack on the net behind its own autoencoder, and from medium on behind others and denoising ones."""
    many = [*(restorer(scale, net, source) for source in _sources(scale)), *(denoiser(net, sigma) for sigma in DEVIATIONS)]
    specs = [restorer(scale, net, net)] if scale in ("smoke", "small") else many
    return {**attacked(scale, net, [str(spec) for spec in specs]), **_STACK[scale]}


def _table3_runs(scale: Scale) -> Mapping[str, Settings]:
    nets, sources = shown(scale), _sources(scale)
    crossed = {run_of(net): known_run(scale, net, [restorer(scale, net, source) for source in sources]) for net in nets}
    stacked = {_stacked(net): _stack_run(scale, net) for net in (sources[:1] if scale == "smoke" else sources)}
    return few_seeds(scale, {**plain_runs(scale, nets), **crossed, **stacked})


def _table3(findings: Findings) -> Sequence[Comparison]:
    table, nets = table_of("table3"), found(findings)
    behind = {net: _behind(net) for net in nets}
    sources = [net for net in nets if behind[net] in _restorers_of(findings, nets[0])]
    pairs = [(net, source) for net in nets for source in sources]
    oblivious = {(net, source): oblivious_error(findings, net, behind[source]) for net, source in pairs}
    known = {(net, source): adaptive_error(findings, net, behind[source]) for net, source in pairs}
    bare = {net: adaptive_error(findings, net, None) for net in nets}
    clean = {net: clean_error(findings, net, behind[net]) for net in sources}
    near = {net: _stack_distortion(findings, net) for net in nets if _stacked(net) in findings.runs}

    def printed(row: str, values: Mapping[str, Sequence[float]]) -> tuple[str, tuple[Pair, ...]]:
        return row, tuple(_pair(table.cell(f"ae_from_{net}", row), values.get(net)) for net in sources)

    rows = (
        *(printed(net, {source: oblivious[net, source] for source in sources}) for net in nets),
        printed("test_error_clean", clean),
        printed("avg_adv_distortion", {net: stack for net, (stack, _) in near.items()}),
        (
            "distortion without the autoencoder",
            tuple(_pair(printed_distortion(net), near.get(net, (None, None))[1]) for net in sources),
        ),
    )
    transfer = claim_of(
        "gu2014.claim.ae_transfer",
        (at_most(f"{net} behind {source}", oblivious[net, source], 10.0) for net, source in oblivious),
    )
    weaker = claim_of(
        "gu2014.claim.stack_weaker",
        (above(f"{net} - its stack", alone, stack) for net, (stack, alone) in near.items()),
    )
    adaptive, line = verdict_of_the_attacker(
        "autoencoder",
        [(f"{net} behind {source}", e, known[net, source], bare[net]) for (net, source), e in oblivious.items()],
    )
    columns = tuple((f"AE from {net}", "% (distortions RMS)") for net in sources)
    note = "distortions are those of the paper's L-BFGS, with a constant of its own for the stack, on the same images"
    attacks = tuple((net, tuple(Pair(None, Ours(known[net, source])) for source in sources)) for net in nets)
    last = ("no autoencoder", tuple(Pair(None, Ours(bare[net])) for net in sources))
    return (
        Comparison(table.caption, columns, rows, (transfer, weaker), (note,), images=_figure2(findings, sources)),
        Comparison(
            "Error where the stack itself is attacked (the last row: the column's net without an autoencoder)",
            tuple((f"AE from {net}", "%") for net in sources),
            (*attacks, last),
            (adaptive,),
            (line,),
        ),
        *_other_stacks(findings, sources),
    )


def _behind(source: str) -> Spec:
    """What tells the autoencoder of a net's adversarials from others in the records."""
    return Spec.of("autoencoder", {"source_architecture": NETS[source]})


def _restorers_of(findings: Findings, net: str) -> set[Spec]:
    """The autoencoders that a net was shown behind."""
    defenses = [cell.record.target["defense"] for cell in findings[run_of(net)].all(defense="autoencoder")]
    return {
        Spec.of("autoencoder", {"source_architecture": defense["arguments"]["source_architecture"]}) for defense in defenses
    }


def _figure2(findings: Findings, sources: Sequence[str]) -> tuple[ImageGrid, ...]:
    net, seed = next(net for net in reversed(sources[:2]) if _stacked(net) in findings.runs), findings.seeds[0]
    bare, stack = findings[net], findings[_stacked(net)]
    cells = bare.one(seed=seed, matrix="white-box", attack="lbfgs"), cell_of(stack, _behind(net), seed)
    return (two_models((bare, cells[0]), (stack, cells[1]), net=net, named="its stack", figure="Figure 2"),)


def _other_stacks(findings: Findings, sources: Sequence[str]) -> tuple[Comparison, ...]:
    """Distortions of the paper's attack behind other autoencoders and denoising ones; none where only the net's own ran."""
    specs = [*map(_behind, sources), *(Spec.of("denoising-autoencoder", {"sigma": sigma}) for sigma in DEVIATIONS)]
    rows = list[tuple[str, tuple[Pair, ...]]]()
    for net in sources:
        run = findings.runs.get(_stacked(net))
        if run is None or not run.all(defense="denoising-autoencoder"):
            continue
        found_ = [SeedFigure.of(cell_of(run, spec, seed).mean_rms for seed in seeds_of(run)) for spec in specs]
        rows.append((net, tuple(Pair(None, Ours(each)) for each in found_)))
    names = [*(f"AE from {net}" for net in sources), *(f"DAE sigma={sigma}" for sigma in DEVIATIONS)]
    caption = "Distortion of the paper's attack on a net behind each autoencoder, with a constant of its own for each stack"
    return (Comparison(caption, tuple((name, "RMS") for name in names), tuple(rows)),) if rows else ()


def _pair(paper: float, ours: Sequence[float] | None) -> Pair:
    return Pair(paper, None if ours is None else Ours(ours))


def _stack_distortion(findings: Findings, net: str) -> tuple[SeedFigure, SeedFigure]:
    """The mean distortions of the paper's attack on the stack and on the bare net, on the same images, by seed."""
    run, bare = findings[_stacked(net)], findings[net]
    clean, all_of_bare = scored(run), scored(bare)
    rows = torch.isin(all_of_bare.index, clean.index)
    stacks, nets = [], []
    for seed in findings.seeds:
        stack, alone = cell_of(run, _behind(net), seed), bare.one(seed=seed, matrix="white-box", attack="lbfgs")
        stacks.append(distortion(run.defended(stack), clean, crafted(run, stack), seed=seed))
        shown = crafted(bare, alone).select(rows)
        nets.append(distortion(bare.defended(alone), all_of_bare.select(rows), shown, seed=seed))
    return SeedFigure.of(stacks), SeedFigure.of(nets)


# --- table 4


def denoiser(net: str, sigma: float) -> Spec:
    """The autoencoder of Gaussian noise in front of a net."""
    return Spec.of("denoising-autoencoder", {"sigma": sigma, "base": training_of(net)})


def _table4_runs(scale: Scale) -> Mapping[str, Settings]:
    nets = shown(scale)
    denoised = {run_of(net): known_run(scale, net, [denoiser(net, sigma) for sigma in DEVIATIONS]) for net in nets}
    return few_seeds(scale, {**plain_runs(scale, nets), **denoised})


def _table4(findings: Findings) -> Sequence[Comparison]:
    table, nets, judged = table_of("table4"), found(findings), []
    rows: list[tuple[str, tuple[Pair, ...]]] = []
    oblivious: dict[tuple[str, float], SeedFigure] = {}
    for sigma in DEVIATIONS:
        clean = {net: clean_error(findings, net, denoiser(net, sigma)) for net in nets}
        known = {net: adaptive_error(findings, net, denoiser(net, sigma)) for net in nets}
        oblivious |= {(net, sigma): oblivious_error(findings, net, denoiser(net, sigma)) for net in nets}
        name = f"DAE sigma={sigma}"
        rows += [
            (name, tuple(Pair(table.cell(net, name), Ours(oblivious[net, sigma])) for net in nets)),
            (f"{name}, clean", tuple(Pair(None, Ours(clean[net])) for net in nets)),
            (f"{name}, attacked itself", tuple(Pair(None, Ours(known[net])) for net in nets)),
        ]
        judged += [
            (f"{net}, sigma {sigma}", oblivious[net, sigma], known[net], adaptive_error(findings, net, None)) for net in nets
        ]
    before = {net: plain(findings, net, "adversarial_error") for net in nets}
    rows += [
        ("no defense", tuple(Pair(table_of("table1").cell("adv_error", net), Ours(before[net])) for net in nets)),
        ("no defense, attacked itself", tuple(Pair(None, Ours(adaptive_error(findings, net, None))) for net in nets)),
    ]
    weak, strong = DEVIATIONS
    claim = claim_of(
        "gu2014.claim.dae",
        (
            part
            for net in nets
            for part in (
                above(f"sigma {strong} - sigma {weak}, {net}", oblivious[net, strong], oblivious[net, weak]),
                above(f"no defense - sigma {strong}, {net}", before[net], oblivious[net, strong]),
            )
        ),
    )
    adaptive, line = verdict_of_the_attacker("dae", judged)
    return (Comparison(table.caption, tuple((net, "%") for net in nets), tuple(rows), (claim, adaptive), (line,)),)


STUDIES = (
    Study("gu2014.table3", "table 3: autoencoders across nets", _table3_runs, _table3, differs, EVERY_SCALE),
    Study("gu2014.table4", "table 4: denoising autoencoders", _table4_runs, _table4, differs, EVERY_SCALE),
)
