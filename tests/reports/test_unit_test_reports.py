"""Unit tests of the attacks in reports: beside the robust accuracy, flagged below 95%, and why where there is none."""

from __future__ import annotations

import dataclasses
import json

import pytest

from advbench.reports.cells import Cells, load
from advbench.reports.evaluation_result import EvaluationResult
from advbench.reports.leaderboard import robust_entry
from advbench.reports.sections import sections
from advbench.reports.standings import ranked_boards
from advbench.reports.unit_tests import unit_test_section
from advbench.results.unit_tests import UnitTestOutcome, unit_test_of


def outcome(missed=(), built=60, **changes):
    fields = {
        "images": 64,
        "built": built,
        "missed": tuple(missed),
        "control": 3,
        "points": 40,
        "probes": {"faithful": built - len(missed)},
        "features": "10 logits",
        "unbuilt": {"no luck": 64 - built},
    }
    return UnitTestOutcome(**(fields | changes))


def with_tests(cells, tests):
    """The cells with the outcomes of their unit tests by (target, attack) of the white-box matrix."""
    found = []
    for cell in cells.cells:
        test = tests.get((cell.record.target["label"], cell.record.attack["label"]))
        if test is not None and cell.record.matrix == "white-box":
            details = {**cell.record.details, "unit_test": test.described()}
            cell = dataclasses.replace(cell, record=dataclasses.replace(cell.record, details=details))
        found.append(cell)
    return Cells(tuple(found))


@pytest.fixture
def cells(store, make_suite):
    make_suite(matrices=("white-box",), n=40).write(store)
    return load(store)


TESTS = {
    ("none", "pgd"): outcome(),
    ("none", "fgsm"): outcome(range(30)),
    ("pgd-linf", "pgd"): outcome(range(4)),
    ("robust-linf", "pgd"): outcome(built=0, control=0),
}


def test_a_record_gives_back_what_it_was_given(cells):
    for cell in with_tests(cells, TESTS).cells:
        record = cell.record
        found = unit_test_of(dataclasses.replace(record, details=json.loads(json.dumps(record.details))))
        wanted = TESTS.get((record.target["label"], record.attack["label"]))
        assert found == wanted


def test_the_shares_stand_beside_the_robust_accuracies(cells):
    (board,) = ranked_boards(with_tests(cells, TESTS))
    section = unit_test_section(board)
    (table,) = section.tables
    place = {column.name: position for position, column in enumerate(table.columns)}
    rows = {(row[place["Target"]].text, row[place["Attack"]].text): row for row in table.rows}
    assert rows.keys() == TESTS.keys()
    found = {key: row[place["Planted images found"]] for key, row in rows.items()}
    assert (found["none", "pgd"].text, found["none", "pgd"].tone) == ("100.0%", "")
    assert (found["none", "fgsm"].text, found["none", "fgsm"].tone) == ("50.0%", "warning")
    assert found["pgd-linf", "pgd"].note == "56 of 60; failed"
    assert found["robust-linf", "pgd"].text == "not applicable"
    assert "no luck (64)" in found["robust-linf", "pgd"].note
    for cell in board.cells:
        row = rows.get((cell.record.target["label"], cell.record.attack["label"]))
        if row is not None:
            assert row[place["Robust accuracy"]].order == cell.statistics.robust_accuracy.value
    assert rows["none", "pgd"][place["By random points"]].text == "5.0%"
    assert section.caveats == (
        "The evaluation of pgd-linf failed its unit test: all attacks together found 56 of 60 planted images.",
    )


def test_a_failed_unit_test_makes_the_number_an_upper_bound(cells):
    (board,) = ranked_boards(with_tests(cells, TESTS))
    entries = {standing.label: robust_entry(standing).text for standing in board.standings}
    assert entries["pgd-linf"].startswith("≤ ")
    assert not entries["none"].startswith("≤ ")
    assert "Unit tests of the attacks" in [section.title for section in sections(with_tests(cells, TESTS))]


def test_without_unit_tests_nothing_is_shown(cells):
    (board,) = ranked_boards(cells)
    assert unit_test_section(board) is None


def test_an_evaluation_shows_and_keeps_them(cells):
    own = [cell for cell in with_tests(cells, TESTS).cells if cell.record.target["label"] == "none"]
    result = EvaluationResult("mine", tuple((cell.record, cell.examples) for cell in own))
    text = str(result)
    assert "unit test" in text
    assert "50.0%, failed" in text
    assert "100.0%" in text
    assert "unit test of pgd, left out: no luck (4)" in text
    assert {row["attack"]: row["unit_test"] for row in result.rows()} == {"pgd": 1.0, "fgsm": 0.5, "worst case": None}
    attacks = {attack["label"]: attack["unit_test"] for attack in json.loads(result.to_json())["attacks"]}
    assert attacks["fgsm"]["missed"] == list(range(30))
    plain = EvaluationResult(
        "mine", tuple((cell.record, cell.examples) for cell in cells.cells if cell.record.target["label"] == "none")
    )
    assert "unit test" not in str(plain)
    assert [attack["unit_test"] for attack in json.loads(plain.to_json())["attacks"]] == [None] * len(plain.cells)
