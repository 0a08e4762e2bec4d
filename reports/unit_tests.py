"""What attacks found of adversarial images that are known to exist, beside the robust accuracies that they leave."""

from __future__ import annotations

from advbench.reports import formatting
from advbench.reports.section import Column, Entry, Section, Table
from advbench.reports.standings import RankedBoard
from advbench.results.cells import Cell
from advbench.results.unit_tests import PASSED, UnitTestOutcome, together, unit_test_of


def unit_test_section(board: RankedBoard) -> Section | None:
    """A row for each cell that was tested; None where the board has none."""
    cells = [(cell, found) for cell in board.cells if (found := unit_test_of(cell.record)) is not None]
    if not cells:
        return None
    several = len({cell.record.seed for cell, _ in cells}) > 1
    columns = (
        Column("Target", heading=True),
        Column("Matrix"),
        Column("Attack"),
        *([Column("Seed", numeric=True)] if several else []),
        Column("Robust accuracy", "Under this attack alone", numeric=True),
        Column("Planted images found", "Share of the known adversarial images that the attack found", numeric=True),
        Column("By random points", "Share that random points in the ball and at its edge found", numeric=True),
        Column("Without one", "Images for which none could be planted, and why", numeric=True),
        Column("Readouts on", "What the readouts that plant them read"),
    )
    rows = tuple(_row(cell, found, several) for cell, found in cells)
    return Section(
        title="Unit tests of the attacks",
        context=board.title,
        anchor=formatting.anchor(f"unit tests {board.title}"),
        text="The last layer of each defended pipeline is exchanged for one that makes a known point at the edge of the "
        "ball an adversarial image (Zimmermann et al. 2022, arXiv:2206.13991). An attack that finds less than "
        f"{100 * PASSED:.0f}% of them is too weak for the pipeline, so that the robust accuracy beside it says little. "
        "Random points show how hard the test is.",
        tables=(Table(f"Unit tests of the attacks, {board.title}", columns, rows),),
        caveats=tuple(_caveats(board)),
    )


def unit_test_entry(found: UnitTestOutcome) -> Entry:
    """The share that was found, flagged below the least; why not, where nothing could be tested."""
    if found.share is None:
        return Entry("not applicable", found.why_not, tone="muted")
    note = f"{found.found} of {found.built}" + ("; failed" if found.failed else "")
    return Entry(formatting.percent(found.share), note, found.share, tone="warning" if found.failed else "")


def _row(cell: Cell, found: UnitTestOutcome, several: bool) -> tuple[Entry, ...]:
    record, statistics = cell.record, cell.statistics
    control = found.control / found.built if found.built else None
    points = formatting.plural(found.points, "point")
    return (
        formatting.text_entry(record.target["label"]),
        formatting.text_entry(record.matrix),
        formatting.text_entry(record.attack["label"]),
        *([Entry(str(record.seed), order=record.seed)] if several else []),
        formatting.share_entry(statistics.robust_accuracy if statistics else None),
        unit_test_entry(found),
        Entry(formatting.NONE, tone="muted") if control is None else Entry(formatting.percent(control), points, control),
        Entry(str(found.images - found.built), found.why_not, found.images - found.built),
        formatting.text_entry(found.features),
    )


def _caveats(board: RankedBoard) -> list[str]:
    """Targets whose attacks all together miss too much."""
    found = []
    for standing in board.standings:
        reached, built = together(cell.record for cell in board.cells_of[standing.label])
        if built and reached / built < PASSED:
            found.append(
                f"The evaluation of {standing.label} failed its unit test: all attacks together found {reached} of {built} "
                "planted images."
            )
    return found
