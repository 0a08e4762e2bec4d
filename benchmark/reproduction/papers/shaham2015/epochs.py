"""Shaham et al. 2015, figure 5: accuracy by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from advbench.reproduction.clean import clean_by_seed
from advbench.reproduction.findings import Findings, RunFindings, ScoredCell
from advbench.reproduction.measured import PERCENT, SeedFigure
from advbench.reproduction.papers.shaham2015.nets import (
    CIFAR,
    CIFAR_RADII,
    MNIST,
    MORE_SEEDS,
    NETS,
    RADII,
    differs,
    differs_cifar,
)
from advbench.reproduction.papers.shaham2015.sweep import sweep_runs
from advbench.reproduction.study import (
    Claim,
    Comparison,
    Ours,
    Pair,
    Plot,
    Scale,
    Series,
    Settings,
    Study,
    at_most,
    claim_of,
)
from advbench.reproduction.watching import Course, courses
from advbench.results.papers import load

_NEAR = 0.5
_LONGER = 1.2
"""A net has converged within half a point of its last accuracy; a robust net may take 1.2 times the baseline's epochs."""


def _figure5_runs(scale: Scale) -> Mapping[str, Settings]:
    """At the radius of the training; at full for CIFAR-10, as in the paper."""
    budget, radii = (CIFAR, CIFAR_RADII) if scale == "full" else (MNIST[scale], RADII)
    return sweep_runs(budget, radii, (1.0,))


def _figure5(findings: Findings) -> Sequence[Comparison]:
    run = findings["own gradients"]
    cells = {net: [run.one(seed=seed, defense=defense) for seed in findings.seeds] for net, defense in NETS.items()}
    by_net = _courses(run, cells)
    epochs = {net: SeedFigure((_converged(course) for course in found), step=1.0) for net, found in by_net.items()}
    seconds = {net: [float(cell.record.details["train_seconds"]) for cell in each] for net, each in cells.items()}
    times = {net: [own / bare for own, bare in zip(each, seconds["baseline"], strict=True)] for net, each in seconds.items()}
    factor = (
        load("shaham2015").tables["shaham2015.text_numbers"].cell("value", "expected training time factor versus standard")
    )
    rows = tuple(
        (
            net,
            (
                Pair(None, Ours(epochs[net])),
                Pair(None, Ours(clean_by_seed(run, cells[net]))),
                Pair(None, Ours(tuple(cell.accuracy for cell in cells[net]))),
                Pair(None if net == "baseline" else factor, Ours(times[net])),
            ),
        )
        for net in NETS
    )
    columns = (
        (f"epochs to within {_NEAR} points", ""),
        ("clean, last epoch", "%"),
        ("own fast-sign, last epoch", "%"),
        ("wall-clock time of the training", "baseline = 1"),
    )
    plots = [_by_epoch("Accuracy on clean images by epoch", {net: [one.clean for one in by_net[net]] for net in NETS})]
    if by_net["baseline"][0].attacked:
        plots.append(
            _by_epoch(
                "Accuracy on one's own fast-sign adversarials, radius of the training, by epoch",
                {net: [one.attacked for one in by_net[net]] for net in NETS},
            )
        )
    caption = "Convergence of the baseline and of the robust nets"
    return (Comparison(caption, columns, rows, (_claim(epochs),), plots=tuple(plots)),)


def _courses(run: RunFindings, cells: Mapping[str, Sequence[ScoredCell]]) -> Mapping[str, Sequence[Course]]:
    """By net and seed: on scored test images if the weights of all epochs were kept, else what the trainings noted.

    A training notes its accuracy on validation images, and none on adversarials.
    """
    if not run.plan.config.keep_epochs:
        return {net: [_noted(run, cell) for cell in each] for net, each in cells.items()}
    watched = iter(courses(run, [cell for each in cells.values() for cell in each]))
    return {net: [next(watched) for _ in each] for net, each in cells.items()}


def _noted(run: RunFindings, cell: ScoredCell) -> Course:
    return Course(tuple(PERCENT * accuracy for accuracy in run.history(cell).validation_accuracy), ())


def _claim(epochs: Mapping[str, SeedFigure]) -> Claim:
    """epochs: by net, for each seed how many it took."""
    return claim_of(
        "shaham2015.claim.epochs",
        (
            at_most(f"epochs of {net} - {_LONGER} x those of the baseline", epochs[net] - _LONGER * epochs["baseline"], 0.0)
            for net in NETS
            if net != "baseline"
        ),
    )


def _by_epoch(caption: str, curves: Mapping[str, Sequence[tuple[float, ...]]]) -> Plot:
    """curves: by net, for each seed the accuracy after each epoch."""
    series = []
    for net, found in curves.items():
        epochs = tuple(float(epoch) for epoch in range(1, len(found[0]) + 1))
        series.append(Series(net, epochs, tuple(map(Ours, zip(*found, strict=True)))))
    return Plot(caption, "epoch", "accuracy (%)", tuple(series))


def _converged(course: Course) -> int:
    """The first epoch, from 1, whose clean accuracy is within half a point of the last one's."""
    return next(epoch for epoch, accuracy in enumerate(course.clean, start=1) if accuracy >= course.clean[-1] - _NEAR)


def _differs_epochs(scale: Scale) -> Sequence[str]:
    where = differs_cifar(scale) if scale == "full" else (*differs(scale), "the net and images of table 1, not of CIFAR-10")
    return (
        *where,
        "measured after every epoch on 1,000 validation images (at smoke on the scored test images, adversarials too)",
        "wall-clock time is that beside what else the machine did; the study of the training's cost counts the processor's",
    )


STUDIES = (
    Study("shaham2015.fig5", "figure 5: accuracy by epoch", _figure5_runs, _figure5, _differs_epochs, more_seeds=MORE_SEEDS),
)
