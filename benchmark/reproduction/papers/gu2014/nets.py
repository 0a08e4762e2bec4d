"""What the experiments of Gu & Rigazio 2014 (arXiv:1412.5068) share: the nets, their trainings and the attack on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from advbench.registry.specs import Spec
from advbench.reproduction.clean import clean_by_seed
from advbench.reproduction.findings import Findings, RunFindings, ScoredCell
from advbench.reproduction.measured import SeedFigure
from advbench.reproduction.study import FIRST_SEEDS, Scale, Settings

NETS = {
    "N100-100-10": "gu2014/n100-100-10",
    "N200-200-10": "gu2014/n200-200-10",
    "AE400-10": "gu2014/ae400-10",
    "ConvNet": "gu2014/convnet",
}
"""The paper's names and ours."""

MORE_SEEDS: Mapping[Scale, int] = {"small": 2, "medium": 2}
"""The training seeds of tables 1, 5 and 6 beside those that are asked for."""

BUDGETS: Mapping[Scale, Settings] = {
    "smoke": {"dataset": "digits", "epochs": 4, "n_examples": 40, "calibration_examples": 15},
    "small": {"dataset": "mnist", "epochs": 5, "n_examples": 1000},
    "medium": {"dataset": "mnist", "epochs": 20, "n_examples": 1000},
    "full": {"dataset": "mnist", "epochs": 50},
}
_OWN: Mapping[tuple[Scale, str], Settings] = {
    ("small", "AE400-10"): {FIRST_SEEDS: 3},
    ("small", "ConvNet"): {
        "epochs": 5,
        "train_examples": 6_000,
        "n_examples": 100,
        "calibration_examples": 64,
        FIRST_SEEDS: 3,
    },
    ("medium", "AE400-10"): {FIRST_SEEDS: 3},
    ("medium", "ConvNet"): {"epochs": 8, "n_examples": 300, FIRST_SEEDS: 3},
}
"""What is other for a net: a pass of the ConvNet costs a hundred of a dense net's."""

LEAST_SEEDS = 3
"""The training seeds of studies that need no more for a verdict."""

_LBFGS: Mapping[Scale, str] = {
    "smoke": "lbfgs(steps=10)",
    "small": "lbfgs(rate=0.995)",
    "medium": "lbfgs(rate=0.995)",
    "full": "lbfgs(rate=0.995)",
}
"""The constant is searched at half of the bar that it is judged at: 1% of the images unbroken."""

PLAIN = "weight-decay"
"""How the nets are trained that are not pre-trained."""


def shown(scale: Scale) -> tuple[str, ...]:
    """The nets of a scale."""
    return ("N100-100-10", "N200-200-10") if scale == "smoke" else tuple(NETS)


def own(scale: Scale, net: str) -> Settings:
    """What a net's runs have at a scale."""
    return {**BUDGETS[scale], **_OWN.get((scale, net), {})}


def attacked(scale: Scale, net: str, defenses: Sequence[str], minimum: Sequence[str] = ()) -> Settings:
    """A white-box run of the paper's L-BFGS, its constant searched on held-out images, and of `minimum` beside it."""
    return {
        **own(scale, net),
        "matrix": ["white-box"],
        "norm": "l2",
        "defense": list(defenses),
        "architecture": [NETS[net]],
        "attack": [_LBFGS[scale], *minimum],
    }


def training_of(net: str) -> str:
    """How a net is trained that nothing is done to: AE400-10 is pre-trained as an autoencoder, the others are not."""
    return "sparse-pretraining" if net == "AE400-10" else PLAIN


def nearest(scale: Scale, net: str) -> tuple[str, ...]:
    """The minimal-norm attacks beside L-BFGS on a bare net; one where a pass is dear."""
    if (scale, net) == ("small", "ConvNet"):
        return ("ddn(steps=100)",)
    steps = 40 if scale == "smoke" else 200
    return (f"ddn(steps={steps})", f"fmn(steps={steps})")


def plain_runs(scale: Scale, nets: Sequence[str], minimum: bool = False) -> dict[str, Settings]:
    """A run of each net that nothing is done to. minimum: whether by the minimal-norm attacks too."""
    return {net: attacked(scale, net, [training_of(net)], nearest(scale, net) if minimum else ()) for net in nets}


def few_seeds(scale: Scale, runs: Mapping[str, Settings]) -> dict[str, Settings]:
    """The runs with no more training seeds than a verdict needs; at the full scale with all."""
    return {name: run if scale == "full" else {**run, FIRST_SEEDS: LEAST_SEEDS} for name, run in runs.items()}


def found(findings: Findings) -> list[str]:
    """The paper's nets that the plain runs have, in its order."""
    return [net for net in NETS if net in findings.runs]


def seeds_of(run: RunFindings) -> tuple[int, ...]:
    """The training seeds of a run."""
    return tuple(run.plan.config.seed)


def plain(findings: Findings, net: str, figure: str, attack: str = "lbfgs") -> SeedFigure:
    """A figure of a net's plain training, by seed."""
    return by_seed(findings[net], Spec.parse(training_of(net)), figure, attack)


def by_seed(run: RunFindings, training: Spec, figure: str, attack: str = "lbfgs") -> SeedFigure:
    """A figure of a training, which may be named by some arguments, for each seed of a run."""
    return figure_of(run, [cell_of(run, training, seed, attack) for seed in seeds_of(run)], figure)


def cell_of(run: RunFindings, training: Spec, seed: int, attack: str = "lbfgs") -> ScoredCell:
    """The white-box cell of a defense, which may be named by some arguments, under an attack. ValueError for none."""
    for cell in run.all(seed=seed, matrix="white-box", defense=training.name, attack=attack):
        arguments = cell.record.target["defense"]["arguments"]
        if all(arguments[name] == value for name, value in training.arguments):
            return cell
    raise ValueError(f"Expected a cell of {training} under {attack} with seed={seed}; got none")


def ran(run: RunFindings, attack: str) -> bool:
    """Whether a run has cells of an attack."""
    return bool(run.all(attack=attack))


def figure_of(run: RunFindings, cells: Sequence[ScoredCell], figure: str) -> SeedFigure:
    """A figure of one cell per seed by its name; clean errors are those on all test images."""
    if figure == "clean_error":
        return 100.0 - clean_by_seed(run, cells)
    return SeedFigure.of(getattr(cell, figure) for cell in cells)
