"""Whether a claim of a paper holds, fails, or is undecided, over training seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from advbench.reproduction.study import Claim, Inequality

Verdict = Literal["holds", "fails", "undecided"]

SEEDS_NEEDED = 3
"""Fewer training seeds decide nothing."""


@dataclass(frozen=True, slots=True)
class Judged:
    """An inequality with its verdict: the mean difference and its 95% interval over training seeds."""

    part: Inequality
    verdict: Verdict
    mean: float
    low: float
    high: float


def interval(values: tuple[float, ...]) -> tuple[float, float, float]:
    """The mean and Student's 95% interval of it over independent `values`; unbounded for fewer than two."""
    mean = float(np.mean(values)) if values else math.nan
    if len(values) < 2 or not np.isfinite(values).all():
        return mean, -math.inf, math.inf
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def judge(part: Inequality) -> Judged:
    """Holds where the whole interval lies above the threshold, fails where it lies at or below, is undecided otherwise."""
    mean, low, high = interval(part.differences)
    if len(part.differences) < SEEDS_NEEDED:
        verdict: Verdict = "undecided"
    else:
        verdict = "holds" if low > part.above else "fails" if high <= part.above else "undecided"
    return Judged(part, verdict, mean, low, high)


def verdict(claim: Claim) -> Verdict:
    """Holds where every part holds, fails where some part fails, is undecided otherwise and where nothing was tested."""
    verdicts = [judge(part).verdict for part in claim.parts]
    if "fails" in verdicts:
        return "fails"
    return "holds" if verdicts and all(each == "holds" for each in verdicts) else "undecided"
