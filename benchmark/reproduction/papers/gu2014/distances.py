"""Gu & Rigazio 2014 (arXiv:1412.5068): how far the nearest adversarial is, and what contraction changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from advbench.reproduction.findings import Findings
from advbench.reproduction.papers.gu2014 import autoencoders, noise
from advbench.reproduction.papers.gu2014.nets import (
    NETS,
    PLAIN,
    TRAINED,
    attacked,
    figure_of,
    found,
    plain,
    plain_runs,
    training_of,
)
from advbench.reproduction.study import Comparison, Ours, Pair, Scale, Settings, Study, above, ambiguity, at_most, claim_of
from advbench.results.papers import load

_CONDITIONS = {
    "plain": PLAIN,
    "GN,L1,sigma=0.1": "gaussian-noise(layers='input')",
    "GN,L*,sigma=0.1": "gaussian-noise(layers='all')",
    "DCN": "deep-contractive",
    "DCN+GN,L1,sigma=0.1": "deep-contractive(noise=0.1)",
}
"""The rows of table 6, and the plain net of table 1."""


def _table1_runs(scale: Scale) -> Mapping[str, Settings]:
    nets = [net for net in NETS if scale != "smoke" or net != "ConvNet"]
    steps = 40 if scale == "smoke" else 200
    return plain_runs(scale, nets, (f"ddn(steps={steps})", f"fmn(steps={steps})"))


def _table1(findings: Findings) -> Sequence[Comparison]:
    table = load("gu2014").tables["gu2014.table1"]
    columns = (
        ("train error", "%"),
        ("test error", "%"),
        ("adversarial error, L-BFGS", "%"),
        ("distortion, L-BFGS", "RMS"),
        ("distortion, DDN", "RMS"),
        ("distortion, FMN", "RMS"),
        ("passes per image, L-BFGS", "forwards + backwards"),
    )
    rows, reached = [], []
    for net in found(findings):
        broken = plain(findings, net, "adversarial_error")
        reached.append(at_most(f"images that L-BFGS does not break, {net}, %", 100.0 - broken, 1.0))
        rows.append(
            (
                net,
                (
                    Pair(table.cell("train_error", net), Ours(_train_error(findings, net))),
                    Pair(table.cell("test_error", net), Ours(plain(findings, net, "clean_error"))),
                    Pair(table.cell("adv_error", net), Ours(broken)),
                    Pair(table.cell("avg_distortion", net), Ours(plain(findings, net, "mean_rms"))),
                    Pair(None, Ours(plain(findings, net, "mean_rms", "ddn"))),
                    Pair(None, Ours(plain(findings, net, "mean_rms", "fmn"))),
                    Pair(None, Ours(plain(findings, net, "passes"))),
                ),
            )
        )
    claim = claim_of("gu2014.table1", reached)
    return (Comparison(table.caption, columns, tuple(rows), (claim,)),)


def _table5_runs(scale: Scale) -> Mapping[str, Settings]:
    nets = TRAINED[scale]
    return {**plain_runs(scale, nets), "DCN": attacked(scale, nets, ["deep-contractive"])}


def _table5(findings: Findings) -> Sequence[Comparison]:
    table = load("gu2014").tables["gu2014.table5"]
    columns = (("DCN error", "%"), ("DCN distortion", "RMS"), ("original error", "%"), ("original distortion", "RMS"))
    rows, parts = [], []
    for net in found(findings):
        contracted = {
            figure: figure_of(
                findings["DCN"],
                [findings["DCN"].one(seed=seed, architecture=NETS[net], attack="lbfgs") for seed in findings.seeds],
                figure,
            )
            for figure in ("clean_error", "mean_rms")
        }
        original = {figure: plain(findings, net, figure) for figure in ("clean_error", "mean_rms")}
        parts += [
            above(f"DCN - original distortion, {net}", contracted["mean_rms"], original["mean_rms"]),
            at_most(f"DCN - original error, {net}", contracted["clean_error"] - original["clean_error"], 0.5),
        ]
        values = (contracted["clean_error"], contracted["mean_rms"], original["clean_error"], original["mean_rms"])
        printed = (
            table.cell(column, net) for column in ("dcn_error", "dcn_adv_distortion", "orig_error", "orig_adv_distortion")
        )
        rows.append((net, tuple(Pair(paper, Ours(ours)) for paper, ours in zip(printed, values, strict=True))))
    claim = claim_of("gu2014.claim.headline", parts)
    return (Comparison(table.caption, columns, tuple(rows), (claim,)),)


def _table6_runs(scale: Scale) -> Mapping[str, Settings]:
    return {"conditions": attacked(scale, ["N200-200-10"], list(_CONDITIONS.values()))}


def _table6(findings: Findings) -> Sequence[Comparison]:
    table, plain = load("gu2014").tables["gu2014.table6"], load("gu2014").tables["gu2014.table1"]
    rows, distortion, run = [], {}, findings["conditions"]
    for condition, label in _CONDITIONS.items():
        cells = [run.one(seed=seed, defense_spec=label, attack="lbfgs") for seed in findings.seeds]
        errors, distortion[condition] = (figure_of(run, cells, figure) for figure in ("clean_error", "mean_rms"))
        if condition == "plain":
            paper = plain.cell("test_error", "N200-200-10"), plain.cell("avg_distortion", "N200-200-10")
        else:
            paper = table.cell("test_error", condition), table.cell("avg_distortion", condition)
        rows.append((condition, (Pair(paper[0], Ours(errors)), Pair(paper[1], Ours(distortion[condition])))))
    order = ("DCN+GN,L1,sigma=0.1", "DCN", "GN,L*,sigma=0.1", "GN,L1,sigma=0.1", "plain")
    claim = claim_of(
        "gu2014.claim.gn",
        (above(f"{more} - {less}", distortion[more], distortion[less]) for more, less in pairwise(order)),
    )
    return (Comparison(table.caption, (("test error", "%"), ("distortion", "RMS")), tuple(rows), (claim,)),)


def _train_error(findings: Findings, net: str) -> tuple[float, ...]:
    defense = training_of(net)
    return tuple(findings[net].train_error(seed=seed, defense=defense, architecture=NETS[net]) for seed in findings.seeds)


def _differs(scale: Scale) -> Sequence[str]:
    return (
        {
            "smoke": "digits of 8 x 8 pixels in place of MNIST, 4 epochs, 40 test images, 15 for the constant, L-BFGS of 10 "
            "steps, DDN and FMN of 40; no ConvNet, and no contractive training of AE400-10",
            "small": "8 epochs on 12,000 images, 300 test images are attacked; the ConvNet has 5 epochs on 6,000 images, "
            "100 test images, and no contractive training",
            "full": "optimizer and schedule, which the paper does not print",
        }[scale],
        ambiguity("gu2014.amb.target_label"),
        ambiguity("gu2014.amb.images_attacked"),
        "one constant c per net, the largest that breaks 99% of held-out validation images, the smallest tried where none "
        "does",
    )


STUDIES = (
    Study("gu2014.table1", "table 1: the nets and their adversarials", _table1_runs, _table1, _differs),
    *noise.STUDIES,
    *autoencoders.STUDIES,
    Study("gu2014.table5", "table 5: deep contractive networks", _table5_runs, _table5, _differs),
    Study("gu2014.table6", "table 6: contraction and noise on N200-200-10", _table6_runs, _table6, _differs),
)
