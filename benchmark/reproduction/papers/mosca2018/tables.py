"""Mosca & Magoulas 2018, tables 4 and 5: clean accuracy, and accuracy under FGSM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Literal, TypeAlias

import numpy as np
from scipy import stats

from advbench.reproduction.clean import clean_by_seed
from advbench.reproduction.findings import Findings, RunFindings
from advbench.reproduction.measured import SeedFigure, mean_of
from advbench.reproduction.papers.mosca2018.nets import (
    CONTROL,
    EPSILONS,
    LEARNED,
    MORE_SEEDS,
    VARIANTS,
    differs,
    medians,
    runs,
)
from advbench.reproduction.study import Claim, Comparison, Inequality, Pair, Study, Withheld, claim_of, within
from advbench.reproduction.training_mode import accuracies
from advbench.results.papers import load
from advbench.results.significance import cluster_sign_flip

_LEVEL = 0.005
"""Of the paper's test."""


def _table4(findings: Findings) -> Sequence[Comparison]:
    table = load("mosca2018").tables["mosca2018.table4"]
    clean = {
        setting: {
            variant: clean_by_seed(run, [run.first(seed=seed, defense=defense) for seed in findings.seeds])
            for variant, defense in VARIANTS.items()
        }
        for setting, run in findings.runs.items()
    }
    rows = tuple(
        (setting, tuple(Pair(table.cell(variant, setting), medians(values)) for variant, values in by_variant.items()))
        for setting, by_variant in clean.items()
    )
    claim = claim_of(
        "mosca2018.claim.clean",
        (within(f"sgm - control, {setting}", one["sgm"], one["control"], 0.5) for setting, one in clean.items()),
    )
    gaps = [float(np.median(one["sgm"]) - np.median(one["control"])) for one in clean.values()]
    note = _statistic("clean accuracy", gaps, "two-sided", "p = 0.23 over 8 pairs")
    return (Comparison(table.caption, (("control", "%"), ("sgm", "%")), rows, (claim,), (note,)),)


def _table5(findings: Findings) -> Sequence[Comparison]:
    own = _accuracies(findings, shared=False)
    shared = _accuracies(findings, shared=True)
    learned = _learned(findings)
    return (
        _training_mode(findings, own),
        _fgsm_table("on one's own adversarials", own, learned),
        _fgsm_table("on the control's adversarials, one set for both", shared, learned),
    )


def _learned(findings: Findings) -> dict[str, float]:
    """The clean accuracy of each setting's control, in percent, the mean over seeds."""
    return {
        setting: fmean(clean_by_seed(run, [run.first(seed=seed, defense=CONTROL) for seed in findings.seeds]))
        for setting, run in findings.runs.items()
    }


def _training_mode(findings: Findings, own: Accuracies) -> Comparison:
    """What the paper's table rests on: the gradient in training mode, as in the authors' scripts, or in evaluation mode."""
    table = load("mosca2018").tables["mosca2018.table5"]
    rows, left = list[tuple[str, tuple[Pair, ...]]](), dict[str, tuple[float, float]]()
    for setting, run in findings.runs.items():
        for variant, defense in VARIANTS.items():
            cells = [run.one(seed=seed, defense=defense, epsilon=EPSILONS[0], matrix="white-box") for seed in findings.seeds]
            found = [SeedFigure.of(each) for each in zip(*(accuracies(run, cell, EPSILONS) for cell in cells), strict=True)]
            pairs = [
                Pair(table.cell(f"eps_{epsilon:g}", _row(setting), variant), medians(figure))
                for epsilon, figure in zip(EPSILONS, found, strict=True)
            ]
            rows.append((f"{setting}, {variant}", (*pairs, Pair(None, medians(own[setting, variant, EPSILONS[2]])))))
            if variant == "control":
                left[setting] = fmean(own[setting, variant, EPSILONS[2]]), fmean(found[2])
    columns = (*((f"ε {epsilon:g}, training mode", "%") for epsilon in EPSILONS), ("ε 0.1, evaluation mode", "%"))
    said = "; ".join(f"{setting} {at:.1f} and {training:.1f}" for setting, (at, training) in left.items())
    note = (
        "the authors' script takes the gradient of FGSM with the training flag on: dropout drawn, batch norm by the batch. "
        "That is an attack on another network than the scored one, and a weaker one. The control's accuracy at ε 0.1 "
        f"with the gradient in evaluation mode and in training mode: {said}. Claims are judged in evaluation mode"
    )
    caption = f"{table.caption} Here with the gradient in training mode, on one's own adversarials."
    return Comparison(caption, columns, tuple(rows), notes=(note,))


Accuracies = Mapping[tuple[str, str, float], SeedFigure]
"""(setting, variant, epsilon) -> accuracy by seed."""


def _accuracies(findings: Findings, *, shared: bool) -> Accuracies:
    return {
        (setting, variant, epsilon): SeedFigure.of(_accuracy(run, defense, epsilon, seed, shared) for seed in findings.seeds)
        for setting, run in findings.runs.items()
        for variant, defense in VARIANTS.items()
        for epsilon in EPSILONS
    }


def _accuracy(run: RunFindings, defense: str, epsilon: float, seed: int, shared: bool) -> float:
    if not shared:
        return run.one(seed=seed, defense=defense, epsilon=epsilon, matrix="white-box").accuracy
    control = run.first(seed=seed, defense=CONTROL, matrix="white-box").record.target["label"]
    return run.one(seed=seed, defense=defense, epsilon=epsilon, matrix="transfer", source=control).accuracy


def _fgsm_table(which: str, found: Accuracies, learned: Mapping[str, float]) -> Comparison:
    table = load("mosca2018").tables["mosca2018.table5"]
    rows = tuple(
        (
            f"{setting}, {variant}",
            tuple(
                Pair(table.cell(f"eps_{epsilon:g}", _row(setting), variant), medians(found[setting, variant, epsilon]))
                for epsilon in EPSILONS
            ),
        )
        for setting in learned
        for variant in ("control", "sgm")
    )
    columns = tuple((f"ε {epsilon:g}", "%") for epsilon in EPSILONS)
    gains = {
        setting: [
            float(np.median(found[setting, "sgm", each]) - np.median(found[setting, "control", each])) for each in EPSILONS
        ]
        for setting in learned
    }
    notes = [_statistic(which, [one for each in gains.values() for one in each], "greater", "p = 0.0036 over 32 pairs")]
    floors = [f"{setting} {clean:.1f}" for setting, clean in learned.items() if clean <= LEARNED]
    if floors:
        notes.append(f"controls at or below {LEARNED:g}% clean, of which no claim is drawn: {', '.join(floors)}")
    claims = _fgsm_claims(which, found, [setting for setting, clean in learned.items() if clean > LEARNED])
    return Comparison(f"{table.caption} Here {which}.", columns, rows, claims, tuple(notes))


def _row(setting: str) -> str:
    """Table 5 calls the CIFAR settings by other names than table 4."""
    return setting.replace("-CNN", "") if setting.startswith("CIFAR") else setting


def _fgsm_claims(which: str, found: Accuracies, settings: Sequence[str]) -> tuple[Claim, ...]:
    """settings: those whose control has learned enough."""
    strong = [setting for setting in settings if setting.endswith("CNN")]
    weak = [setting for setting in settings if "DNN" in setting or (setting.startswith("CIFAR") and "AUG" in setting)]
    return (
        _headline(which, found, settings),
        claim_of(
            "mosca2018.claim.strong_cells",
            (
                Inequality(f"sgm - control, {setting}, ε {epsilon:g}", _gain(found, setting, epsilon), 4.0)
                for setting in strong
                for epsilon in EPSILONS[2:]
            ),
            where=which,
            untested=f"no CNN above {LEARNED:g}% clean at this scale",
        ),
        claim_of(
            "mosca2018.claim.weak_cells",
            (
                Inequality(f"sgm - control, {setting}, ε {epsilon:g}", _gain(found, setting, epsilon), 1.0, "within")
                for setting in weak
                for epsilon in EPSILONS[2:]
            ),
            where=which,
            untested=f"neither a DNN above {LEARNED:g}% clean nor CIFAR with augmentation at this scale",
        ),
    )


def _headline(which: str, found: Accuracies, settings: Sequence[str]) -> Claim:
    """The mean gain, and the paper's level by a test that knows that the cells of a setting depend on each other."""
    untested = f"no control above {LEARNED:g}% clean at this scale"
    if not settings:
        return claim_of("mosca2018.claim.headline", (), where=which, untested=untested)
    by_setting = [mean_of(_gain(found, setting, epsilon) for epsilon in EPSILONS) for setting in settings]
    text = f"sgm - control, mean of {len(settings) * len(EPSILONS)} cells"
    return claim_of(
        "mosca2018.claim.headline",
        (Inequality(text, mean_of(by_setting)),),
        where=which,
        withheld=_by_clusters([fmean(gain) for gain in by_setting]),
    )


def _by_clusters(gains: Sequence[float]) -> Withheld | None:
    """The paper's level of 0.005, one-sided, with each net, data set and augmentation as one cluster; None if it is reached.

    gains: the mean gain of each cluster over its epsilons, seeds and images.
    """
    p, least = cluster_sign_flip(gains), 0.5 ** len(gains)
    if p < _LEVEL:
        return None
    told = f"the permutation test that flips the signs of {len(gains)} clusters (net, data, augmentation) gives p = {p:.3g}"
    if least < _LEVEL:
        return Withheld("undecided", f"{told}, where the paper's level is {_LEVEL:g}")
    reason = f"{told}, no test of so few can be below {least:.3g}, and the paper's level is {_LEVEL:g}"
    return Withheld(
        "not decidable here", f"{reason}; the eight settings would decide (advbench reproduce mosca2018 --scale full)"
    )


def _gain(found: Accuracies, setting: str, epsilon: float) -> SeedFigure:
    return found[setting, "sgm", epsilon] - found[setting, "control", epsilon]


Alternative: TypeAlias = Literal["two-sided", "greater"]


def _statistic(what: str, gains: Sequence[float], alternative: Alternative, printed: str) -> str:
    """Wilcoxon's signed-rank test over pairs of medians, which the paper decides by; our verdicts stand on seeds."""
    if not any(gains):
        return f"{what}: all {len(gains)} pairs of medians are equal, which leaves Wilcoxon's test nothing to rank"
    p = float(stats.wilcoxon(gains, alternative=alternative).pvalue)
    wins, losses = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    sided = "one-sided" if alternative == "greater" else alternative
    return (
        f"{what}: Wilcoxon's signed-rank test, the paper's statistic, over {len(gains)} pairs of medians: {sided} "
        f"p = {p:.3g}, {wins} gains and {losses} losses (paper: {printed}). Cells of one net are not independent, so it "
        "overstates what is known"
    )


STUDIES = (
    Study("mosca2018.table4", "table 4: clean accuracy", runs, _table4, differs, more_seeds=MORE_SEEDS),
    Study("mosca2018.table5", "table 5: accuracy under FGSM", runs, _table5, differs, more_seeds=MORE_SEEDS),
)
