"""Every default of every attack beside its published value and where that stands; a default that changes fails here.

`PUBLISHED` names the value of the paper or of its authors' code. Where ours differs on purpose, or the paper has no such
number, the row says why.
"""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass
from typing import Any

import pytest

from advbench.attacks import ATTACKS
from advbench.attacks.apgd import checkpoints
from advbench.attacks.autoattack import AutoAttack
from advbench.attacks.ensemble import named
from advbench.attacks.threat import ThreatModel


@dataclass(frozen=True)
class Row:
    """One default. published: None where the source has no such number. why: where `ours` differs."""

    attack: str
    field: str
    published: Any
    ours: Any
    source: str
    why: str = ""


STOP = "the harness stops an example at its first success; crafts for transfer never stop"
UNIT = "in fractions of epsilon"
MADRY = "Madry et al. 2018, section 5, MNIST: 40 steps of 0.01 at epsilon 0.3, from a random start"
MI = "Dong et al. 2018, section 4.1: T = 10, decay 1.0, step epsilon / T"
DI = "Xie et al. 2019, section 4.1, and the authors' code: 10 steps, momentum 1, p = 0.5, 299 to 330 pixels"
TI = "Dong et al. 2019, section 4.1: as MI-FGSM, kernel of 15 x 15"
APGD = "Croce & Hein 2020 (AutoAttack), section 3.2, algorithm 1, and the authors' autopgd_base.py"
FAB = "Croce & Hein 2020 (FAB), section 3, and the authors' fab_base.py"
SQUARE = "the authors' AutoAttack, square.py"
NOISE = "Roth et al. 2018 name no numbers for the test noise"
FMN = "Pintor et al. 2021, section 4.1, algorithm 1, and the authors' code"
DDN = "Rony et al. 2019, section 3, algorithm 1 and section 4"
DEEPFOOL = "Moosavi-Dezfooli et al. 2016, section 4.1, and the authors' deepfool.py"
CW = "Carlini & Wagner 2017, section VI, and the authors' l2_attack.py"
HSJ = "Chen et al. 2020, section 4.1, and the authors' hsja.py"
LBFGS = "Szegedy et al. 2014, section 4.1, and Gu & Rigazio 2014, equation 1"
L1 = "Croce & Hein 2021, algorithms 1 and 2, and the authors' autopgd_base.py"
OPGD = "Bryniarski et al. 2021, section 4"

TABLE = [
    Row("uniform-noise", "points", None, 1, "baseline", "one draw is the weakest attack there is"),
    Row("uniform-noise", "loss", None, "cross-entropy", "baseline", "orders draws that achieve the same"),
    Row("correlated-noise", "points", None, 100, NOISE, "as many draws as other attacks take steps"),
    Row("correlated-noise", "decay_length", None, 16.0, NOISE, "half the side of CIFAR's images"),
    Row("correlated-noise", "channel_correlation", None, 0.5, NOISE, "between independent and grey noise"),
    Row("correlated-noise", "sigma", None, 0.3, NOISE, "of the order of the images' own deviation"),
    Row("correlated-noise", "loss", None, "cross-entropy", NOISE, "orders draws that achieve the same"),
    Row("estimated-noise", "of", None, "data", NOISE, "the covariance that needs no attack"),
    Row("estimated-noise", "of_norm", None, "linf", NOISE, "of the attack that `of` may name"),
    Row("estimated-noise", "of_epsilon", None, 0.1, NOISE, "of the attack that `of` may name"),
    Row("estimated-noise", "form", None, "matrix", NOISE, "the covariance itself, not its mean by distance"),
    Row("estimated-noise", "points", None, 100, NOISE, "as correlated-noise"),
    Row("estimated-noise", "sigma", None, 0.3, NOISE, "as correlated-noise"),
    Row("estimated-noise", "loss", None, "cross-entropy", NOISE, "orders draws that achieve the same"),
    Row("fgm", "loss", "cross-entropy", "cross-entropy", "Shaham et al. 2015, equation 11"),
    Row("fgsm", "loss", "cross-entropy", "cross-entropy", "Goodfellow et al. 2015, section 4"),
    Row("r-fgsm", "alpha", 0.5, 0.5, "Tramer et al. 2018: alpha = epsilon / 2 in the experiments"),
    Row("r-fgsm", "loss", "cross-entropy", "cross-entropy", "Tramer et al. 2018"),
    Row("pgd", "steps", 40, 40, MADRY),
    Row("pgd", "step_size", 0.01 / 0.3, 0.1, MADRY, "crosses the ball four times, not once; CIFAR's is 0.25"),
    Row("pgd", "random_start", True, True, MADRY),
    Row("pgd", "restarts", 1, 1, MADRY),
    Row("pgd", "loss", "cross-entropy", "cross-entropy", MADRY),
    Row("pgd", "sparsity", 0.01, 0.01, "Tramer & Boneh 2019, section 3.2: the 99th percentile"),
    Row("selective-pgd", "steps", 100, 100, OPGD),
    Row(
        "selective-pgd", "step_sizes", None, (0.4, 0.05), OPGD, "shares of the longest perturbation, a long and a short one"
    ),
    Row("selective-pgd", "strategies", ("selective", "orthogonal"), ("joint", "orthogonal"), OPGD, "joint breaks more"),
    Row("selective-pgd", "restarts", 1, 1, OPGD),
    Row("mi-fgsm", "steps", 10, 10, MI),
    Row("mi-fgsm", "step_size", 0.1, 0.1, MI),
    Row("mi-fgsm", "decay", 1.0, 1.0, MI),
    Row("mi-fgsm", "loss", "cross-entropy", "cross-entropy", MI),
    Row("di-fgsm", "steps", 10, 10, DI),
    Row("di-fgsm", "step_size", 0.1, 0.1, DI),
    Row("di-fgsm", "decay", 1.0, 1.0, DI),
    Row("di-fgsm", "loss", "cross-entropy", "cross-entropy", DI),
    Row("di-fgsm", "probability", 0.5, 0.5, DI),
    Row("di-fgsm", "smallest", 299 / 330, 0.9, DI, "shrinks and pads where the paper enlarges, by the same ratio"),
    Row("ti-fgsm", "steps", 10, 10, TI),
    Row("ti-fgsm", "step_size", 0.1, 0.1, TI),
    Row("ti-fgsm", "decay", 1.0, 1.0, TI),
    Row("ti-fgsm", "loss", "cross-entropy", "cross-entropy", TI),
    Row("ti-fgsm", "kernel_size", 15, 15, TI),
    Row("deepfool", "steps", 50, 50, DEEPFOOL),
    Row("deepfool", "candidates", 10, 10, DEEPFOOL),
    Row("deepfool", "overshoot", 0.02, 0.02, DEEPFOOL),
    Row(
        "deepfool", "form", "published", "both", DEEPFOOL, "the nearer of the published and the box-aware run: never weaker"
    ),
    *(
        row
        for name, loss, targets in (("apgd-ce", "cross-entropy", 0), ("apgd-dlr", "dlr", 0), ("apgd-t", "dlr", 9))
        for row in (
            Row(name, "steps", 100, 100, APGD),
            Row(name, "restarts", 1, 1, APGD),
            Row(name, "loss", loss, loss, APGD),
            Row(name, "targets", targets, targets, APGD),
            Row(name, "momentum", 0.75, 0.75, APGD),
            Row(name, "rho", 0.75, 0.75, APGD),
            Row(name, "form", "published", "published", APGD),
        )
    ),
    *(
        row
        for name, targets in (("fab", 0), ("fab-t", 9))
        for row in (
            Row(name, "steps", 100, 100, FAB),
            Row(name, "eta", 1.05, 1.05, FAB),
            Row(name, "alpha_max", 0.1, 0.1, FAB),
            Row(name, "beta", 0.9, 0.9, FAB),
            Row(name, "targets", targets, targets, FAB),
        )
    ),
    Row("square", "queries", 5000, 5000, SQUARE),
    Row("square", "p_init", 0.8, 0.8, SQUARE),
    Row("square", "rescale", True, True, SQUARE),
    Row("auto", "steps", None, 25, "ours", "short runs first; the long ones where an example is close"),
    Row("auto", "long_steps", 100, 100, APGD),
    Row("auto", "targets", 9, 3, APGD, "the likeliest three, chosen at the best image so far"),
    Row("auto", "near", None, 0.3, "ours", "the share of the margin that is left"),
    Row("auto", "queries", 5000, 2400, SQUARE, "for near examples alone, with ascents in between"),
    Row("auto", "survey", None, 300, "ours", "queries that every example gets"),
    Row("auto", "misled", None, 0.8, "ours", "squares beside gradients, chosen on the choosing half of the gauntlet"),
    Row("auto", "all_targets", 9, 9, APGD),
    Row("auto", "all_queries", 5000, 5000, SQUARE),
    Row("auto", "survivor_queries", None, 1000, "ours", "of what survives all else behind a purifier or beside a detector"),
    Row("autoattack", "steps", 100, 100, APGD),
    Row("autoattack", "queries", 5000, 5000, SQUARE),
    Row("autoattack-rand", "steps", 100, 100, APGD),
    Row("autoattack-rand", "draws", 20, 20, "Croce & Hein 2020 (AutoAttack), section 5, rand: EOT with 20 draws"),
    Row("ddn", "steps", 100, 100, DDN),
    Row("ddn", "gamma", 0.05, 0.05, DDN),
    Row("ddn", "initial_norm", 1.0, 1.0, DDN),
    Row("ddn", "step_size", 1.0, 1.0, DDN),
    Row("ddn", "final_step_size", 0.01, 0.01, DDN),
    Row("ddn", "levels", 256, None, DDN, "other attacks are not quantised, and distances are compared"),
    Row("fmn", "steps", 100, 100, FMN),
    Row("fmn", "step_size", 1.0, None, FMN, "None is 1 in the published form, 10 in the box-aware one but for l2"),
    Row("fmn", "gamma", 0.05, 0.05, FMN),
    Row("fmn", "final_gamma", 0.001, 0.001, FMN),
    Row("fmn", "smooth", 0.0, 0.2, FMN, "of the box-aware form alone"),
    Row("fmn", "form", "published", "both", FMN, "the nearer of the published and the box-aware run: never weaker"),
    Row("carlini-wagner", "steps", 10_000, 500, CW, "of 0.02 with a flatter tanh they come as near"),
    Row("carlini-wagner", "search_steps", 9, 9, CW),
    Row("carlini-wagner", "learning_rate", 0.01, 0.02, CW, "with 500 steps in place of 10,000"),
    Row("carlini-wagner", "initial_constant", 1e-3, 1e-3, CW),
    Row("carlini-wagner", "confidence", 0.0, 0.0, CW),
    Row("lbfgs", "c", None, None, LBFGS, "found on held-out images: the largest that breaks 99%"),
    Row("lbfgs", "steps", None, 100, LBFGS, "evaluations; neither paper states a number"),
    Row("lbfgs", "history", 10, 10, "Byrd et al. 1995, and SciPy's L-BFGS-B"),
    Row("lbfgs", "squared", False, False, LBFGS),
    Row("lbfgs", "rate", 0.99, 0.99, LBFGS, "the share that the constant has to break"),
    Row("hop-skip-jump", "queries", None, 5000, HSJ, "the paper reports distances at 1,000, 5,000 and 20,000"),
    Row("hop-skip-jump", "evaluations", 100, 100, HSJ),
    Row("hop-skip-jump", "gamma", 1.0, 1.0, HSJ),
    Row("hop-skip-jump", "pool", None, 500, HSJ, "held-out images as starts beside noise, which a detector may reject"),
    Row("worst-case", "attacks", None, ("apgd-ce", "fab-t", "square"), APGD, "three of AutoAttack's four parts"),
    Row("worst-case", "order", "given", "measured", APGD, "the order changes the cost, not what breaks"),
    Row("worst-case", "minimal", None, False, "ours", "the threat's ball unless asked"),
    Row("worst-case", "draws", None, None, "ours", "those that held-out images need"),
]
STOPPING = [name for name in ATTACKS if "stop" in {field.name for field in dataclasses.fields(named(name))}]
TABLE += [Row(name, "stop", "success", "success", "AutoAttack's code", STOP) for name in STOPPING]

CONSTANTS = [
    Row(
        "square", "_HALVINGS", (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000), ..., "Andriushchenko et al. 2020, section 3"
    ),
    Row("apgd_l1", "PHASES", ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4)), ..., L1),
    Row("apgd_l1", "_PERIOD", 0.04, ..., L1),
    Row("apgd_l1", "_DENSER", 1.5, ..., L1),
    Row("apgd_l1", "_SHRINKAGE", 1.5, ..., L1),
    Row("apgd_l1", "_SMALLEST_STEP", 0.1, ..., L1),
    Row("apgd_l1", "_SAME_SPARSITY", 0.95, ..., L1),
    Row("carlini_wagner", "_SHRINK", 0.999999, 0.95, CW, "tanh is flat there: pixels at exactly 0 or 1 would barely move"),
    Row("carlini_wagner", "_CHECKS", 10, ..., CW),
    Row("carlini_wagner", "_PROGRESS", 0.9999, ..., CW),
    Row("hop_skip_jump", "_FIRST_PROBE", 0.1, ..., HSJ),
    Row("deepfool", "_AHEAD", 1e-4, ..., DEEPFOOL),
]


@pytest.mark.parametrize("name", ATTACKS)
def test_every_default_is_the_value_of_the_table(name):
    attack = named(name)
    rows = [row for row in TABLE if row.attack == name]
    assert {field.name for field in dataclasses.fields(attack)} == {row.field for row in rows}
    assert len({row.field for row in rows}) == len(rows)
    for row in rows:
        assert getattr(attack, row.field) == row.ours, f"{name}: {row.field} is {row.published} in {row.source}"


def test_what_differs_from_the_published_value_says_why():
    for row in (*TABLE, *CONSTANTS):
        assert row.source
        if row.ours is not ... and row.ours != row.published:
            assert row.why, f"{row.attack}: {row.field}"


@pytest.mark.parametrize("row", CONSTANTS, ids=lambda row: f"{row.attack}.{row.field}")
def test_numbers_inside_are_those_of_the_table(row):
    found = getattr(importlib.import_module(f"advbench.attacks.{row.attack}"), row.field)
    assert found == (row.published if row.ours is ... else row.ours), row.source


def test_step_sizes_are_judged_where_the_paper_says():
    """Equation 2: p_0 = 0, p_1 = 0.22, p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06), at ceil(p_j N) of N = 100 steps."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    expected = [round(100 * share) for share in shares[1:] if round(100 * share) <= 100]
    assert list(checkpoints(100)) == expected


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_autoattack_is_the_standard_version(norm):
    """APGD-CE, APGD-T, FAB-T and Square in this order; in l1 five starts and five targets (Croce & Hein 2021, section 4)."""
    parts = AutoAttack().components(ThreatModel(norm, 0.1))
    ce, targeted, fab, square = parts
    sparse = norm == "l1"
    assert (ce.loss, ce.targets, ce.steps, ce.restarts) == ("cross-entropy", 0, 100, 5 if sparse else 1)
    assert (targeted.loss, targeted.targets, targeted.steps, targeted.restarts) == ("dlr", 5 if sparse else 9, 100, 1)
    assert (fab.targets, fab.steps, fab.eta, fab.alpha_max, fab.beta) == (9, 100, 1.05, 0.1, 0.9)
    assert (square.queries, square.p_init, square.rescale) == (5000, 0.8, False)
    assert {part.stop for part in parts} == {"success"}
