"""The records that are published with the repository can be read, and stand beside a report."""

from __future__ import annotations

from pathlib import Path

import pytest

from advbench.results.archive import SUFFIX, read

ROOT = Path(__file__).resolve().parents[2]
ARCHIVES = sorted((ROOT / "results" / "published").glob(f"*{SUFFIX}"))


@pytest.mark.skipif(not ARCHIVES, reason="not a checkout")
@pytest.mark.parametrize("path", ARCHIVES, ids=lambda path: path.name)
def test_published_records_are_whole_and_have_their_report(path):
    assert path.stat().st_size < 2**20
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
