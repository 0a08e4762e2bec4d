"""Gu & Rigazio 2014 (arXiv:1412.5068): how far the nearest adversarial is, and what contraction changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from advbench.reproduction.findings import Findings, RunFindings
from advbench.reproduction.study import Comparison, Ours, Pair, Scale, Settings, Study
from advbench.results.papers import load

NETS = {"N100-100-10": "gu2014/n100-100-10", "N200-200-10": "gu2014/n200-200-10", "ConvNet": "gu2014/convnet"}
"""The paper's names and ours."""

_BUDGETS: Mapping[Scale, Settings] = {
    "smoke": {"dataset": "digits", "n_examples": 100, "epochs": 6},
    "small": {"dataset": "mnist", "n_examples": 500, "epochs": 10},
    "full": {"dataset": "mnist", "epochs": 50},
}
_MINIMUM = ("ddn(steps=200)", "fmn(steps=200)")


def _attacked(scale: Scale, **own: object) -> Settings:
    """A white-box run of the papers' L-BFGS, its constant searched on held-out images, and of the strongest beside it."""
    return {
        **_BUDGETS[scale],
        "matrix": ["white-box"],
        "norm": "l2",
        "attack": ["lbfgs", *_MINIMUM],
        **own,
    }


def _table1_runs(scale: Scale) -> Mapping[str, Settings]:
    return {"originals": _attacked(scale, defense=["weight-decay"], architecture=list(NETS.values()))}


def _table1(findings: Findings) -> Sequence[Comparison]:
    table, run = load("gu2014").tables["gu2014.table1"], findings["originals"]
    columns = (
        ("train error", "%"),
        ("test error", "%"),
        ("adversarial error, L-BFGS", "%"),
        ("distortion, L-BFGS", "RMS"),
        ("distortion, DDN", "RMS"),
        ("distortion, FMN", "RMS"),
        ("passes per image, L-BFGS", "forwards + backwards"),
    )
    rows = []
    for net, architecture in NETS.items():
        which = {"defense": "weight-decay", "architecture": architecture}
        train = Ours(tuple(run.train_error(seed=seed, **which) for seed in findings.seeds))
        rows.append(
            (
                net,
                (
                    Pair(table.cell("train_error", net), train),
                    Pair(table.cell("test_error", net), _each(findings, run, which, "clean_error")),
                    Pair(table.cell("adv_error", net), _each(findings, run, which, "adversarial_error")),
                    Pair(table.cell("avg_distortion", net), _each(findings, run, which, "mean_rms")),
                    Pair(None, _each(findings, run, which, "mean_rms", attack="ddn")),
                    Pair(None, _each(findings, run, which, "mean_rms", attack="fmn")),
                    Pair(None, _each(findings, run, which, "passes")),
                ),
            )
        )
    return (Comparison(table.caption, columns, tuple(rows)),)


def _each(findings: Findings, run: RunFindings, which: Mapping[str, str], figure: str, attack: str = "lbfgs") -> Ours:
    """A figure of the white-box cells, by seed."""
    return Ours(tuple(float(getattr(run.one(seed=seed, attack=attack, **which), figure)) for seed in findings.seeds))


def _differs(scale: Scale) -> Sequence[str]:
    return (
        {
            "smoke": "digits of 8 x 8 pixels in place of MNIST, 150 test images",
            "small": "10 epochs, and 500 test images are attacked",
            "full": "nothing in data and images; optimizer and schedule are not printed in the paper",
        }[scale],
        "the target label is drawn uniformly from the wrong ones, and images that the net gets wrong are not attacked "
        "(the paper prints neither)",
        "one constant c per net, the largest that breaks 99% of held-out validation images",
    )


STUDIES = (Study("gu2014.table1", "table 1: the nets and their adversarials", _table1_runs, _table1, _differs),)
