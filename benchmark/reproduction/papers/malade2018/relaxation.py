"""Srinivasan et al. 2018 (arXiv:1805.12017), figure 2 and appendix D: images on their way through the Langevin steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from advbench.attacks.rng import ExampleRNG
from advbench.defenses.inference.malade import sampler_of
from advbench.reports.images import image_grid
from advbench.reports.section import ImageGrid
from advbench.reproduction.findings import Findings, RunFindings
from advbench.reproduction.papers.malade2018.nets import (
    DEFENSES,
    MORE_SEEDS,
    NAMES,
    Chosen,
    differs,
    one_pair,
    relaxing,
    substitutes,
)
from advbench.reproduction.papers.malade2018.schedules import study
from advbench.reproduction.study import Comparison, Ours, Pair, Plot, Scale, Series, Settings
from advbench.tasks.images import scored_split

_SHOWN = 6
"""Images in a grid."""
_COLUMNS = ("mala", "malade")
"""The defenses that relax."""


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


def _runs(scale: Scale, chosen: Chosen) -> Mapping[str, Settings]:
    return {"D": one_pair(scale, "D", [relaxing(name, chosen, "D") for name in _COLUMNS])}


def _compare(findings: Findings) -> Sequence[Comparison]:
    run = findings["D"]
    seeds = run.plan.config.seed
    ways = {column: [relaxed(run, column, seed, shown_to="malade") for seed in seeds] for column in _COLUMNS}
    rows, series = [], []
    for column, found in ways.items():
        away = [_distance(way) for way in found]
        rows.append(
            (
                NAMES[column],
                (
                    Pair(None, Ours(tuple(float(one[0]) for one in away))),
                    Pair(None, Ours(tuple(float(one[-1]) for one in away))),
                    Pair(None, Ours(tuple(100.0 * float(way.restored[way.fooled].double().mean()) for way in found))),
                ),
            )
        )
        steps = tuple(float(t) for t in range(len(away[0])))
        series.append(Series(NAMES[column], steps, tuple(Ours(tuple(float(one[int(t)]) for one in away)) for t in steps)))
    caption = "Adversarial images relaxed by the defenses (figure 2 and appendix D show images alone)"
    columns = (("distance before", "l2"), ("distance after", "l2"), ("restored of those that fool the bare net", "%"))
    plot = Plot("Mean distance to the clean image by Langevin step", "step", "l2 distance", tuple(series))
    pair = {column: found[0] for column, found in ways.items()}
    images = (_side_by_side(pair), *(grid for column, found in ways.items() for grid in grids(found[0], NAMES[column])))
    notes = (
        "the adversarial images are those of MALADE's substitute, the same for both",
        "clean images of a relaxed adversarial's class need not be where it goes: a distance is no accuracy",
    )
    return (Comparison(caption, columns, tuple(rows), (), notes, (plot,), images),)


def relaxed(run: RunFindings, column: str, seed: int, *, shown_to: str | None = None) -> Way:
    """FGSM images of the last substitute, relaxed by a defense, on its first report draw.

    column: the defense. shown_to: the defense whose substitute made the images, by default the same.
    """
    cell, other = (
        run.first(seed=seed, defense=DEFENSES[one], source=substitutes(run)[-1]) for one in (column, shown_to or column)
    )
    defended = run.defended(cell)
    split = scored_split(run.plan.data, run.plan.config.n_examples)
    _, x_adv = run.images(other)
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


def _side_by_side(ways: Mapping[str, Way]) -> ImageGrid:
    """One adversarial image relaxed by each defense, by column: if there is one, an image that the last alone restores."""
    *others, last = ways.values()
    told = torch.stack([last.fooled, last.fooled & last.restored, *(last.restored & ~way.restored for way in others)])
    row = int(told.sum(dim=0).argmax())
    steps = range(min(len(way.states) for way in ways.values()) - 1)
    of_each = [(way.clean[row], *way.states[: len(steps), row], way.states[-1, row]) for way in ways.values()]
    images = torch.stack([torch.stack(one).clamp(0, 1) for one in of_each])
    names = [NAMES[column] for column in ways]
    ends = ", ".join(f"{name} {'restores' if way.restored[row] else 'does not restore'} it" for name, way in _named(ways))
    return image_grid(
        images.numpy().astype(np.float32),
        rows=names,
        columns=["clean", *(f"step {t}" for t in steps), "last step"],
        alt=f"One adversarial image relaxed by {' and by '.join(names)}, step by step",
        caption=f"An adversarial image of class {int(last.label[row])}: {ends}",
        group="Figure 2",
    )


def _named(ways: Mapping[str, Way]) -> list[tuple[str, Way]]:
    return [(NAMES[column], way) for column, way in ways.items()]


def grids(way: Way, name: str) -> list[ImageGrid]:
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
    return (
        *differs(scale),
        "appendix D shows images of CIFAR-10, which table 4 has at full scale; the images shown are of one training seed",
    )


STUDIES = (
    study(
        "malade2018.fig2",
        "figure 2: images on their way through the Langevin steps",
        _runs,
        _compare,
        _differs,
        more_seeds=MORE_SEEDS,
    ),
)
