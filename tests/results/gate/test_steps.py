"""A baseline by version: which verdicts are asked, what drops that each step tolerates add up to, and the numbers."""

from __future__ import annotations

import numpy as np
import pytest

from advbench.results.boards import Answers, Attacker, Board, BoardTarget, BoardThreat, TrainedModel
from advbench.results.gate.baseline import Snapshot
from advbench.results.gate.steps import Version, numbers, single_attacks, threats, trace
from advbench.results.gate.verdicts import CLEAN, WORST, Terms

N = 400
THREAT = BoardThreat("digits", "test", N, "f" * 64, "linf", 0.125)
PGD, FGSM = Attacker("white-box", "pgd", ""), Attacker("white-box", "fgsm", "")
TOLERANT = Terms(tolerance=0.01, checkpoints_only=True)
STRICT = Terms(checkpoints_only=True)


def right(count, start=0):
    """Outcomes of which `count` are right from the image `start` on."""
    outcomes = np.zeros(N, np.int64)
    outcomes[start : start + count] = 1
    return outcomes


def model(seed, weights, pgd, fgsm, clean=N):
    return TrainedModel(seed, weights, "CPU", 1, right(clean), {PGD: Answers(pgd), FGSM: Answers(fgsm)}, {})


def run(*models, threat=THREAT, label="net"):
    component = {"name": label, "arguments": {}}
    facts = {"defense": component, "architecture": component, "stochastic": False}
    attack = {"arguments": {}, "source_hash": "ab" * 32}
    dataset = {"name": threat.dataset, "split": threat.split, "n": N, "fingerprint": "f" * 64}
    attacks = {name: {"name": name, **attack} for name in ("pgd", "fgsm")}
    return Snapshot("1", (Board(threat, dataset, [0.0, 1.0], "e" * 64, attacks, (BoardTarget(label, facts, models),)),))


def version(name, count, weights=None):
    """A version of one model of its own weights that is right on `count` images under attack."""
    return Version(name=name, run=run(model(0, weights or name, right(count), right(count))))


def test_drops_that_every_step_tolerates_fail_against_the_anchor():
    """Three images less each time, 0.75 points: below the tolerance of one. After 12 images McNemar's p is 2 / 2^12."""
    versions = [version(name, count) for name, count in (("a", 240), ("b", 237), ("c", 234), ("d", 231), ("e", 228))]
    found = trace(versions, TOLERANT)
    assert [step.change.exit_code if step.change else None for step in found.steps] == [None, 0, 0, 0, 0]
    assert found.steps[0].drift is None
    drifts = [step.drift.failures for step in found.steps[1:]]
    assert [len(failures) for failures in drifts] == [0, 0, 1, 1], "2 / 2^6 is above alpha, 2 / 2^9 and 2 / 2^12 are not"
    (row,) = drifts[-1]
    assert (row.target, row.quantity, row.verdict) == ("net", WORST, "worse")
    assert row.difference == pytest.approx(-0.03)
    assert row.p_value == pytest.approx(2 / 2**12 * 10 / 9), "nine tenths of alpha go to the worst cases"
    assert found.exit_code == 1
    assert found.steps[-1].failing == {(THREAT.on_any_images, "net", WORST)}


def test_a_version_before_the_anchor_is_tested_against_the_one_before_alone():
    versions = [version(name, count) for name, count in (("a", 240), ("b", 120), ("c", 120))]
    found = trace(versions, STRICT, versions[1])
    assert [step.drift is None for step in found.steps] == [True, True, False]
    assert [step.change.exit_code for step in found.steps[1:]] == [1, 0]
    assert found.exit_code == 0, "what an earlier step lost is judged by the anchor alone"
    assert trace(versions, STRICT).exit_code == 1


def test_an_anchor_from_elsewhere_judges_every_version():
    found = trace([version("a", 120), version("b", 120)], STRICT, version("release", 240))
    assert [step.drift.exit_code for step in found.steps] == [1, 1]
    assert found.exit_code == 1


def test_a_version_that_cannot_be_read_is_passed_over_but_not_at_the_end():
    damaged = Version(name="x", run=None, problem="Expected a baseline, got a damaged file")
    found = trace([damaged, version("a", 240), damaged, version("b", 200)], STRICT)
    assert found.anchor.name == "a"
    assert found.steps[3].change.exit_code == 1, "against the last version that could be read"
    assert (found.steps[2].change, found.steps[2].drift) == (None, None)
    assert trace([version("a", 240), damaged], STRICT).exit_code == 2
    with pytest.raises(ValueError, match="can be read as the anchor"):
        trace([damaged], STRICT)
    with pytest.raises(ValueError, match="got x: Expected a baseline"):
        trace([version("a", 240)], STRICT, damaged)
    with pytest.raises(ValueError, match="got none"):
        trace([], STRICT)


def test_what_cannot_be_compared_is_exit_code_two_whatever_else_fails():
    other = Version(name="b", run=run(model(0, "b", right(9), right(9)), threat=THREAT._replace(norm="l2")))
    found = trace([version("a", 240), other], STRICT)
    assert found.exit_code == 2
    assert "only in the baseline" in found.steps[1].drift.incomparable[0]
    assert trace([version("a", 240)], STRICT).exit_code == 0, "one version, nothing to compare"


def test_equal_weights_that_rise_fail_as_the_gate_has_it():
    found = trace([version("a", 200, weights="w"), version("b", 240, weights="w")], STRICT)
    assert found.exit_code == 1
    assert "the attack became weaker" in found.steps[1].change.failures[0].note


def test_numbers_are_the_means_over_seeds_of_the_worst_case_image_by_image():
    """PGD leaves the first 200 images, FGSM images 100 to 300: both leave 100. The other seed's leave 200."""
    first = model(0, "v", right(200), right(200, start=100), clean=380)
    second = model(1, "w", right(200), right(200), clean=400)
    snapshot = run(first, second)
    found = {each.quantity: each.rate for each in numbers(snapshot)}
    assert found[WORST].by_seed == (0.25, 0.5)
    assert found[WORST].estimate.value == pytest.approx(0.375)
    assert found[CLEAN].by_seed == (0.95, 1.0)
    assert single_attacks(snapshot, THREAT) == {("net", PGD): 0.5, ("net", FGSM): 0.5}
    assert single_attacks(snapshot, THREAT._replace(norm="l2")) == {}
    assert threats([Version(name="a", run=snapshot), Version(name="b", run=None)]) == [THREAT.on_any_images]
