"""The report of one model: its page, not a leaderboard of one."""

from __future__ import annotations

from advbench.records import reporting
from advbench.reports.cells import load
from advbench.reports.sections import heading, only_model, sections
from advbench.results.archive import source_of
from advbench.results.store import Store


def cells_of(folder, suite):
    suite.write(Store(folder))
    return load(source_of(folder))


def test_a_report_of_one_model_is_its_page(tmp_path, make_suite):
    suite = make_suite(targets={"net": 0.5}, attacks={"pgd": 1.0, "deepfool": 0.9}, matrices=("white-box",), stochastic=())
    cells = cells_of(tmp_path, suite)
    assert (only_model(cells), heading(cells)) == ("net", "Robustness of net")
    first, *others = sections(cells)
    assert first.title == "Robust accuracy"
    (table,) = first.tables
    assert [column.name for column in table.columns] == ["Threat", "Robust accuracy", "Clean", "Weakest cell"]
    titles = [section.title for section in others]
    assert not {"Leaderboard", "Comparisons"} & set(titles)
    assert {"Masking checks", "All cells", "Security curve", "Distances", "Images", "Provenance"} <= set(titles)
    assert titles.index("Images") < titles.index("Provenance")
    assert len({section.anchor for section in (first, *others)}) == len(others) + 1


def test_its_files_say_so_and_no_rank(tmp_path, make_suite):
    make_suite(targets={"net": 0.5}, attacks={"pgd": 1.0}, matrices=("white-box",)).write(Store(tmp_path))
    reporting.report(tmp_path)
    text = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert text.startswith("# Robustness of net\n\n## Robust accuracy")
    page = (tmp_path / "leaderboard.html").read_text(encoding="utf-8")
    assert "<title>Robustness of net</title>" in page
    assert "leaderboard" not in page.lower().replace("leaderboard.html", "")


def test_what_failed_is_still_told(tmp_path, make_suite):
    attacks = {"pgd": 1.0, "fgsm": 0.8}
    failing = [("white-box", "net", "pgd")]
    suite = make_suite(targets={"net": 0.5}, attacks=attacks, matrices=("white-box",), failing=failing)
    titles = {section.title: section for section in sections(cells_of(tmp_path, suite))}
    assert "Cells without numbers" in titles
    assert any("incomplete" in entry.text for row in titles["Robust accuracy"].tables[0].rows for entry in row)


def test_two_models_or_a_record_that_is_missing_keep_the_leaderboard(tmp_path, make_suite):
    two = cells_of(tmp_path / "two", make_suite(targets={"a": 0.5, "b": 0.2}, attacks={"pgd": 1.0}))
    assert heading(two) == "Adversarial robustness leaderboard"
    assert sections(two)[0].title == "Leaderboard"
    suite = make_suite(targets={"net": 0.5}, attacks={"pgd": 1.0}, matrices=("white-box",))
    keys = suite.write(Store(tmp_path / "one"))
    lacking = load(source_of(tmp_path / "one"), [*keys, "f" * 64])
    assert only_model(lacking) == ""
    assert sections(lacking)[0].title == "Leaderboard"
