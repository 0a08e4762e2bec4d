"""Mosca & Magoulas 2018, tables 4 and 5: clean accuracy, and accuracy under FGSM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
from scipy import stats

from advbench.reproduction.clean import clean_by_seed
from advbench.reproduction.findings import Findings, RunFindings
from advbench.reproduction.measured import SeedFigure, mean_of
from advbench.reproduction.papers.mosca2018.nets import CONTROL, EPSILONS, VARIANTS, differs, medians, runs
from advbench.reproduction.study import Claim, Comparison, Inequality, Pair, Study, claim_of, within
from advbench.results.papers import load


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
    return (
        _fgsm_table("on one's own adversarials", own, findings),
        _fgsm_table("on the control's adversarials, one set for both", shared, findings),
    )


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


def _fgsm_table(which: str, found: Accuracies, findings: Findings) -> Comparison:
    table = load("mosca2018").tables["mosca2018.table5"]
    rows = tuple(
        (
            f"{setting}, {variant}",
            tuple(
                Pair(table.cell(f"eps_{epsilon:g}", _row(setting), variant), medians(found[setting, variant, epsilon]))
                for epsilon in EPSILONS
            ),
        )
        for setting in findings.runs
        for variant in ("control", "sgm")
    )
    columns = tuple((f"ε {epsilon:g}", "%") for epsilon in EPSILONS)
    claims = _fgsm_claims(which, found, findings)
    gains = [
        float(np.median(found[setting, "sgm", epsilon]) - np.median(found[setting, "control", epsilon]))
        for setting in findings.runs
        for epsilon in EPSILONS
    ]
    note = _statistic(which, gains, "greater", "p = 0.0036 over 32 pairs")
    return Comparison(f"{table.caption} Here {which}.", columns, rows, claims, (note,))


def _row(setting: str) -> str:
    """Table 5 calls the CIFAR settings by other names than table 4."""
    return setting.replace("-CNN", "") if setting.startswith("CIFAR") else setting


def _fgsm_claims(which: str, found: Accuracies, findings: Findings) -> tuple[Claim, ...]:
    settings = list(findings.runs)
    cells = [(setting, epsilon) for setting in settings for epsilon in EPSILONS]
    gains = mean_of(_gain(found, *cell) for cell in cells)
    strong = [setting for setting in settings if setting.endswith("CNN")]
    weak = [setting for setting in settings if "DNN" in setting or (setting.startswith("CIFAR") and "AUG" in setting)]
    return (
        claim_of(
            "mosca2018.claim.headline",
            (Inequality(f"sgm - control, mean of {len(cells)} cells", gains),),
            where=which,
        ),
        claim_of(
            "mosca2018.claim.strong_cells",
            (
                Inequality(f"sgm - control, {setting}, ε {epsilon:g}", _gain(found, setting, epsilon), 4.0)
                for setting in strong
                for epsilon in EPSILONS[2:]
            ),
            where=which,
            untested="no CNN at this scale",
        ),
        claim_of(
            "mosca2018.claim.weak_cells",
            (
                Inequality(f"sgm - control, {setting}, ε {epsilon:g}", _gain(found, setting, epsilon), 1.0, "within")
                for setting in weak
                for epsilon in EPSILONS[2:]
            ),
            where=which,
        ),
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
    Study("mosca2018.table4", "table 4: clean accuracy", runs, _table4, differs),
    Study("mosca2018.table5", "table 5: accuracy under FGSM", runs, _table5, differs),
)
