"""Figures 2 and 3 of Gu & Rigazio 2014 (arXiv:1412.5068): an image, its adversarials on two models, and the noise."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from advbench.reports.images import around_grey, image_grid
from advbench.reports.section import ImageGrid
from advbench.reproduction.findings import RunFindings, ScoredCell
from advbench.reproduction.oblivious import crafted, scored

_SHOWN = 10


def two_models(
    bare: tuple[RunFindings, ScoredCell], other: tuple[RunFindings, ScoredCell], *, net: str, named: str, figure: str
) -> ImageGrid:
    """The first images that both attacks broke: clean, adversarial and noise of the net, and of the other model.

    bare, other: a run and its cell of the paper's attack. named: what the other model is called. figure: of the paper.
    """
    clean = scored(other[0])
    kept = torch.from_numpy(other[1].broken)
    rows = torch.isin(scored(bare[0]).index, clean.index)
    kept &= torch.from_numpy(bare[1].broken)[rows]
    few = kept.nonzero().flatten()[:_SHOWN]
    images = clean.x[few].numpy()
    first, second = crafted(*bare).x[rows][few].numpy() - images, crafted(*other).x[few].numpy() - images
    largest = float(max(np.abs(first).max(initial=0.0), np.abs(second).max(initial=0.0)))
    stack: NDArray[np.float32] = np.stack(
        [images, images + first, around_grey(first, largest), images + second, around_grey(second, largest)]
    )
    names = ("original", f"adversarial, {net}", f"noise, {net}", f"adversarial, {named}", f"noise, {named}")
    return image_grid(
        stack.astype(np.float32),
        rows=names,
        columns=tuple(str(int(label)) for label in clean.y[few]),
        alt=f"{len(few)} images with their adversarials on {net} and on {named}, and the noise around grey",
        caption=f"{net} and {named}, noise of both on one scale (the labels stand below)",
        group=f"{figure} of the paper, seed {bare[1].record.seed}",
    )
