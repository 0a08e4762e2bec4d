"""Clean accuracy on thousands of images, though an attack is run on some of them: a bar of 0.3 points takes as many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from advbench.reproduction.findings import RunFindings, ScoredCell
from advbench.reproduction.measured import Figure, SeedFigure, percent
from advbench.reproduction.oblivious import answers
from advbench.results.statistics import Values
from advbench.tasks.artefacts import read, save, whole
from advbench.zoo.data import Split

_MOST_HELD_OUT = 20_000


def clean_accuracy(run: RunFindings, cell: ScoredCell) -> Figure:
    """In percent, on all test images; the answers are kept beside the run's results.

    A model with parts at test time, whose every answer costs as much as a training step or more, keeps the cell's images.
    """
    test = run.plan.data.test
    if len(cell.examples) == len(test):
        return cell.clean_accuracy
    path = kept_path(run, cell)
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


def clean_on_all(run: RunFindings, cell: ScoredCell) -> Figure:
    """In percent, on all test images, of a model with parts at test time too; the answers are kept as above."""
    test, path = run.plan.data.test, kept_path(run, cell)
    if not whole(path):
        found = answers(run.defended(cell), test, seed=cell.record.seed)
        save(path, correct=(found.report / found.draws).numpy(), index=test.index.numpy())
    kept = read(path)
    return percent(kept["correct"].astype(np.float64), kept["index"].astype(np.int64))


def held_out_answers(run: RunFindings, cell: ScoredCell) -> Values:
    """Which images that the model did not train on it gets right, (n,), 0 or 1: the validation split, then training images.

    The answers are kept beside the run's results. Of the training images that no epoch saw there are as many as make 20,000.
    """
    path = kept_path(run, cell, "held-out")
    if not whole(path):
        defended = run.defended(cell)
        found = [answers(defended, split, seed=cell.record.seed).report for split in _held_out(run) if len(split)]
        save(path, correct=torch.cat(found).numpy())
    return read(path)["correct"].astype(np.float64)


def _held_out(run: RunFindings) -> tuple[Split, Split]:
    data, seen = run.plan.data, run.plan.trainings
    trained = max(content.budget.train_examples or len(data.train) for content in seen.values())
    return data.validation, data.train.select(slice(trained, trained + max(0, _MOST_HELD_OUT - len(data.validation))))


def kept_path(run: RunFindings, cell: ScoredCell, kind: str = "clean-on-all") -> Path:
    """Where what was found of a cell's target is kept: by its weights, which a paper's studies share."""
    return run.plan.config.out / "store" / kind / f"{cell.record.details['model_key']}.npz"
