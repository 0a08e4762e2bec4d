"""`advbench reproduce`: verdicts, the papers as data, a study from its runs to its reports, and bad input."""

from __future__ import annotations

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from advbench.reports.images import image_grid
from advbench.reproduction import claim_tables, clean, engine, rendering, studies
from advbench.reproduction.findings import Findings
from advbench.reproduction.measured import SeedFigure
from advbench.reproduction.study import FIRST_SEEDS, Claim, Comparison, Ours, Pair, Plot, Series, Study, above
from advbench.results.papers import PAPERS, load


@pytest.mark.parametrize("key", PAPERS)
def test_every_paper_is_data(key):
    paper = load(key)
    assert paper.tables
    assert paper.claims
    assert paper.source.startswith(("arXiv:", "doi:"))
    for table in paper.tables.values():
        assert table.id.startswith(f"{key}.")
        assert {len(table.columns), len(table.units)} | {len(row) for row in table.rows} == {len(table.columns)}


def test_a_cell_of_a_table_is_found_by_row_and_column():
    table = load("mosca2018").tables["mosca2018.table5"]
    assert table.cell("eps_0.1", "MNIST-CNN", "sgm") == 89.01
    assert load("gu2014").tables["gu2014.table1"].cell("avg_distortion", "ConvNet") == 0.095
    with pytest.raises(ValueError, match=r"mosca2018.table5: expected a column among"):
        table.cell("eps_3", "MNIST-CNN", "sgm")
    with pytest.raises(ValueError, match="a row that begins with MNIST-CNN, gms"):
        table.cell("eps_0.1", "MNIST-CNN", "gms")


def test_every_study_names_a_paper_and_can_plan_its_runs_at_every_scale():
    from advbench.config import make_config

    assert len({study.name for study in studies.STUDIES}) == len(studies.STUDIES)
    for study in studies.STUDIES:
        assert study.paper in PAPERS
        for scale in study.scales:
            assert study.differs(scale)
            for settings in study.runs(scale).values():
                make_config(**{name: value for name, value in settings.items() if name != FIRST_SEEDS})


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(ValueError, match=r"did you mean gu2014\?"):
        studies.choose("gu2041", "smoke")


def _compare(findings: Findings) -> list[Comparison]:
    accuracy = Ours(SeedFigure.of(findings["tiny"].one(seed=seed, attack="fgsm").accuracy for seed in findings.seeds))
    train = findings["tiny"].train_error(seed=0, defense="none", architecture="gu2014/n100-100-10")
    assert 0 <= train < 60
    cells = [findings["tiny"].one(seed=seed, attack="fgsm") for seed in findings.seeds]
    clean = SeedFigure.of(cell.clean_accuracy for cell in cells)
    claim = Claim("gu2014.table1", "attacks hurt", (above("clean - robust", clean, accuracy.values),))
    return [
        Comparison(
            "A table", (("accuracy", "%"), ("absent", "")), (("net", (Pair(12.5, accuracy), Pair(None, None))),), (claim,)
        )
    ]


def part_mean(out) -> float:
    """What the attack takes, from the records alone: the mean over seeds of the share right clean and wrong attacked."""
    lost = []
    for path in (out / "records").rglob("examples.npz"):
        with np.load(path) as found:
            lost.append(100 * (found["clean_correct"] * (1 - found["report_correct"])).mean())
    return float(np.mean(lost))


def _study(compare=_compare) -> Study:
    settings = {
        "dataset": "digits",
        "epochs": 2,
        "n_examples": 20,
        "architecture": ["gu2014/n100-100-10"],
        "defense": ["none"],
        "attack": ["fgsm"],
        "matrix": ["white-box"],
        "epsilon": [0.5],
        "batch": 20,
    }
    return Study("gu2014.tiny", "a tiny study", lambda _: {"tiny": settings}, compare, lambda _: ("everything",))


def test_the_plans_of_a_reproduction_share_their_data(tmp_path, cache):
    first, second = (replace(_study(), name=name) for name in ("gu2014.one", "gu2014.two"))
    loaded = {}
    plans = [engine._plans(study, "smoke", (0,), tmp_path, {}, loaded)["tiny"] for study in (first, second)]
    assert plans[0].data is plans[1].data
    other = engine._plans(first, "smoke", (0,), tmp_path, {"dataset": "zca:digits"}, loaded)["tiny"]
    assert other.data.name == "zca:digits"


def test_a_run_takes_no_more_than_its_first_seeds(tmp_path, monkeypatch, cache):
    found = []

    def compare(findings: Findings) -> list[Comparison]:
        found.append((findings.seeds, {name: run.plan.config.seed for name, run in findings.runs.items()}))
        return []

    tiny = _study().runs("smoke")["tiny"]
    runs = {"few": {**tiny, "first_seeds": 1}, "all": tiny}
    monkeypatch.setattr(studies, "STUDIES", (replace(_study(compare), runs=lambda _: runs),))
    result = engine.reproduce("gu2014.tiny", scale="smoke", out=tmp_path, seeds=(7, 3), jobs=1)
    assert result.exit_code == 0
    assert found == [((7, 3), {"few": (7,), "all": (7, 3)})]


def test_a_study_goes_from_its_runs_to_its_reports_and_is_not_run_twice(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(studies, "STUDIES", (_study(),))
    ran = []
    result = engine.reproduce("gu2014.tiny", scale="smoke", out=tmp_path, jobs=1, announce=ran.append)
    assert result.exit_code == 0
    assert ran == ["gu2014.tiny (tiny)"]
    (outcome,) = result.outcomes
    values = outcome.comparisons[0].rows[0][1][0].ours.values
    assert len(values) == 3
    assert all(0 <= value < 60 for value in values)
    (line,) = claim_tables.verdict_lines(result.outcomes, "smoke", (0, 1, 2))
    assert line == "holds (smoke)       gu2014.table1: attacks hurt"
    with (tmp_path / "claims.csv").open() as file:
        (part,) = csv.DictReader(file)
    assert (part["claim"], part["scale"], part["verdict"], part["images"]) == ("gu2014.table1", "smoke", "holds", "20")
    assert float(part["low"]) > 0
    assert float(part["mean"]) == pytest.approx(part_mean(tmp_path), rel=1e-5)
    with (tmp_path / "reproduction.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["paper"], float(first["ours"])) == ("12.5", pytest.approx(np.mean(values), rel=1e-5))
    assert [float(value) for value in first["by_seed"].split()] == pytest.approx(values, rel=1e-5)
    assert second["ours"] == ""
    markdown = (tmp_path / "reproduction.md").read_text()
    assert "accuracy (%), paper" in markdown
    assert "absent" not in markdown
    assert "Other than in the paper: everything" in markdown
    html = (tmp_path / "reproduction.html").read_text()
    assert "Gu &amp; Rigazio 2014" in html
    records = sorted(path.stat().st_mtime_ns for path in (tmp_path / "records").rglob("record.json"))
    again = engine.reproduce("gu2014", scale="smoke", out=tmp_path, jobs=1)
    assert again.outcomes[0].comparisons == outcome.comparisons
    assert records == sorted(path.stat().st_mtime_ns for path in (tmp_path / "records").rglob("record.json"))


def test_clean_accuracy_is_that_of_all_test_images_and_is_measured_once(tmp_path, monkeypatch, cache):
    found = []

    def compare(findings: Findings) -> list[Comparison]:
        run = findings["tiny"]
        cells = [run.one(seed=seed, attack="fgsm") for seed in findings.seeds]
        found.append((run, cells[0], clean.clean_by_seed(run, cells)))
        return []

    monkeypatch.setattr(studies, "STUDIES", (_study(compare),))
    engine.reproduce("gu2014.tiny", scale="smoke", out=tmp_path, seeds=(0, 1), jobs=1)
    ((run, cell, accuracy),) = found
    test = run.plan.data.test
    assert accuracy.table.shape == (2, len(test))
    assert len(cell.examples) == 20 < len(test)
    with torch.no_grad():
        right = run.defended(cell).model.eval()(test.x).argmax(dim=1) == test.y
    assert accuracy[0] == pytest.approx(100 * float(right.double().mean()))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "clean-on-all").glob("*.npz")}
    assert len(kept) == 2
    assert clean.clean_by_seed(run, [cell]).values == accuracy.values[:1]
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "clean-on-all").glob("*.npz")}


def test_a_study_that_cannot_be_compared_says_so_and_keeps_the_rest(tmp_path, monkeypatch, cache):
    def compare(findings: Findings) -> list[Comparison]:
        findings["tiny"].one(seed=0, attack="pgd")
        return []

    monkeypatch.setattr(studies, "STUDIES", (_study(compare),))
    result = engine.reproduce(scale="smoke", out=tmp_path, seeds=(0,), jobs=1)
    assert result.exit_code == 1
    assert "Expected one cell with seed=0, attack=pgd; got 0" in result.outcomes[0].problem
    assert "Incomplete: Expected one cell" in (tmp_path / "reproduction.md").read_text()


def test_an_interrupted_comparison_keeps_the_records_and_is_continued(tmp_path, monkeypatch, cache):
    def interrupted(_: Findings) -> list[Comparison]:
        raise KeyboardInterrupt

    monkeypatch.setattr(studies, "STUDIES", (_study(interrupted),))
    result = engine.reproduce(scale="smoke", out=tmp_path, seeds=(0,), jobs=1)
    assert (result.exit_code, result.outcomes[0].problem) == (130, "interrupted")
    assert "Incomplete: interrupted" in (tmp_path / "reproduction.md").read_text()
    records = {path: path.stat().st_mtime_ns for path in (tmp_path / "records").rglob("record.json")}
    monkeypatch.setattr(studies, "STUDIES", (_study(),))
    assert engine.reproduce(scale="smoke", out=tmp_path, seeds=(0,), jobs=1).exit_code == 0
    assert records == {path: path.stat().st_mtime_ns for path in (tmp_path / "records").rglob("record.json")}


def test_numbers_show_three_digits():
    texts = [claim_tables.number_text(value) for value in (0.0, 0.0871, 1.234, 12.34, 99.96, -0.5, math.nan, math.inf)]
    assert texts == ["0.0", "0.087", "1.23", "12.3", "100.0", "-0.500", "–", "∞"]


def test_a_table_too_wide_for_the_console_has_a_line_per_number():
    import io

    from rich.console import Console

    from advbench.reproduction.terminal import print_reproduction

    columns = tuple((f"a long heading, number {i}", "%") for i in range(8))
    pairs = tuple(Pair(float(i), Ours((i + 0.5, i + 1.5))) for i in range(8))
    comparison = Comparison("Wide", columns, (("net", pairs),))
    outcome = engine.StudyOutcome(_study(), (comparison,), "", {}, 0.0)
    result = engine.Reproduction("smoke", (0, 1), (outcome,), (), False)
    for width, lines in ((80, 8), (400, 1)):
        console = Console(file=io.StringIO(), width=width)
        print_reproduction(result, console)
        text = console.file.getvalue()
        assert all(len(line) <= width for line in text.splitlines())
        assert sum("–" in line for line in text.splitlines()) == lines  # each number has its range
        assert "7.50–8.50" in text


def _figures() -> Comparison:
    plot = Plot(
        "Error by epoch",
        "epoch",
        "error (%)",
        (
            Series("control", (1.0, 2.0), (Ours((4.0, 6.0)), Ours((1.0, 3.0)))),
            Series("longer", (2.0, 3.0), (Ours((2.5, 2.5)), Ours((0.5, 1.5)))),
        ),
    )
    pixels = np.zeros((1, 2, 1, 4, 4), np.float32)
    grid = image_grid(
        pixels, rows=("updates",), columns=("epoch 1", "epoch 2"), alt="grey", caption="Updates", group="Images"
    )
    return Comparison("", (), (), plots=(plot,), images=(grid,))


def test_figures_are_drawn_in_the_page_and_their_numbers_stand_in_every_file(tmp_path):
    table = Comparison("A table", (("error", "%"),), (("net", (Pair(1.0, None),)),))
    outcome = engine.StudyOutcome(_study(), (table, _figures()), "", {}, 0.0)
    markdown, html, written, _ = (path.read_text() for path in rendering.write(tmp_path, "smoke", (0, 1), [outcome]))
    assert "| 2" in markdown
    assert "2.00 (1.00–3.00)" in markdown
    assert "[2 figures](reproduction.html#gu2014-tiny)" in markdown
    lines = list(csv.DictReader(written.splitlines()))
    assert [(line["row"], line["column"], line["ours"]) for line in lines[1:]] == [
        ("epoch 1", "control", "5"),
        ("epoch 2", "control", "2"),
        ("epoch 2", "longer", "2.5"),
        ("epoch 3", "longer", "1"),
    ]
    drawn = html.index('class="drawing"')
    assert html.index("A table") < html.index("Error by epoch") < drawn
    assert html.count('class="drawing"') == 1
    assert html.count("data:image/png;base64,") == 1
    svg = html[drawn : html.index("</svg>", drawn)]
    assert "error (%)" in svg
    assert "style=" not in svg


def test_a_curve_needs_a_value_at_each_position():
    with pytest.raises(ValueError, match="Expected a value for each of 2 positions of 'a', got 1"):
        Series("a", (1.0, 2.0), (Ours((1.0,)),))


def test_a_long_curve_is_left_to_the_files():
    import io

    from rich.console import Console

    from advbench.reproduction.terminal import print_reproduction

    for points, printed in ((30, True), (31, False)):
        series = Series("net", tuple(map(float, range(points))), tuple(Ours((7.5, 8.5)) for _ in range(points)))
        comparison = Comparison("", (), (), plots=(Plot("Error", "epoch", "%", (series,)),))
        outcome = engine.StudyOutcome(_study(), (comparison,), "", {}, 0.0)
        console = Console(file=io.StringIO(), width=100)
        print_reproduction(engine.Reproduction("smoke", (0, 1), (outcome,), (), False), console)
        text = console.file.getvalue()
        assert ("7.50–8.50" in text) == printed
        assert ("see the reports" in text) != printed
