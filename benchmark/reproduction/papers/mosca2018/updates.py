"""Mosca & Magoulas 2018, figures 1, 2, 5 and 6: error by epoch, and how the training images moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from advbench.reports.images import around_grey, image_grid
from advbench.reports.section import ImageGrid
from advbench.reproduction.findings import Findings, RunFindings
from advbench.reproduction.papers.mosca2018.nets import SGM, VARIANTS, differs, runs
from advbench.reproduction.study import Comparison, Ours, Plot, Scale, Series, Settings, Study
from advbench.reproduction.watching import input_updates

_SHOWN = 10


def _curve_runs(scale: Scale) -> Mapping[str, Settings]:
    """The trainings of table 4 on MNIST without augmentation, and their clean images."""
    known = runs(scale)
    return {net: {**known[net], "matrix": ["white-box"]} for net in ("MNIST-DNN", "MNIST-CNN") if net in known}


def _curves(findings: Findings) -> Sequence[Comparison]:
    plots = []
    for net, run in findings.runs.items():
        series = []
        for variant, defense in VARIANTS.items():
            errors = [
                [100.0 - 100.0 * share for share in run.history(run.first(seed=seed, defense=defense)).validation_accuracy]
                for seed in findings.seeds
            ]
            epochs = tuple(float(epoch) for epoch in range(1, len(errors[0]) + 1))
            series.append(Series(variant, epochs, tuple(Ours(one) for one in zip(*errors, strict=True))))
        caption = f"{net}: misclassification of {len(run.plan.data.validation):,} held-out images by epoch"
        plots.append(Plot(caption, "epoch", "error (%)", tuple(series)))
    return (Comparison("Misclassification by epoch", (), (), plots=tuple(plots)),)


def _update_runs(scale: Scale) -> Mapping[str, Settings]:
    chosen = ("MNIST-DNN",) if scale == "smoke" else ("MNIST-CNN", "CIFAR-10-CNN")
    known = runs(scale)
    return {net: {**known[net], "matrix": ["white-box"]} for net in chosen if net in known}


def _updates(findings: Findings) -> Sequence[Comparison]:
    """Figures 5 and 6, of the first seed: how every epoch moved some training images."""
    seed = findings.seeds[0]
    grids, plots = [], []
    for net, run in findings.runs.items():
        rows = _one_of_each(run)
        followed = input_updates(run, run.first(seed=seed, defense=SGM), rows)
        grids.append(_update_grid(net, run, rows, followed.updates))
        epochs = tuple(float(epoch) for epoch in range(1, len(followed.rms) + 1))
        sizes = Series("root mean square", epochs, tuple(Ours((size,)) for size in followed.rms))
        plots.append(
            Plot(f"{net}: size of all updates together by epoch, seed {seed}", "epoch", "units of the images", (sizes,))
        )
    return (Comparison("Input updates", (), (), plots=tuple(plots), images=tuple(grids)),)


def _one_of_each(run: RunFindings) -> torch.Tensor:
    """The first training image of each class, of ten classes at most."""
    labels = run.plan.data.train.first(run.plan.config.train_examples).y.tolist()
    return torch.tensor([labels.index(label) for label in sorted(set(labels))[:_SHOWN]])


def _update_grid(net: str, run: RunFindings, rows: torch.Tensor, updates: torch.Tensor) -> ImageGrid:
    """updates: of the images at `rows`, summed up to each epoch, (epochs, n, c, h, w); nine epochs at most are shown."""
    steps = torch.cat((updates[:1], updates[1:] - updates[:-1]))[:9].transpose(0, 1).numpy()
    training = run.plan.data.train.select(rows)
    x, total = training.x.numpy(), updates[-1].numpy()
    pictures = (x - x.min()) / (x.max() - x.min())
    shown = [
        (image, *around_grey(moves), around_grey(sum_)) for image, moves, sum_ in zip(pictures, steps, total, strict=True)
    ]
    return image_grid(
        np.stack([np.stack(row) for row in shown]),
        rows=tuple(f"class {label}" for label in training.y.tolist()),
        columns=("image", *map(str, range(1, steps.shape[1] + 1)), "sum"),
        alt=f"{len(x)} training images, what each epoch added to them, and the sum of all epochs",
        caption=f"{net}: what each epoch adds, and the sum; grey is no change, each row on a scale of its own",
        group="Input updates of the smooth gradient method",
    )


def _differs_curves(scale: Scale) -> Sequence[str]:
    return (
        *differs(scale)[:1],
        "held-out training images, which nothing is chosen on, in place of the test images; means over the seeds",
    )


def _differs_updates(scale: Scale) -> Sequence[str]:
    return (*differs(scale)[:1], "the training is repeated, which gives the same weights, and its updates are looked at")


STUDIES = (
    Study("mosca2018.fig1", "figures 1 and 2: error by epoch", _curve_runs, _curves, _differs_curves),
    Study("mosca2018.fig5", "figures 5 and 6: input updates", _update_runs, _updates, _differs_updates),
)
