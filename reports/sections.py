"""All sections of a report, in order. A new kind of section is one function here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from advbench.reports import figures, formatting
from advbench.reports.attack_board import attack_board_section
from advbench.reports.attackers import attackers_section, detectors_section
from advbench.reports.cell_sections import all_cells_section, cost_sections, failure_section, provenance_section
from advbench.reports.cells import Cells
from advbench.reports.comparisons import comparison_section
from advbench.reports.convergence import convergence_section
from advbench.reports.curves import curve_sections
from advbench.reports.distortion import distortion_sections
from advbench.reports.images import image_section
from advbench.reports.leaderboard import leaderboard_section
from advbench.reports.masking import masking_section
from advbench.reports.matrices import matrix_sections
from advbench.reports.model_page import model_sections, models
from advbench.reports.random_models import random_models_section
from advbench.reports.scatter import scatter_section
from advbench.reports.section import LONGEST, Section
from advbench.reports.standings import RankedBoard, ranked_boards
from advbench.reports.tradeoff import tradeoff_section
from advbench.reports.union import union_sections
from advbench.reports.unit_tests import unit_test_section
from advbench.results.boards import label_of
from advbench.results.cells import Cell


def sections(cells: Cells) -> list[Section]:
    """Leaderboards first, then what they rest on; of one model its page. A model has one colour in all figures."""
    boards = ranked_boards(cells)
    with figures.same_colours([standing.label for board in boards for standing in board.standings]):
        return _of_one_model(boards, cells) if only_model(cells) else _sections(boards, cells)


def only_model(cells: Cells) -> str:
    """The label of the one model that all cells attack; empty if there are several, or cells without a record."""
    labels = {label_of(cell) for cell in cells.cells}
    return labels.pop() if len(labels) == 1 and not cells.missing else ""


def heading(cells: Cells) -> str:
    """The title of a report."""
    label = only_model(cells)
    return f"Robustness of {label}" if label else "Adversarial robustness leaderboard"


def _of_one_model(boards: Sequence[RankedBoard], cells: Cells) -> list[Section]:
    """A model's page, and behind it, before the images, what a report says of attacks and costs."""
    (model,) = models(boards, cells.cells)
    own = model_sections(model, [line for board in boards for line in leaderboard_section(board).caveats])
    failures = failure_section(cells)
    return _distinct(
        *(section for section in own if section.anchor != "images"),
        *([failures] if failures else []),
        *union_sections(boards),
        *(section for section in map(random_models_section, boards) if section is not None),
        *(section for section in map(attackers_section, boards) if section is not None),
        *(section for section in map(unit_test_section, boards) if section is not None),
        *(section for section in map(attack_board_section, boards) if section is not None),
        *(section for section in map(convergence_section, boards) if section is not None),
        *(section for section in map(detectors_section, boards) if section is not None),
        *(section for section in map(tradeoff_section, boards) if section is not None),
        *(section for section in own if section.anchor == "images"),
        all_cells_section(cells),
        *cost_sections(cells),
        provenance_section(cells),
    )


def _sections(boards: Sequence[RankedBoard], cells: Cells) -> list[Section]:
    failures, images = failure_section(cells), image_section(_from_the_top(boards, cells.scored))
    return _distinct(
        *(leaderboard_section(board, missing=len(cells.missing)) for board in boards),
        *(section for section in map(scatter_section, boards) if section is not None),
        *union_sections(boards),
        *(section for section in map(random_models_section, boards) if section is not None),
        *(section for section in map(attackers_section, boards) if section is not None),
        *(section for section in map(masking_section, boards) if section is not None),
        *(section for section in map(unit_test_section, boards) if section is not None),
        *([failures] if failures else []),
        *(section for board in boards for section in matrix_sections(board)),
        *(section for section in map(attack_board_section, boards) if section is not None),
        *(section for section in map(convergence_section, boards) if section is not None),
        *(section for section in map(detectors_section, boards) if section is not None),
        *curve_sections(boards, cells.scored),
        *distortion_sections(cells.scored),
        *(section for section in map(tradeoff_section, boards) if section is not None),
        *(section for section in map(comparison_section, boards) if section is not None),
        *([images] if images else []),
        all_cells_section(cells),
        *cost_sections(cells),
        provenance_section(cells),
    )


def _from_the_top(boards: Sequence[RankedBoard], cells: Sequence[Cell]) -> Sequence[Cell]:
    """Of very many cells, those of the best-ranked targets first."""
    if len(cells) <= LONGEST:
        return cells
    place = {standing.label: i for board in reversed(boards) for i, standing in enumerate(board.standings)}
    return sorted(cells, key=lambda cell: place.get(label_of(cell), len(place)))


def _distinct(*sections: Section) -> list[Section]:
    """Sections with distinct anchors; data sets of different sizes may share a name."""
    anchors = [section.anchor for section in sections]
    places = [anchors[:i].count(anchor) for i, anchor in enumerate(anchors)]
    return [
        replace(section, anchor=f"{section.anchor}-{place + 1}") if place else section
        for section, place in zip(sections, places, strict=True)
    ]


def summary(cells: Cells) -> list[tuple[str, str]]:
    """The facts under the report's title."""
    records = [cell.record for cell in cells.cells]
    data = dict.fromkeys(
        f"{record.dataset['name']} ({formatting.plural(record.dataset['n'], 'image')})" for record in records
    )
    threats = dict.fromkeys(formatting.threat(record.threat["norm"], record.threat["epsilon"]) for record in records)
    without = len(cells.unscored) + len(cells.missing)
    counted = formatting.plural(len(cells.scored), "scored cell") + (f", {without} without numbers" if without else "")
    facts = (
        ("Data", ", ".join(data)),
        ("Threat", ", ".join(threats)),
        ("Targets", str(len({record.target["label"] for record in records}))),
        ("Attacks", ", ".join(sorted({record.attack["label"] for record in records}))),
        ("Cells", counted),
    )
    return [(name, value) for name, value in facts if value]
