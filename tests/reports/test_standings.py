from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from advbench.reports.cells import Cells
from advbench.reports.data_frame import cell_frame
from advbench.reports.leaderboard import leaderboard_section
from advbench.reports.standings import ranked_boards
from advbench.results.cells import Cell
from advbench.results.record import Record
from advbench.results.statistics import robust, wilson


def _texts(section):
    (table,) = section.tables
    names = [column.name for column in table.columns]
    return [dict(zip(names, (entry.text for entry in row), strict=True)) for row in table.rows]


def _cells(suite, change=lambda record, examples: (record, examples)):
    """The cells of a suite without a store; `change` may replace record and examples."""
    found = []
    for record in suite.records():
        examples = suite.examples(record) if record.status == "ok" else None
        record, examples = change(record, examples)
        found.append(Cell(record, examples))
    return Cells(tuple(found))


def _changed(record: Record, **changes) -> Record:
    return replace(record, **changes)


def test_the_worst_case_is_taken_over_every_cell_of_a_target(default_cells):
    """Brute force over the raw outcomes of the deterministic targets."""
    (board,) = ranked_boards(default_cells)
    for standing in board.standings:
        if standing.label == "input-noise":
            continue
        survivors = np.ones(100, dtype=bool)
        for record, examples in (cell.outcome for cell in default_cells.scored):
            if record.target["label"] == standing.label:
                broken = (examples.report_correct == 0) & (examples.distance_linf <= 0.3 * (1 + 1e-6))
                survivors &= ~broken & (examples.clean_correct == 1)
        assert standing.robust.estimate == wilson(survivors.sum(), 100)
        assert standing.robust.estimate.value <= min(standing.by_matrix.values())
        assert min(standing.by_matrix.values()) <= standing.by_attacker[standing.weakest]


def test_targets_are_ranked_by_worst_case_and_equal_values_share_a_rank(make_suite):
    suite = make_suite(targets={"weak": 0.0, "also-weak": 0.0, "strong": 1.0, "fair": 0.6}, stochastic=())
    (board,) = ranked_boards(_cells(suite))
    assert [(one.label, one.rank) for one in board.standings] == [("strong", 1), ("fair", 2), ("also-weak", 3), ("weak", 3)]
    assert board.standings[2].robust.estimate.value == board.standings[3].robust.estimate.value == 0


@pytest.mark.parametrize("status", ["error", "skipped"])
def test_a_failed_or_skipped_cell_leaves_its_target_unranked(make_suite, status):
    """The most robust target loses the attack that everyone else has withstood."""
    suite = make_suite(targets={"weak": 0.1, "strong": 1.0}, failing=[("white-box", "strong", "pgd")])
    complete = ranked_boards(_cells(make_suite(targets={"weak": 0.1, "strong": 1.0})))[0]
    cells = _cells(suite, lambda record, examples: (record if examples else _changed(record, status=status), examples))
    (board,) = ranked_boards(cells)
    weak, strong = board.standings
    assert (weak.label, weak.rank) == ("weak", 1)
    assert (strong.label, strong.rank, strong.lacks) == ("strong", None, ("white-box pgd",))
    assert strong.robust.estimate.value >= complete.standings[0].robust.estimate.value, "what is left is an upper bound"
    section = leaderboard_section(board)
    rows = _texts(section)
    assert rows[1]["Rank"] == "–"
    assert rows[1]["Robust accuracy"] == f"≤ {100 * strong.robust.estimate.value:.1f}%, incomplete"
    assert any("strong is unranked: without white-box pgd" in caveat for caveat in section.caveats)


def test_a_target_without_any_scored_cell_is_listed_without_a_value(make_suite):
    suite = make_suite(
        targets={"weak": 0.1, "dead": 0.5}, failing=[("white-box", "dead", "pgd"), ("white-box", "dead", "fgsm")]
    )
    (board,) = ranked_boards(_cells(suite))
    assert board.standings[1].robust is None
    assert _texts(leaderboard_section(board))[1]["Robust accuracy"] == "incomplete"


def test_a_target_with_more_attacks_than_the_others_unranks_the_others(make_suite):
    """A rank is earned against the same set of attacks only."""
    suite = make_suite(targets={"a": 0.5, "b": 0.6})
    cells = _cells(suite)
    extra = [cell for cell in cells.cells if cell.record.target["label"] == "a" or cell.record.attack["label"] == "pgd"]
    ranks = {one.label: one.rank for one in ranked_boards(Cells(tuple(extra)))[0].standings}
    assert ranks == {"a": 1, "b": None}


def test_a_source_needs_no_transfer_to_itself_under_its_own_name(make_suite):
    suite = make_suite(targets={"a": 0.5, "b": 0.6}, matrices=("white-box", "transfer"))
    (board,) = ranked_boards(_cells(suite))
    assert all(one.rank is not None for one in board.standings)
    without = [
        cell for cell in board.cells if (cell.record.source or {}).get("label") != "a" or cell.record.target["label"] != "b"
    ]
    ranks = {one.label: one.rank for one in ranked_boards(Cells(tuple(without)))[0].standings}
    assert ranks == {"a": 1, "b": None}, "b lacks the transfer from a"


def test_there_is_one_board_for_each_data_set_and_threat(make_suite):
    parts = [
        make_suite(epsilons=(0.1, 0.3)),
        make_suite(dataset="digits"),
        make_suite(n=60),
    ]
    cells = [cell for suite in parts for cell in _cells(suite).cells]
    threats = [board.threat for board in ranked_boards(Cells(tuple(cells)))]
    assert sorted((one.dataset, one.n, one.epsilon) for one in threats) == [
        ("digits", 40, 0.3),
        ("mnist", 40, 0.1),
        ("mnist", 40, 0.3),
        ("mnist", 60, 0.3),
    ]
    for board in ranked_boards(Cells(tuple(cells))):
        assert all(cell.record.dataset["n"] == board.threat.n for cell in board.cells)


def test_a_minimal_norm_attack_without_a_radius_stands_on_every_board_of_its_norm(make_suite):
    def unlimited(record, examples):
        if record.attack["minimal_norm"]:
            record = _changed(record, threat=record.threat | {"epsilon": None})
        return record, examples

    suite = make_suite(epsilons=(0.1, 0.3), attacks={"pgd": 1.0, "deepfool": 1.0})
    cells = [
        cell
        for cell in _cells(suite, unlimited).cells
        if cell.record.threat["epsilon"] != 0.1 or cell.record.attack["label"] == "pgd"
    ]
    small, large = ranked_boards(Cells(tuple({cell.record.key: cell for cell in cells}.values())))
    assert (small.threat.epsilon, large.threat.epsilon) == (0.1, 0.3)
    for board in (small, large):
        for standing in board.standings:
            values = [
                robust(cell.record, cell.examples, board.threat.epsilon).mean()
                for cell in board.cells
                if cell.record.target["label"] == standing.label and cell.record.attack["label"] == "deepfool"
            ]
            assert standing.by_attacker[("white-box", "deepfool", "")] == pytest.approx(np.mean(values))


def test_minimal_norm_cells_alone_make_no_ranking(make_suite):
    suite = make_suite(attacks={"deepfool": 1.0})
    cells = _cells(suite, lambda record, examples: (_changed(record, threat=record.threat | {"epsilon": None}), examples))
    assert ranked_boards(cells) == ()


def test_records_without_a_box_stand_on_no_board(make_suite):
    cells = _cells(make_suite(), lambda record, examples: (_changed(record, threat=record.threat | {"box": None}), examples))
    assert ranked_boards(cells) == ()


def test_corruptions_without_a_norm_have_a_board_of_their_own(make_suite):
    threat = {"norm": "none", "epsilon": None, "box": [0.0, 1.0]}
    (board,) = ranked_boards(_cells(make_suite(), lambda record, examples: (_changed(record, threat=threat), examples)))
    assert board.title == "no norm on mnist"
    assert all(standing.rank for standing in board.standings)


def test_misaligned_cells_make_a_target_incomplete_and_do_not_stop_the_report(make_suite):
    def shift(record, examples):
        if record.target["label"] == "none" and record.attack["label"] == "pgd":
            examples = replace(examples, index=examples.index + 1)
        return record, examples

    (board,) = ranked_boards(_cells(make_suite(), shift))
    standing = {one.label: one for one in board.standings}["none"]
    assert standing.rank is None
    assert "same examples" in standing.lacks[0]


def test_several_seeds_are_averaged_and_each_is_kept(make_suite):
    suite = make_suite(targets={"a": 0.62}, seeds=(0, 1, 2), stochastic=())
    (board,) = ranked_boards(_cells(suite))
    (standing,) = board.standings
    singles = []
    for seed in (0, 1, 2):
        (single,) = ranked_boards(_cells(replace(suite, seeds=(seed,))))
        singles.append(single.standings[0].robust.estimate.value)
    assert standing.robust.by_seed == tuple(singles)
    assert len(set(singles)) > 1
    assert standing.robust.estimate.value == pytest.approx(np.mean(singles))
    assert _texts(leaderboard_section(board))[0]["By seed"] == ", ".join(
        f"{i}: {100 * v:.1f}%" for i, v in enumerate(singles)
    )


def test_a_missing_seed_is_a_missing_cell(make_suite):
    cells = _cells(make_suite(targets={"a": 0.6, "b": 0.6}, seeds=(0, 1)))
    kept = [cell for cell in cells.cells if cell.record.target["label"] == "a" or cell.record.seed == 0]
    standing = {one.label: one for one in ranked_boards(Cells(tuple(kept)))[0].standings}["b"]
    assert standing.rank is None
    assert standing.lacks == ("white-box fgsm (seed 1)", "white-box pgd (seed 1)")


def test_missing_records_make_the_ranking_provisional(make_suite):
    (board,) = ranked_boards(_cells(make_suite()))
    assert any("2 cells of the run have no record yet" in caveat for caveat in leaderboard_section(board, missing=2).caveats)


def test_times_are_named_by_device_and_not_compared_across_devices(make_suite):
    one = leaderboard_section(ranked_boards(_cells(make_suite()))[0])
    assert "Times were measured on Example CPU 3000." in one.caveats
    assert _texts(one)[0]["Time per image"] == "1.64 ms"

    def other(record, examples):
        device = "Example GPU" if record.target["label"] == "none" else "Example CPU 3000"
        return _changed(record, measured=record.measured | {"device": device}), examples

    two = leaderboard_section(ranked_boards(_cells(make_suite(), other))[0])
    assert any("Times of Example CPU 3000, Example GPU are not comparable" in caveat for caveat in two.caveats)
    names = [column.name for column in two.tables[0].columns if column.name.startswith("Time")]
    assert names == ["Time per image, Example CPU 3000", "Time per image, Example GPU"]
    for row in _texts(two):
        own, other = names if row["Defense"] != "none" else reversed(names)
        assert row[own] == "1.64 ms"
        assert row[other] == "–"


def test_two_models_under_one_name_are_pointed_out(make_suite):
    def retrained(record, examples):
        return (_changed(record, weights_sha256="other") if record.attack["label"] == "pgd" else record), examples

    caveats = ranked_boards(_cells(make_suite(targets={"a": 0.5}), retrained))[0].caveats
    assert caveats == ("a stands for 2 different models of seed 0; report one run's cells only.",)


def test_a_rank_is_the_interval_that_the_tests_leave_open(make_suite):
    suite = make_suite(n=200, targets={"far": 0.6, "a": 0.35, "b": 0.35, "weak": 0.1}, stochastic=())
    (board,) = ranked_boards(_cells(suite))
    ranks = {one.label: one.ranks for one in board.standings}
    assert ranks["far"] == (1, 1)
    assert ranks["a"] == ranks["b"] == (2, 3)
    assert ranks["weak"] == (4, 4)
    section = leaderboard_section(board)
    assert [row["Rank"] for row in _texts(section)] == ["1", "2–3", "2–3", "4"]
    assert "exact McNemar on the same images" in section.text
    assert "Holm's correction over the board's 6 pairs" in section.text
    assert any(caveat.startswith("Ranks compare these checkpoints, not the methods") for caveat in section.caveats)


def test_an_unranked_target_is_in_no_comparison(make_suite):
    suite = make_suite(targets={"a": 0.5, "b": 0.1, "dead": 0.9}, failing=[("white-box", "dead", "pgd")])
    (board,) = ranked_boards(_cells(suite))
    assert {one.label: one.ranks is None for one in board.standings} == {"a": False, "b": False, "dead": True}
    assert len(board.ranking.duels) == 1


def test_several_seeds_are_ranked_as_methods(make_suite):
    suite = make_suite(n=200, targets={"strong": 0.9, "weak": 0.1}, seeds=(0, 1, 2), stochastic=())
    section = leaderboard_section(ranked_boards(_cells(suite))[0])
    assert [row["Rank"] for row in _texts(section)] == ["1", "2"]
    assert "Student's t over training seeds" in section.text
    assert not any("checkpoints" in caveat for caveat in section.caveats)
    by_seed = [column.name for column in section.tables[0].columns].index("By seed")
    note = section.tables[0].rows[0][by_seed].note
    assert note.startswith("median ")
    assert all(word in note for word in ("spread", "seed", "images"))


def test_ranks_pair_images_by_their_index(make_suite):
    """The rows of one target come in another order: its ranks stay."""

    def turn(record, examples):
        if examples is not None and record.target["label"] == "a":
            order = np.argsort(-examples.index)
            names = [name for name in examples.__dataclass_fields__ if np.ndim(getattr(examples, name)) == 1]
            examples = replace(examples, **{name: getattr(examples, name)[order] for name in names})
        return record, examples

    suite = make_suite(targets={"a": 0.5, "b": 0.4}, stochastic=())
    straight, turned = ranked_boards(_cells(suite))[0], ranked_boards(_cells(suite, turn))[0]
    assert [duel.p_value for duel in straight.ranking.duels] == [duel.p_value for duel in turned.ranking.duels]


def test_the_table_of_cells_shows_the_ranks_of_the_targets(make_suite):
    cells = _cells(make_suite(n=200, targets={"strong": 0.9, "weak": 0.1}, stochastic=()))
    frame = cell_frame(cells.cells)
    ranks = set(frame[["target", "target_rank_low", "target_rank_high"]].itertuples(index=False, name=None))
    assert ranks == {("strong", 1, 1), ("weak", 2, 2)}
