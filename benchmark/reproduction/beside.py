"""Beside a paper's attack: our strongest verdict at a radius, and the nearest adversarial, on a few images of one seed.

A claim on a network rests on the attack that its paper chose. `auto` and a minimal-norm attack on the same network say how
far that attack is from what others find.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from advbench.reproduction.findings import Findings, ScoredCell
from advbench.reproduction.study import FIRST_SEEDS, Comparison, Ours, Pair, Settings
from advbench.results.statistics import clean_correct

IMAGES = 200
AUTO = "auto"


def beside(run: Settings, *, epsilon: float, nearest: str = "ddn", images: int = IMAGES) -> Settings:
    """A paper's run with `auto` at a radius and a minimal-norm attack instead of its own, on a few images of the first seed.

    run: settings of a white-box run. epsilon: in the norm of the run. nearest: `ddn` or `fmn`, with arguments if need be.
    """
    return {**run, "attack": [AUTO, nearest], "epsilon": [epsilon], "n_examples": images, FIRST_SEEDS: 1}


def beside_table(
    findings: Findings, runs: Sequence[str], paper: Callable[[str, str], ScoredCell | None] = lambda _, __: None
) -> Comparison:
    """A row for each network of the runs that `beside` made: what `auto` leaves, and the nearest adversarials' distances.

    runs: their names among the findings. paper: (name of the run, label of the network) -> the network's cell of the paper's
    attack, None if there is none; its distances are of the images that both have.
    """
    rows = list[tuple[str, tuple[Pair, ...]]]()
    for name in runs:
        run = findings[name]
        for label in dict.fromkeys(cell.record.target["label"] for cell in run.cells):
            cells = run.all(target=label, matrix="white-box")
            (strong,) = (one for one in cells if one.record.attack["name"] == AUTO)
            (near,) = (one for one in cells if one.record.attack["name"] != AUTO)
            rows.append((f"{name}: {label}", _row(strong, near, paper(name, label))))
    columns = (
        ("clean accuracy", "%"),
        ("radius", "l2"),
        ("accuracy under auto", "%"),
        ("median distance of the nearest adversarial", "l2"),
        ("median distance by the paper's attack", "l2"),
    )
    note = f"one training seed and {IMAGES} images at most; images that an attack did not break count as infinitely far"
    return Comparison("Beside the paper's attack", columns, tuple(rows), notes=(note,))


def _row(strong: ScoredCell, near: ScoredCell, paper: ScoredCell | None) -> tuple[Pair, ...]:
    shown: Sequence[float | None] = (
        strong.clean_accuracy,
        strong.radius,
        strong.accuracy,
        median_distance(near),
        None if paper is None else median_distance(paper, near.examples.index),
    )
    return tuple(Pair(None, None if one is None else Ours((float(one),))) for one in shown)


def median_distance(cell: ScoredCell, index: NDArray[np.int64] | None = None) -> float:
    """The median l2 distance over clean-correct images, infinite for one that was not broken; NaN if there is no such image.

    index: the images that count, all if None.
    """
    examples = cell.examples
    chosen = clean_correct(examples)
    if index is not None:
        chosen = chosen & np.isin(examples.index, index)
    found = np.where(cell.broken, examples.distance_l2, np.inf)[chosen]
    return float(np.median(found)) if len(found) else math.nan
