"""Images that were made on one net, shown to others, of which the answers are kept beside a run's results."""

from __future__ import annotations

import numpy as np

from advbench.reproduction.clean import kept_path
from advbench.reproduction.findings import RunFindings, ScoredCell
from advbench.reproduction.oblivious import answers, crafted
from advbench.results.statistics import Values
from advbench.tasks.artefacts import read, save, whole
from advbench.zoo.data import Split

_MOST_TRAINED = 2_000


def on_images_of(source: RunFindings, made: ScoredCell, run: RunFindings, cell: ScoredCell) -> Values:
    """Whether a cell's target gets the images right that `made`, a cell of `source`, was scored on, (n,), 0 or 1."""
    (craft,) = made.record.details["crafts"]
    return _answered(run, cell, f"shown/{craft}", crafted(source, made))


def trained_accuracy(run: RunFindings, cell: ScoredCell) -> float:
    """In percent, on the first 2,000 of the images that a cell's target was trained on, or on all if they are fewer."""
    content = run.plan.trainings[cell.record.details["model_key"]]
    images = run.plan.data.train.first(content.budget.train_examples).first(_MOST_TRAINED)
    return 100.0 * float(_answered(run, cell, "on-trained", images).mean())


def _answered(run: RunFindings, cell: ScoredCell, kind: str, images: Split) -> Values:
    path = kept_path(run, cell, kind)
    if not whole(path):
        found = answers(run.defended(cell), images, seed=cell.record.seed)
        save(path, correct=(found.report / found.draws).numpy())
    right: Values = read(path)["correct"].astype(np.float64)
    return right
