"""Srinivasan et al. 2018 (arXiv:1805.12017), figure 2 and appendix D: images on their way through the Langevin steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from advbench.attacks.rng import ExampleRNG
from advbench.defenses.inference.malade import sampler_of
from advbench.plan import scored_split
from advbench.reports.images import image_grid
from advbench.reports.section import ImageGrid
from advbench.reproduction.findings import Findings, RunFindings
from advbench.reproduction.malade2018_nets import DEFENSES, black_box, defense, differs, once, substitutes
from advbench.reproduction.study import Comparison, Ours, Pair, Plot, Scale, Series, Settings, Study

_SHOWN = 6
"""Images in a grid."""
_NAMES = {"mala": "MALA", "malade": "MALADE"}


@dataclass(frozen=True, slots=True, eq=False)
class Way:
    """Images relaxed by a defense.

    clean, x_adv: images (n, c, h, w). states: (steps + 1, n, c, h, w). label, fooled, restored: (n,): the classes, whether
    the bare classifier is wrong on the adversarial image, and whether it is right after the last step.
    """

    clean: Tensor
    states: Tensor
    label: Tensor
    fooled: Tensor
    restored: Tensor


def _runs(scale: Scale) -> Mapping[str, Settings]:
    return {"D": black_box(scale, "D", [defense(name, scale) for name in DEFENSES], **once(scale))}


def _compare(findings: Findings) -> Sequence[Comparison]:
    run = findings["D"]
    seeds = run.plan.config.seed
    ways = {column: [relaxed(run, column, seed) for seed in seeds] for column in _NAMES}
    rows, series = [], []
    for column, found in ways.items():
        away = [_distance(way) for way in found]
        rows.append(
            (
                _NAMES[column],
                (
                    Pair(None, Ours(tuple(float(one[0]) for one in away))),
                    Pair(None, Ours(tuple(float(one[-1]) for one in away))),
                    Pair(None, Ours(tuple(100.0 * float(way.restored[way.fooled].double().mean()) for way in found))),
                ),
            )
        )
        steps = tuple(float(t) for t in range(len(away[0])))
        series.append(Series(_NAMES[column], steps, tuple(Ours(tuple(float(one[int(t)]) for one in away)) for t in steps)))
    caption = "Adversarial images relaxed by the defenses (figure 2 and appendix D show images alone)"
    columns = (("distance before", "l2"), ("distance after", "l2"), ("restored of those that fool the bare net", "%"))
    plot = Plot("Mean distance to the clean image by Langevin step", "step", "l2 distance", tuple(series))
    grids = tuple(grid for column, found in ways.items() for grid in _grids(found[0], _NAMES[column]))
    note = "clean images of a relaxed adversarial's class need not be where it goes: a distance is no accuracy"
    return (Comparison(caption, columns, tuple(rows), (), (note,), (plot,), grids),)


def relaxed(run: RunFindings, column: str, seed: int) -> Way:
    """FGSM images of the last substitute, relaxed by a defense, on its first report draw."""
    cell = run.first(seed=seed, defense=DEFENSES[column], source=substitutes(run)[-1])
    defended = run.defended(cell)
    split = scored_split(run.plan.data, run.plan.config.n_examples)
    _, x_adv = run.images(cell)
    rng = ExampleRNG.make(seed, "report", split.index)
    bare = defended.surrogates["base"].model
    with torch.inference_mode():
        states = sampler_of(defended).eval().trajectory(x_adv, rng.fork("purifier"))
        restored = bare(states[-1]).argmax(dim=1) == split.y
        fooled = bare(x_adv).argmax(dim=1) != split.y
    return Way(split.x, states, split.y, fooled, restored)


def _distance(way: Way) -> Tensor:
    """The mean l2 distance to the clean images at every step, (steps + 1,)."""
    away: Tensor = torch.linalg.vector_norm((way.states - way.clean).double(), dim=(2, 3, 4))
    return away.mean(dim=1)


def _grids(way: Way, name: str) -> list[ImageGrid]:
    """Grids of images that were restored, and of images that were not; none where there are no such images."""
    steps = len(way.states) - 1
    shown = sorted({0, 1, 2, 4, steps // 2, steps} & set(range(steps + 1)))
    grids = []
    for text, chosen in (("restored", way.fooled & way.restored), ("not restored", way.fooled & ~way.restored)):
        rows = chosen.nonzero().flatten()[:_SHOWN]
        if not len(rows):
            continue
        images = torch.stack([way.clean[rows], *(way.states[t, rows].clamp(0, 1) for t in shown)], dim=1)
        grids.append(
            image_grid(
                images.numpy().astype(np.float32),
                rows=[f"class {int(label)}" for label in way.label[rows]],
                columns=["clean", *(f"step {t}" for t in shown)],
                alt=f"Adversarial images {text} by {name}, step by step",
                caption=f"{name}: adversarial images that fool the classifier, {text}",
                group=name,
            )
        )
    return grids


def _differs(scale: Scale) -> Sequence[str]:
    return (*differs(scale), "no images of CIFAR-10, which appendix D has; the images shown are of one training seed")


STUDIES = (Study("malade2018.fig2", "figure 2: images on their way through the Langevin steps", _runs, _compare, _differs),)
