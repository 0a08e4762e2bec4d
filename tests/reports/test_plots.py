"""Sections that people expect beside a leaderboard: distances, costs, transfer maps in a telling order, intervals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from advbench.reports.cells import Cells, load
from advbench.reports.curves import with_interval
from advbench.reports.distortion import by_attack, distortion_sections, panel
from advbench.reports.figures import Curve
from advbench.reports.matrices import _clustered, _grid
from advbench.reports.standings import ranked_boards
from advbench.reports.tradeoff import tradeoff_section
from advbench.results.statistics import wilson
from advbench.results.store import Store


@pytest.fixture(scope="module")
def cells(tmp_path_factory, make_suite):
    store = Store(tmp_path_factory.mktemp("plots"))
    make_suite(targets={"a": 0.5, "b": 0.8}, attacks={"pgd": 1.0, "deepfool": 0.9}, epsilons=(0.1, 0.3)).write(store)
    return load(store)


def _unreached(cell, count):
    distance = cell.examples.distance_linf.copy()
    distance[:count] = np.inf
    far = dict.fromkeys(("distance_linf", "distance_l2"), distance)
    return replace(cell, examples=replace(cell.examples, clean_correct=np.ones(len(distance), np.int16), **far))


def test_distances_are_those_of_the_clean_correct_images_once_whatever_the_radii(cells):
    minimal = [_unreached(cell, 4) for cell in cells.scored if cell.record.attack["minimal_norm"]]
    assert len(minimal) == 4, "two targets at two radii"
    found = by_attack(minimal)
    assert list(found) == ["white-box deepfool"]
    for target, values in found["white-box deepfool"].items():
        cell = next(one for one in minimal if one.record.target["label"] == target)
        assert sorted(values) == sorted(cell.examples.distance_linf)
    (section,) = distortion_sections(minimal)
    for row in section.tables[0].rows:
        assert (row[-1].text, row[-1].tone) == ("4 of 40", "warning")
        values = np.sort(found["white-box deepfool"][row[0].text])
        assert [entry.order for entry in row[1:4]] == pytest.approx([values[9], values[19], values[29]], abs=0.02)


def test_a_histogram_has_a_share_for_every_image_that_was_reached():
    values = np.array([0.1, 0.2, 0.2, 0.9, np.inf])
    (curve,) = panel("pgd", {"a": values}).curves
    assert curve.y.sum() == pytest.approx(4 / 5)
    assert curve.steps
    assert panel("pgd", {"a": np.array([np.inf])}).curves[0].y.sum() == 0


def test_costs_stand_in_a_table_and_a_panel_for_each_device(cells):
    def moved(cell):
        if cell.record.target["label"] != "a":
            return cell
        return replace(cell, record=replace(cell.record, measured=cell.record.measured | {"device": "GPU"}))

    board = ranked_boards(Cells(tuple(map(moved, cells.cells))))[0]
    section = tradeoff_section(board)
    assert [table.caption.rpartition(" on ")[2] for table in section.tables] == ["Example CPU 3000", "GPU"]
    assert [{row[0].text for row in table.rows} for table in section.tables] == [{"b"}, {"a"}]
    for table in section.tables:
        seconds = [row[2].order for row in table.rows]
        assert seconds == sorted(seconds)
    svg = section.figures[0].svg
    assert "Example CPU 3000" in svg
    assert ">GPU<" in svg
    assert "mathdefault" not in svg, "ticks are words"


def test_without_times_there_is_no_cost(cells):
    def untimed(cell):
        return replace(cell, record=replace(cell.record, measured=cell.record.measured | {"seconds": None}))

    assert tradeoff_section(ranked_boards(Cells(tuple(map(untimed, cells.cells))))[0]) is None


def test_a_transfer_map_puts_models_that_are_alike_side_by_side(tmp_path, make_suite):
    """Two kinds of models, alternating on the board, that fool their own kind only."""
    targets = {"x1": 0.9, "y1": 0.8, "x2": 0.7, "y2": 0.6}
    make_suite(targets=targets, attacks={"pgd": 1.0}, matrices=("transfer",)).write(Store(tmp_path))

    def kinds(cell):
        same = cell.record.target["label"][0] == cell.record.source["label"][0]
        correct = np.zeros(40, np.int16) if same else np.ones(40, np.int16)
        ones = np.ones(40, np.int16)
        return replace(
            cell, examples=replace(cell.examples, clean_correct=ones, select_correct=correct, report_correct=correct)
        )

    (board,) = ranked_boards(Cells(tuple(map(kinds, load(Store(tmp_path)).cells))))
    order, sources = _clustered(_grid(board), ["x1", "y1", "x2", "y2"], ["x1", "y1", "x2", "y2"], "pgd")
    assert [name[0] for name in order] in (["x", "x", "y", "y"], ["y", "y", "x", "x"])
    assert sources == order


def test_the_band_of_a_curve_is_wilsons_interval():
    curve = with_interval(Curve("a", np.arange(3.0), np.array([1.0, 0.5, 0.0])), 80)
    for share, low, high in zip(curve.y, curve.low, curve.high, strict=True):
        assert (low, high) == (wilson(share * 80, 80).low, wilson(share * 80, 80).high)
