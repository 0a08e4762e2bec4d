"""The board of attacks: success, shares of what any attack broke, local optimality and costs, each by hand."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from advbench.reports.attack_board import attack_board_section
from advbench.reports.cells import Cells, load
from advbench.reports.sections import sections
from advbench.reports.standings import ranked_boards
from advbench.results.optimality import envelope_of

INF = np.inf
N = 4
REACHED = {
    "fmn": [0.1, 0.2, 0.5, INF],
    "ddn": [0.2, 0.2, 0.4, INF],
    "fab": [0.1, INF, INF, INF],
    "cw": [0.3, 0.3, 0.6, 0.9],
    "pgd": [0.3, 0.3, INF, INF],
}
"""Distances of an attack to the four images, of which the model is right on all."""


@pytest.fixture
def cell(store, make_suite):
    """A white-box cell of the attack and target that are asked for."""
    make_suite(matrices=("white-box",), n=N, targets={"none": 0.5}, attacks={"deepfool": 1.0}, stochastic=()).write(store)
    [plain] = load(store).cells

    def make(target, attack, reached, *, backwards=100, visited=None, budget=None):
        record = dataclasses.replace(
            plain.record,
            key=hashlib.sha256(json.dumps([target, attack]).encode()).hexdigest(),
            target={**plain.record.target, "label": target},
            attack={**plain.record.attack, "label": attack, "name": attack, "minimal_norm": attack != "pgd"}
            | ({} if budget is None else {"budget": budget}),
            counts={"examples": N, "forwards": 2 * backwards * N, "backwards": backwards * N, "queries": 0},
            measured={**plain.record.measured, "seconds": 0.5 * N}
            | ({} if visited is None else {"watch_seconds": 0.02 * N}),
        )
        distances = np.array(reached)
        examples = dataclasses.replace(
            plain.examples,
            clean_correct=np.ones(N, np.int16),
            select_correct=np.isinf(distances).astype(np.int16),
            report_correct=np.isinf(distances).astype(np.int16),
            report_wrong=np.isfinite(distances).astype(np.int16),
            visited=np.full(N, np.nan) if visited is None else np.array(visited),
            **dict.fromkeys(("distance_linf", "distance_l2", "distance_l1", "rms"), distances),
        )
        return dataclasses.replace(plain, record=record, examples=examples)

    return make


def tables(cells):
    [board] = ranked_boards(Cells(tuple(cells)))
    section = attack_board_section(board)
    return section, [
        {row[0].text: dict(zip((column.name for column in table.columns), row, strict=True)) for row in table.rows}
        for table in section.tables
    ]


def test_every_number_is_that_of_a_hand(cell):
    _, [table] = tables([cell("none", attack, reached) for attack, reached in REACHED.items()])
    assert list(table) == ["ddn", "fmn", "cw", "pgd", "fab"], "by success at 0.3, then by the median"
    assert {name: row["Success"].order for name, row in table.items()} == pytest.approx(
        {"fmn": 0.5, "cw": 0.5, "ddn": 0.5, "pgd": 0.5, "fab": 0.25}
    )
    assert table["fab"]["Of what any broke"].note == "1 of 2"
    assert table["fmn"]["Median distance"].order == pytest.approx(0.35)
    # The envelope is 0.1, 0.2, 0.4, 0.9: it takes 0.8 + 0.7 + 0.5 + 0 of the area up to 0.9.
    by_hand = {"fmn": 0.8 + 0.7 + 0.4, "ddn": 0.7 + 0.7 + 0.5, "fab": 0.8, "cw": 0.6 + 0.6 + 0.3}
    assert {name: table[name]["Local optimality"].order for name in by_hand} == pytest.approx(
        {name: taken / 2.0 for name, taken in by_hand.items()}
    )
    assert table["pgd"]["Local optimality"].text == table["pgd"]["Median distance"].text == "–"
    assert (table["fmn"]["Forwards"].order, table["fmn"]["Backwards"].order) == (200, 100)
    assert table["fmn"]["Time per image"].order == 0.5


def test_models_that_other_attacks_attacked_have_a_table_of_their_own(cell):
    both = [cell(target, attack, reached) for target in ("none", "other") for attack, reached in REACHED.items()]
    _, [table] = tables(both)
    assert table["fab"]["Of what any broke"].note == "2 of 4"
    section, [whole, fewer] = tables(both[:-1])
    assert "pgd" in whole
    assert "pgd" not in fewer
    assert len({table.caption.split("envelope ")[1][:12] for table in section.tables}) == 2


def test_fewer_than_five_attacks_are_not_scored(cell):
    section, [table] = tables([cell("none", attack, REACHED[attack]) for attack in ("fmn", "ddn", "fab", "cw")])
    assert "Local optimality" not in table["fmn"]
    assert section.caveats == ("Local optimality is left out beside fewer than 5 attacks.",)


def test_one_attack_has_no_board(cell):
    [board] = ranked_boards(Cells((cell("none", "fmn", REACHED["fmn"]),)))
    assert attack_board_section(board) is None


def test_images_that_the_model_gets_wrong_count_nowhere(cell):
    cells = [cell("none", attack, reached) for attack, reached in REACHED.items()]
    wrong = np.array([1, 1, 1, 0], np.int16)
    cells = [dataclasses.replace(each, examples=dataclasses.replace(each.examples, clean_correct=wrong)) for each in cells]
    _, [table] = tables(cells)
    assert table["fmn"]["Success"].note == "2 of 3"
    # The envelope ends at 0.4 now: 0.3 + 0.2 + 0 of its area.
    assert table["cw"]["Local optimality"].order == pytest.approx((0.1 + 0.1 + 0.0) / 0.5)


def test_a_report_has_the_board(default_cells):
    assert "Attacks" in {section.title for section in sections(default_cells)}


def test_what_was_visited_stands_beside_what_was_returned(cell):
    plain, [before] = tables([cell("none", attack, reached) for attack, reached in REACHED.items()])
    assert not {"Visited", "Visited median", "Cost of watching"} & set(before["fmn"])
    assert not any("isited" in caveat for caveat in plain.caveats)
    visited = {"fmn": [0.1, 0.2, 0.25, 0.7], "pgd": [0.3, 0.3, 0.2, INF], "ddn": REACHED["ddn"]}
    cells = [cell("none", attack, reached, visited=visited.get(attack)) for attack, reached in REACHED.items()]
    section, [table] = tables(cells)
    by_hand = {"fmn": 0.75, "pgd": 0.75, "ddn": 0.5}  # within 0.3
    assert {name: table[name]["Visited"].order for name in by_hand} == by_hand
    assert table["fmn"]["Visited median"].order == pytest.approx((0.2 + 0.25) / 2)
    assert table["pgd"]["Visited median"].text == table["cw"]["Visited"].text == table["cw"]["Cost of watching"].text == "–"
    assert table["fmn"]["Cost of watching"].order == pytest.approx(0.04)
    for name, row in table.items():  # what is ranked does not change
        for column, entry in before[name].items():
            assert row[column] == entry
    assert any("keeps its books badly" in caveat for caveat in section.caveats)


def test_a_budget_is_said_and_makes_another_attack(cell):
    free = [cell("none", attack, reached) for attack, reached in REACHED.items()]
    bound = [cell("none", attack, reached, budget=1000) for attack, reached in REACHED.items()]
    section, _ = tables(bound)
    assert any("budget of each attack is 1,000 for each image" in caveat for caveat in section.caveats)
    assert envelope_of(free).digest != envelope_of(bound).digest
