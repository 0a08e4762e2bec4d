"""Roth et al. 2018 (arXiv:1805.08736): clean against robust accuracy over the strengths of each method."""

from __future__ import annotations

from collections.abc import Sequence

from advbench.reproduction.findings import Findings
from advbench.reproduction.papers.sgr2018 import nets
from advbench.reproduction.study import Comparison, Ours, Pair, Plot, Scale, Series
from advbench.reproduction.tuning import Point, Tuned

_RULE = (
    "a point's loss is that of accuracy on held-out images against plain training, its bound one-sided at 95% over images; "
    "PGD is at 32/255 on test images (100 at small). Of methods without a whole grid no strength above the first that loses "
    "too much is trained. No claim is judged on these trainings"
)


def _compare(findings: Findings) -> Sequence[Comparison]:
    tuned = findings.tuned
    if tuned is None or tuned.plain is None:
        raise ValueError("Expected strengths that were chosen by validation, got none")
    rows = [("clean", _cells(tuned.plain))]
    for name, points in tuned.points.items():
        rows += [(_label(name, point, tuned.chosen[name]), _cells(point)) for point in points]
    columns = (
        ("loss of clean accuracy", "points"),
        ("its upper bound", "points"),
        ("clean, held out", "%"),
        ("PGD", "%"),
    )
    plot = Plot(
        "The frontier: each point is a strength",
        "clean accuracy, held out (%)",
        "accuracy under PGD (%)",
        tuple(_curve(name, tuned) for name in nets.CURVES),
    )
    caption = f"Strengths by the rule, on {tuned.images:,} images that no net trained on"
    return (Comparison(caption, columns, tuple(rows), (), (_RULE,), (plot,)),)


def _label(name: str, point: Point, chosen: float) -> str:
    return f"{name} {point.strength:g}" + (", chosen" if point.strength == chosen else "")


def _cells(point: Point) -> tuple[Pair, ...]:
    return tuple(Pair(None, Ours((value,))) for value in (point.loss, point.bound, point.clean, point.robust))


def _curve(name: str, tuned: Tuned) -> Series:
    """From the highest clean accuracy's left: points in the order of their clean accuracy, plain training among them."""
    points = [*tuned.points[name], *([tuned.plain] if tuned.plain else [])]
    ordered = sorted({point.clean: point for point in points}.items())
    return Series(name, tuple(clean for clean, _ in ordered), tuple(Ours((point.robust,)) for _, point in ordered))


def _differs(scale: Scale) -> Sequence[str]:
    return nets.differs(scale)


STUDIES = (
    nets.study(
        "sgr2018.frontier",
        "clean against robust accuracy, by strength",
        lambda scale, chosen: {},  # noqa: ARG005
        _compare,
        _differs,
        scales=nets.TUNING.scales,
    ),
)
