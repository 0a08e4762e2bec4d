"""Mosca & Magoulas 2018, figures 1 to 6: error by epoch, what only SGM gets right, and how the training images moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from advbench.clocks import single_thread
from advbench.reports.images import around_grey, image_grid
from advbench.reports.section import ImageGrid
from advbench.reproduction.findings import Findings, RunFindings, ScoredCell
from advbench.reproduction.oblivious import crafted, scored
from advbench.reproduction.papers.mosca2018.nets import CONTROL, SGM, VARIANTS, differs, runs
from advbench.reproduction.study import Comparison, Ours, Pair, Plot, Scale, Series, Settings, Study
from advbench.reproduction.watching import input_updates

_SHOWN = 10
_STEP = 0.1


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


def _right_runs(scale: Scale) -> Mapping[str, Settings]:
    """Of table 5, the nets of the figures and the step that shows most."""
    chosen = ("MNIST-DNN",) if scale == "smoke" else ("MNIST-CNN", "CIFAR-10-CNN")
    known = runs(scale)
    return {net: known[net] for net in chosen if net in known}


def _right(findings: Findings) -> Sequence[Comparison]:
    """Figures 3 and 4, of the first seed: steps made on the control that it gets wrong and SGM gets right."""
    seed, grids, rows = findings.seeds[0], [], list[tuple[str, tuple[Pair, ...]]]()
    for net, run in findings.runs.items():
        control = run.one(seed=seed, defense=CONTROL, epsilon=_STEP, matrix="white-box")
        label = control.record.target["label"]
        sgm = run.one(seed=seed, defense=SGM, epsilon=_STEP, matrix="transfer", source=label)
        mine, theirs = sgm.correct() > 0, control.correct() > 0
        counts = [float(100 * (one & other).mean()) for one in (theirs, ~theirs) for other in (mine, ~mine)]
        rows.append((net, tuple(Pair(None, Ours((count,))) for count in counts)))
        grids += _right_grid(net, run, control, mine & ~theirs & (control.examples.clean_correct > 0))
    columns = (("both right", "%"), ("control alone right", "%"), ("SGM alone right", "%"), ("neither right", "%"))
    caption = f"One set of steps of {_STEP:g}, made on the control without augmentation, seed {seed}"
    return (Comparison(caption, columns, tuple(rows), images=tuple(grids)),)


def _right_grid(net: str, run: RunFindings, control: ScoredCell, chosen: NDArray[np.bool_]) -> list[ImageGrid]:
    few = np.flatnonzero(chosen)[:_SHOWN]
    if not len(few):
        return []
    images = crafted(run, control).x[torch.from_numpy(few)]
    clean = scored(run).select(torch.from_numpy(few))
    low, high = float(images.min()), float(images.max())
    with single_thread():
        answered = run.defended(control).model(images).argmax(dim=1)
    names = [f"{int(label)}, control: {int(answer)}" for label, answer in zip(clean.y, answered, strict=True)]
    grid = image_grid(
        np.stack([(clean.x.numpy() - low) / (high - low), (images.numpy() - low) / (high - low)]),
        rows=("clean", f"step of {_STEP:g}"),
        columns=tuple(names),
        alt=f"{len(few)} images and their steps that the control gets wrong and SGM right",
        caption=f"{net}: classified wrongly by the control and rightly by SGM (the class, and the control's answer)",
        group=f"Figures 3 and 4 of the paper, seed {control.record.seed}",
    )
    return [grid]


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


def _differs_right(scale: Scale) -> Sequence[str]:
    return (
        *differs(scale)[:1],
        "one set of steps, made on the control, as the authors' script does; gradients in evaluation mode",
    )


def _differs_updates(scale: Scale) -> Sequence[str]:
    return (*differs(scale)[:1], "the training is repeated, which gives the same weights, and its updates are looked at")


STUDIES = (
    Study("mosca2018.fig1", "figures 1 and 2: error by epoch", _curve_runs, _curves, _differs_curves),
    Study("mosca2018.fig3", "figures 3 and 4: what SGM alone gets right", _right_runs, _right, _differs_right),
    Study("mosca2018.fig5", "figures 5 and 6: input updates", _update_runs, _updates, _differs_updates),
)
