"""Whether a claim of a paper holds, fails, or is undecided, over training seeds and test images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from advbench.reproduction.measured import measured
from advbench.reproduction.study import Claim, Inequality, Scale
from advbench.results.crossed import CrossedMean
from advbench.results.power import LEAST, PowerCalculation, calculations
from advbench.results.significance import holm

Verdict = Literal["holds", "fails", "undecided", "not decidable here", "not tested"]

SEEDS_NEEDED = 3
"""Fewer training seeds decide nothing."""
ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class Judged:
    """An inequality with its verdict.

    mean, low, high: the mean difference and its 95% interval over training seeds and test images. p_holds, p_fails:
    one-sided p-values of the inequality, and of its opposite. crossed: the parts of the variance.
    """

    part: Inequality
    verdict: Verdict
    mean: float
    low: float
    high: float
    p_holds: float
    p_fails: float
    crossed: CrossedMean


@dataclass(frozen=True, slots=True)
class ClaimVerdict:
    """A claim with its verdicts at a scale.

    printed, attributable: by the paper's recipe on each side, and by one recipe on both; the latter None if that was not
    tested. corrected: the printed one under Holm's correction over the claims of the paper that were tested together. power:
    the calculation by which it was not decidable.
    """

    claim: Claim
    scale: Scale
    printed: Verdict
    attributable: Verdict | None
    corrected: Verdict
    power: PowerCalculation | None = None

    @property
    def text(self) -> str:
        """The printed verdict, and beside it the attributable one, with their scale."""
        if self.attributable is None:
            return said(self.printed, self.scale)
        return f"as printed: {said(self.printed, self.scale)}; attributable: {said(self.attributable, self.scale)}"


def said(verdict: Verdict, scale: Scale) -> str:
    """A verdict with its scale: only the full recipe can speak of the paper without it."""
    return verdict if scale == "full" or verdict == "not tested" else f"{verdict} ({scale})"


def judge(part: Inequality) -> Judged:
    """Holds where the whole interval lies on the right side of the bound, fails where it lies on the wrong one.

    A difference within a margin is tested from both sides, and holds where the interval lies inside the margin.
    """
    found = measured(part.differences).crossed()
    estimate = found.interval()
    low, high, bound = estimate.low, estimate.high, part.bound
    above, below = found.p_above(bound), found.p_below(bound)
    if part.relation == "above":
        holds, fails, p_holds, p_fails = low > bound, high <= bound, above, below
    elif part.relation == "at most":
        holds, fails, p_holds, p_fails = high <= bound, low > bound, below, above
    else:
        holds, fails = -bound < low and high < bound, low >= bound or high <= -bound
        p_holds, p_fails = max(below, found.p_above(-bound)), min(above, found.p_below(-bound))
    known = len(part.differences) >= SEEDS_NEEDED
    verdict: Verdict = "undecided" if not known or holds == fails else "holds" if holds else "fails"
    return Judged(part, verdict, estimate.value, low, high, p_holds, p_fails, found)


def verdict_of(parts: Sequence[Inequality]) -> Verdict:
    """Holds where every part holds, fails where some part fails, is undecided otherwise; not tested without parts."""
    verdicts = {judge(part).verdict for part in parts}
    if not verdicts:
        return "not tested"
    return "fails" if "fails" in verdicts else "holds" if verdicts == {"holds"} else "undecided"


def verdict(claim: Claim) -> Verdict:
    """The verdict as printed, of this claim alone."""
    return verdict_of(claim.parts)


def judge_claims(
    claims: Sequence[Claim],
    scale: Scale,
    seeds: Sequence[int] = (),
    powers: Iterable[PowerCalculation] | None = None,
) -> list[ClaimVerdict]:
    """The verdicts of all claims, Holm's correction running over those of each paper.

    seeds: those that are judged; a power calculation whose pilot had one of them does not count. powers: the committed ones
    by default.
    """
    corrected = _corrected(claims)
    known = {(each.claim, each.scale): each for each in (calculations() if powers is None else powers)}
    found = []
    for claim, after in zip(claims, corrected, strict=True):
        plain, power = verdict(claim), known.get((claim.id, scale))
        if plain != "undecided" or power is None or power.power >= LEAST or not power.speaks_of(seeds):
            power = None
        weaker = _weaker(claim, power)
        attributable = verdict_of(claim.attributable) if claim.attributable else None
        found.append(ClaimVerdict(claim, scale, weaker.get(plain, plain), attributable, weaker.get(after, after), power))
    return found


def _weaker(claim: Claim, power: PowerCalculation | None) -> Mapping[Verdict, Verdict]:
    """What is said in place of some verdicts."""
    if claim.withheld is not None:
        return {"holds": claim.withheld.verdict, "undecided": claim.withheld.verdict}
    return {"undecided": "not decidable here"} if power else {}


def _corrected(claims: Sequence[Claim]) -> list[Verdict]:
    """The verdicts as printed that are left by Holm's correction at 5% over the tested claims of each paper.

    A claim's test is two-sided, for it may hold or fail; it holds if all parts do (the largest p-value), and fails if one
    does (the smallest, times their number).
    """
    plain = [verdict(claim) for claim in claims]
    papers = [claim.id.split(".")[0] for claim in claims]
    found = list(plain)
    for paper in dict.fromkeys(papers):
        family = [i for i, claim in enumerate(claims) if papers[i] == paper and claim.parts]
        if not family:
            continue
        adjusted = holm([_p_value(claims[i], plain[i]) for i in family])
        for i, p in zip(family, adjusted, strict=True):
            found[i] = plain[i] if p <= ALPHA else "undecided"
    return found


def _p_value(claim: Claim, plain: Verdict) -> float:
    """Two-sided, in the direction of the plain verdict."""
    judged = [judge(part) for part in claim.parts]
    holds, fails = max(one.p_holds for one in judged), min(one.p_fails for one in judged) * len(judged)
    one_sided = {"holds": holds, "fails": fails}.get(plain, min(holds, fails))
    return min(1.0, 2 * one_sided)
