"""Clean against robust accuracy: what the targets of a board pay for their robustness."""

from __future__ import annotations

import numpy as np

from advbench.reports import figures, formatting
from advbench.reports.section import Column, Section, Table
from advbench.reports.standings import RankedBoard

_FEWEST = 3
"""How many targets a scatter is worth."""


def scatter_section(board: RankedBoard) -> Section | None:
    """Each ranked target by its clean and its robust accuracy; None for a board of very few."""
    ranked = [one for one in board.standings if one.rank is not None and one.clean is not None and one.robust is not None]
    rates = [(one, one.clean.estimate, one.robust.estimate) for one in ranked if one.clean and one.robust]
    if len(rates) < _FEWEST:
        return None
    curves = tuple(
        figures.Curve(
            standing.label,
            np.array([clean.value]),
            np.array([robust.value]),
            marked=True,
            low=np.array([robust.low]),
            high=np.array([robust.high]),
            notes=(standing.label,),
        )
        for standing, clean, robust in rates
    )
    columns = (Column("Target", heading=True), Column("Clean", numeric=True), Column("Robust", numeric=True))
    rows = tuple(
        (formatting.text_entry(standing.label), formatting.share_entry(clean), formatting.share_entry(robust))
        for standing, clean, robust in rates
    )
    return Section(
        title="Clean against robust accuracy",
        context=board.title,
        anchor=formatting.anchor(f"clean against robust {board.title}"),
        text="Ranked targets by what they get right without an attack and under the worst of all. Whiskers are 95% "
        "intervals over the images; up and to the right is better.",
        tables=(Table(f"Clean and robust accuracy, {board.title}", columns, rows),),
        figures=(
            figures.line_plots(
                [figures.Panel("", curves)],
                x_label="clean accuracy",
                y_label="robust accuracy",
                x_shares=True,
                caption=f"Clean against robust accuracy, {board.title}",
                alt="A mark for each target at its clean and robust accuracy, the numbers of the table beside it",
            ),
        ),
    )
