"""Mosca & Magoulas 2018 (doi:10.1007/s00500-017-2998-4): the smooth gradient method under FGSM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from advbench.reproduction.findings import Findings, RunFindings
from advbench.reproduction.study import Claim, Comparison, Inequality, Ours, Pair, Scale, Settings, Study
from advbench.results.papers import load

EPSILONS = (0.001, 0.01, 0.1, 0.2)
_CONTROL, _SGM = "none", "smooth-gradient"
_NETS = {"MNIST-DNN": "mosca2018/dnn", "MNIST-CNN": "mosca2018/cnn"}
_STAND_INS = {"MNIST-DNN": "gu2014/n200-200-10"}
_BUDGETS: Mapping[Scale, Settings] = {
    "smoke": {"dataset": "digits", "epochs": 10},
    "small": {"dataset": "mnist", "epochs": 5, "train_examples": 5_000, "n_examples": 1_000, "optimizer": "wame"},
    "full": {"dataset": "mnist", "epochs": 50, "optimizer": "wame", "learning_rate": 1e-3},
}


def _nets(scale: Scale) -> Mapping[str, str]:
    return _STAND_INS if scale == "smoke" else _NETS


def _runs(scale: Scale) -> Mapping[str, Settings]:
    """Own-gradient adversarials in the white-box matrix, the control's in the transfer matrix."""
    common = {
        **_BUDGETS[scale],
        "matrix": ["white-box", "transfer"],
        "defense": [_CONTROL, f"{_SGM}(input_lr=0.2)"],
        "norm": "linf",
        "clip": False,
        "epsilon": list(EPSILONS),
        "attack": ["fgsm"],
    }
    return {
        f"{net}{suffix}": {**common, "architecture": [architecture], "augmentation": augmentation}
        for net, architecture in _nets(scale).items()
        for suffix, augmentation in (("", "none"), ("-AUG", "elastic"))
    }


def _table4(findings: Findings) -> Sequence[Comparison]:
    table = load("mosca2018").tables["mosca2018.table4"]
    clean = {
        setting: {
            variant: tuple(run.all(seed=seed, defense=defense)[0].clean_accuracy for seed in findings.seeds)
            for variant, defense in (("control", _CONTROL), ("sgm", _SGM))
        }
        for setting, run in findings.runs.items()
    }
    rows = tuple(
        (setting, tuple(Pair(table.cell(variant, setting), Ours(values)) for variant, values in by_variant.items()))
        for setting, by_variant in clean.items()
    )
    claim = Claim(
        "mosca2018.claim.clean",
        "clean accuracies of control and SGM are within half a point in every setting",
        tuple(
            Inequality(
                f"0.5 - |sgm - control|, {setting}",
                tuple(0.5 - abs(a - b) for a, b in zip(one["sgm"], one["control"], strict=True)),
            )
            for setting, one in clean.items()
        ),
    )
    return (Comparison(table.caption, (("control", "%"), ("sgm", "%")), rows, (claim,)),)


def _table5(findings: Findings) -> Sequence[Comparison]:
    own = _accuracies(findings, shared=False)
    shared = _accuracies(findings, shared=True)
    return (
        _fgsm_table("on one's own adversarials", own, findings),
        _fgsm_table("on the control's adversarials, one set for both", shared, findings),
    )


Accuracies = Mapping[tuple[str, str, float], tuple[float, ...]]
"""(setting, variant, epsilon) -> accuracy by seed."""


def _accuracies(findings: Findings, *, shared: bool) -> Accuracies:
    return {
        (setting, variant, epsilon): tuple(_accuracy(run, defense, epsilon, seed, shared) for seed in findings.seeds)
        for setting, run in findings.runs.items()
        for variant, defense in (("control", _CONTROL), ("sgm", _SGM))
        for epsilon in EPSILONS
    }


def _accuracy(run: RunFindings, defense: str, epsilon: float, seed: int, shared: bool) -> float:
    if not shared:
        return run.one(seed=seed, defense=defense, epsilon=epsilon, matrix="white-box").accuracy
    control = run.all(seed=seed, defense=_CONTROL, matrix="white-box")[0].record.target["label"]
    return run.one(seed=seed, defense=defense, epsilon=epsilon, matrix="transfer", source=control).accuracy


def _fgsm_table(which: str, found: Accuracies, findings: Findings) -> Comparison:
    table = load("mosca2018").tables["mosca2018.table5"]
    rows = tuple(
        (
            f"{setting}, {variant}",
            tuple(
                Pair(table.cell(f"eps_{epsilon:g}", setting, variant), Ours(found[setting, variant, epsilon]))
                for epsilon in EPSILONS
            ),
        )
        for setting in findings.runs
        for variant in ("control", "sgm")
    )
    strong = [
        Inequality(f"sgm - control, {setting}, ε {epsilon:g}", _gain(found, setting, epsilon), above=4.0)
        for setting in findings.runs
        if setting.endswith("CNN")
        for epsilon in EPSILONS[2:]
    ]
    claim = Claim(
        "mosca2018.claim.strong_cells",
        f"for CNNs without augmentation SGM gains at least 4 points at ε 0.1 and 0.2 ({which})",
        tuple(strong),
        untested="no CNN at this scale",
    )
    columns = tuple((f"ε {epsilon:g}", "%") for epsilon in EPSILONS)
    return Comparison(f"{table.caption} Here {which}.", columns, rows, (claim,), (_wilcoxon(which, found, findings),))


def _gain(found: Accuracies, setting: str, epsilon: float) -> tuple[float, ...]:
    pairs = zip(found[setting, "sgm", epsilon], found[setting, "control", epsilon], strict=True)
    return tuple(a - b for a, b in pairs)


def _wilcoxon(which: str, found: Accuracies, findings: Findings) -> str:
    """The paper's statistic over the pairs of medians."""
    gains = [
        float(np.median(found[setting, "sgm", epsilon]) - np.median(found[setting, "control", epsilon]))
        for setting in findings.runs
        for epsilon in EPSILONS
    ]
    if not any(gains):
        return f"{which}: all {len(gains)} pairs of medians are equal, which leaves Wilcoxon's test nothing to rank"
    p = float(stats.wilcoxon(gains, alternative="greater").pvalue)
    wins, losses = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    return (
        f"{which}: Wilcoxon's signed-rank test, the paper's statistic, over {len(gains)} pairs of medians: one-sided "
        f"p = {p:.3g}, {wins} gains and {losses} losses (paper: p = 0.0036 over 32 pairs). Cells of one net are not "
        "independent, so it overstates what is known"
    )


def _differs(scale: Scale) -> Sequence[str]:
    sizes = {
        "smoke": "digits and N200-200-10 in place of MNIST and the paper's nets, 10 epochs of Adam",
        "small": "5 epochs of WAME on 5,000 images, 1,000 test images; MNIST only",
        "full": "MNIST only",
    }
    return (
        sizes[scale],
        "means over seeds are shown, the paper shows medians of five runs",
        "every image's own gradient moves it (the text leaves open whether it is the batch's mean)",
    )


STUDIES = (
    Study("mosca2018.table4", "table 4: clean accuracy", _runs, _table4, _differs),
    Study("mosca2018.table5", "table 5: accuracy under FGSM", _runs, _table5, _differs),
)
