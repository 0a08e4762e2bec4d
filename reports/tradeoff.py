"""What an attack's effort buys: robust accuracy against the seconds per image, on each device by itself."""

from __future__ import annotations

import numpy as np

from advbench.reports import figures, formatting
from advbench.reports.section import Column, Entry, Section, Table
from advbench.reports.standings import RankedBoard, Standing
from advbench.results.boards import Attacker, seen_attacker
from advbench.results.statistics import Values

_COLUMNS = (
    Column("Target", heading=True),
    Column("Attack"),
    Column("Time per image", numeric=True),
    Column("Robust accuracy", numeric=True),
)


def tradeoff_section(board: RankedBoard) -> Section | None:
    """The white-box attacks of a board by cost, a table and a panel for each device; None if no time was measured."""
    times = _times(board)
    devices = sorted({device for device, _, _ in times})
    points = {device: _points(board, times, device) for device in devices}
    points = {device: by_target for device, by_target in points.items() if by_target}
    if not points:
        return None
    return Section(
        title="Cost against robustness",
        context=board.title,
        anchor=formatting.anchor(f"cost against robustness {board.title}"),
        text="Each white-box attack by its time per image and the robust accuracy that it leaves. Devices are kept apart: "
        "their times are not comparable.",
        tables=tuple(_table(device, by_target) for device, by_target in points.items()),
        figures=(
            figures.line_plots(
                [
                    figures.Panel(device, tuple(_curve(*each) for each in by_target.items()))
                    for device, by_target in points.items()
                ],
                x_label="time per image",
                y_label="robust accuracy",
                caption=f"White-box attacks by cost, {board.title}",
                alt="Robust accuracy against seconds per image on a logarithmic axis, the numbers of the tables beside it",
                log_x=True,
                x_text=formatting.seconds,
            ),
        ),
    )


def _times(board: RankedBoard) -> dict[tuple[str, str, Attacker], float]:
    """Seconds per image by device, target and white-box attacker, the mean over seeds."""
    times: dict[tuple[str, str, Attacker], list[float]] = {}
    for cell in board.cells:
        seconds = cell.statistics.seconds if cell.statistics else None
        if cell.record.matrix == "white-box" and seconds:
            device = str(cell.record.measured.get("device", "unknown device"))
            times.setdefault((device, cell.record.target["label"], seen_attacker(cell.record)), []).append(seconds)
    return {place: float(np.mean(values)) for place, values in times.items()}


_Points = list[tuple[str, float, float]]


def _points(board: RankedBoard, times: dict[tuple[str, str, Attacker], float], device: str) -> dict[str, _Points]:
    """By target: attack, seconds and robust accuracy, from the cheapest."""

    def of(standing: Standing) -> _Points:
        points_of_target = [
            (attacker.attack, times[device, standing.label, attacker], robust)
            for attacker, robust in standing.by_attacker.items()
            if (device, standing.label, attacker) in times
        ]
        return sorted(points_of_target, key=lambda point: point[1])

    return {standing.label: points for standing in board.standings if (points := of(standing))}


def _curve(target: str, points: _Points) -> figures.Curve:
    attacks, seconds, robust = zip(*points, strict=True)
    x: Values = np.array(seconds)
    return figures.Curve(target, x, np.array(robust), marked=True, notes=attacks)


def _table(device: str, by_target: dict[str, _Points]) -> Table:
    rows = tuple(
        (
            formatting.text_entry(target),
            formatting.text_entry(attack),
            formatting.number_entry(seconds, formatting.seconds(seconds)),
            Entry(formatting.percent(robust), order=robust),
        )
        for target, points in by_target.items()
        for attack, seconds, robust in points
    )
    return Table(f"White-box attacks by cost on {device}", _COLUMNS, rows)
