from __future__ import annotations

import pytest
from scipy import stats

from advbench.reports.cells import load
from advbench.reports.comparisons import comparison_section
from advbench.reports.sections import sections
from advbench.reports.standings import ranked_boards
from advbench.results.store import Store


@pytest.fixture
def board_of(tmp_path):
    def make(suite):
        store = Store(tmp_path / str(len(list(tmp_path.iterdir()))))
        suite.write(store)
        (board,) = ranked_boards(load(store))
        return board

    return make


def _rows(section):
    (table,) = section.tables
    return [{column.name: entry.text for column, entry in zip(table.columns, row, strict=True)} for row in table.rows]


def test_every_pair_of_ranked_targets_is_shown_with_its_test(board_of, make_suite):
    suite = make_suite(
        n=200, targets={"far": 0.6, "a": 0.35, "b": 0.3, "dead": 0.9}, stochastic=(), failing=[("white-box", "dead", "pgd")]
    )
    rows = _rows(comparison_section(board_of(suite)))
    assert {(row["Target"], row["Compared with"]) for row in rows} == {("far", "a"), ("far", "b"), ("a", "b")}
    assert {row["Test"] for row in rows} == {"exact McNemar"}
    assert all(row["Difference"].startswith("+") for row in rows), "from the better to the worse"
    (pair,) = [row for row in rows if (row["Target"], row["Compared with"]) == ("far", "b")]
    assert pair["p (Holm)"] == "< 0.0001"
    assert pair["p (cells)"] == "–", "two cells are too few"


def test_wilcoxon_runs_over_the_cells_that_both_have(board_of, make_suite):
    attacks = {f"pgd{i}": 1.0 - 0.06 * i for i in range(9)}
    board = board_of(make_suite(n=100, targets={"a": 0.5, "b": 0.2}, attacks=attacks, stochastic=()))
    (row,) = _rows(comparison_section(board))
    first, second = (list(standing.by_attacker.values()) for standing in board.standings)
    assert row["p (cells)"] == f"{stats.wilcoxon([round(x - y, 9) for x, y in zip(first, second, strict=True)]).pvalue:.2g}"


def test_of_many_targets_neighbours_are_shown(board_of, make_suite):
    suite = make_suite(targets={f"t{i}": i / 12 for i in range(12)}, stochastic=(), attacks={"pgd": 1.0})
    board = board_of(suite)
    assert len(board.ranking.duels) == 66
    assert len(_rows(comparison_section(board))) == 11


def test_a_lone_target_is_compared_with_nobody(board_of, make_suite):
    assert comparison_section(board_of(make_suite(targets={"a": 0.5}))) is None


def test_the_comparisons_stand_in_the_report(default_cells):
    assert "Comparisons" in [section.title for section in sections(default_cells)]
