"""The claims of a reproduction with their verdicts: a table, a file of numbers, lines for a terminal."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from advbench.reports.section import Column, Entry, Table, Tone
from advbench.reports.spreadsheets import inert
from advbench.reproduction.claim_verdicts import SEEDS_NEEDED, ClaimVerdict, Verdict, judge, judge_claims, said
from advbench.reproduction.study import Inequality, Relation, Scale
from advbench.results.power import PowerCalculation

if TYPE_CHECKING:
    from advbench.reproduction.engine import StudyOutcome

_TONES: dict[Verdict, Tone] = {
    "holds": "best",
    "fails": "warning",
    "undecided": "muted",
    "not decidable here": "muted",
    "not tested": "muted",
}
_SIGNS: dict[Relation, str] = {"above": ">", "at most": "≤", "within": "±"}


Verdicts: TypeAlias = Mapping[str, Sequence[ClaimVerdict]]
"""Of the claims of each study, by its name."""


def verdicts(outcomes: Sequence[StudyOutcome], scale: Scale, seeds: Sequence[int]) -> Verdicts:
    """The verdicts of all claims, judged together."""
    claims = [
        (outcome.study.name, claim)
        for outcome in outcomes
        for comparison in outcome.comparisons
        for claim in comparison.claims
    ]
    found: dict[str, list[ClaimVerdict]] = {outcome.study.name: [] for outcome in outcomes}
    for (study, _), judged in zip(claims, judge_claims([claim for _, claim in claims], scale, seeds), strict=True):
        found[study].append(judged)
    return found


def claim_table(claims: Sequence[ClaimVerdict]) -> Table:
    """What the paper claims, and whether it holds here."""
    columns = (
        Column("Claim", heading=True),
        Column(
            "Verdict",
            help=f"Does the 95% interval clear the bar, over training seeds, of which it takes {SEEDS_NEEDED}, and test "
            "images? A scale in brackets: the full recipe was not run, so that nothing is said of the paper itself.",
        ),
        Column("Inequality"),
        Column("Bar", numeric=True),
        Column(
            "Ours",
            numeric=True,
            help="Mean difference with its 95% interval: Student's, the variance of seeds and images crossed, "
            "Satterthwaite's degrees of freedom.",
        ),
    )
    rows = []
    for one in claims:
        claim = one.claim
        note = one.text if one.corrected == one.printed else f"{one.text}; {_after_holm(one)}"
        if not claim.parts:
            rows.append((Entry(claim.text), Entry("not tested"), Entry(claim.untested), Entry("–"), Entry("–")))
        named = [*(("", part) for part in claim.parts), *(("attributable: ", part) for part in claim.attributable)]
        for number, (recipe, part) in enumerate(named):
            head = Entry("" if number else claim.text, note="" if number else note, order=claim.id)
            rows.append((head, *_part(part, one.scale, recipe)))
    return Table("Claims", columns, tuple(rows))


def _part(part: Inequality, scale: Scale, recipe: str) -> tuple[Entry, Entry, Entry, Entry]:
    judged = judge(part)
    spread = f"{number_text(judged.low)} to {number_text(judged.high)}" if math.isfinite(judged.low) else ""
    return (
        Entry(said(judged.verdict, scale), tone=_TONES[judged.verdict]),
        Entry(recipe + part.text),
        Entry(f"{_SIGNS[part.relation]} {number_text(part.bound)}", order=part.bound),
        Entry(number_text(judged.mean), note=spread, order=judged.mean),
    )


def _after_holm(one: ClaimVerdict) -> str:
    return f"{said(one.corrected, one.scale)} after Holm's correction"


def deciding_run(one: ClaimVerdict, power: PowerCalculation) -> str:
    """Why a claim was not decidable, and the run that would decide it."""
    return (
        f"{one.claim.id}: not decidable here, by a calculation committed before the run (standard deviations from training "
        f"seeds {', '.join(map(str, power.pilot))}): {power.here.seeds} seeds and {power.here.images:,} images see a "
        f"difference of {number_text(power.effect)} with probability {power.power:.2f}; {power.decides.seeds} seeds and "
        f"{power.decides.images:,} images would decide ({power.command})"
    )


def claims_csv(judged: Verdicts) -> str:
    """A line per inequality: the claim's verdicts, and the interval with the parts of its variance."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CLAIM_COLUMNS)
    for study, claims in judged.items():
        for one in claims:
            head = (study, one.claim.id, one.scale, one.printed, one.attributable or "", one.corrected)
            parts = [("as printed", part) for part in one.claim.parts]
            parts += [("attributable", part) for part in one.claim.attributable]
            for recipe, part in parts:
                writer.writerow((*head, recipe, inert(part.text), *_measures(part)))
            if not parts:
                writer.writerow((*head, "", inert(one.claim.untested), *[""] * (len(_CLAIM_COLUMNS) - len(head) - 2)))
    return text.getvalue()


_CLAIM_COLUMNS = (
    *("study", "claim", "scale", "verdict", "attributable", "after_holm", "recipe", "inequality", "relation", "bar"),
    *("part_verdict", "mean", "low", "high", "p_holds", "p_fails", "seeds", "images", "seed_sd", "image_sd", "rest_sd"),
)


def _measures(part: Inequality) -> tuple[object, ...]:
    judged = judge(part)
    found, spread = judged.crossed, judged.crossed.deviations
    numbers = (judged.mean, judged.low, judged.high, judged.p_holds, judged.p_fails)
    return (
        part.relation,
        f"{part.bound:g}",
        judged.verdict,
        *(f"{value:.6g}" for value in numbers),
        found.seeds,
        found.images or "",
        *("" if math.isnan(value) else f"{value:.6g}" for value in spread),
    )


def number_text(value: float) -> str:
    """Three significant digits, and no fewer than one decimal below 100."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else "-∞"
    size = abs(value)
    return f"{value:.1f}" if size >= 10 or value == 0 else f"{value:.2f}" if size >= 1 else f"{value:.3f}"


def verdict_lines(outcomes: Sequence[StudyOutcome], scale: Scale, seeds: Sequence[int]) -> list[str]:
    """A line per claim, for a terminal."""
    found = [one for claims in verdicts(outcomes, scale, seeds).values() for one in claims]
    width = max([18, *(len(one.text) for one in found)]) + 2
    lines = []
    for one in found:
        after = f" [{_after_holm(one)}]" if one.corrected != one.printed else ""
        lines.append(f"{one.text:{width}}{one.claim.id}: {one.claim.text}{after}")
    return lines


def counts(judged: Verdicts) -> list[tuple[str, str]]:
    """How many tested claims there are of each verdict, as a line of a summary."""
    found = [one for claims in judged.values() for one in claims if one.printed != "not tested"]
    kinds: tuple[Verdict, ...] = ("holds", "fails", "undecided", "not decidable here")
    counted = [(kind, sum(one.printed == kind for one in found)) for kind in kinds]
    shown = [f"{count} {kind}" for kind, count in counted if count or kind != "not decidable here"]
    return [("Claims", ", ".join(shown))] if found else []
