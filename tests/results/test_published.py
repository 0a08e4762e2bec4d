"""The records that are published with the repository can be read, and stand beside a report."""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path

import pytest

from advbench.results.archive import SUFFIX, read

ROOT = Path(__file__).resolve().parents[2]
ARCHIVES = sorted((ROOT / "results" / "published").glob(f"*{SUFFIX}"))


@pytest.mark.skipif(not ARCHIVES, reason="not a checkout")
@pytest.mark.parametrize("path", ARCHIVES, ids=lambda path: path.name)
def test_published_records_are_whole_and_have_their_report(path):
    assert path.stat().st_size < 5 * 2**19
    found = read(path)
    assert found
    assert len({record.key for record, _ in found}) == len(found)
    assert all(
        examples is not None and len(examples) == record.counts["examples"]
        for record, examples in found
        if record.status == "ok"
    )
    reports = ROOT / "reports" / "published" / path.name.removesuffix(SUFFIX)
    assert any((reports / name).is_file() for name in ("reproduction.md", "leaderboard.md"))


@pytest.mark.skipif(not ARCHIVES, reason="not a checkout")
def test_the_errata_and_the_reports_that_they_concern_link_to_each_other():
    errata = (ROOT / "ERRATA.md").read_text()
    named = {(ROOT / path).resolve() for path in re.findall(r"\]\((reports/published/[^)]+)\)", errata)}
    assert named
    for report in (ROOT / "reports" / "published").glob("*/*.md"):
        linked = "](../../../ERRATA.md)" in report.read_text()
        assert linked == (report in named), report
        assert ('href="../../../ERRATA.md"' in report.with_suffix(".html").read_text()) == linked, report
    for page in ("README.md", "CHANGELOG.md"):
        assert "](ERRATA.md)" in (ROOT / page).read_text(), page


VERDICTS = ("holds", "fails", "undecided", "not decidable here", "not tested")


def _verdicts(table: Path) -> list[int]:
    """How many claims have each verdict: of a claim that several tables speak of, the one that stands worst."""
    found: dict[str, set[str]] = {}
    for row in csv.DictReader(table.read_text().splitlines()):
        found.setdefault(row["claim"], set()).add(row["verdict"])
    one = Counter("fails" if "fails" in each else max(each, key=VERDICTS.index) for each in found.values())
    assert set(one) <= set(VERDICTS)
    return [one[verdict] for verdict in VERDICTS]


@pytest.mark.skipif(not ARCHIVES, reason="not a checkout")
def test_readme_counts_the_verdicts_that_are_published():
    rows = re.findall(
        r"^\| \[[^]]+\]\(reports/published/(\w+)/reproduction.md\) \|(.+)\|$", (ROOT / "README.md").read_text(), re.M
    )
    told = {
        paper: [int(cell) for cell in cells.split("|")[:5]] for paper, cells in rows if cells.split("|")[0].strip() != "-"
    }
    tables = {path.parent.name: path for path in (ROOT / "reports" / "published").glob("*/claims.csv")}
    assert told == {paper: _verdicts(path) for paper, path in tables.items()}
    assert len(rows) == 5
