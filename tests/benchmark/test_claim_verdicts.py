"""Verdicts on claims: their tests, their scale, Holm's correction, what could not be decided; and the frozen list."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from advbench.reproduction import claim_tables, study
from advbench.reproduction.claim_verdicts import judge, judge_claims, said, verdict
from advbench.reproduction.measured import Figure, SeedFigure, difference, highest, lowest, mean_of, percent, ratio
from advbench.reproduction.study import Claim, Inequality, above, ambiguity, at_most, claim_of, within
from advbench.results.papers import PAPERS, load
from advbench.results.power import Deviations, PowerCalculation, Size


@pytest.mark.parametrize(
    ("differences", "bound", "expected"),
    [
        ((1.0, 1.1, 0.9), 0.0, "holds"),
        ((-1.0, -1.1, -0.9), 0.0, "fails"),
        ((1.0, -1.0, 0.5), 0.0, "undecided"),
        ((1.0, 1.1, 0.9), 4.0, "fails"),
        ((1.0, 1.0), 0.0, "undecided"),
        ((1.0, 1.0, 1.0), 0.0, "undecided"),  # nothing is known of what varies
        ((math.nan, 1.0, 1.0), 0.0, "undecided"),
        ((), 0.0, "undecided"),
    ],
)
def test_an_inequality_of_numbers_alone_is_decided_by_the_interval_over_seeds(differences, bound, expected):
    assert judge(Inequality("a - b", differences, bound)).verdict == expected


def test_a_verdict_over_seeds_is_wrong_about_as_often_as_its_interval_says():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(2000, 4))
    wrong = sum(judge(Inequality("nothing", tuple(row))).verdict == "holds" for row in draws.tolist())
    assert 0.015 < wrong / 2000 < 0.036  # a one-sided error of 2.5%


def accuracies(right: list[list[int]]) -> SeedFigure:
    """By seed, in percent."""
    return SeedFigure.of(percent(np.array(row), np.arange(len(row))) for row in right)


def test_one_image_of_sixty_decides_nothing():
    """The same image in three trainings: Student's interval over the seeds is 1.67 (1.67 to 1.67), and said to hold."""
    ours = accuracies([[1] * 60] * 3)
    others = accuracies([[1] * 59 + [0]] * 3)
    judged = judge(above("ours - others", ours, others))
    assert judged.mean == pytest.approx(100 / 60)
    assert (judged.verdict, judged.low < 0) == ("undecided", True)
    equal = judge(above("ours - ours", ours, ours))
    assert (equal.verdict, equal.mean) == ("undecided", 0.0)
    assert equal.low < 0 < equal.high


def test_images_count_that_all_seeds_agree_on():
    rng = np.random.default_rng(3)
    ours, others = (rng.random(2000) < 0.9).astype(int), (rng.random(2000) < 0.89).astype(int)
    judged = judge(above("", accuracies([ours.tolist()] * 3), accuracies([others.tolist()] * 3)))
    gap = 100.0 * (ours - others)
    half = stats.t.ppf(0.975, 1999) * math.sqrt(gap.var(ddof=1) / 2000 + (100 / 2000) ** 2)
    assert (judged.low, judged.high) == pytest.approx((gap.mean() - half, gap.mean() + half), rel=1e-3)


def test_at_most_and_no_change_are_tests_against_their_margin():
    """Not significant is not unchanged: the interval must lie inside the margin."""
    near, far = (0.1, 0.2, 0.0), (3.0, -3.0, 0.1)
    assert judge(at_most("", near, 0.5)).verdict == "holds"
    assert judge(at_most("", far, 0.5)).verdict == "undecided"
    assert judge(at_most("", (1.0, 1.1, 0.9), 0.5)).verdict == "fails"
    assert judge(within("", near, (0.0,) * 3, 0.5)).verdict == "holds"
    assert judge(within("", (0.0,) * 3, near, 0.5)).verdict == "holds"
    assert judge(within("", far, (0.0,) * 3, 0.5)).verdict == "undecided"
    assert judge(within("", (0.9, 1.0, 1.1), (0.0,) * 3, 0.5)).verdict == "fails"
    assert judge(within("", (0.0,) * 3, (0.9, 1.0, 1.1), 0.5)).verdict == "fails"
    tails = [stats.ttest_1samp(near, bound, alternative=side).pvalue for bound, side in ((0.5, "less"), (-0.5, "greater"))]
    assert judge(within("", near, (0.0,) * 3, 0.5)).p_holds == pytest.approx(max(tails))


def test_a_claim_holds_where_all_parts_hold_and_fails_where_one_fails():
    holds, fails, open_ = (Inequality("", (x, x + 0.01, x + 0.02)) for x in (1.0, -1.0, -0.01))
    assert verdict(Claim("c", "", (holds, holds))) == "holds"
    assert verdict(Claim("c", "", (holds, open_))) == "undecided"
    assert verdict(Claim("c", "", (holds, fails, open_))) == "fails"
    assert verdict(Claim("c", "", (), "no such net")) == "not tested"


def test_only_the_full_recipe_speaks_of_the_paper():
    assert [said("fails", scale) for scale in ("smoke", "small", "full")] == ["fails (smoke)", "fails (small)", "fails"]
    assert said("not tested", "small") == "not tested"
    fails = Inequality("", (-1.0, -1.1, -0.9))
    (judged,) = judge_claims([Claim("gu2014.table1", "", (fails,))], "small")
    assert judged.text == "fails (small)"


def test_a_comparison_has_a_verdict_as_printed_and_one_that_is_attributable():
    printed, attributable = Inequality("recipes", (1.0, 1.1, 0.9)), Inequality("method", (-0.1, 0.1, 0.05))
    (judged,) = judge_claims([Claim("gu2014.claim.headline", "", (printed,), attributable=(attributable,))], "small")
    assert (judged.printed, judged.attributable) == ("holds", "undecided")
    assert judged.text == "as printed: holds (small); attributable: undecided (small)"
    table = claim_tables.claim_table([judged])
    assert [row[2].text for row in table.rows] == ["recipes", "attributable: method"]
    assert [row[1].text for row in table.rows] == ["holds (small)", "undecided (small)"]


def t_of(p: float, seed: int) -> tuple[float, ...]:
    """Three differences of standard error one whose two-sided p-value is `p`."""
    spread = np.array([-1.0, 0.0, 1.0]) * math.sqrt(3)
    return tuple(stats.t.ppf(1 - p / 2, 2) + np.roll(spread, seed))


def test_holms_correction_runs_over_the_claims_of_a_paper():
    """By the book: 0.01 against 0.05 / 3, then 0.03 against 0.05 / 2; another paper's claim stands alone."""
    ids = ("gu2014.table1", "gu2014.claim.gn", "gu2014.claim.dae", "sgr2018.claim.data_cov")
    claims = [Claim(id_, "", (Inequality("", t_of(p, 0)),)) for id_, p in zip(ids, (0.03, 0.01, 0.2, 0.03), strict=True)]
    judged = judge_claims([*claims, Claim("gu2014.fig1", "", (), "not here")], "full")
    assert [one.printed for one in judged] == ["holds", "holds", "undecided", "holds", "not tested"]
    assert [one.corrected for one in judged] == ["undecided", "holds", "undecided", "holds", "not tested"]
    assert judge(claims[0].parts[0]).p_holds == pytest.approx(0.015)
    shown = claim_tables.claim_table(judged).rows[0][0].note
    assert shown == "holds; undecided after Holm's correction"


def test_a_claim_of_many_parts_that_fails_in_one_pays_for_their_number():
    part, fine = Inequality("", tuple(-x for x in t_of(0.03, 0))), Inequality("", (5.0, 5.1, 4.9))
    (alone,) = judge_claims([Claim("gu2014.table1", "", (part,))], "full")
    (many,) = judge_claims([Claim("gu2014.table1", "", (part, fine))], "full")
    assert (alone.printed, alone.corrected) == ("fails", "fails")
    assert (many.printed, many.corrected) == ("fails", "undecided")


def calculation(**changes: object) -> PowerCalculation:
    given = {
        "claim": "shaham2015.claim.clean",
        "scale": "small",
        "effect": 0.07,
        "pilot": (10, 11),
        "deviations": Deviations(0.1, 8.0, 8.0),
        "here": Size(3, 10_000),
        "decides": Size(3, 2_000_000),
        "command": "advbench reproduce shaham2015 --scale full",
    }
    return PowerCalculation(**{**given, **changes})  # type: ignore[arg-type]


def test_what_a_run_could_not_decide_is_said_with_the_run_that_would():
    open_ = Claim("shaham2015.claim.clean", "", (Inequality("", (0.3, -0.2, 0.1)),))
    (judged,) = judge_claims([open_], "small", (0, 1, 2), [calculation()])
    assert (judged.printed, judged.corrected) == ("not decidable here", "not decidable here")
    assert judged.text == "not decidable here (small)"
    assert judged.power is not None
    line = claim_tables.deciding_run(judged, judged.power)
    assert "from training seeds 10, 11" in line
    assert "2,000,000 images would decide (advbench reproduce shaham2015 --scale full)" in line


@pytest.mark.parametrize(
    ("changes", "seeds", "differences"),
    [
        ({"scale": "full"}, (0, 1, 2), (0.3, -0.2, 0.1)),
        ({"effect": 5.0}, (0, 1, 2), (0.3, -0.2, 0.1)),  # the run could have told
        ({}, (9, 10, 11), (0.3, -0.2, 0.1)),  # the pilot is judged
        ({}, (0, 1, 2), (1.0, 1.1, 0.9)),  # it was decided
    ],
)
def test_a_calculation_excuses_nothing_else(changes, seeds, differences):
    claim = Claim("shaham2015.claim.clean", "", (Inequality("", differences),))
    (judged,) = judge_claims([claim], "small", seeds, [calculation(**changes)])
    assert judged.printed in {"undecided", "holds"}
    assert judged.power is None


# --- figures that know their images


def test_figures_are_paired_image_by_image():
    a, b = accuracies([[1, 1, 0, 1], [1, 0, 0, 1]]), accuracies([[0, 1, 0, 1], [1, 0, 1, 1]])
    gap = difference(a, b)
    assert tuple(gap) == (25.0, -25.0)
    assert gap.table is not None
    np.testing.assert_array_equal(gap.table, [[100, 0, 0, 0], [0, 0, -100, 0]])
    assert (gap.step, mean_of([a, b]).step) == (100.0, 100.0)
    np.testing.assert_array_equal((100.0 - a).table, 100.0 - a.table)
    assert tuple(0.5 * a + 1.0) == (38.5, 26.0)
    assert tuple(mean_of([a, b])) == (62.5, 62.5)
    assert tuple(lowest([a, b])) == (50.0, 50.0)
    assert tuple(highest([a, b])) == (75.0, 75.0)
    np.testing.assert_array_equal(lowest([a, b]).table, [b.table[0], a.table[1]])


def test_figures_on_other_images_keep_their_means_and_their_variances():
    """A mean over all images less one over some of them: its variance is that of the difference of two such means."""
    rng = np.random.default_rng(2)
    all_, some = rng.normal(size=4000), np.arange(0, 4000, 4)
    other = rng.normal(size=1000)
    whole = SeedFigure.of(Figure(all_, np.arange(4000)) for _ in range(3))
    part = SeedFigure.of(Figure(other, some) for _ in range(3))
    gap = whole - part
    assert tuple(gap) == pytest.approx([all_.mean() - other.mean()] * 3)
    together = np.zeros(4000)
    together[some] = other
    covariance = np.cov(all_[some], other)[0, 1] / 4000
    expected = all_.var(ddof=1) / 4000 + other.var(ddof=1) / 1000 - 2 * covariance
    assert gap.crossed().image == pytest.approx(expected, rel=0.05)


def test_a_ratio_has_the_variance_of_the_delta_method():
    rng = np.random.default_rng(4)
    chosen = (rng.random(500) < 0.6).astype(float)
    values = chosen * rng.gamma(4.0, 1.0, 500)
    figure = ratio(values, chosen, np.arange(500))
    assert float(figure) == pytest.approx(values.sum() / chosen.sum())
    rows = rng.integers(0, 500, (4000, 500))
    bootstrap = (values[rows].sum(axis=1) / chosen[rows].sum(axis=1)).var()
    assert figure.by_image.var(ddof=1) / 500 == pytest.approx(bootstrap, rel=0.1)
    assert math.isnan(ratio(values, np.zeros(500), np.arange(500)))


def test_a_bootstrapped_statistic_counts_its_images():
    rng = np.random.default_rng(8)
    images = rng.normal(size=400)
    found = SeedFigure.bootstrapped([lambda rows: float(np.median(images[rows]))] * 3, 400)
    assert tuple(found) == pytest.approx([np.median(images)] * 3)
    half = (2.0 - found).crossed().interval()
    assert (half.high - half.low) / 2 == pytest.approx(1.96 * 1.2533 / 20, rel=0.3)


def test_values_without_images_are_over_seeds_and_never_certain():
    rounded = SeedFigure((4.0, 4.0, 4.0), step=1.0)
    found = (rounded - SeedFigure((3.0, 3.0, 3.0), step=1.0)).crossed()
    assert found.variance == pytest.approx(1 / 12 / 3)
    mixed = accuracies([[1, 0]] * 3) - (1.0, 2.0, 3.0)
    assert tuple(mixed) == (49.0, 48.0, 47.0)
    assert mixed.crossed().images == 0
    with pytest.raises(ValueError, match="as many seeds on both sides, got 3 and 2"):
        rounded - (1.0, 2.0)


# --- the frozen list

FROZEN = {
    "gu2014": (14, "f59f5fd5c23731bb"),
    "shaham2015": (8, "7ae534aece6a8cc2"),
    "mosca2018": (4, "2859327a37221ee6"),
    "malade2018": (9, "8095e485db080c36"),
    "sgr2018": (14, "7fbca89b5535f760"),
}
"""How many claims a paper has, and the digest of their ids, words and tests. A claim is not reworded once it was judged."""


@pytest.mark.parametrize("key", PAPERS)
def test_the_claims_are_frozen(key):
    claims = load(key).claims.values()
    told = "\n".join(f"{one.id}|{one.text}|{one.test}" for one in claims)
    assert (len(claims), hashlib.sha256(told.encode()).hexdigest()[:16]) == FROZEN[key], (
        "a claim was added, removed or reworded"
    )


def test_a_claim_has_the_words_of_the_papers_file():
    claim = claim_of("mosca2018.claim.headline", (), where="here")
    assert claim.text == "SGM is more accurate under FGSM than the control, the mean over all cells (here)"
    with pytest.raises(ValueError, match=r"Expected a claim among gu2014.claim.headline, .*, got 'gu2014.claim.none'"):
        claim_of("gu2014.claim.none", ())


def test_an_ambiguity_has_the_words_of_the_papers_file():
    said = "Eqs. 15 and 21 accumulate updates over epochs without bound. Read as: persistent buffer, no clipping;"
    assert ambiguity("mosca2018.amb.persistence").startswith(said)
    with pytest.raises(ValueError, match=r"Expected an ambiguity among .*, got 'mosca2018.amb.none'"):
        ambiguity("mosca2018.amb.none")


def test_no_claim_is_worded_in_the_code():
    """Claims are made by `claim_of`, which has their words from the papers' files."""
    root = Path(study.__file__).parent / "papers"
    assert not [path for path in root.rglob("*.py") if re.search(r"(?<![A-Za-z_])Claim\(", path.read_text())]


@pytest.mark.parametrize(
    ("differences", "expected"), [((1.0, 1.1, 0.9), "not decidable here"), ((-1.0, -1.1, -0.9), "fails")]
)
def test_what_is_withheld_stands_in_place_of_holds_and_never_hides_that_a_claim_fails(differences, expected):
    held = study.Withheld("not decidable here", "too few clusters")
    claim = Claim("a", "b", (Inequality("c", differences),), withheld=held)
    (found,) = judge_claims([claim], "small", powers=())
    assert (found.printed, found.corrected) == (expected, expected)
    (plain,) = judge_claims([Claim("a", "b", claim.parts)], "small", powers=())
    assert plain.printed == {"not decidable here": "holds", "fails": "fails"}[expected]


def test_verdicts_in_a_terminal_stand_apart_from_their_claims(monkeypatch):
    def found(verdict_):
        return claim_tables.ClaimVerdict(Claim("a.b", "c", ()), "small", verdict_, None, verdict_)

    monkeypatch.setattr(claim_tables, "verdicts", lambda *_: {"x": [found("holds"), found("not decidable here")]})
    assert claim_tables.verdict_lines((), "small", ()) == [
        "holds (small)               a.b: c",
        "not decidable here (small)  a.b: c",
    ]
