"""How far minimal-norm attacks had to go: quartiles and histograms of their distances."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from advbench.reports import figures, formatting
from advbench.reports.section import Column, Entry, Section, Table
from advbench.results.boards import seen_attacker, threat_of
from advbench.results.cells import Cell
from advbench.results.statistics import Values, clean_correct, distance, quantile

_BINS = 30
_COLUMNS = (
    Column("Target", heading=True),
    Column("Lower quartile", "A quarter of the clean-correct images fall nearer than this", numeric=True),
    Column("Median", "Failures at infinity", numeric=True),
    Column("Upper quartile", "Three quarters of the clean-correct images fall nearer than this", numeric=True),
    Column("Not reached", "Clean-correct images that the attack did not break at any distance", numeric=True),
)


def distortion_sections(cells: Sequence[Cell]) -> list[Section]:
    """One section for each data set and norm that has minimal-norm attacks. cells: the scored ones."""
    minimal = [cell for cell in cells if cell.record.attack["minimal_norm"] and cell.examples is not None]
    families = dict.fromkeys(threat_of(cell).family for cell in minimal)
    sections = []
    for family in families:
        groups = by_attack([cell for cell in minimal if threat_of(cell).family == family])
        context = formatting.family_title(family)
        sections.append(
            Section(
                title="Distances",
                anchor=formatting.anchor(f"distances {context}"),
                context=context,
                text="How far minimal-norm attacks moved the clean-correct images, over all training seeds.",
                tables=tuple(_table(name, by_target, family.norm) for name, by_target in groups.items()),
                figures=(
                    figures.line_plots(
                        [panel(name, by_target) for name, by_target in groups.items()],
                        x_label=f"{family.norm} distance",
                        y_label="share of images",
                        caption=f"Histograms of the {family.norm} distances; images that were not reached are not in them",
                        alt="Histograms of distances, whose quartiles are in the tables of this section",
                        zoomed=True,
                    ),
                ),
            )
        )
    return sections


def by_attack(cells: Sequence[Cell]) -> dict[str, dict[str, Values]]:
    """Distances of the clean-correct images, infinity if the attack failed, by attack and target, seeds together.

    A cell that is run at several epsilons counts once: its distances do not depend on them.
    """
    once = {
        (str(seen_attacker(cell.record)), cell.record.target["label"], cell.record.seed): cell for cell in reversed(cells)
    }
    distances: dict[str, dict[str, Values]] = {}
    for attack, group in groupby(sorted(once), key=lambda place: place[0]):
        for place in group:
            cell = once[place]
            assert cell.examples is not None
            attacked = clean_correct(cell.examples) & ~np.isnan(distance(cell.record, cell.examples))
            by_target = distances.setdefault(attack, {})
            before = by_target.get(place[1], np.empty(0))
            by_target[place[1]] = np.concatenate((before, distance(cell.record, cell.examples)[attacked]))
    return distances


def panel(name: str, by_target: dict[str, Values]) -> figures.Panel:
    """The histograms of an attack's targets in the same bins, as shares of each target's attacked images."""
    finite = np.concatenate([values[np.isfinite(values)] for values in by_target.values()])
    reach = float(np.quantile(finite, 0.99)) if len(finite) and finite.max() > 0 else 1.0
    edges = np.linspace(0, reach, _BINS + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    curves = []
    for target, values in by_target.items():
        counts, _ = np.histogram(np.minimum(values[np.isfinite(values)], reach), edges)
        curves.append(figures.Curve(target, middles, counts / max(1, len(values)), steps=True))
    return figures.Panel(name, tuple(curves))


def _table(name: str, by_target: dict[str, Values], norm: str) -> Table:
    rows = []
    for target, values in by_target.items():
        quartiles = [quantile(values, share) for share in (0.25, 0.5, 0.75)] if len(values) else [np.nan] * 3
        lost = int(np.isinf(values).sum())
        rows.append(
            (
                formatting.text_entry(target),
                *(formatting.number_entry(float(value), formatting.number(float(value))) for value in quartiles),
                Entry(f"{lost:,} of {len(values):,}", order=lost / max(1, len(values)), tone="warning" if lost else ""),
            )
        )
    return Table(f"{norm} distances of {name}", _COLUMNS, tuple(rows))
