"""Boards as LaTeX with BibTeX, and the scatter of clean against robust accuracy."""

from __future__ import annotations

import re

import pytest

from advbench.records import reporting
from advbench.records.entries import declared
from advbench.reports.cells import load
from advbench.reports.latex import escaped, latex
from advbench.reports.scatter import scatter_section
from advbench.reports.standings import ranked_boards
from advbench.results.archive import source_of
from advbench.results.entries import ModelEntry
from advbench.results.store import Store


@pytest.fixture
def cells(tmp_path, make_suite):
    targets = {"none": 0.05, "b_c & 50%": 0.5, "pgd-linf": 0.8}
    suite = make_suite(targets=targets, attacks={"pgd": 1.0}, matrices=("white-box",), stochastic=(), seeds=(0, 1))
    suite.write(Store(tmp_path / "run"))
    return load(source_of(tmp_path / "run"))


def test_a_table_says_what_the_board_does(cells):
    (board,) = ranked_boards(cells)
    text = latex(cells, {})["leaderboard.tex"]
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and not line.startswith("Model")]
    assert len(rows) == 3
    for row, standing in zip(rows, board.standings, strict=True):
        name, clean, robust, strongest = row.removesuffix(r" \\").split(" & ", 3) if "50" not in row else (None,) * 4
        if name is None:
            assert row.startswith(r"b\_c \& 50\% & ")
            continue
        assert name == standing.label
        assert float(clean.partition(" ")[0]) == pytest.approx(100 * standing.clean.estimate.value, abs=0.051)
        assert float(robust.removeprefix(r"$\leq$ ").partition(" ")[0]) == pytest.approx(
            100 * standing.robust.estimate.value, abs=0.051
        )
        assert robust.startswith(r"$\leq$") is bool(standing.flags)
        assert strongest == "white-box pgd"
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    assert "means over the training seeds 0, 1." in text
    assert r"\texttt{pgd(step\_size=0.1, steps=40)} (white-box)" in text
    assert "linf $\\leq$ 0.3" in text


def test_works_are_cited_once_and_stand_in_the_bibliography(cells):
    entries = declared(["pgd-linf"], ["pgd"]) | {
        "b_c & 50%": ModelEntry(paper="A & B", authors="Doe and Roe", venue="ICML 2030")
    }
    files = latex(cells, entries)
    cited = set(re.findall(r"\\cite\{([^}]+)\}", files["leaderboard.tex"]))
    assert cited == set(re.findall(r"@misc\{([^,]+),", files["leaderboard.bib"]))
    assert len(cited) == 2, "the attack and the training of one paper are one work"
    bibliography = files["leaderboard.bib"]
    assert "title = {{A \\& B}}" in bibliography
    assert "author = {Madry and others}" in bibliography
    assert "year = {2018}" in bibliography
    assert "year = {2030}" in bibliography
    assert "url = {https://arxiv.org/abs/1706.06083}" in bibliography


def test_the_command_writes_both_files(cells, tmp_path):
    found = reporting.report(tmp_path / "run", to=tmp_path / "tex", format="latex")
    assert [path.name for path in found] == ["leaderboard.tex", "leaderboard.bib"]


def test_text_is_escaped():
    assert (
        escaped("a_b{c}\\d~^<>") == r"a\_b\{c\}\textbackslash{}d\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}"
    )


def test_the_scatter_has_a_mark_for_each_ranked_target(cells, tmp_path, make_suite):
    (board,) = ranked_boards(cells)
    section = scatter_section(board)
    shown = {row[0].text: (row[1].order, row[2].order) for row in section.tables[0].rows}
    assert shown == {one.label: (one.clean.estimate.value, one.robust.estimate.value) for one in board.standings}
    assert all(label in section.figures[0].svg for label in ("none", "pgd-linf"))
    make_suite(targets={"a": 0.5, "b": 0.2}, attacks={"pgd": 1.0}, matrices=("white-box",)).write(Store(tmp_path / "two"))
    (small,) = ranked_boards(load(source_of(tmp_path / "two")))
    assert scatter_section(small) is None
