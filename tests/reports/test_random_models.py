"""Random models in reports: by the mean and by the worst of several submissions, and orders that change between them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from advbench.reports.cells import Cells, load
from advbench.reports.evaluation_result import EvaluationResult
from advbench.reports.random_models import random_models_section
from advbench.reports.sections import sections
from advbench.reports.standings import ranked_boards


@pytest.fixture
def cells(store, make_suite):
    make_suite(matrices=("white-box",), n=20, targets={"none": 0.6, "input-noise": 0.3}, attacks={"pgd": 1.0}).write(store)
    return load(store)


def answering(cells, target, clean, attacked):
    """The cells, in which `target` is right in so many draws of every image, clean and under attack."""
    found = []
    for cell in cells.cells:
        if cell.record.target["label"] == target:
            n = len(cell.examples)
            dtype = cell.examples.report_correct.dtype
            counts = {
                "clean_correct": np.full(n, clean, cell.examples.clean_correct.dtype),
                "select_correct": np.full(n, attacked, cell.examples.select_correct.dtype),
                "report_correct": np.full(n, attacked, dtype),
                "report_wrong": np.full(n, cell.examples.draws - attacked, cell.examples.report_wrong.dtype),
            }
            cell = dataclasses.replace(cell, examples=dataclasses.replace(cell.examples, **counts))
        found.append(cell)
    return Cells(tuple(found))


def rows_of(section):
    [table] = section.tables
    names = [column.name for column in table.columns]
    return {row[0].text: dict(zip(names, (entry.order for entry in row), strict=True)) for row in table.rows}


def test_every_rule_has_its_column_and_the_right_number(cells):
    [board] = ranked_boards(answering(cells, "input-noise", clean=10, attacked=8))
    random = rows_of(random_models_section(board))["input-noise"]
    by_hand = {
        "mean": 0.8,
        "worst of 2": 8 * 7 / 90,
        "worst of 5": 8 * 7 * 6 * 5 * 4 / (10 * 9 * 8 * 7 * 6),
        "worst of 10": 0.0,
    }
    for rule, value in by_hand.items():
        assert random[f"Robust, {rule}"] == pytest.approx(value)
        assert random[f"Clean, {rule}"] == 1.0


def test_a_model_that_is_not_random_has_one_number_for_all(cells):
    [board] = ranked_boards(cells)
    [standing] = [standing for standing in board.standings if standing.label == "none"]
    row = rows_of(random_models_section(board))["none"]
    assert {row[f"Robust, {rule}"] for rule in ("mean", "worst of 2", "worst of 10")} == {standing.robust.estimate.value}


def test_an_order_that_changes_is_told(cells):
    [board] = ranked_boards(answering(cells, "input-noise", clean=10, attacked=9))
    [plain] = [standing for standing in board.standings if standing.label == "none"]
    assert 0 < plain.robust.estimate.value < 0.9
    [caveat] = random_models_section(board).caveats
    assert caveat.startswith("input-noise stands above none by the mean (90.0%")
    assert "below it under the worst of 10 (0.0%" in caveat
    [board] = ranked_boards(answering(cells, "input-noise", clean=10, attacked=10))
    assert random_models_section(board).caveats == ()


def test_boards_without_random_models_have_no_such_section(store, make_suite):
    make_suite(matrices=("white-box",), n=20, targets={"none": 0.6}, attacks={"pgd": 1.0}, stochastic=()).write(store)
    assert "Random models by every rule" not in {section.title for section in sections(load(store))}


def test_the_report_has_the_section(cells):
    assert "Random models by every rule" in {section.title for section in sections(cells)}


def test_an_evaluation_says_it_too(cells):
    """9 of 10 draws right on every image: worst of 5 by hand 9 8 7 6 5 / (10 9 8 7 6)."""
    both = answering(cells, "input-noise", clean=10, attacked=9).cells
    random, plain = (
        EvaluationResult(label, tuple(cell.outcome for cell in both if cell.record.target["label"] == label))
        for label in ("input-noise", "none")
    )
    assert list(random.resubmitted) == [1, 2, 5, 10]
    assert random.resubmitted[1] == (random.clean, random.robust)
    assert random.resubmitted[5][1].value == pytest.approx(0.5)
    told = {one["submissions"]: one["robust"]["value"] for one in random.summary()["resubmitted"]}
    assert told == pytest.approx({1: 0.9, 2: 0.8, 5: 0.5, 10: 0.0})
    assert "worst of 5 submissions: clean accuracy 100.0%" in str(random)
    assert plain.resubmitted == {}
    assert plain.summary()["resubmitted"] == []
    assert "submissions" not in str(plain)


def test_known_noise_has_a_column_where_it_was_measured(cells):
    [board] = ranked_boards(answering(cells, "input-noise", clean=10, attacked=8))
    assert "Known noise" not in rows_of(random_models_section(board))["input-noise"]
    found = []
    for cell in answering(cells, "input-noise", clean=10, attacked=8).cells:
        if cell.record.target["label"] == "input-noise":
            told = {"known_noise": {"draws": 10, "correct": [10, 5, 0, 3, 2] * 4, "reason": ""}}
            cell = dataclasses.replace(
                cell, record=dataclasses.replace(cell.record, details={**cell.record.details, **told})
            )
        found.append(cell)
    [board] = ranked_boards(Cells(tuple(found)))
    section = random_models_section(board)
    assert rows_of(section)["input-noise"]["Known noise"] == pytest.approx(0.4)
    assert rows_of(section)["none"]["Known noise"] is None
    assert "attacker's ignorance of the draws" in section.text
