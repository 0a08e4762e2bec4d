"""A table that is longer than a page shows."""

from __future__ import annotations

from advbench.reports.section import Column, Entry, Section, Table
from advbench.results.statistics import Estimate

ROWS, LONGEST = 1500, 1000


def long_section(rows: int = ROWS) -> Section:
    """A table whose entries tell their row; one in 500 is marked, and one holds markup."""
    columns = (Column("Target", heading=True), Column("Kind", choice=True), Column("Share", numeric=True))
    body = tuple(
        (
            Entry(f"target {i} </script>" if i == 1234 else f"target {i}", order=f"target {i}"),
            Entry("odd" if i % 2 else "even", order="odd" if i % 2 else "even"),
            Entry(f"{i}", f"note {i}", i, Estimate(0.5, 0.25, 0.75), "warning" if i % 500 == 499 else ""),
        )
        for i in range(rows)
    )
    return Section("Cells", "cells", "text", tables=(Table("All of them", columns, body, filterable=True),))
