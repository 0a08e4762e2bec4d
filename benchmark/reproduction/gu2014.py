"""Gu & Rigazio 2014 (arXiv:1412.5068): how far the nearest adversarial is, and what contraction changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from advbench.reproduction.findings import Findings
from advbench.reproduction.study import Claim, Comparison, Inequality, Ours, Pair, Scale, Settings, Study, above
from advbench.results.papers import load

NETS = {
    "N100-100-10": "gu2014/n100-100-10",
    "N200-200-10": "gu2014/n200-200-10",
    "AE400-10": "gu2014/ae400-10",
    "ConvNet": "gu2014/convnet",
}
"""The paper's names and ours."""

_BUDGETS: Mapping[Scale, Settings] = {
    "smoke": {"dataset": "digits", "epochs": 6, "n_examples": 60},
    "small": {"dataset": "mnist", "epochs": 8, "train_examples": 12_000, "n_examples": 300},
    "full": {"dataset": "mnist", "epochs": 50},
}
_CONVNET: Mapping[Scale, Settings] = {
    "smoke": {},
    "small": {"epochs": 5, "train_examples": 6_000, "n_examples": 100, "calibration_examples": 64},
    "full": {},
}
"""What is other for the ConvNet, a pass of which costs a hundred of a dense net's."""
_TRAINED: Mapping[Scale, tuple[str, ...]] = {
    "smoke": ("N100-100-10", "N200-200-10", "AE400-10"),
    "small": ("N100-100-10", "N200-200-10", "AE400-10"),
    "full": tuple(NETS),
}
"""The nets that are trained contractively: the search for lambda takes five trainings of each."""

_PLAIN = "weight-decay"
_CONDITIONS = {
    "plain": _PLAIN,
    "GN,L1,sigma=0.1": "gaussian-noise(layers='input')",
    "GN,L*,sigma=0.1": "gaussian-noise(layers='all')",
    "DCN": "deep-contractive",
    "DCN+GN,L1,sigma=0.1": "deep-contractive(noise=0.1)",
}
"""The rows of table 6, and the plain net of table 1."""


def _attacked(scale: Scale, nets: Sequence[str], defenses: Sequence[str], minimum: Sequence[str] = ()) -> Settings:
    """A white-box run of the paper's L-BFGS, its constant searched on held-out images, and of `minimum` beside it."""
    return {
        **_BUDGETS[scale],
        "matrix": ["white-box"],
        "norm": "l2",
        "defense": list(defenses),
        "architecture": [NETS[net] for net in nets],
        "attack": ["lbfgs", *minimum],
    }


def _plain_runs(scale: Scale, nets: Sequence[str], minimum: Sequence[str] = ()) -> dict[str, Settings]:
    """AE400-10 is pre-trained as an autoencoder, the other nets are not."""
    runs: dict[str, Settings] = {}
    for net in nets:
        training = "sparse-pretraining" if net == "AE400-10" else _PLAIN
        own = _CONVNET[scale] if net == "ConvNet" else {}
        runs[net] = {**_attacked(scale, [net], [training], minimum), **own}
    return runs


def _table1_runs(scale: Scale) -> Mapping[str, Settings]:
    return _plain_runs(scale, list(NETS) if scale != "smoke" else _TRAINED[scale], ("ddn(steps=200)", "fmn(steps=200)"))


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
    for net in _found(findings):
        broken = _plain(findings, net, "adversarial_error")
        reached.append(Inequality(f"adversarial error, {net}", broken, above=98.99))
        rows.append(
            (
                net,
                (
                    Pair(table.cell("train_error", net), Ours(_train_error(findings, net))),
                    Pair(table.cell("test_error", net), Ours(_plain(findings, net, "clean_error"))),
                    Pair(table.cell("adv_error", net), Ours(broken)),
                    Pair(table.cell("avg_distortion", net), Ours(_plain(findings, net, "mean_rms"))),
                    Pair(None, Ours(_plain(findings, net, "mean_rms", "ddn"))),
                    Pair(None, Ours(_plain(findings, net, "mean_rms", "fmn"))),
                    Pair(None, Ours(_plain(findings, net, "passes"))),
                ),
            )
        )
    claim = Claim("gu2014.table1", "L-BFGS breaks at least 99% of the test images of every net", tuple(reached))
    return (Comparison(table.caption, columns, tuple(rows), (claim,)),)


def _table5_runs(scale: Scale) -> Mapping[str, Settings]:
    nets = _TRAINED[scale]
    return {**_plain_runs(scale, nets), "DCN": _attacked(scale, nets, ["deep-contractive"])}


def _table5(findings: Findings) -> Sequence[Comparison]:
    table = load("gu2014").tables["gu2014.table5"]
    columns = (("DCN error", "%"), ("DCN distortion", "RMS"), ("original error", "%"), ("original distortion", "RMS"))
    rows, parts = [], []
    for net in _found(findings):
        contracted = {
            figure: tuple(
                float(getattr(findings["DCN"].one(seed=seed, architecture=NETS[net], attack="lbfgs"), figure))
                for seed in findings.seeds
            )
            for figure in ("clean_error", "mean_rms")
        }
        original = {figure: _plain(findings, net, figure) for figure in ("clean_error", "mean_rms")}
        parts += [
            above(f"DCN - original distortion, {net}", contracted["mean_rms"], original["mean_rms"]),
            above(
                f"original error + 0.5 - DCN error, {net}",
                [e + 0.5 for e in original["clean_error"]],
                contracted["clean_error"],
            ),
        ]
        values = (contracted["clean_error"], contracted["mean_rms"], original["clean_error"], original["mean_rms"])
        printed = (
            table.cell(column, net) for column in ("dcn_error", "dcn_adv_distortion", "orig_error", "orig_adv_distortion")
        )
        rows.append((net, tuple(Pair(paper, Ours(ours)) for paper, ours in zip(printed, values, strict=True))))
    claim = Claim(
        "gu2014.claim.headline",
        "for every net the DCN needs a larger distortion, at a clean error at most half a point higher",
        tuple(parts),
    )
    return (Comparison(table.caption, columns, tuple(rows), (claim,)),)


def _table6_runs(scale: Scale) -> Mapping[str, Settings]:
    return {"conditions": _attacked(scale, ["N200-200-10"], list(_CONDITIONS.values()))}


def _table6(findings: Findings) -> Sequence[Comparison]:
    table, plain = load("gu2014").tables["gu2014.table6"], load("gu2014").tables["gu2014.table1"]
    rows, distortion = [], {}
    for condition, label in _CONDITIONS.items():
        cells = [findings["conditions"].one(seed=seed, defense_spec=label, attack="lbfgs") for seed in findings.seeds]
        errors, distortion[condition] = tuple(c.clean_error for c in cells), tuple(c.mean_rms for c in cells)
        if condition == "plain":
            paper = plain.cell("test_error", "N200-200-10"), plain.cell("avg_distortion", "N200-200-10")
        else:
            paper = table.cell("test_error", condition), table.cell("avg_distortion", condition)
        rows.append((condition, (Pair(paper[0], Ours(errors)), Pair(paper[1], Ours(distortion[condition])))))
    order = ("DCN+GN,L1,sigma=0.1", "DCN", "GN,L*,sigma=0.1", "GN,L1,sigma=0.1", "plain")
    claim = Claim(
        "gu2014.claim.gn",
        "distortions fall from DCN+GN over DCN, GN in all layers and GN at the input to plain training",
        tuple(above(f"{more} - {less}", distortion[more], distortion[less]) for more, less in pairwise(order)),
    )
    return (Comparison(table.caption, (("test error", "%"), ("distortion", "RMS")), tuple(rows), (claim,)),)


def _found(findings: Findings) -> list[str]:
    """The paper's nets that the plain runs have, in its order."""
    return [net for net in NETS if net in findings.runs]


def _plain(findings: Findings, net: str, figure: str, attack: str = "lbfgs") -> tuple[float, ...]:
    """A figure of a net's plain training, by seed."""
    return tuple(float(getattr(findings[net].one(seed=seed, attack=attack), figure)) for seed in findings.seeds)


def _train_error(findings: Findings, net: str) -> tuple[float, ...]:
    defense = "sparse-pretraining" if net == "AE400-10" else _PLAIN
    return tuple(findings[net].train_error(seed=seed, defense=defense, architecture=NETS[net]) for seed in findings.seeds)


def _differs(scale: Scale) -> Sequence[str]:
    return (
        {
            "smoke": "digits of 8 x 8 pixels in place of MNIST, 6 epochs, 60 test images, and no ConvNet",
            "small": "8 epochs on 12,000 images, 300 test images are attacked; the ConvNet has 5 epochs on 6,000 images, "
            "100 test images, and no contractive training",
            "full": "optimizer and schedule, which the paper does not print",
        }[scale],
        "the target label is drawn uniformly from the wrong ones, and images that the net gets wrong are not attacked "
        "(the paper prints neither)",
        "one constant c per net, the largest that breaks 99% of held-out validation images",
    )


STUDIES = (
    Study("gu2014.table1", "table 1: the nets and their adversarials", _table1_runs, _table1, _differs),
    Study("gu2014.table5", "table 5: deep contractive networks", _table5_runs, _table5, _differs),
    Study("gu2014.table6", "table 6: contraction and noise on N200-200-10", _table6_runs, _table6, _differs),
)
