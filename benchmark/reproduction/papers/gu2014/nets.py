"""What the experiments of Gu & Rigazio 2014 (arXiv:1412.5068) share: the nets, their trainings and the attack on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from advbench.reproduction.clean import clean_by_seed
from advbench.reproduction.findings import Findings, RunFindings, ScoredCell
from advbench.reproduction.measured import SeedFigure
from advbench.reproduction.study import Scale, Settings

NETS = {
    "N100-100-10": "gu2014/n100-100-10",
    "N200-200-10": "gu2014/n200-200-10",
    "AE400-10": "gu2014/ae400-10",
    "ConvNet": "gu2014/convnet",
}
"""The paper's names and ours."""

BUDGETS: Mapping[Scale, Settings] = {
    "smoke": {"dataset": "digits", "epochs": 4, "n_examples": 40, "calibration_examples": 15},
    "small": {"dataset": "mnist", "epochs": 8, "train_examples": 12_000, "n_examples": 300},
    "full": {"dataset": "mnist", "epochs": 50},
}
CONVNET: Mapping[Scale, Settings] = {
    "smoke": {},
    "small": {"epochs": 5, "train_examples": 6_000, "n_examples": 100, "calibration_examples": 64},
    "full": {},
}
"""What is other for the ConvNet, a pass of which costs a hundred of a dense net's."""
TRAINED: Mapping[Scale, tuple[str, ...]] = {
    "smoke": ("N100-100-10", "N200-200-10"),
    "small": ("N100-100-10", "N200-200-10", "AE400-10"),
    "full": tuple(NETS),
}
"""The nets that are trained contractively: the search for lambda takes five trainings of each."""

_LBFGS: Mapping[Scale, str] = {"smoke": "lbfgs(steps=10)", "small": "lbfgs", "full": "lbfgs"}

PLAIN = "weight-decay"
"""How the nets are trained that are not pre-trained."""


def attacked(scale: Scale, nets: Sequence[str], defenses: Sequence[str], minimum: Sequence[str] = ()) -> Settings:
    """A white-box run of the paper's L-BFGS, its constant searched on held-out images, and of `minimum` beside it."""
    return {
        **BUDGETS[scale],
        "matrix": ["white-box"],
        "norm": "l2",
        "defense": list(defenses),
        "architecture": [NETS[net] for net in nets],
        "attack": [_LBFGS[scale], *minimum],
    }


def training_of(net: str) -> str:
    """How a net is trained that nothing is done to: AE400-10 is pre-trained as an autoencoder, the others are not."""
    return "sparse-pretraining" if net == "AE400-10" else PLAIN


def plain_runs(scale: Scale, nets: Sequence[str], minimum: Sequence[str] = ()) -> dict[str, Settings]:
    """A run of each net that nothing is done to."""
    runs: dict[str, Settings] = {}
    for net in nets:
        training = training_of(net)
        own = CONVNET[scale] if net == "ConvNet" else {}
        runs[net] = {**attacked(scale, [net], [training], minimum), **own}
    return runs


def found(findings: Findings) -> list[str]:
    """The paper's nets that the plain runs have, in its order."""
    return [net for net in NETS if net in findings.runs]


def plain(findings: Findings, net: str, figure: str, attack: str = "lbfgs") -> SeedFigure:
    """A figure of a net's plain training, by seed."""
    run = findings[net]
    return figure_of(run, [run.one(seed=seed, attack=attack) for seed in findings.seeds], figure)


def figure_of(run: RunFindings, cells: Sequence[ScoredCell], figure: str) -> SeedFigure:
    """A figure of one cell per seed by its name; clean errors are those on all test images."""
    if figure == "clean_error":
        return 100.0 - clean_by_seed(run, cells)
    return SeedFigure.of(getattr(cell, figure) for cell in cells)
