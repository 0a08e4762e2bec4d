from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from advbench.reports import sections
from advbench.reports.cells import Cells, load
from advbench.reports.section import Column, Entry, Table, drop_constant
from advbench.results.statistics import robust


@pytest.fixture(scope="module")
def default_sections(default_cells):
    return {section.title: section for section in sections.sections(default_cells)}


def _rows(table):
    return {row[0].text: [entry.text for entry in row[1:]] for row in table.rows}


def test_the_default_run_has_every_section(default_sections):
    assert list(default_sections) == [
        "Leaderboard",
        "Clean against robust accuracy",
        "Random models by every rule",
        "White-box",
        "Black-box",
        "Transfer",
        "Attacks",
        "Accuracy against epsilon",
        "Distances",
        "Cost against robustness",
        "Comparisons",
        "Images",
        "All cells",
        "Costs",
        "Provenance",
    ]


def test_an_empty_report_has_no_numbers_and_does_not_fail():
    assert [section.title for section in sections.sections(Cells(()))] == ["All cells", "Provenance"]


def test_anchors_are_distinct_where_data_sets_of_two_sizes_share_a_name(store, make_suite):
    make_suite(n=40).write(store)
    make_suite(n=60).write(store)
    anchors = [section.anchor for section in sections.sections(load(store))]
    assert len(set(anchors)) == len(anchors)
    assert all(re.fullmatch(r"[a-z0-9-]+", anchor) for anchor in anchors)


def test_the_matrices_show_each_cells_robust_accuracy(default_cells, default_sections):
    found = _rows(default_sections["White-box"].tables[0])
    for cell in default_cells.scored:
        if cell.record.matrix == "white-box":
            place = ["deepfool", "fgsm", "pgd"].index(cell.record.attack["label"])
            expected = f"{100 * robust(cell.record, cell.examples).mean():.1f}%"
            assert found[cell.record.target["label"]][place] == expected


def test_the_transfer_mean_leaves_the_diagonal_out(default_cells, default_sections):
    section = default_sections["Transfer"]
    assert len(section.tables) == len(section.figures) == 3
    (table,) = [table for table in section.tables if "pgd," in table.caption]
    found = _rows(table)
    targets = [column.name for column in table.columns[1:]]
    cells = [cell for cell in default_cells.scored if cell.record.attack["label"] == "pgd"]
    for place, target in enumerate(targets):
        values = {
            cell.record.source["label"]: robust(cell.record, cell.examples).mean()
            for cell in cells
            if cell.record.matrix == "transfer" and cell.record.target["label"] == target
        }
        diagonal = values.pop(target)
        assert found[target][place] == f"{100 * diagonal:.1f}% †"
        assert found["mean of other sources"][place] == f"{100 * np.mean(list(values.values())):.1f}%"
        (white,) = [c for c in cells if c.record.matrix == "white-box" and c.record.target["label"] == target]
        assert found["white-box"][place] == f"{100 * robust(white.record, white.examples).mean():.1f}%"


def test_a_failed_cell_is_a_row_with_its_reason_and_a_word_in_its_matrix(store, make_suite):
    make_suite(failing=[("white-box", "none", "pgd")]).write(store)
    found = {section.title: section for section in sections.sections(load(store))}
    assert _rows(found["White-box"].tables[0])["none"][1] == "failed"
    assert ">failed<" in found["White-box"].figures[0].svg
    (row,) = found["Cells without numbers"].tables[0].rows
    assert [entry.text for entry in row][:4] == ["failed", "white-box", "none", "pgd"]
    assert row[-1].text == "ViolationError: pgd left the ball by 0.2"


def test_a_seed_that_failed_leaves_its_matrix_cell_without_a_mean(store, make_suite):
    suite = make_suite(seeds=(0, 1))
    for record in suite.records():
        if record.seed == 1 and record.target["label"] == "none":
            store.write(replace(record, status="skipped", reason="out of time", counts={}))
        else:
            store.write(record, suite.examples(record))
    found = {section.title: section for section in sections.sections(load(store))}
    assert _rows(found["White-box"].tables[0])["none"] == ["skipped", "skipped"]


def test_keys_without_a_record_are_rows_that_say_so(store, make_suite):
    keys = make_suite().write(store)
    found = {section.title: section for section in sections.sections(load(store, [*keys, "ab" * 32]))}
    (row,) = found["Cells without numbers"].tables[0].rows
    assert row[0].text == "missing"
    assert row[-1].text == f"no record {'ab' * 32}"
    assert any("1 cell of the run" in caveat for caveat in found["Leaderboard"].caveats)


def test_the_table_of_radii_is_the_robust_accuracy_at_each(default_cells, default_sections):
    (table,) = default_sections["Accuracy against epsilon"].tables
    assert [column.name for column in table.columns] == ["Target", "at 0.075", "at 0.15", "at 0.225", "at 0.3", "at 0.45"]
    found = _rows(table)
    for cell in default_cells.scored:
        if cell.record.attack["minimal_norm"]:
            expected = [robust(cell.record, cell.examples, 0.3 * share).mean() for share in (0.25, 0.5, 0.75, 1, 1.5)]
            assert found[cell.record.target["label"]] == [f"{100 * value:.1f}%" for value in expected]


def test_several_radii_are_joined_in_one_curve_of_worst_cases(store, make_suite):
    make_suite(epsilons=(0.1, 0.3), failing=[("white-box", "none", "pgd")]).write(store)
    found = sections.sections(load(store))
    (curves,) = [section for section in found if section.title == "Accuracy against epsilon"]
    rows = _rows(curves.tables[0])
    boards = [section for section in found if section.title == "Leaderboard"]
    for place, board in enumerate(boards):
        for row in board.tables[0].rows:
            if row[0].text != "–":
                assert rows[row[1].text][place] == row[2].text
    assert rows["none"] == ["–", "–"], "an incomplete target has no worst case"


def test_costs_are_one_table_for_each_device(store, make_suite):
    make_suite().write(store)
    make_suite(device="Example GPU", n=41).write(store)
    (costs,) = [section for section in sections.sections(load(store)) if section.title == "Costs"]
    assert [table.caption.split(" (")[0] for table in costs.tables] == ["Costs on Example CPU 3000", "Costs on Example GPU"]


def test_provenance_holds_versions_data_and_every_argument(default_sections):
    run, targets, attacks = default_sections["Provenance"].tables
    facts = {row[0].text: row[1].text for row in run.rows}
    assert facts["torch"] == "2.14.0"
    assert facts["commit"] == "c0ffee" * 6
    assert facts["data"] == f"mnist, 100 images of the test split, fingerprint {'3f' * 8}"
    assert facts["cells"] == "72 ok"
    assert _rows(targets)["pgd-linf"][0] == "pgd-linf(epsilon=0.3)"
    assert _rows(attacks)["pgd"][0] == "pgd(step_size=0.1, steps=40)"


def test_survivors_figures_say_so(store, make_suite):
    suite = make_suite(attacks={"deepfool": 1.0}, targets={"a": 0.5})
    (record,) = suite.records()
    examples = suite.examples(record)
    failed = np.where(np.arange(40) < 10, np.inf, examples.distance_linf)
    store.write(record, replace(examples, distance_linf=failed, distance_l2=failed, rms=failed))
    (table,) = [section.tables[0] for section in sections.sections(load(store)) if section.title == "All cells"]
    names = [column.name for column in table.columns]
    assert table.rows[0][names.index("Mean RMS")].note == "survivors"


def test_columns_that_say_the_same_everywhere_move_into_the_caption():
    columns = (Column("A", heading=True), Column("B"), Column("C"))
    rows = ((Entry("1"), Entry("x"), Entry("same")), (Entry("2"), Entry("x"), Entry("same")))
    table = drop_constant(Table("All", columns, rows), ("A", "C"))
    assert table.caption == "All: c same"
    assert [column.name for column in table.columns] == ["A", "B"]
    assert [[entry.text for entry in row] for row in table.rows] == [["1", "x"], ["2", "x"]]


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="Expected rows of 1 entries, got 2 in 'All'"):
        Table("All", (Column("A"),), ((Entry("1"), Entry("2")),))
