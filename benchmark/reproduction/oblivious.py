"""The oblivious attacker, who does not know the defense: adversarial images of one model, shown to another."""

from __future__ import annotations

import dataclasses

import torch

from advbench.clocks import single_thread
from advbench.defenses.defended import Defended
from advbench.reproduction.findings import RunFindings, ScoredCell
from advbench.reproduction.measured import PERCENT, Figure, percent, ratio
from advbench.tasks.craft import read_images
from advbench.tasks.evaluation import Counts, count
from advbench.tasks.images import scored_split
from advbench.zoo.data import Split

_BATCH = 100


def scored(run: RunFindings) -> Split:
    """The clean test images that the cells of a run are about."""
    return scored_split(run.plan.data, run.plan.config.n_examples)


def crafted(run: RunFindings, cell: ScoredCell) -> Split:
    """The adversarial images that the attack of a cell made on the target's first surrogate, with the images' labels.

    Of a minimal-norm attack they are the nearest ones that it found, where the transfer matrix stretches them to a radius.
    """
    x_adv = read_images(cell.record.details["crafts"][0], run.plan.config.out)
    return dataclasses.replace(scored(run), x=x_adv)


def answers(defended: Defended, split: Split, *, seed: int, draws: int = 1) -> Counts:
    """How a model answers on images, on fresh report draws; one thread, so that the bits are those of a run."""
    with single_thread():
        return count(defended, split, seed=seed, draws=draws, batch=_BATCH, device=torch.device("cpu"))


def error(defended: Defended, split: Split, *, seed: int, draws: int = 1) -> Figure:
    """The share of wrong answers on images, in percent."""
    found = answers(defended, split, seed=seed, draws=draws)
    return percent(found.report.double().numpy() / found.draws, split.index.numpy()).rest_of(PERCENT)


def distortion(defended: Defended, clean: Split, adversarial: Split, *, seed: int) -> Figure:
    """The mean RMS perturbation of the images that a deterministic model gets right clean and wrong adversarial."""
    before, after = (answers(defended, split, seed=seed).report for split in (clean, adversarial))
    fooled = (before > 0) & (after == 0)
    rms = (adversarial.x - clean.x).double().square().flatten(1).mean(dim=1).sqrt()
    return ratio((rms * fooled).numpy(), fooled.double().numpy(), clean.index.numpy())
