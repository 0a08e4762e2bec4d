"""Three attackers side by side, and detectors as their thresholds move."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from advbench.reports.attackers import attackers_section, detector_rates, detectors_section
from advbench.reports.cells import Cells, load
from advbench.reports.html import to_html
from advbench.reports.markdown import to_markdown
from advbench.reports.sections import sections
from advbench.reports.site import site
from advbench.reports.standings import ranked_boards
from advbench.results.record import Record
from advbench.results.statistics import rate, robust, worst_case
from advbench.results.store import Store

NOISY = "input-noise"


def written(suite, store, *, failed=(), queries=False, detector=None, capped=False):
    """The cells of a suite in which `NOISY` has test-time parts: its white-box cells again as oblivious ones."""
    suite.write(store)
    cells = []
    for cell in load(store).cells:
        record, examples = cell.record, cell.examples
        if record.target["label"] == NOISY and record.matrix == "white-box":
            weaker = dataclasses.replace(examples, report_correct=np.maximum(examples.report_correct, examples.draws // 2))
            cells.append(changed(record, weaker, "oblivious", {"label": "base", "kind": "surrogate"}))
            if queries:
                cells.append(changed(record, examples, "black-box", {"label": "label queries", "kind": "queries"}))
            if detector:
                examples = detector(examples)
            if capped:
                preparation = {"faithful": {"draws": 64, "cosines": [0.95, 0.4], "capped": True}}
                record = dataclasses.replace(record, details={**record.details, "preparation": preparation})
        cells.append((record, examples))
    fresh = Store(store.folder.parent / "again")
    for record, examples in cells:
        if record.matrix in failed:
            fresh.write(dataclasses.replace(record, status="error", reason="no luck", counts={}))
        else:
            fresh.write(record, examples)
    return load(fresh)


def changed(record: Record, examples, matrix, source):
    key = record.key[:-2] + {"oblivious": "aa", "black-box": "bb"}[matrix]
    return dataclasses.replace(record, key=key, matrix=matrix, source=source), examples


def watched(examples):
    rng = np.random.default_rng(0)
    score = rng.normal(size=len(examples))
    return dataclasses.replace(
        examples,
        clean_score=rng.normal(-2, 1, len(examples)),
        report_score=score,
        report_rejected=np.where(score > 0, examples.draws, 0),
        report_wrong=examples.draws - examples.report_correct,
    )


@pytest.fixture
def make(store, make_suite):
    def run(**how):
        return written(make_suite(matrices=("white-box", "black-box"), n=60), store, **how)

    return run


def lone(examples):
    """The examples with a detector that stands alone on every image that counts as robust."""
    robust_ones = np.where(2 * examples.report_correct >= examples.draws, examples.draws, 0).astype(np.int16)
    return dataclasses.replace(watched(examples), fooled_rejected=robust_ones)


def row(section, name):
    columns = [column.name for column in section.tables[0].columns]
    (found,) = [each for each in section.tables[0].rows if each[0].text == name]
    return dict(zip(columns, found, strict=True))


def test_each_attacker_is_the_worst_of_his_own_cells(make):
    cells = make()
    (board,) = ranked_boards(cells)
    found = row(attackers_section(board), NOISY)
    for name, matrix in (
        ("Ignores the defense", "oblivious"),
        ("Adaptive white-box", "white-box"),
        ("Substitute black-box", "black-box"),
    ):
        own = [
            cell.outcome for cell in cells.scored if cell.record.matrix == matrix and cell.record.target["label"] == NOISY
        ]
        assert found[name].order == pytest.approx(worst_case(own, board.threat.epsilon).values.mean())
    both = [found["Adaptive white-box"].order, found["Substitute black-box"].order]
    assert found["Minimum of white-box and substitute"].order == min(both)
    assert found["Ignores the defense"].order > found["Adaptive white-box"].order
    clean = next(cell for cell in cells.scored if cell.record.target["label"] == NOISY).examples
    assert found["Clean"].order == pytest.approx(rate(clean.clean_correct / clean.draws).value)


def test_who_ignores_a_defense_ranks_nobody(make):
    cells = make()
    (board,) = ranked_boards(cells)
    (plain,) = ranked_boards(Cells(tuple(cell for cell in cells.cells if cell.record.matrix != "oblivious")))
    facts = [
        [(one.label, one.rank, one.robust.estimate, one.lacks, one.by_matrix) for one in each.standings]
        for each in (board, plain)
    ]
    assert facts[0] == facts[1]
    assert all(standing.rank is not None for standing in board.standings)


def test_a_board_without_test_time_parts_has_no_such_section(default_cells):
    (board,) = ranked_boards(default_cells)
    assert attackers_section(board) is None
    assert detectors_section(board) is None


def test_queries_have_a_column_and_the_headline_leaves_them_out(make):
    section = attackers_section(ranked_boards(make(queries=True))[0])
    found = row(section, NOISY)
    assert found["Queries"].order is not None
    both = [found["Adaptive white-box"].order, found["Substitute black-box"].order]
    assert found["Minimum of white-box and substitute"].order == min(both)


def test_without_queries_there_is_no_column_for_them(make):
    assert "Queries" not in [column.name for column in attackers_section(ranked_boards(make())[0]).tables[0].columns]


def test_an_attacker_without_cells_makes_the_headline_a_bound(make):
    found = row(attackers_section(ranked_boards(make(failed=("black-box",)))[0]), NOISY)
    assert found["Substitute black-box"].text == "–"
    assert found["Minimum of white-box and substitute"].text.startswith("≤ ")


def test_failed_cells_and_draws_that_were_not_enough_are_said(make):
    section = attackers_section(ranked_boards(make(failed=("oblivious",), capped=True))[0])
    assert any("2 cells of the attacker 'Ignores the defense' have no numbers" in caveat for caveat in section.caveats)
    assert any("64 draws were not enough" in caveat and "0.40" in caveat for caveat in section.caveats)


def test_what_each_surrogate_reached_stands_beside_it(store, make_suite):
    cells = written(make_suite(matrices=("white-box", "black-box"), n=60), store)
    details = {
        "candidates": {"faithful": None, "bpda": 0.25, "base": 0.5},
        "draws": {"faithful": 16, "bpda": 16, "base": 1},
    }
    changed = tuple(
        dataclasses.replace(cell, record=dataclasses.replace(cell.record, details=details))
        if (cell.record.target["label"], cell.record.matrix, cell.record.attack["label"]) == (NOISY, "white-box", "pgd")
        else cell
        for cell in cells.cells
    )
    (board,) = ranked_boards(Cells(changed))
    table = attackers_section(board).tables[1]
    assert [column.name for column in table.columns] == ["Defense", "Attack", "faithful", "bpda", "base", "Draws"]
    rows = {row[1].text: [entry.text for entry in row[2:]] for row in table.rows}
    assert rows == {"pgd": ["no gradient", "25.0%", "50.0%", "16"], "fgsm": ["–"] * 4}


def test_rates_of_a_detector_move_with_its_threshold(make):
    cells = make(detector=watched)
    (cell,) = [one for one in cells.scored if one.examples.detected and one.record.attack["label"] == "pgd"]
    examples = cell.examples
    thresholds = np.array([-np.inf, -1.0, 0.0, 1.0, np.inf])
    rejected, caught, undetected = detector_rates(examples, thresholds)
    assert (rejected[0], caught[0], undetected[0]) == pytest.approx((1, 1, 0))
    assert (rejected[-1], caught[-1]) == (0, 0)
    right = (examples.clean_correct > 0) | (examples.clean_prediction == examples.label)
    for i, threshold in enumerate(thresholds):
        wrong = [int(examples.report_wrong[k]) / examples.draws if right[k] else 0.0 for k in range(len(examples))]
        over = [float(score) > threshold for score in examples.report_score]
        assert rejected[i] == pytest.approx(np.mean([score > threshold for score in examples.clean_score]))
        assert caught[i] == pytest.approx(sum(w for w, o in zip(wrong, over, strict=True) if o) / sum(wrong))
        assert undetected[i] == pytest.approx(sum(w for w, o in zip(wrong, over, strict=True) if not o) / len(wrong))


def test_the_detectors_section_shows_the_strongest_attack(make):
    cells = make(detector=watched)
    (board,) = ranked_boards(cells)
    section = detectors_section(board)
    assert "Detectors" in [one.title for one in sections(cells)]
    strongest = min(
        (cell for cell in cells.scored if cell.examples.detected),
        key=lambda cell: robust(cell.record, cell.examples).mean(),
    )
    first = section.tables[0].rows[0]
    assert [entry.text for entry in first[:3]] == [NOISY, strongest.record.attack["label"], "as set"]
    expected = [float(values[0]) for values in detector_rates(strongest.examples, np.array([0.0]))]
    assert [entry.order for entry in first[3:]] == pytest.approx(expected)
    alarms = [row[3].order for row in section.tables[0].rows[1:]]
    assert all(share <= limit for share, limit in zip(alarms, (0.001, 0.01, 0.05, 0.1), strict=True))
    assert "adversarials caught" in section.figures[0].svg


def test_a_number_that_rests_on_the_detector_is_flagged_wherever_flags_are_shown(make):
    cells = make(detector=lone)
    (board,) = ranked_boards(cells)
    assert [one.label for one in board.standings for flag in one.flags if "detector" in flag.name] == [NOISY]
    (standing,) = [one for one in board.standings if one.label == NOISY]
    (flag,) = [one for one in standing.flags if one.name == "rests on the detector"]
    assert flag.measured.startswith(f"{flag.n} of {flag.n} robust images (100.0%)")
    assert "without the detector 0.0% at most would be robust" in flag.measured
    everything = list(sections(cells))
    for text in (to_markdown(everything, title="t", page="p"), to_html(everything, title="t")):
        assert "the detector alone stands there" in text
        assert "an attack made for it" in text
    data = [text for name, text in site(cells, title="t", settings={}).items() if name.endswith("leaderboard.json")]
    (shown,) = [one for each in json.loads(data[0]) for one in each["standings"] if one["model"] == NOISY]
    assert {"name": flag.name, "measured": flag.measured, "n": flag.n} in shown["flags"]
    assert shown["upper_bound_only"]
