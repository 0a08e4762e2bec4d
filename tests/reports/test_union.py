"""The union of threats, against shares worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from advbench.reports.standings import RankedBoard, Standing
from advbench.reports.union import union_sections
from advbench.results.boards import BoardThreat
from advbench.results.statistics import over_seeds


def _standing(label, *answers, rank=1):
    answers = tuple(np.array(each, dtype=float) for each in answers)
    return Standing(
        label=label, defense=label, architecture="net", rank=rank, clean=None, robust=over_seeds(answers), by_matrix={},
        by_attacker={}, distortion=None, seconds={}, seeds=tuple(range(len(answers))), lacks=(), answers=answers,
    )  # fmt: skip


def _board(norm, epsilon, *standings, weights="w", fingerprint="images"):
    def cells(one):
        return [SimpleNamespace(record=SimpleNamespace(seed=seed, weights_sha256=f"{weights}{seed}")) for seed in one.seeds]

    return RankedBoard(
        threat=BoardThreat("mnist", "test", 4, fingerprint, norm, epsilon),
        standings=standings,
        cells=(),
        caveats=(),
        ranking=None,
        cells_of={one.label: cells(one) for one in standings},
    )


def _rows(section):
    return {row[0].text: [entry.order for entry in row[1:]] for row in section.tables[0].rows}


def test_an_image_counts_where_it_withstands_every_norm():
    linf = _board("linf", 0.3, _standing("a", [1, 1, 0, 0], [1, 1, 1, 0]), _standing("b", [1, 1, 1, 1], [1, 1, 1, 0]))
    l2 = _board("l2", 2.0, _standing("a", [1, 0, 1, 0], [1, 1, 0, 0]), _standing("b", [1, 1, 1, 0], [0, 1, 1, 1]))
    (section,) = union_sections([linf, l2])
    rows = _rows(section)
    assert list(rows) == ["b", "a"]
    assert rows["a"] == pytest.approx([(1 / 4 + 2 / 4) / 2, 5 / 8, 4 / 8])
    assert rows["b"] == pytest.approx([(3 / 4 + 2 / 4) / 2, 7 / 8, 6 / 8])
    assert [column.name for column in section.tables[0].columns[2:]] == ["linf ≤ 0.3", "l2 ≤ 2"]


def test_a_random_model_counts_with_its_lowest_share():
    found = union_sections([_board("linf", 0.3, _standing("a", [0.5, 1])), _board("l2", 2.0, _standing("a", [0.8, 0.2]))])
    assert _rows(found[0])["a"][0] == pytest.approx((0.5 + 0.2) / 2)


def test_of_several_epsilons_the_largest_counts():
    small = _board("linf", 0.1, _standing("a", [1, 1]))
    large = _board("linf", 0.3, _standing("a", [1, 0]))
    for boards in ([small, large], [large, small]):
        (section,) = union_sections([*boards, _board("l2", 2.0, _standing("a", [1, 1]))])
        assert _rows(section)["a"] == [0.5, 0.5, 1.0]


@pytest.mark.parametrize(
    "other",
    [
        _board("l2", 2.0, _standing("a", [1, 0]), weights="others"),
        _board("l2", 2.0, _standing("a", [1, 0]), fingerprint="other images"),
        _board("l2", 2.0, _standing("a", [1, 0], rank=None)),
        _board("l2", 2.0, _standing("a", [1, 0], [1, 1])),
        _board("l2", 2.0, _standing("b", [1, 0])),
        _board("l2", None, _standing("a", [1, 0])),
        _board("linf", 0.1, _standing("a", [1, 0])),
    ],
)
def test_what_was_not_attacked_in_both_norms_as_one_model_is_not_there(other):
    assert union_sections([_board("linf", 0.3, _standing("a", [1, 1])), other]) == []
