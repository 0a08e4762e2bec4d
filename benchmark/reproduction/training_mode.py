"""FGSM whose gradient is taken in training mode, scored in evaluation mode: an attack on another model than the scored one.

Dropout is drawn and batch norm takes the batch's own statistics while the gradient is computed, as if the model were being
trained. The gradient is of a random thinned network, in which the images of a batch depend on each other: the step is weaker
on the model that is scored. Scripts that leave a framework's training flag on make such adversarials unawares.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from advbench.clocks import single_thread
from advbench.defenses.defended import Defended
from advbench.reproduction.clean import kept_path
from advbench.reproduction.findings import RunFindings, ScoredCell
from advbench.reproduction.measured import Figure, percent
from advbench.reproduction.oblivious import answers, scored
from advbench.tasks.artefacts import read, save, whole
from advbench.zoo.training import seeded

BATCH = 128
"""Images whose statistics batch norm shares, as many as in a training step."""


def gradient_signs(model: nn.Module, x: Tensor, y: Tensor, *, seed: int, batch: int = BATCH) -> Tensor:
    """The sign of the cross-entropy's gradient at each image, the model in training mode, (n, c, h, w).

    The loss is the sum over a batch of images (n, c, h, w), which batch norm couples. The model is not changed, nor are its
    running statistics. seed: of the dropout.
    """
    trained = copy.deepcopy(model).train()
    signs = []
    with single_thread(), seeded(seed):
        for images, labels in zip(torch.split(x, batch), torch.split(y, batch), strict=True):
            moved = images.clone().requires_grad_()
            loss = F.cross_entropy(trained(moved), labels, reduction="sum")
            signs.append(torch.autograd.grad(loss, moved)[0].sign())
    return torch.cat(signs)


def accuracies(run: RunFindings, cell: ScoredCell, epsilons: Sequence[float]) -> list[Figure]:
    """The accuracy, in percent, on unclipped steps x + epsilon sign(gradient), one figure for each epsilon.

    cell: whose target and images these are, of a model without parts at test time. What was found is kept beside the run's
    results.
    """
    path = kept_path(run, cell, f"fgsm-in-training-mode-{len(cell.examples)}")
    if not whole(path):
        save(path, epsilons=np.array(epsilons), correct=_answers(run.defended(cell), run, cell.record.seed, epsilons))
    kept = read(path)
    if kept["epsilons"].tolist() != list(epsilons):
        raise ValueError(
            f"Expected steps of {kept['epsilons'].tolist()}, which were kept in {path.name}, got {list(epsilons)}"
        )
    return [percent(correct.astype(np.float64), cell.examples.index) for correct in kept["correct"]]


def _answers(defended: Defended, run: RunFindings, seed: int, epsilons: Sequence[float]) -> NDArray[np.int64]:
    """(epsilons, n), 0 or 1."""
    clean = scored(run)
    signs = gradient_signs(defended.model, clean.x, clean.y, seed=seed)
    moved = (dataclasses.replace(clean, x=clean.x + epsilon * signs) for epsilon in epsilons)
    return np.stack([answers(defended, split, seed=seed).report.numpy() for split in moved])
