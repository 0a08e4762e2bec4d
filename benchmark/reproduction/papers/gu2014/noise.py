"""Noise and blur in front of the nets of Gu & Rigazio 2014 (arXiv:1412.5068): figure 1 and table 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

from advbench.defenses.defended import Defended
from advbench.defenses.inference.layer_noise import LayerNoise
from advbench.defenses.inference.noise import InputNoise
from advbench.registry.specs import Spec
from advbench.reproduction.findings import Findings
from advbench.reproduction.measured import Figure, SeedFigure, lowest
from advbench.reproduction.oblivious import error, scored
from advbench.reproduction.papers.gu2014.attacker import (
    adaptive_error,
    adversarials,
    clean_error,
    differs,
    known_run,
    oblivious_error,
    run_of,
    table_of,
    verdict_of_the_attacker,
)
from advbench.reproduction.papers.gu2014.nets import (
    few_seeds,
    found,
    plain,
    plain_runs,
    shown,
    training_of,
)
from advbench.reproduction.study import (
    EVERY_SCALE,
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
    at_most,
    claim_of,
)

KERNELS = (5, 11)
"""The sizes of the blurs, in pixels."""
_SWEPT = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
_ON = 300
"""The test images of the curves, at most."""
_NOISES: Mapping[str, type[InputNoise] | type[LayerNoise]] = {"L1": InputNoise, "L*": LayerNoise}
_NAMED = 0.1
"""The deviation that the paper names."""


# --- table 2


def blurred(net: str, kernel: int) -> Spec:
    """A net behind a blur of a size in pixels."""
    return Spec.of("gaussian-blur", {"kernel_size": kernel, "base": training_of(net)})


def _table2_runs(scale: Scale) -> Mapping[str, Settings]:
    nets = shown(scale)
    known = {run_of(net): known_run(scale, net, [blurred(net, kernel) for kernel in KERNELS]) for net in nets}
    return few_seeds(scale, {**plain_runs(scale, nets), **known})


def _table2(findings: Findings) -> Sequence[Comparison]:
    table, rows, judged, parts = table_of("table2"), [], [], []
    convnet: tuple[Inequality, ...] = ()
    columns = (
        *((f"clean, {label}", "%") for label in ("no blur", "5", "11")),
        *((f"adversarial, {label}", "%") for label in ("no blur", "5", "11")),
        *((f"attacked itself, {label}", "%") for label in ("no blur", "5", "11")),
    )
    for net in found(findings):
        clean = [plain(findings, net, "clean_error"), *(clean_error(findings, net, blurred(net, k)) for k in KERNELS)]
        oblivious = [
            plain(findings, net, "adversarial_error"),
            *(oblivious_error(findings, net, blurred(net, k)) for k in KERNELS),
        ]
        known = [adaptive_error(findings, net, None), *(adaptive_error(findings, net, blurred(net, k)) for k in KERNELS)]
        printed = [table.cell(f"{kind}_{blur}", net) for kind in ("clean", "adv") for blur in ("noblur", "k5", "k11")]
        pairs = [Pair(paper, Ours(ours)) for paper, ours in zip(printed, clean + oblivious, strict=True)]
        rows.append((net, (*pairs, *(Pair(None, Ours(ours)) for ours in known))))
        judged += [(f"{net}, {k}", oblivious[i], known[i], known[0]) for i, k in enumerate(KERNELS, start=1)]
        parts.append(above(f"adversarial, best blur - clean, no blur, {net}", lowest(oblivious[1:]), clean[0]))
        if net == "ConvNet":
            convnet = (
                at_most("adversarial, 11", oblivious[2], 50.0),
                at_most("clean, 11 - no blur", clean[2] - clean[0], 5.0),
            )
    claims = (
        claim_of("gu2014.claim.blur", parts),
        claim_of("gu2014.claim.blur ConvNet", convnet, untested="the ConvNet is for --scale small and above"),
    )
    adaptive, line = verdict_of_the_attacker("blur", judged)
    return (Comparison(table.caption, columns, tuple(rows), (*claims, adaptive), (line,)),)


# --- figure 1


def noisy(net: str, where: str) -> Spec:
    """A net with noise of the deviation that the paper names, at the input (`L1`) or at all layers (`L*`)."""
    name = {"L1": "input-noise", "L*": "layer-noise"}[where]
    return Spec.of(name, {"sigma": _NAMED, "base": training_of(net)})


def _fig1_runs(scale: Scale) -> Mapping[str, Settings]:
    nets = shown(scale)[:1] if scale == "smoke" else shown(scale)
    settings: Mapping[tuple[Scale, bool], Settings] = {
        ("smoke", False): {"n_examples": 10, "score_draws": 1},
        ("small", False): {"n_examples": 40, "score_draws": 3},
        ("small", True): {"n_examples": 20, "score_draws": 3},
        ("medium", False): {"n_examples": 100, "score_draws": 3},
        ("medium", True): {"n_examples": 40, "score_draws": 3},
    }
    steps = {"smoke": 4, "small": 10, "medium": 20, "full": 40}[scale]
    attack = {"attack": [f"pgd(steps={steps}, step_size={2.5 / steps})"], "draws": 1}
    known = {
        run_of(net): known_run(
            scale,
            net,
            [noisy(net, where) for where in _NOISES],
            **{**attack, **settings.get((scale, net == "ConvNet"), {})},
        )
        for net in nets
    }
    return few_seeds(scale, {**plain_runs(scale, nets), **known})


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
        known, bare = adaptive_error(findings, net, noisy(net, where)), adaptive_error(findings, net, None)
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
    recovers = claim_of(
        "gu2014.fig1",
        (above(f"no noise - 0.1, {net}, {where}", p[0][1], p[at][1]) for (net, where), p in swept.items()),
    )
    convnet = [
        at_most("adversarial, ConvNet, L*", points[at][1], 65.0)
        for (net, where), points in swept.items()
        if (net, where) == ("ConvNet", "L*")
    ]
    recovered = claim_of("gu2014.fig1 ConvNet", convnet, untested="the ConvNet is for --scale small and above")
    adaptive, line = verdict_of_the_attacker("noise", judged)
    caption = "Noise of deviation 0.1 at the input (L1) and at all layers (L*); the curves are over other deviations"
    return (Comparison(caption, columns, tuple(rows), (recovers, recovered, adaptive), (line,), plots),)


def _sweep(findings: Findings, net: str, where: str) -> list[tuple[SeedFigure, SeedFigure]]:
    """Clean and adversarial errors, by seed, at every deviation."""
    points: list[list[tuple[Figure, Figure]]] = [[] for _ in _SWEPT]
    for seed in findings.seeds:
        bare = findings[net].defended(findings[net].one(seed=seed, attack="lbfgs"))
        few = slice(_ON)
        images = scored(findings[net]).select(few), adversarials(findings, net, seed).select(few)
        for point, sigma in zip(points, _SWEPT, strict=True):
            model = _in_noise(bare, where, sigma, findings, net)
            clean, adversarial = (error(model, split, seed=seed) for split in images)
            point.append((clean, adversarial))
    return [(SeedFigure.of(c for c, _ in point), SeedFigure.of(a for _, a in point)) for point in points]


def _in_noise(bare: Defended, where: str, sigma: float, findings: Findings, net: str) -> Defended:
    """A net with noise of a deviation; the net itself where that is zero."""
    if not sigma:
        return bare
    return _NOISES[where](sigma=sigma).build(_no_architecture, findings[net].plan.data, {"base": bare})


def _no_architecture() -> NoReturn:
    raise RuntimeError("Expected noise to be put into a net that is there")


STUDIES = (
    Study("gu2014.fig1", "figure 1: noise at the input and at all layers", _fig1_runs, _fig1, differs, EVERY_SCALE),
    Study("gu2014.table2", "table 2: Gaussian blur", _table2_runs, _table2, differs, EVERY_SCALE),
)
