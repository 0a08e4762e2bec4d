"""What the experiments of Roth et al. 2018 (arXiv:1805.08736) share: the nets' trainings, and how they are found again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from advbench.reproduction.findings import Findings, ScoredCell
from advbench.reproduction.measured import SeedFigure
from advbench.reproduction.study import Scale, Settings

COEFFICIENT = 0.3
"""Lambda of the gradient penalties at a unit mean diagonal; the paper prints none."""
RADIUS = 32 / 255
"""The radius of MNIST, at which nets are also trained where an experiment has no radius of its own."""

GRADIENT_METHODS = ("gn", "sgr_grad", "sgr_sign", "fgsm_sgr", "pgd_sgr")
"""The paper's names of the methods that regularise gradients."""

BUDGETS: Mapping[Scale, Settings] = {
    "smoke": {"dataset": "digits", "epochs": 6, "n_examples": 120, "architecture": ["gu2014/n100-100-10"]},
    "small": {
        "dataset": "mnist",
        "epochs": 8,
        "train_examples": 6_000,
        "n_examples": 300,
        "architecture": ["wong2018/small"],
    },
    "full": {"dataset": "mnist", "epochs": 50, "learning_rate": 1e-3, "architecture": ["sgr2018/mnist-cnn"]},
}


def methods(radius: float = RADIUS) -> dict[str, Settings]:
    """The nine trainings by the paper's names; radius: of those that are trained on perturbations."""
    return {
        "clean": {"name": "none"},
        "wdecay": {"name": "weight-decay", "convolutions": True},
        "pgd": {"name": "pgd-augmented", "epsilon": radius},
        "fgsm": {"name": "fgsm-augmented", "epsilon": radius},
        "gn": {"name": "gradient-norm", "coefficient": COEFFICIENT},
        "sgr_grad": {"name": "sgr", "coefficient": COEFFICIENT, "perturbation": "gradient"},
        "sgr_sign": {"name": "sgr", "coefficient": COEFFICIENT, "perturbation": "sign"},
        "fgsm_sgr": {"name": "sgr-fgsm", "coefficient": COEFFICIENT, "epsilon": radius},
        "pgd_sgr": {"name": "sgr-pgd", "coefficient": COEFFICIENT, "epsilon": radius},
    }


def chosen(names: Sequence[str], radius: float = RADIUS) -> dict[str, Settings]:
    """Some of the nine trainings."""
    return {name: methods(radius)[name] for name in names}


def labels(findings: Findings, run: str, trainings: Mapping[str, Settings]) -> dict[str, str]:
    """The targets' labels in the records, by the paper's names, for those that ran."""
    there = {cell.record.target["label"]: cell.record.target["defense"] for cell in findings[run].cells}
    facts = {label: {"name": defense["name"], **defense["arguments"]} for label, defense in there.items()}
    return {
        name: label
        for name, settings in trainings.items()
        for label, found in facts.items()
        if all(found.get(key) == value for key, value in settings.items())
    }


def by_seed(findings: Findings, run: str, figure: Callable[[ScoredCell], float], **facts: object) -> SeedFigure:
    """A figure of the one cell with these facts, for each training seed."""
    return SeedFigure.of(figure(findings[run].one(seed=seed, **facts)) for seed in findings.seeds)


def differs(scale: Scale) -> Sequence[str]:
    """What is other than in the paper."""
    sizes = {
        "smoke": "digits and N100-100-10 in place of MNIST and the paper's net, 6 epochs, 120 test images",
        "small": "wong2018/small in place of the paper's net, whose pass costs 17 times as much; 8 epochs on 6,000 images, "
        "300 test images, no augmentation",
        "full": "no augmentation",
    }
    return (
        sizes[scale],
        f"lambda is {COEFFICIENT} for every gradient penalty at a unit mean diagonal, the paper prints none: the largest of "
        "0.3, 1, 3, 10, 30 that costs GN, SGR and SGR with correlated noise at most 0.5 points of validation images (MNIST, "
        "one seed)",
    )
