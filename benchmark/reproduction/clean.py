"""Clean accuracy on all test images, though an attack is run on some of them: a bar of 0.3 points takes thousands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from advbench.reproduction.findings import RunFindings, ScoredCell
from advbench.reproduction.measured import Figure, SeedFigure, percent
from advbench.reproduction.oblivious import answers
from advbench.tasks.artefacts import read, save, whole


def clean_accuracy(run: RunFindings, cell: ScoredCell) -> Figure:
    """In percent, on all test images; the answers are kept beside the run's results.

    A model with parts at test time, whose every answer costs as much as a training step or more, keeps the cell's images.
    """
    test = run.plan.data.test
    if len(cell.examples) == len(test):
        return cell.clean_accuracy
    path = _kept(run, cell)
    if not whole(path):
        defended = run.defended(cell)
        if defended.stochastic or len(defended.surrogates) > 1 or defended.detector is not None:
            return cell.clean_accuracy
        found = answers(defended, test, seed=cell.record.seed)
        save(path, correct=found.report.numpy(), index=test.index.numpy())
    kept = read(path)
    return percent(kept["correct"].astype(np.float64), kept["index"].astype(np.int64))


def clean_by_seed(run: RunFindings, cells: Sequence[ScoredCell]) -> SeedFigure:
    """The clean accuracies of one cell per training seed, on all test images, in percent."""
    return SeedFigure.of(clean_accuracy(run, cell) for cell in cells)


def _kept(run: RunFindings, cell: ScoredCell) -> Path:
    """Named by the weights, which the studies of a paper share, and the data."""
    return run.plan.config.out / "store" / "clean-on-all" / f"{cell.record.details['model_key']}.npz"
