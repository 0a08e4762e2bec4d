"""Mosca & Magoulas 2018: the input learning rate, which gradient moves the images, and rivals that move them as far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from advbench.reproduction.findings import Findings, RunFindings
from advbench.reproduction.papers.mosca2018.nets import CONTROL, EPSILONS, SGM, attacked, differs, medians, nets, sgm
from advbench.reproduction.study import Comparison, Pair, Scale, Settings, Study

RATES = (-1.0, -0.2, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Input learning rates of the sweep, of which the paper prints nothing but its choice, 0.2."""
_SWEPT: Mapping[Scale, tuple[float, ...]] = {"smoke": (-0.2, 0.2, 1.0), "small": (-0.2, 0.2, 1.0), "full": RATES}


STRENGTH = 0.0241
"""How far the smooth gradient method moves a training image in the end, root mean square by pixel: MNIST-CNN at small, the
mean of seeds 10 and 11, which no table counts."""
_RIVALS: Sequence[Settings] = (
    {**sgm(), "persistent": False},
    {"name": "gaussian-noise", "sigma": STRENGTH, "weight_decay": 0.0},
    {"name": "robust-linf", "epsilon": STRENGTH},
)
"""Updates that last for one epoch; noise of as great a standard deviation; steps of FGSM as long."""


def _rate_runs(scale: Scale) -> Mapping[str, Settings]:
    """One net without augmentation: the control, the rates, 0.2 on the gradient of the batch's mean loss, and rivals."""
    known = nets(scale)
    chosen = {"smoke": ["MNIST-DNN"], "small": ["MNIST-CNN"], "full": ["MNIST-CNN", "CIFAR-10-CNN"]}[scale]
    defenses = [{"name": CONTROL}, *(sgm(rate) for rate in _SWEPT[scale]), sgm(gradient="batch-mean"), *_RIVALS]
    return {net: {**attacked(known[net], defenses, EPSILONS[2:], "white-box"), "augmentation": "none"} for net in chosen}


def _rates(findings: Findings) -> Sequence[Comparison]:
    return tuple(_rate_table(net, run, findings.seeds) for net, run in findings.runs.items())


def _rate_table(net: str, run: RunFindings, seeds: Sequence[int]) -> Comparison:
    variants = list(dict.fromkeys(cell.record.target["label"] for cell in run.cells))
    found = {
        (variant, epsilon): [run.one(seed=seed, target=variant, epsilon=epsilon) for seed in seeds]
        for variant in variants
        for epsilon in EPSILONS[2:]
    }
    names = {variant: _variant(run.first(target=variant).record.target["defense"]) for variant in variants}
    rows = tuple(
        (
            names[variant],
            (
                Pair(None, medians([cell.clean_accuracy for cell in found[variant, EPSILONS[2]]])),
                *(Pair(None, medians([cell.accuracy for cell in found[variant, epsilon]])) for epsilon in EPSILONS[2:]),
            ),
        )
        for variant in variants
    )
    columns = (("clean", "%"), *((f"own FGSM, ε {epsilon:g}", "%") for epsilon in EPSILONS[2:]))
    return Comparison(f"{net}: input learning rates, which gradient moves the images, and rivals", columns, rows)


def _variant(defense: Mapping[str, object]) -> str:
    arguments = defense["arguments"]
    if defense["name"] == CONTROL or not isinstance(arguments, Mapping):
        return "control"
    if defense["name"] == SGM:
        gradient = "each image's own loss" if arguments["gradient"] == "per-example" else "the batch's mean loss"
        kept = "" if arguments["persistent"] else ", updates of one epoch"
        return f"sgm, rate {arguments['input_lr']:g}, gradient of {gradient}{kept}"
    if "sigma" in arguments:
        return f"Gaussian noise of {arguments['sigma']:g}"
    return f"steps of FGSM of {arguments['epsilon']:g}"


def _differs_rates(scale: Scale) -> Sequence[str]:
    return (*differs(scale)[:2], "the paper prints no numbers for other rates than 0.2, and has no rivals")


STUDIES = (Study("mosca2018.input_lr", "the input learning rate, and rivals", _rate_runs, _rates, _differs_rates),)
