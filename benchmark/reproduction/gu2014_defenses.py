"""Section 3 of Gu & Rigazio 2014 (arXiv:1412.5068): noise, blur and autoencoders against adversarials of the bare net.

The paper crafts its adversarials on the net without the defense and shows them to the net with it. Beside that error stands
the one of an attacker who knows the defense, at the distance that the paper's adversarials have on average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NoReturn

import torch

from advbench.defenses.defended import Defended
from advbench.defenses.inference.layer_noise import LayerNoise
from advbench.defenses.inference.noise import InputNoise
from advbench.reproduction.findings import Cell, Findings
from advbench.reproduction.gu2014_nets import NETS, attacked, found, plain, plain_runs, training_of
from advbench.reproduction.shown import crafted, distortion, error, scored
from advbench.reproduction.study import (
    Claim,
    Comparison,
    Inequality,
    Ours,
    Pair,
    Plot,
    Scale,
    Series,
    Settings,
    Study,
    above,
)
from advbench.results.papers import PaperTable, load
from advbench.specs import Spec
from advbench.zoo.data import Split

_NETS: Mapping[Scale, tuple[str, ...]] = {
    "smoke": ("N100-100-10", "N200-200-10"),
    "small": ("N100-100-10", "N200-200-10", "AE400-10"),
    "full": tuple(NETS),
}
_ADAPTIVE: Mapping[Scale, str] = {"smoke": "pgd(steps=10)", "small": "pgd(steps=20)", "full": "apgd-ce"}
"""The attack on the defended nets."""
_FEWER: Mapping[Scale, Settings] = {"smoke": {"n_examples": 20}, "small": {"n_examples": 100}, "full": {}}
"""The test images that the defended nets are attacked on."""
_STACK: Mapping[Scale, Settings] = {
    "smoke": {"n_examples": 15, "calibration_examples": 15},
    "small": {"n_examples": 60, "calibration_examples": 40},
    "full": {},
}
"""What the paper's L-BFGS is run on where an autoencoder stands in front of the net."""
_STACKED: Mapping[Scale, tuple[str, ...]] = {"smoke": ("N100-100-10",), "small": _NETS["small"], "full": _NETS["full"]}
"""The nets whose stack with an autoencoder it is run on."""
_CRAFTED: Mapping[Scale, int | None] = {"smoke": 40, "small": 1000, "full": None}
"""The training images whose adversarials an autoencoder learns to restore."""
_CRAFTER: Mapping[Scale, str] = {"smoke": "deepfool", "small": "lbfgs", "full": "lbfgs"}
"""The attack that makes these adversarials."""
_KERNELS = (5, 11)
_DEVIATIONS = (0.1, 0.5)
_SWEPT = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
_SWEPT_NETS: Mapping[Scale, tuple[str, ...]] = {"smoke": ("N100-100-10",), "small": _NETS["small"], "full": tuple(NETS)}
_NOISES: Mapping[str, type[InputNoise] | type[LayerNoise]] = {"L1": InputNoise, "L*": LayerNoise}
_NAMED = 0.1
"""The deviation that the paper names."""
_BROKEN = 5.0
"""Points of error between a defended net and the bare one at which the defense is said to be broken."""


def _table(name: str) -> PaperTable:
    return load("gu2014").tables[f"gu2014.{name}"]


def _printed(net: str) -> float:
    """The paper's average distortion of a net's adversarials, RMS."""
    return _table("table1").cell("avg_distortion", net)


def _radius(net: str) -> float:
    """The same as an l2 norm."""
    return round(_printed(net) * math.sqrt(784), 3)


def _known(scale: Scale, net: str, defenses: Sequence[Spec], **settings: object) -> Settings:
    """A run in which the attacker knows the defenses, and of the bare net beside them."""
    return {
        **attacked(scale, [net], []),
        "defense": [training_of(net), *map(str, defenses)],
        "attack": [_ADAPTIVE[scale]],
        "epsilon": [_radius(net)],
        **_FEWER[scale],
        **settings,
    }


def _named(net: str) -> str:
    """The name of the run in which the attacker knows a net's defenses."""
    return f"{net}, defended"


def _shown(findings: Findings, net: str, seed: int) -> Split:
    """The paper's adversarials of the bare net."""
    return crafted(findings[net], findings[net].one(seed=seed, attack="lbfgs"))


def _cell(findings: Findings, net: str, defense: Spec | None, seed: int) -> Cell:
    """The cell of the attacker who knows the defense, which may be named by some arguments; of the bare net where None."""
    wanted = Spec(training_of(net)) if defense is None else defense
    for cell in findings[_named(net)].all(seed=seed, matrix="white-box", defense=wanted.name):
        arguments = cell.record.target["defense"]["arguments"]
        if all(arguments[name] == value for name, value in wanted.arguments):
            return cell
    raise ValueError(f"Expected a cell of {wanted} on {net} with seed={seed}; got none")


def _clean(findings: Findings, net: str, defense: Spec) -> tuple[float, ...]:
    """The defended net's error on clean images, by seed."""
    return tuple(
        error(findings[_named(net)].defended(_cell(findings, net, defense, seed)), scored(findings[net]), seed=seed)
        for seed in findings.seeds
    )


def _oblivious(findings: Findings, net: str, defense: Spec) -> tuple[float, ...]:
    """The defended net's error on the adversarials of the bare net, by seed."""
    return tuple(
        error(findings[_named(net)].defended(_cell(findings, net, defense, seed)), _shown(findings, net, seed), seed=seed)
        for seed in findings.seeds
    )


def _adaptive(findings: Findings, net: str, defense: Spec | None) -> tuple[float, ...]:
    """The error under the attacker who knows the defense, by seed."""
    return tuple(100.0 - _cell(findings, net, defense, seed).accuracy for seed in findings.seeds)


def _verdict_of_the_attacker(
    name: str, rows: Sequence[tuple[str, tuple[float, ...], tuple[float, ...], tuple[float, ...]]]
) -> tuple[Claim, str]:
    """The claim that the attacker who knows more does more harm, and a line that says where the defense is broken.

    rows: label; errors on the bare net's adversarials, under the adaptive attack, and of the bare net under that attack.
    """
    claim = Claim(
        f"gu2014.adaptive.{name}",
        "the attack on the defended net itself, at the l2 distance that the paper prints for the bare net's adversarials, "
        "makes more errors than these adversarials do",
        tuple(above(label, adaptive, oblivious) for label, oblivious, adaptive, _ in rows),
    )
    broken = [
        f"{label} {fmean(oblivious):.0f}% -> {fmean(adaptive):.0f}% (bare {fmean(bare):.0f}%)"
        for label, oblivious, adaptive, bare in rows
        if fmean(adaptive) > fmean(oblivious) + _BROKEN and fmean(adaptive) > fmean(bare) - _BROKEN
    ]
    said = "; ".join(broken) or "none"
    return claim, (
        f"broken by the adaptive attack (errors as many as without the defense, within {_BROKEN:.0f} points), "
        f"{len(broken)} of {len(rows)}: {said}"
    )


# --- table 2


def _blur(net: str, kernel: int) -> Spec:
    return Spec.of("gaussian-blur", {"kernel_size": kernel, "base": training_of(net)})


def _table2_runs(scale: Scale) -> Mapping[str, Settings]:
    nets = _NETS[scale]
    blurred = {_named(net): _known(scale, net, [_blur(net, kernel) for kernel in _KERNELS]) for net in nets}
    return {**plain_runs(scale, nets), **blurred}


def _table2(findings: Findings) -> Sequence[Comparison]:
    table, rows, judged, parts = _table("table2"), [], [], []
    convnet: tuple[Inequality, ...] = ()
    columns = (
        *((f"clean, {label}", "%") for label in ("no blur", "5", "11")),
        *((f"adversarial, {label}", "%") for label in ("no blur", "5", "11")),
        *((f"attacked itself, {label}", "%") for label in ("no blur", "5", "11")),
    )
    for net in found(findings):
        clean = [plain(findings, net, "clean_error"), *(_clean(findings, net, _blur(net, k)) for k in _KERNELS)]
        shown = [plain(findings, net, "adversarial_error"), *(_oblivious(findings, net, _blur(net, k)) for k in _KERNELS)]
        known = [_adaptive(findings, net, None), *(_adaptive(findings, net, _blur(net, k)) for k in _KERNELS)]
        printed = [table.cell(f"{kind}_{blur}", net) for kind in ("clean", "adv") for blur in ("noblur", "k5", "k11")]
        pairs = [Pair(paper, Ours(ours)) for paper, ours in zip(printed, clean + shown, strict=True)]
        rows.append((net, (*pairs, *(Pair(None, Ours(ours)) for ours in known))))
        judged += [(f"{net}, {k}", shown[i], known[i], known[0]) for i, k in enumerate(_KERNELS, start=1)]
        best = [min(pair) for pair in zip(*shown[1:], strict=True)]
        parts.append(above(f"adversarial, best blur - clean, no blur, {net}", best, clean[0]))
        if net == "ConvNet":
            convnet = (
                Inequality("50 - adversarial, 11", tuple(50 - each for each in shown[2])),
                Inequality("5 - (clean, 11 - no blur)", tuple(5 - a + b for a, b in zip(clean[2], clean[0], strict=True))),
            )
    claims = (
        Claim("gu2014.claim.blur", "no net recovers its clean error under either blur", tuple(parts)),
        Claim(
            "gu2014.claim.blur ConvNet",
            "the ConvNet recovers half of the adversarials under the large blur, at about 3 points of clean error",
            convnet,
            untested="the ConvNet is for --scale full",
        ),
    )
    adaptive, line = _verdict_of_the_attacker("blur", judged)
    return (Comparison(table.caption, columns, tuple(rows), (*claims, adaptive), (line,)),)


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
    nets = _NETS[scale]
    crossed = {_named(net): _known(scale, net, [_restorer(scale, net, source) for source in nets]) for net in nets}
    return {**plain_runs(scale, nets), **crossed, **{_stacked(net): _stack_run(scale, net) for net in _STACKED[scale]}}


def _table3(findings: Findings) -> Sequence[Comparison]:
    table, nets = _table("table3"), found(findings)
    behind = {net: Spec.of("autoencoder", {"source_architecture": NETS[net]}) for net in nets}
    shown = {(net, source): _oblivious(findings, net, behind[source]) for net in nets for source in nets}
    known = {(net, source): _adaptive(findings, net, behind[source]) for net in nets for source in nets}
    bare = {net: _adaptive(findings, net, None) for net in nets}
    clean = {net: _clean(findings, net, behind[net]) for net in nets}
    near = {net: _stack_distortion(findings, net) for net in nets if _stacked(net) in findings.runs}

    def printed(row: str, values: Mapping[str, tuple[float, ...]]) -> tuple[str, tuple[Pair, ...]]:
        return row, tuple(_pair(table.cell(f"ae_from_{net}", row), values.get(net)) for net in nets)

    rows = (
        *(printed(net, {source: shown[net, source] for source in nets}) for net in nets),
        printed("test_error_clean", clean),
        printed("avg_adv_distortion", {net: stack for net, (stack, _) in near.items()}),
        ("distortion without the autoencoder", tuple(_pair(_printed(net), near.get(net, (None, None))[1]) for net in nets)),
    )
    transfer = Claim(
        "gu2014.claim.ae_transfer",
        "behind an autoencoder of any net's adversarials at most 10% of a net's own adversarials are errors",
        tuple(Inequality(f"10 - {net} behind {source}", tuple(10 - e for e in shown[net, source])) for net, source in shown),
    )
    weaker = Claim(
        "gu2014.claim.stack_weaker",
        "the stack of autoencoder and net needs a smaller distortion than the net",
        tuple(above(f"{net} - its stack", alone, stack) for net, (stack, alone) in near.items()),
    )
    adaptive, line = _verdict_of_the_attacker(
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


def _pair(paper: float, ours: tuple[float, ...] | None) -> Pair:
    return Pair(paper, None if ours is None else Ours(ours))


def _stack_distortion(findings: Findings, net: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
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
    return tuple(stacks), tuple(nets)


# --- table 4


def _denoiser(net: str, sigma: float) -> Spec:
    return Spec.of("denoising-autoencoder", {"sigma": sigma, "base": training_of(net)})


def _table4_runs(scale: Scale) -> Mapping[str, Settings]:
    nets = _NETS[scale]
    denoised = {_named(net): _known(scale, net, [_denoiser(net, sigma) for sigma in _DEVIATIONS]) for net in nets}
    return {**plain_runs(scale, nets), **denoised}


def _table4(findings: Findings) -> Sequence[Comparison]:
    table, nets, judged = _table("table4"), found(findings), []
    rows: list[tuple[str, tuple[Pair, ...]]] = []
    shown: dict[tuple[str, float], tuple[float, ...]] = {}
    for sigma in _DEVIATIONS:
        clean = {net: _clean(findings, net, _denoiser(net, sigma)) for net in nets}
        known = {net: _adaptive(findings, net, _denoiser(net, sigma)) for net in nets}
        shown |= {(net, sigma): _oblivious(findings, net, _denoiser(net, sigma)) for net in nets}
        name = f"DAE sigma={sigma}"
        rows += [
            (name, tuple(Pair(table.cell(net, name), Ours(shown[net, sigma])) for net in nets)),
            (f"{name}, clean", tuple(Pair(None, Ours(clean[net])) for net in nets)),
            (f"{name}, attacked itself", tuple(Pair(None, Ours(known[net])) for net in nets)),
        ]
        judged += [(f"{net}, sigma {sigma}", shown[net, sigma], known[net], _adaptive(findings, net, None)) for net in nets]
    before = {net: plain(findings, net, "adversarial_error") for net in nets}
    rows += [
        ("no defense", tuple(Pair(_table("table1").cell("adv_error", net), Ours(before[net])) for net in nets)),
        ("no defense, attacked itself", tuple(Pair(None, Ours(_adaptive(findings, net, None))) for net in nets)),
    ]
    weak, strong = _DEVIATIONS
    claim = Claim(
        "gu2014.claim.dae",
        "for every net the errors rise from a DAE of noise 0.1 over one of noise 0.5 to no defense",
        tuple(
            part
            for net in nets
            for part in (
                above(f"sigma {strong} - sigma {weak}, {net}", shown[net, strong], shown[net, weak]),
                above(f"no defense - sigma {strong}, {net}", before[net], shown[net, strong]),
            )
        ),
    )
    adaptive, line = _verdict_of_the_attacker("dae", judged)
    return (Comparison(table.caption, tuple((net, "%") for net in nets), tuple(rows), (claim, adaptive), (line,)),)


# --- figure 1


def _noise(net: str, where: str) -> Spec:
    name = {"L1": "input-noise", "L*": "layer-noise"}[where]
    return Spec.of(name, {"sigma": _NAMED, "base": training_of(net)})


def _fig1_runs(scale: Scale) -> Mapping[str, Settings]:
    nets = _SWEPT_NETS[scale]
    settings: Mapping[Scale, Settings] = {
        "smoke": {"n_examples": 10, "score_draws": 1},
        "small": {"n_examples": 40, "score_draws": 3},
        "full": {},
    }
    steps = {"smoke": 4, "small": 10, "full": 40}[scale]
    attack = {"attack": [f"pgd(steps={steps}, step_size={2.5 / steps})"], "draws": 1}
    noisy = {
        _named(net): _known(scale, net, [_noise(net, where) for where in _NOISES], **attack, **settings[scale])
        for net in nets
    }
    return {**plain_runs(scale, nets), **noisy}


def _fig1(findings: Findings) -> Sequence[Comparison]:
    nets = found(findings)
    swept = {(net, where): _sweep(findings, net, where) for net in nets for where in _NOISES}
    plots = tuple(
        Plot(
            f"{kind.capitalize()} test error against the deviation of the noise, 20 passes averaged",
            "sigma",
            f"{kind} error (%)",
            tuple(
                Series(f"{net}, {where}", _SWEPT, tuple(Ours(point[position]) for point in points))
                for (net, where), points in swept.items()
            ),
        )
        for position, kind in enumerate(("clean", "adversarial"))
    )
    at = _SWEPT.index(_NAMED)
    rows, judged = [], []
    for (net, where), points in swept.items():
        known, bare = _adaptive(findings, net, _noise(net, where)), _adaptive(findings, net, None)
        values = (points[0][0], points[at][0], points[0][1], points[at][1], bare, known)
        rows.append((f"{net}, {where}", tuple(Pair(None, Ours(each)) for each in values)))
        judged.append((f"{net}, {where}", points[at][1], known, bare))
    columns = (
        ("clean, no noise", "%"),
        ("clean", "%"),
        ("adversarial, no noise", "%"),
        ("adversarial", "%"),
        ("attacked itself, no noise", "%"),
        ("attacked itself", "%"),
    )
    recovers = Claim(
        "gu2014.fig1",
        "noise of deviation 0.1 makes a net get some of its adversarials right",
        tuple(above(f"no noise - 0.1, {net}, {where}", p[0][1], p[at][1]) for (net, where), p in swept.items()),
    )
    convnet = tuple(
        Inequality("65 - adversarial, ConvNet, L*", tuple(65 - each for each in points[at][1]))
        for (net, where), points in swept.items()
        if (net, where) == ("ConvNet", "L*")
    )
    recovered = Claim(
        "gu2014.fig1 ConvNet",
        "noise of deviation 0.1 at all layers recovers more than 35% of the ConvNet's adversarials",
        convnet,
        untested="the ConvNet is for --scale full",
    )
    adaptive, line = _verdict_of_the_attacker("noise", judged)
    caption = "Noise of deviation 0.1 at the input (L1) and at all layers (L*); the curves are over other deviations"
    return (Comparison(caption, columns, tuple(rows), (recovers, recovered, adaptive), (line,), plots),)


def _sweep(findings: Findings, net: str, where: str) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Clean and adversarial errors, by seed, at every deviation; on every fifth image, at most a thousand."""
    points: list[list[tuple[float, float]]] = [[] for _ in _SWEPT]
    for seed in findings.seeds:
        bare = findings[net].defended(findings[net].one(seed=seed, attack="lbfgs"))
        few = slice(0, 5000, 5)
        images = scored(findings[net]).select(few), _shown(findings, net, seed).select(few)
        for point, sigma in zip(points, _SWEPT, strict=True):
            noisy = _in_noise(bare, where, sigma, findings, net)
            clean, adversarial = (error(noisy, split, seed=seed) for split in images)
            point.append((clean, adversarial))
    return [(tuple(c for c, _ in point), tuple(a for _, a in point)) for point in points]


def _in_noise(bare: Defended, where: str, sigma: float, findings: Findings, net: str) -> Defended:
    """A net with noise of a deviation; the net itself where that is zero."""
    if not sigma:
        return bare
    return _NOISES[where](sigma=sigma).build(_no_architecture, findings[net].plan.data, {"base": bare})


def _no_architecture() -> NoReturn:
    raise RuntimeError("Expected noise to be put into a net that is there")


_SIZES: Mapping[Scale, str] = {
    "smoke": "digits in place of MNIST, 6 epochs, N100-100-10 and N200-200-10 only (figure 1: the first), 60 test images, "
    "20 of them to attack with the defense known (10 in figure 1, 15 for the distortion of the stack, the first net's); "
    "autoencoders learn from DeepFool's adversarials of 40 training images",
    "small": "8 epochs on 12,000 images, no ConvNet, 300 test images and 100 to attack with the defense known (40 in figure "
    "1, 60 for the distortion of the stack); autoencoders learn from the adversarials of 1,000 training images",
    "full": "optimizer and schedule, which the paper does not print",
}


def _differs(scale: Scale) -> Sequence[str]:
    return (
        _SIZES[scale],
        f"'attacked itself': by {_ADAPTIVE[scale]} (figure 1: PGD) at the l2 distance that the paper prints as the bare "
        "net's average distortion, the worst over the defense's surrogates; the paper attacks bare nets and, with L-BFGS, "
        "the stacks of table 3",
        "blur has the deviation of OpenCV's rule and mirrored borders, autoencoders are ReLU with sigmoid output and "
        "squared error, one clean image for each adversarial, noise comes behind the nonlinearity (the paper prints none)",
        "the curves of figure 1 are on every fifth test image, at most a thousand, one draw of 20 passes each",
    )


STUDIES = (
    Study("gu2014.fig1", "figure 1: noise at the input and at all layers", _fig1_runs, _fig1, _differs),
    Study("gu2014.table2", "table 2: Gaussian blur", _table2_runs, _table2, _differs),
    Study("gu2014.table3", "table 3: autoencoders across nets", _table3_runs, _table3, _differs),
    Study("gu2014.table4", "table 4: denoising autoencoders", _table4_runs, _table4, _differs),
)
