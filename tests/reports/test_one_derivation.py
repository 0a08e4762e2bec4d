"""The leaderboard and the gate show the same numbers, because one derivation gives both."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from advbench.records.gating import read_runs
from advbench.reports.cells import load
from advbench.reports.leaderboard import leaderboard_section
from advbench.reports.standings import ranked_boards
from advbench.results.boards import TrainedModel
from advbench.results.gate.baseline import to_text
from advbench.results.gate.compare import compare_runs
from advbench.results.gate.verdicts import CLEAN, WORST, Terms
from advbench.results.store import Store


@pytest.fixture(scope="module")
def out(make_suite, tmp_path_factory):
    """Two data sets, two epsilons, two seeds, a stochastic target, minimal-norm attacks, a failed and a skipped cell."""
    folder = tmp_path_factory.mktemp("mixed")
    store = Store(folder)
    mixed = {
        "targets": {"a": 0.3, "b": 0.6, "noisy": 0.4, "half": 0.5},
        "stochastic": ("noisy",),
        "seeds": (0, 1),
        "matrices": ("white-box", "black-box", "transfer"),
        "attacks": {"pgd": 1.0, "deepfool": 0.9},
        "failing": [("white-box", "half", "pgd"), ("black-box", "b", "pgd")],
    }
    suites = [make_suite(**mixed, epsilons=(0.1, 0.3)), make_suite(**mixed, dataset="digits", n=60)]
    for suite in suites:
        for record in suite.records():
            if record.status == "error":
                status = "skipped" if record.target["label"] == "b" else "error"
                store.write(replace(record, status=status))
                continue
            examples = suite.examples(record)
            clean = examples.clean_correct
            if examples.draws > 1:  # the clean answers of a model do not depend on the attack
                clean = np.random.default_rng(record.seed).integers(1, examples.draws + 1, len(clean))
                clean[::9] = 0
            store.write(record, replace(examples, clean_correct=clean.astype(np.int16)))
    return folder


def outcomes_of(cells, threat, label):
    """The raw outcomes of a target at a threat, by seed."""
    by_seed = {}
    for cell in cells.scored:
        record = cell.record
        place = (record.dataset["name"], record.threat["epsilon"], record.target["label"])
        if place == (threat.dataset, threat.epsilon, label):
            by_seed.setdefault(record.seed, []).append((record, cell.examples))
    return [by_seed[seed] for seed in sorted(by_seed)]


def lowest(outcomes, epsilon):
    """The worst case of one model image by image, from the definition."""
    shares = []
    for i in range(len(outcomes[0][1])):
        usable = [
            (examples.select_correct[i], examples.report_correct[i])
            for record, examples in outcomes
            if not record.attack["minimal_norm"] or examples.distance_linf[i] <= epsilon * (1 + 1e-5)
        ]
        _, first = outcomes[0]
        if first.clean_correct[i] == 0:
            shares.append(0.0)
        elif not usable:
            shares.append(first.clean_correct[i] / first.draws)
        else:
            least = min(select for select, _ in usable)
            shares.append(np.mean([report for select, report in usable if select == least]) / first.draws)
    return np.array(shares)


def test_both_agree_with_the_definition_on_every_number(out):
    cells = load(Store(out))
    shown, gated = ranked_boards(cells), read_runs([out]).boards
    assert {board.threat for board in shown} == {board.threat for board in gated}
    assert sorted((board.threat.dataset, board.threat.epsilon) for board in shown) == [
        ("digits", 0.3),
        ("mnist", 0.1),
        ("mnist", 0.3),
    ]
    for board in shown:
        (other,) = [each for each in gated if each.threat == board.threat]
        assert {standing.label for standing in board.standings} == {target.label for target in other.targets}
        for standing in board.standings:
            by_seed = outcomes_of(cells, board.threat, standing.label)
            worst = [lowest(outcomes, board.threat.epsilon) for outcomes in by_seed]
            models = other.target(standing.label).models
            assert [model.seed for model in models] == list(standing.seeds) == [0, 1]
            for expected, answers, model in zip(worst, standing.answers, models, strict=True):
                np.testing.assert_allclose(answers, expected, atol=1e-12)
                np.testing.assert_array_equal(answers, model.worst_case())
            assert standing.robust.estimate.value == pytest.approx(np.mean(worst))
            clean = [outcomes[0][1].clean_correct / outcomes[0][1].draws for outcomes in by_seed]
            assert standing.clean.estimate.value == pytest.approx(np.mean(clean))
            assert np.mean([model.clean_values().mean() for model in models]) == pytest.approx(np.mean(clean))
            for attacker, rate in standing.by_attacker.items():
                own = {each for each in models[0].answers if each.seen_by(standing.label) == attacker}
                assert np.mean([model.accuracy(each) for model in models for each in own]) == pytest.approx(rate)


def test_a_target_without_a_number_is_unranked_and_fails_the_gate(out):
    shown, run = ranked_boards(load(Store(out))), read_runs([out])
    unranked = {standing.label for board in shown for standing in board.standings if standing.rank is None}
    assert unranked == {target.label for board in run.boards for target in board.targets if target.failures}
    assert unranked == {"half", "b"}


@pytest.fixture(scope="module")
def complete(make_suite, tmp_path_factory):
    folder = tmp_path_factory.mktemp("complete")
    make_suite(targets={"a": 0.3, "b": 0.6}, stochastic=(), seeds=(0, 1)).write(Store(folder))
    return folder


def test_leaderboard_gate_and_baseline_take_their_numbers_from_one_function(complete, monkeypatch):
    """Another worst case and another clean accuracy change all three."""
    monkeypatch.setattr(TrainedModel, "worst_case", lambda self, attackers=None: np.full(len(self.clean), 0.125))
    monkeypatch.setattr(TrainedModel, "clean_values", lambda self: np.full(len(self.clean), 0.875))
    (board,), run = ranked_boards(load(Store(complete))), read_runs([complete])
    (table,) = leaderboard_section(board).tables
    names = [column.name for column in table.columns]
    for row in table.rows:
        assert row[names.index("Robust accuracy")].text in ("12.5%", "≤ 12.5%")
        assert row[names.index("White-box")].text == "12.5%"
        assert row[names.index("Clean")].text == "87.5%"
    rows = compare_runs(run, run, Terms(checkpoints_only=True)).rows
    assert {(row.quantity, row.baseline, row.candidate) for row in rows} == {(WORST, 0.125, 0.125), (CLEAN, 0.875, 0.875)}
    written = [model for target in json.loads(to_text(run))["boards"][0]["targets"] for model in target["models"]]
    assert {(model["robust_accuracy"], model["clean_accuracy"]) for model in written} == {(0.125, 0.875)}
