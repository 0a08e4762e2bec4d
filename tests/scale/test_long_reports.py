"""Long tables, large matrices and pages: all rows can be searched, and none is lost."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from advbench.reports import html, images, standings
from advbench.reports.cells import load
from advbench.reports.figures import Curve, Panel, heat_map, line_plots
from advbench.reports.html import to_html
from advbench.reports.markdown import to_markdown
from advbench.reports.sections import sections
from advbench.reports.write import write_reports
from advbench.results import ranking
from advbench.results.significance import mcnemar_of_pairs, paired_test
from advbench.results.store import Store
from tests.scale.records import Scale, write
from tests.scale.tables import LONGEST, ROWS, long_section


def rows_of(page: str) -> list[list[Any]]:
    """The entries in a page's data, row by row."""
    (text,) = re.findall(r'<script type="application/json">(.*?)</script>', page)
    data = json.loads(text)
    return [[column["entries"][place] for place in places] for column, places in [(c, c["rows"]) for c in data["columns"]]]


def test_a_long_table_shows_its_top_and_marked_rows_and_holds_all():
    page = to_html([long_section()], title="t")
    shown = re.findall(r'data-order="target (\d+)"', page)
    assert [int(i) for i in shown] == [*range(100), 499, 999, 1499]
    targets, kinds, shares = rows_of(page)
    assert [entry[0] for entry in targets][:3] == ["target 0", "target 1", "target 2"]
    assert targets[1234][0] == "target 1234 </script>"
    assert [entry[0] for entry in kinds] == ["even", "odd"] * (ROWS // 2)
    assert shares[7] == ["7", "note 7", "7.0", "", "", ["50.00", "25.00", "75.00"]]
    assert len(targets) == len(kinds) == len(shares) == ROWS


def test_a_table_that_is_not_long_is_drawn_as_ever():
    page = to_html([long_section(LONGEST)], title="t")
    assert page.count("<tr>") == LONGEST + 1
    assert "application/json" not in page


def test_markdown_names_the_rows_that_it_leaves_out():
    text = to_markdown([long_section()], title="t")
    assert text.count("| target ") == 103
    assert "1,397 more rows: [leaderboard.html](leaderboard.html)" in text


def test_a_large_matrix_is_one_image():
    names = [f"model {i}" for i in range(60)]
    words = [[""] * 60] * 60
    framed = [(i, i) for i in range(60)]
    drawing = heat_map(np.eye(60), rows=names, columns=names, words=words, caption="Shares", alt="", framed=framed)
    assert drawing.svg.count("<image") == 2  # and that of the scale
    assert "<text" in drawing.svg
    assert drawing.svg.count('stroke="#ffffff"') == 60
    assert len(drawing.svg) < 100_000
    assert drawing.caption.endswith("The numbers are in the table.")


def test_a_figure_says_which_curves_it_leaves_out():
    curves = tuple(Curve(f"model {i}", np.arange(3.0), np.full(3, i / 100)) for i in range(60))
    drawing = line_plots([Panel("p", curves)], x_label="x", y_label="y", caption="Curves", alt="")
    assert drawing.caption == "Curves; the first 16 of 60 curves, all of which are in the tables"
    assert "model 15" in drawing.svg
    assert "model 16" not in drawing.svg
    few = line_plots([Panel("p", curves[:48])], x_label="x", y_label="y", caption="Curves", alt="")
    assert few.caption == "Curves"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    found = Store(tmp_path_factory.mktemp("run"))
    write(found, Scale(models=6, attacks=3, images=40))
    return found


def test_a_report_of_very_many_cells_is_pages(store, tmp_path, monkeypatch):
    (tmp_path / "records").symlink_to(store.folder)
    monkeypatch.setattr(html, "PAGED", 10)
    write_reports(tmp_path)
    first = (tmp_path / "leaderboard.html").read_text()
    linked = re.findall(r'<a id="([\w-]+)" href="(leaderboard/[\w-]+\.html)"', first)
    everything = [section.anchor for section in sections(load(store))]
    assert [anchor for anchor, _ in linked] == everything[1:]
    assert f'<section id="{everything[0]}"' in first
    for anchor, page in linked:
        content = (tmp_path / page).read_text()
        assert f'<section id="{anchor}"' in content
        assert 'href="../leaderboard.html"' in content
    monkeypatch.setattr(html, "PAGED", 100)
    (tmp_path / "leaderboard.html").unlink()
    write_reports(tmp_path)
    assert not list((tmp_path / "leaderboard").iterdir())
    assert all(f'<section id="{anchor}"' in (tmp_path / "leaderboard.html").read_text() for anchor in everything)


def test_images_of_very_many_cells_are_the_strongest_of_each_target(store, monkeypatch):
    cells = load(store).scored
    assert len(images.image_section(cells).figures) == 18
    monkeypatch.setattr(images, "_MOST", 10)
    monkeypatch.setattr(images, "_FEW", 4)
    section = images.image_section(cells)
    assert len(section.figures) == 4
    assert "Of 18 cells" in section.text
    lowest = {}
    for cell in cells:
        lowest.setdefault(cell.record.target["label"], []).append(
            (cell.statistics.robust_accuracy.value, cell.record.attack)
        )
    for grid, (label, left) in zip(section.figures, lowest.items(), strict=False):
        assert grid.caption == f"white-box {min(left, key=lambda one: one[0])[1]['label']}, shown to {label}"


def test_pairs_of_certain_answers_are_compared_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    answers = rng.random((12, 80)) < np.linspace(0.2, 0.9, 12)[:, None]
    found = mcnemar_of_pairs(answers)
    expected = {(i, j): paired_test(answers[i] * 1.0, answers[j] * 1.0) for i, j in combinations(range(12), 2)}
    assert {pair: found(*pair) for pair in expected} == expected
    one_by_one = []
    monkeypatch.setattr(ranking, "paired_test", lambda *two: one_by_one.append(two) or paired_test(*two))
    shares = [*(row * 1.0 for row in answers), rng.integers(0, 11, 80) / 10]
    ranked = ranking.rank([[row] for row in shares])
    assert len(one_by_one) == 12  # each with the one whose answers are shares
    for duel in ranked.duels:
        alone = paired_test(shares[duel.first], shares[duel.second])
        assert (duel.difference, duel.p_value, duel.test) == (alone.difference, alone.p_value, alone.test)


def test_a_board_looks_at_each_cell_of_a_target_and_not_at_all_cells_for_each_target(store, monkeypatch):
    """The labels that are read grow with the cells, not with cells times targets."""
    read: list[object] = []
    label_of = standings.label_of
    monkeypatch.setattr(standings, "label_of", lambda cell: read.append(cell) or label_of(cell))
    cells = load(store)
    standings.ranked_boards(cells)
    assert len(read) <= 5 * len(cells.cells)
