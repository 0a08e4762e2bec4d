"""Shaham et al. 2015, tables 1 and 2: accuracy on clean images and on a baseline's adversarials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from advbench.reports.images import around_grey, circled, image_grid
from advbench.reports.section import ImageGrid
from advbench.reproduction.clean import clean_by_seed
from advbench.reproduction.findings import Findings, ScoredCell
from advbench.reproduction.measured import PERCENT, SeedFigure, mean_of, ratio
from advbench.reproduction.papers.shaham2015.nets import (
    BASELINE,
    CIFAR,
    CIFAR_RADII,
    MNIST,
    MORE_SEEDS,
    NETS,
    NORMS,
    RADII,
    SET_RADII,
    differs,
    differs_cifar,
)
from advbench.reproduction.papers.shaham2015.shown import on_images_of
from advbench.reproduction.papers.shaham2015.sweep import sweep_runs
from advbench.reproduction.study import Comparison, Ours, Pair, Scale, Settings, Study, above, claim_of
from advbench.results.papers import load
from advbench.results.statistics import Values, clean_correct

_SHOWN = 10
_NETS_RUN = "own gradients"
"""The run of all nets."""


def _fixed_runs(budget: Settings, radii: Mapping[str, float]) -> Mapping[str, Settings]:
    """The baseline under the steps that make the set, and all nets, to which it is shown."""
    made: dict[str, Settings] = {
        norm: {
            **budget,
            "matrix": ["white-box"],
            "defense": [{"name": BASELINE}],
            "norm": norm,
            "clip": False,
            "epsilon": [factor * radii[norm] for factor in SET_RADII],
            "attack": ["fgsm" if norm == "linf" else "fgm"],
        }
        for norm in NORMS
    }
    return {**made, **sweep_runs(budget, radii, (1.0,))}


def _table1_runs(scale: Scale) -> Mapping[str, Settings]:
    return _fixed_runs(MNIST[scale], RADII)


def _table2_runs(scale: Scale) -> Mapping[str, Settings]:  # noqa: ARG001
    return _fixed_runs(CIFAR, CIFAR_RADII)


def _fixed_table(findings: Findings, *, table_id: str, column: str) -> Sequence[Comparison]:
    table = load("shaham2015").tables[table_id]
    clean = {net: _clean(findings, defense) for net, defense in NETS.items()}
    fixed = {net: {norm: _on_fixed_set(findings, norm, defense) for norm in NORMS} for net, defense in NETS.items()}
    whole = {net: mean_of(by_norm[norm] for norm in NORMS) for net, by_norm in fixed.items()}
    columns = (("clean", "%"), ("fixed set", "%"), *((f"fixed set, {norm} part", "%") for norm in NORMS))
    rows = tuple(
        (
            net,
            (
                Pair(table.cell("clean_test_accuracy", net), Ours(clean[net])),
                Pair(table.cell(column, net), Ours(whole[net])),
                *(Pair(None, Ours(fixed[net][norm])) for norm in NORMS),
            ),
        )
        for net in NETS
    )
    claims = (
        claim_of(
            "shaham2015.claim.clean",
            (above(f"clean {net} - clean baseline", clean[net], clean["baseline"]) for net in NETS if net != "baseline"),
        ),
        claim_of(
            "shaham2015.claim.fixed_set",
            (
                above(f"fixed set, {better} - {worse}", whole[better], whole[worse])
                for better, worse in (("robust_linf", "robust_l2"), ("robust_l2", "robust_l1"), ("robust_l1", "baseline"))
            ),
        ),
        claim_of(
            "shaham2015.claim.best_clean",
            (
                above(f"clean robust_linf - clean {net}", clean["robust_linf"], clean[net])
                for net in NETS
                if net != "robust_linf"
            ),
        ),
    )
    sizes = [sum(int(_set(findings, norm, seed).sum()) for norm in NORMS) for seed in findings.seeds]
    note = f"the fixed set has {min(sizes)} to {max(sizes)} adversarials of a baseline; each norm counts a third"
    return (Comparison(table.caption, columns, rows, claims, (note,), images=_samples(findings)),)


def _samples(findings: Findings) -> tuple[ImageGrid, ...]:
    """The paper's figures 1, 2 and 4: fixed adversarials of the first seed, by norm."""
    grids = []
    for norm in NORMS:
        seed = findings.seeds[0]
        chosen = _set(findings, norm, seed)
        cells = _from_baseline(findings, norm, seed)
        radius = next((place for place in (1, 2, 0) if chosen[place].any()), None)
        if radius is None:
            continue
        rows = np.flatnonzero(chosen[radius])[:_SHOWN]
        x, x_adv = (images.numpy()[rows] for images in findings[norm].images(cells[radius]))
        epsilon = cells[radius].record.threat["epsilon"]
        labels = cells[radius].examples.label[rows]
        grids.append(
            image_grid(
                np.stack((x, _marked(norm, np.clip(x_adv, 0, 1), x_adv - x), around_grey(x_adv - x))),
                rows=("clean", "adversarial", "change"),
                columns=tuple(map(str, labels)),
                alt=f"{len(rows)} images that the baseline gets right, their {norm} adversarials, and the changes",
                caption=f"{norm}, radius {epsilon:.3g}: what the baseline gets right clean and wrong perturbed",
                group="A sample of the fixed set, pixels beyond [0, 1] cut off",
            )
        )
    return tuple(grids)


def _marked(norm: str, x_adv: NDArray[np.float32], change: NDArray[np.float32]) -> NDArray[np.float32]:
    """Figure 1 circles the one pixel that a step in l1 changes."""
    return circled(x_adv, change) if norm == "l1" else x_adv


def _clean(findings: Findings, defense: str) -> SeedFigure:
    run = findings[_NETS_RUN]
    return clean_by_seed(run, [run.one(seed=seed, defense=defense) for seed in findings.seeds])


def _on_fixed_set(findings: Findings, norm: str, defense: str) -> SeedFigure:
    """Accuracy on the baseline's adversarials of one norm, by seed, in percent.

    An image is in the set as often as the baseline has an adversarial of it: another draw of images would give another set.
    """
    found = []
    for seed in findings.seeds:
        chosen = _set(findings, norm, seed)
        cells = _from_baseline(findings, norm, seed)
        answers = np.stack([_shown_to(findings, norm, cell, defense) for cell in cells])
        found.append(ratio((answers * chosen).sum(axis=0), chosen.sum(axis=0), cells[0].examples.index, PERCENT))
    return SeedFigure.of(found)


def _shown_to(findings: Findings, norm: str, made: ScoredCell, defense: str) -> Values:
    """The answers of one net on the images of a cell of the baseline, which a net of the same seed is asked for, (n,)."""
    if defense == BASELINE:
        return _answers(made)
    run = findings[_NETS_RUN]
    return on_images_of(findings[norm], made, run, run.one(seed=made.record.seed, defense=defense))


def _set(findings: Findings, norm: str, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """The fixed adversarials, (radii, n): what the baseline gets right clean and wrong perturbed."""
    return np.stack([clean_correct(cell.examples) & (_answers(cell) == 0) for cell in _from_baseline(findings, norm, seed)])


def _answers(cell: ScoredCell) -> Values:
    """The share of correct answers on the perturbed images, clean errors included, (n,)."""
    shares: Values = cell.examples.report_correct / cell.examples.draws
    return shares


def _from_baseline(findings: Findings, norm: str, seed: int) -> list[ScoredCell]:
    """The baseline's cells under its own adversarials of one norm, by radius."""
    return sorted(findings[norm].all(seed=seed, defense=BASELINE), key=lambda cell: cell.radius)


def _differs_fixed(scale: Scale) -> Sequence[str]:
    return (*differs(scale), "every seed has a baseline and a fixed set of its own, made at 0.5, 1 and 2 training radii")


def _differs_cifar_fixed(scale: Scale) -> Sequence[str]:
    return (*differs_cifar(scale), _differs_fixed(scale)[-1])


STUDIES = (
    Study(
        "shaham2015.table1",
        "table 1: clean images and a baseline's adversarials",
        _table1_runs,
        partial(_fixed_table, table_id="shaham2015.table1", column="A_mnist_accuracy"),
        _differs_fixed,
        more_seeds=MORE_SEEDS,
    ),
    Study(
        "shaham2015.table2",
        "table 2: the same on CIFAR-10",
        _table2_runs,
        partial(_fixed_table, table_id="shaham2015.table2", column="A_cifar10_accuracy"),
        _differs_cifar_fixed,
        scales=("full",),
    ),
)
