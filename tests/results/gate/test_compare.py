"""The gate on simulated trainings: how often it errs, what it catches, and what it will not compare."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from advbench.results.boards import (
    Answers,
    Attacker,
    Board,
    BoardTarget,
    BoardThreat,
    TrainedModel,
)
from advbench.results.gate.baseline import Snapshot
from advbench.results.gate.compare import compare_runs
from advbench.results.gate.verdicts import CLEAN, TIME, WORST, Terms

N = 1000
PGD, FGSM = Attacker("white-box", "pgd", ""), Attacker("white-box", "fgsm", "")
TARGETS = {"none": 0.12, "trades": 0.5, "pgd-linf": 0.55, "smooth": 0.35}
THREAT = BoardThreat("mnist", "test", N, "f" * 64, "linf", 0.3)


class Method:
    """A way to train: every image has its hardness, every seed its luck, on the whole and on each image.

    On N images the accuracy of a seed spreads by `spread`: partly through its threshold, partly through the images.
    """

    def __init__(self, rng, accuracy, spread=0.01, fixed_noise=0.1):
        self.rng, self.accuracy = rng, accuracy
        self.hardness, self.flaw = rng.random((2, N))
        self.noise = fixed_noise
        self.luck = np.sqrt(max(0.0, spread**2 - fixed_noise / np.sqrt(np.pi) / N))

    def train(self, seed, drop=0.0, seconds=0.001):
        theta = self.accuracy - drop + self.rng.normal(0, self.luck)
        margin = theta - self.hardness
        right = margin + self.rng.normal(0, self.noise, N) > 0
        clean = 0.97 + self.rng.normal(0, 0.002) - self.flaw + self.rng.normal(0, 0.01, N) > 0
        easier = right | (self.rng.random(N) < 0.1)
        answers = {PGD: answer(right, seconds), FGSM: answer(easier, seconds)}
        return TrainedModel(seed, f"weights {self.rng.random()}", "CPU", 1, clean.astype(int), answers, {})


def answer(right, seconds=None):
    return Answers(np.asarray(right).astype(np.int64), None, seconds)


def target(label, models, **facts):
    component = {"name": label, "arguments": {}}
    return BoardTarget(label, {"defense": component, "architecture": component, "stochastic": False} | facts, tuple(models))


def board(targets, threat=THREAT, **changes):
    attack = {"arguments": {"steps": 40}, "source_hash": "ab" * 32}
    attacks = {name: {"name": name, **attack} for name in ("pgd", "fgsm")}
    dataset = {"name": threat.dataset, "split": threat.split, "n": N, "fingerprint": "f" * 64}
    fields = {"dataset": dataset, "box": [0.0, 1.0], "examples": "e" * 64, "attacks": attacks} | changes
    return Board(threat=threat, targets=tuple(targets), **fields)


def run(*targets, version="1", **changes):
    return Snapshot(version, (board(targets, **changes),))


def trainings(rng, seeds=(5, 3), drops=None, **method):
    """A baseline and a candidate of `TARGETS`, trained from other seeds; drops: of the candidate, by target."""
    drops = drops or {}
    methods = {label: Method(rng, accuracy, **method) for label, accuracy in TARGETS.items()}
    before = [target(label, [one.train(seed) for seed in range(seeds[0])]) for label, one in methods.items()]
    after = [
        target(label, [one.train(100 + seed, drops.get(label, 0.0)) for seed in range(seeds[1])])
        for label, one in methods.items()
    ]
    return run(*before), run(*after)


def row(found, label, quantity=WORST):
    (one,) = [row for row in found.rows if (row.target, row.quantity) == (label, quantity)]
    return one


def test_the_simulated_seeds_spread_by_one_point():
    method = Method(np.random.default_rng(0), 0.5)
    accuracies = [method.train(seed).worst_case({PGD, FGSM}).mean() for seed in range(400)]
    assert np.std(accuracies) == pytest.approx(0.01, rel=0.1)


def test_honest_retrainings_raise_at_most_6_false_alarms_in_200():
    rng = np.random.default_rng(1)
    codes = [compare_runs(*trainings(rng), Terms(alpha=0.01)).exit_code for _ in range(200)]
    assert set(codes) <= {0, 1}
    assert sum(codes) <= 6


def test_pairing_the_examples_of_retrainings_would_raise_many_false_alarms():
    """Why seeds are compared by seed: McNemar at 1% on two honest trainings whose seeds spread by one point."""
    rng = np.random.default_rng(2)
    alarms = [
        compare_runs(*trainings(rng, (1, 1), spread=0.015), Terms(alpha=0.01, checkpoints_only=True)).exit_code
        for _ in range(200)
    ]
    assert sum(alarms) > 12


def test_a_drop_of_3_points_is_caught_in_80_percent_at_a_spread_of_1_point():
    rng = np.random.default_rng(3)
    found = [compare_runs(*trainings(rng, drops={"pgd-linf": 0.03})) for _ in range(200)]
    caught = [row(one, "pgd-linf").verdict == "worse" and one.exit_code == 1 for one in found]
    assert np.mean(caught) >= 0.8


def test_a_drop_in_clean_accuracy_is_caught_too():
    before, after = trainings(np.random.default_rng(4))
    models = [replace(model, clean=model.clean * (np.arange(N) % 20 > 0)) for model in after.boards[0].targets[0].models]
    worse = target("none", models)
    found = compare_runs(before, run(worse, *after.boards[0].targets[1:]))
    assert row(found, "none", CLEAN).verdict == "worse"
    assert [one.quantity for one in found.failures] == [CLEAN]


def test_a_gain_of_a_retrained_target_is_better_and_passes():
    before, after = trainings(np.random.default_rng(5), drops={"trades": -0.2})
    found = compare_runs(before, after)
    assert row(found, "trades").verdict == "better"
    assert found.exit_code == 0


def test_the_p_values_of_a_lone_target_are_students_and_holms():
    method = Method(np.random.default_rng(6), 0.5)
    models = [method.train(seed, drop=0.01 * (seed > 4)) for seed in range(8)]
    found = compare_runs(run(target("a", models[:5])), run(target("a", models[5:])))
    by_seed = [model.worst_case({PGD, FGSM}).mean() for model in models]
    p = stats.ttest_ind(by_seed[5:], by_seed[:5], alternative="less").pvalue
    assert row(found, "a").p_value == pytest.approx(p / 0.9)


# --- the same weights


def fixed(rng, right, weights="w"):
    clean = np.ones(N, dtype=np.int64)
    return target("a", [TrainedModel(0, weights, "CPU", 1, clean, {PGD: answer(right), FGSM: answer(np.ones(N))}, {})])


def test_an_accuracy_that_rises_with_equal_weights_fails():
    rng = np.random.default_rng(7)
    right = rng.random(N) < 0.5
    stronger, weaker = fixed(rng, right), fixed(rng, right | (rng.random(N) < 0.06))
    risen = compare_runs(run(stronger), run(weaker))
    assert risen.exit_code == 1
    assert row(risen, "a").verdict == "better"
    assert "the attack became weaker" in row(risen, "a").note
    fallen = compare_runs(run(weaker), run(stronger))
    assert fallen.exit_code == 1
    assert row(fallen, "a").verdict == "worse"
    first, second = (one.boards[0].targets[0].models[0].worst_case({PGD, FGSM}) for one in (run(stronger), run(weaker)))
    lost = int((second > first).sum())
    assert row(risen, "a").p_value == pytest.approx(min(1.0, stats.binomtest(0, lost).pvalue / 0.9))


def test_a_rise_with_other_weights_is_no_failure():
    rng = np.random.default_rng(7)
    right = rng.random(N) < 0.5
    before, after = run(fixed(rng, right)), run(fixed(rng, right | (rng.random(N) < 0.06), "other"))
    found = compare_runs(before, after, Terms(checkpoints_only=True))
    assert row(found, "a").verdict == "better"
    assert found.exit_code == 0
    assert any("Checkpoints only" in line and "another seed" in line for line in found.caveats)


def test_a_few_flipped_images_of_equal_weights_are_no_alarm():
    right = np.arange(N) < 500
    flipped = right.copy()
    flipped[[10, 20, 700]] ^= True
    assert compare_runs(run(fixed(None, right)), run(fixed(None, flipped))).exit_code == 0


def stochastic(rng, chances, weights="w", seeds=(0,), draws=10):
    models = []
    for seed in seeds:
        answers = {attacker: Answers(rng.binomial(draws, chances), rng.binomial(draws, chances)) for attacker in (PGD, FGSM)}
        models.append(TrainedModel(seed, f"{weights}{seed}", "CPU", draws, np.full(N, draws), answers, {}))
    return target("noise", models, stochastic=True)


def test_stochastic_models_keep_the_level_and_a_weaker_attack_is_caught():
    rng = np.random.default_rng(8)
    chances = rng.beta(1, 1, N)
    pairs = [(run(stochastic(rng, chances)), run(stochastic(rng, chances))) for _ in range(50)]
    assert sum(compare_runs(*pair).exit_code for pair in pairs) <= 3
    weaker = [compare_runs(run(stochastic(rng, chances)), run(stochastic(rng, np.sqrt(chances)))) for _ in range(5)]
    assert all(one.exit_code == 1 and "sign-flip" in row(one, "noise").test for one in weaker)


def test_several_seeds_of_equal_weights_are_compared_by_image():
    rng = np.random.default_rng(9)
    before = run(stochastic(rng, np.full(N, 0.5), seeds=(0, 1, 2, 3, 4)))
    after = run(stochastic(rng, np.full(N, 0.5), seeds=(0, 1, 2)))
    found = compare_runs(before, after)
    assert row(found, "noise").question == "same weights"
    models = before.boards[0].targets[0].models[:3]
    assert row(found, "noise").baseline == pytest.approx(np.mean([one.worst_case({PGD, FGSM}).mean() for one in models]))


# --- targets that come and go


def test_a_missing_target_fails_and_a_new_one_does_not():
    before, after = trainings(np.random.default_rng(10))
    extra = replace(after.boards[0].targets[0], label="newcomer")
    found = compare_runs(before, run(*after.boards[0].targets[1:], extra))
    assert row(found, "none").verdict == "missing"
    assert row(found, "none").note == "not in the candidate"
    assert row(found, "newcomer").verdict == "new"
    assert [one.target for one in found.failures] == ["none"]
    assert found.exit_code == 1


def test_a_target_whose_attack_failed_is_missing_and_not_robust():
    before, after = trainings(np.random.default_rng(11))
    first, *others = after.boards[0].targets
    broken = [
        replace(model, answers={FGSM: model.answers[FGSM]}, failures={PGD: "ViolationError: NaN"}) for model in first.models
    ]
    found = compare_runs(before, run(replace(first, models=tuple(broken)), *others))
    assert row(found, first.label).verdict == "missing"
    assert "white-box pgd: ViolationError: NaN" in row(found, first.label).note
    assert found.exit_code == 1


def test_a_seed_without_an_attack_is_a_missing_number():
    before, after = trainings(np.random.default_rng(12))
    first, *others = after.boards[0].targets
    lame = replace(first.models[0], answers={FGSM: first.models[0].answers[FGSM]})
    found = compare_runs(before, run(replace(first, models=(lame, *first.models[1:])), *others))
    assert "no record for seed 100" in row(found, first.label).note
    assert found.exit_code == 1


def transfers(label, weights, source_right):
    """A target under PGD, and under transfers from the sources of `source_right`."""
    clean = np.ones(N, dtype=np.int64)
    answers = {PGD: answer(np.arange(N) < 600)}
    answers |= {Attacker("transfer", "pgd", source): answer(right) for source, right in source_right.items()}
    return target(label, [TrainedModel(0, weights, "CPU", 1, clean, answers, {})])


def test_transfers_from_a_retrained_source_are_left_out_of_a_fixed_model():
    """Model b is as it was; a was trained again, and happens to fool b on 100 images more."""
    every, fewer = np.ones(N), np.arange(N) < 500
    before = run(transfers("a", "old", {"a": every, "b": every}), transfers("b", "w", {"a": every, "b": every}))
    after = run(transfers("a", "new", {"a": every, "b": every}), transfers("b", "w", {"a": fewer, "b": every}))
    found = compare_runs(before, after, Terms(checkpoints_only=True))
    assert row(found, "b").question == "same weights"
    assert (row(found, "b").difference, row(found, "b").verdict) == (0.0, "same")
    assert "without transfers from a, re-trained" in row(found, "b").note
    assert row(found, "a").question == "checkpoints"


def test_transfers_from_a_source_of_one_side_are_left_out():
    every = np.ones(N)
    before = run(transfers("b", "w", {"b": every}))
    after = run(transfers("b", "w", {"b": every, "c": np.zeros(N)}), transfers("c", "v", {"b": every, "c": every}))
    found = compare_runs(before, after)
    assert (row(found, "b").verdict, row(found, "c").verdict) == ("same", "new")
    assert "without transfers from c" in row(found, "b").note
    back = compare_runs(after, before)
    assert (row(back, "b").verdict, row(back, "c").verdict, back.exit_code) == ("same", "missing", 1)


def test_flags_are_shown_and_fail_where_asked():
    before, after = trainings(np.random.default_rng(13))
    first, *others = after.boards[0].targets
    flagged = run(replace(first, flags=("noise",)), *others)
    found = compare_runs(before, flagged)
    assert "an upper bound: noise (new)" in row(found, first.label).note
    assert found.exit_code == 0
    assert compare_runs(before, flagged, Terms(fail_on_flags=True)).exit_code == 1
    old = run(*(replace(one, flags=("noise",)) for one in before.boards[0].targets))
    assert compare_runs(old, flagged, Terms(fail_on_flags=True)).exit_code == 0


# --- what is not comparable


def changed(snapshot, **changes):
    return Snapshot(snapshot.version, tuple(replace(one, **changes) for one in snapshot.boards))


@pytest.fixture(scope="module")
def pair():
    return trainings(np.random.default_rng(14))


def attacks_of(snapshot, **changes):
    return {name: facts | changes for name, facts in snapshot.boards[0].attacks.items()}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"dataset": {"name": "mnist", "split": "test", "n": 500, "fingerprint": "f" * 64}}, "data set's n: 1000 in"),
        ({"dataset": {"name": "mnist", "split": "test", "n": N, "fingerprint": "0" * 64}}, "data set's fingerprint"),
        ({"examples": "d" * 64}, "other examples"),
        ({"box": [-1.0, 1.0]}, "the pixel range"),
        ({"threat": THREAT._replace(epsilon=0.1)}, "linf 0.3 on mnist: only in the baseline"),
        ({"threat": THREAT._replace(dataset="digits")}, "linf 0.3 on digits: only in the candidate"),
    ],
)
def test_other_data_and_threats_are_not_compared(pair, change, line):
    before, after = pair
    found = compare_runs(before, changed(after, **change))
    assert found.exit_code == 2
    assert found.rows == ()
    assert any(line in one for one in found.incomparable), found.incomparable


def test_other_arguments_of_an_attack_are_not_compared(pair):
    before, after = pair
    found = compare_runs(before, changed(after, attacks=attacks_of(after, arguments={"steps": 20})))
    assert found.exit_code == 2
    assert "the attack pgd: steps 40 in the baseline, 20 in the candidate" in found.incomparable


def test_another_version_is_compared_only_where_asked(pair):
    before, after = pair
    sources = changed(after, attacks=attacks_of(after, source_hash="cd" * 32))
    found = compare_runs(before, sources)
    assert found.exit_code == 2
    assert "another version of its source (abababab and cdcdcdcd)" in found.incomparable[0]
    newer = Snapshot("2", sources.boards)
    assert compare_runs(before, newer).incomparable[0] == "advbench 1 in the baseline, 2 in the candidate"
    across = compare_runs(before, newer, Terms(across_versions=True))
    assert across.exit_code == 0
    assert any("Across versions" in line for line in across.caveats)


def renamed(snapshot):
    models = lambda one: tuple(  # noqa: E731
        replace(model, answers={Attacker("white-box", "pdg", ""): model.answers[PGD], FGSM: model.answers[FGSM]})
        for model in one.models
    )
    return changed(snapshot, targets=tuple(replace(one, models=models(one)) for one in snapshot.boards[0].targets))


def test_a_renamed_attack_is_not_compared(pair):
    before, after = pair
    found = compare_runs(before, renamed(after))
    assert found.exit_code == 2
    assert set(found.incomparable) == {"white-box pgd: only in the baseline", "white-box pdg: only in the candidate"}


def test_other_queries_of_a_substitute_are_not_compared():
    oracle = Attacker("black-box", "pgd", "substitute mlp")

    def black_box(queries):
        answers = {oracle: Answers(np.ones(N, np.int64), None, None, queries)}
        return run(target("a", [TrainedModel(0, "w", "CPU", 1, np.ones(N, np.int64), answers, {})]))

    found = compare_runs(black_box(9600), black_box(4800))
    assert found.incomparable == ("black-box pgd from substitute mlp: 9600 queries in the baseline, 4800 in the candidate",)


@pytest.mark.parametrize(("seeds", "counts"), [((4, 3), ("got 4", "got 3")), ((5, 2), ("got 5", "got 2"))])
def test_too_few_seeds_say_what_is_missing(seeds, counts):
    found = compare_runs(*trainings(np.random.default_rng(15), seeds))
    assert found.exit_code == 2
    assert len(found.incomparable) == len(TARGETS)
    assert "5 training seeds in the baseline" in found.incomparable[0]
    assert all(count in found.incomparable[0] for count in counts)
    assert "--checkpoints-only" in found.incomparable[0]


def test_checkpoints_of_no_common_seed_are_compared_one_to_one_only():
    before, after = trainings(np.random.default_rng(16), (2, 1))
    found = compare_runs(before, after, Terms(checkpoints_only=True))
    assert found.exit_code == 2
    assert "2 and 1 models without a common seed" in found.incomparable[0]


def test_a_changed_argument_of_a_defense_is_another_model():
    rng = np.random.default_rng(17)
    before = fixed(rng, np.ones(N))
    after = replace(before, facts=before.facts | {"defense": {"name": "a", "arguments": {"kernel": 11}}})
    found = compare_runs(run(before), run(after), Terms(checkpoints_only=True))
    assert row(found, "a").question == "checkpoints"
    assert "kernel absent, now 11" in row(found, "a").note


# --- tolerance, order, time


def test_a_tolerated_drop_is_the_same():
    before, after = trainings(np.random.default_rng(18), drops={"pgd-linf": 0.1})
    assert compare_runs(before, after, Terms(tolerance=0.05)).exit_code == 1
    tolerated = compare_runs(before, after, Terms(tolerance=0.2))
    assert tolerated.exit_code == 0
    assert row(tolerated, "pgd-linf").verdict == "same"


def test_the_order_of_targets_and_models_does_not_matter(pair):
    before, after = pair
    turned = changed(after, targets=tuple(replace(one, models=one.models[::-1]) for one in after.boards[0].targets[::-1]))
    straight, reversed_ = compare_runs(before, after), compare_runs(before, turned)
    for one in straight.rows:
        assert row(reversed_, one.target, one.quantity).p_value == pytest.approx(one.p_value)


def timed(seconds, device="CPU"):
    method = Method(np.random.default_rng(19), 0.5)
    return run(target("a", [replace(method.train(0, seconds=seconds), device=device, weights="w")]))


def test_time_is_bounded_only_where_asked_and_on_one_device():
    before, slow = timed(0.001), timed(0.005)
    assert compare_runs(before, slow).exit_code == 0
    assert all(one.quantity != TIME for one in compare_runs(before, slow).rows)
    found = compare_runs(before, slow, Terms(time_bound=3))
    assert (row(found, "a", TIME).difference, row(found, "a", TIME).fails) == (pytest.approx(5), True)
    assert compare_runs(before, slow, Terms(time_bound=6)).exit_code == 0
    other = compare_runs(before, timed(0.005, "GPU"), Terms(time_bound=3))
    assert other.exit_code == 0
    assert "a: times of CPU and GPU are not compared" in other.caveats


@pytest.mark.parametrize(
    ("terms", "message"),
    [({"alpha": 0.0}, "`alpha` in"), ({"tolerance": 3}, "a share such as 0.01"), ({"time_bound": 0.5}, "`time_bound` >= 1")],
)
def test_terms_that_make_no_sense_are_refused(terms, message):
    with pytest.raises(ValueError, match=message):
        Terms(**terms)


def test_cells_are_shown_and_not_gated():
    rng = np.random.default_rng(20)
    before = fixed(rng, np.arange(N) < 500)
    (model,) = before.models
    fgsm = replace(model, answers={PGD: model.answers[PGD], FGSM: answer(np.arange(N) < 700)})
    found = compare_runs(run(before), run(replace(before, models=(fgsm,))))
    assert found.exit_code == 0
    changes = {one.attacker: (one.baseline, one.candidate) for one in found.cells}
    assert changes == {PGD: (0.5, 0.5), FGSM: (1.0, 0.7)}
