"""Shaham et al. 2015 (arXiv:1511.05432): robust optimisation, on a baseline's adversarials and on one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from advbench.reports.images import around_grey, image_grid
from advbench.reports.section import ImageGrid
from advbench.reproduction.findings import Cell, Findings
from advbench.reproduction.study import (
    Claim,
    Comparison,
    Inequality,
    Ours,
    Pair,
    Plot,
    Scale,
    Series,
    Settings,
    Study,
    above,
)
from advbench.reproduction.watching import Course, courses
from advbench.results.papers import load
from advbench.results.statistics import Values, clean_correct

NORMS = ("l1", "l2", "linf")
PIXELS_PER_UNIT = 0.275
"""A standard deviation of MNIST's pixels at 32 x 32, in which the authors' scripts count."""
RADII = {"l1": 0.55, "l2": 0.55, "linf": 0.055}
"""Of the training, in pixel units of [0, 1]: the scripts' 2, 2 and 0.2 units."""
CIFAR_PIXELS_PER_UNIT = 0.25
"""About a standard deviation of CIFAR-10's pixels."""
CIFAR_RADII = {"l1": 0.05, "l2": 0.05, "linf": 0.005}
"""For CIFAR-10, in pixel units: the scripts' l2 radius of 0.2 units; the others are in MNIST's proportions to it."""
SET_RADII = (0.5, 1.0, 2.0)
"""Of the fixed adversarials, in radii of the training."""
SWEEP = (0.5, 1.0, 1.5, 2.0, 2.5)
"""Of the fast-sign adversarials, in linf radii of the training; in the scripts' units of MNIST 0.1 to 0.5."""

_BASELINE = "none"
_NETS = {"baseline": _BASELINE, "robust_l1": "robust-l1", "robust_l2": "robust-l2", "robust_linf": "robust-linf"}
_INPUT_BN = "shaham2015/convnet-bn"
_BUDGETS: Mapping[Scale, Settings] = {
    "smoke": {"dataset": "digits", "epochs": 8, "architecture": ["gu2014/n100-100-10"]},
    "small": {
        "dataset": "mnist",
        "epochs": 8,
        "train_examples": 6_000,
        "n_examples": 2_000,
        "learning_rate": 1e-3,
        "schedule": "constant",
        "architecture": ["shaham2015/convnet"],
    },
    "full": {
        "dataset": "mnist",
        "epochs": 120,
        "batch_size": 100,
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "schedule": "constant",
        "architecture": ["shaham2015/convnet"],
    },
}
_CIFAR: Settings = {
    "dataset": "cifar10",
    "epochs": 300,
    "batch_size": 128,
    "optimizer": "sgd",
    "learning_rate": 1.0,
    "schedule": "halving",
    "architecture": ["shaham2015/vgg"],
}
_SHOWN = 10
_NEAR = 0.5
_LONGER = 1.2
"""A net has converged within half a point of its last accuracy; a robust net may take 1.2 times the baseline's epochs."""


def _defenses(radii: Mapping[str, float], norms: Sequence[str] = NORMS) -> list[Settings]:
    """The paper's trainings: without clipping, from scratch."""
    robust = [{"name": f"robust-{norm}", "epsilon": radii[norm], "clip": False} for norm in norms]
    return [{"name": _BASELINE}, *robust]


def _fixed_runs(budget: Settings, radii: Mapping[str, float]) -> Mapping[str, Settings]:
    return {
        norm: {
            **budget,
            "matrix": ["transfer"],
            "defense": _defenses(radii),
            "norm": norm,
            "clip": False,
            "epsilon": [factor * radii[norm] for factor in SET_RADII],
            "attack": ["fgsm" if norm == "linf" else "fgm"],
        }
        for norm in NORMS
    }


def _table1_runs(scale: Scale) -> Mapping[str, Settings]:
    return _fixed_runs(_BUDGETS[scale], RADII)


def _table2_runs(scale: Scale) -> Mapping[str, Settings]:  # noqa: ARG001
    return _fixed_runs(_CIFAR, CIFAR_RADII)


def _fixed_table(findings: Findings, *, table_id: str, column: str) -> Sequence[Comparison]:
    table = load("shaham2015").tables[table_id]
    clean = {net: _clean(findings, defense) for net, defense in _NETS.items()}
    fixed = {net: {norm: _on_fixed_set(findings, norm, defense) for norm in NORMS} for net, defense in _NETS.items()}
    whole = {net: tuple(np.mean([by_norm[norm] for norm in NORMS], axis=0)) for net, by_norm in fixed.items()}
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
        for net in _NETS
    )
    claims = (
        Claim(
            "shaham2015.claim.clean",
            "every robust net is more accurate on clean images than the baseline",
            tuple(
                above(f"clean {net} - clean baseline", clean[net], clean["baseline"]) for net in _NETS if net != "baseline"
            ),
        ),
        Claim(
            "shaham2015.claim.fixed_set",
            "on the fixed set: linf above l2 above l1 above the baseline",
            tuple(
                above(f"fixed set, {better} - {worse}", whole[better], whole[worse])
                for better, worse in (("robust_linf", "robust_l2"), ("robust_l2", "robust_l1"), ("robust_l1", "baseline"))
            ),
        ),
        Claim(
            "shaham2015.claim.best_clean",
            "the linf net has the best clean accuracy",
            tuple(
                above(f"clean robust_linf - clean {net}", clean["robust_linf"], clean[net])
                for net in _NETS
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
        cells = _from_baseline(findings, norm, _BASELINE, seed)
        radius = next((place for place in (1, 2, 0) if chosen[place].any()), None)
        if radius is None:
            continue
        rows = np.flatnonzero(chosen[radius])[:_SHOWN]
        x, x_adv = (images.numpy()[rows] for images in findings[norm].images(cells[radius]))
        epsilon = cells[radius].record.threat["epsilon"]
        labels = cells[radius].examples.label[rows]
        grids.append(
            image_grid(
                np.stack((x, np.clip(x_adv, 0, 1), around_grey(x_adv - x))),
                rows=("clean", "adversarial", "change"),
                columns=tuple(map(str, labels)),
                alt=f"{len(rows)} images that the baseline gets right, their {norm} adversarials, and the changes",
                caption=f"{norm}, radius {epsilon:.3g}: what the baseline gets right clean and wrong perturbed",
                group="A sample of the fixed set, pixels beyond [0, 1] cut off",
            )
        )
    return tuple(grids)


def _sweep_runs(budget: Settings, radii: Mapping[str, float], factors: Sequence[float]) -> Mapping[str, Settings]:
    """Each net's own fast-sign adversarials at several radii."""
    return {
        "own gradients": {
            **budget,
            "matrix": ["white-box"],
            "defense": _defenses(radii),
            "norm": "linf",
            "clip": False,
            "epsilon": [round(factor * radii["linf"], 5) for factor in factors],
            "attack": ["fgsm"],
        }
    }


def _figure3_runs(scale: Scale) -> Mapping[str, Settings]:
    return _sweep_runs(_BUDGETS[scale], RADII, SWEEP)


def _figure6_runs(scale: Scale) -> Mapping[str, Settings]:  # noqa: ARG001
    return _sweep_runs(_CIFAR, CIFAR_RADII, SWEEP)


def _sweep(findings: Findings, *, unit: float) -> Sequence[Comparison]:
    """unit: a standard deviation of the pixels, in which the scripts count."""
    run = findings["own gradients"]
    radii = run.plan.config.epsilon or ()
    curves = {
        net: {
            epsilon: tuple(run.one(seed=seed, defense=defense, epsilon=epsilon).accuracy for seed in findings.seeds)
            for epsilon in radii
        }
        for net, defense in _NETS.items()
    }
    clean = {
        net: tuple(run.one(seed=seed, defense=defense, epsilon=radii[0]).clean_accuracy for seed in findings.seeds)
        for net, defense in _NETS.items()
    }
    claim = Claim(
        "shaham2015.claim.own_gradient",
        "at every radius each robust net is more accurate on its own fast-sign adversarials than the baseline on its own",
        tuple(
            above(f"{net} - baseline at ε {epsilon:.3g}", curves[net][epsilon], curves["baseline"][epsilon])
            for net in _NETS
            if net != "baseline"
            for epsilon in radii
        ),
    )
    plot = Plot(
        "Accuracy on one's own fast-sign adversarials, clean at 0",
        f"linf radius in pixels ({unit:g} to a standardised unit)",
        "accuracy (%)",
        tuple(
            Series(net, (0.0, *radii), (Ours(clean[net]), *(Ours(curve[epsilon]) for epsilon in radii)))
            for net, curve in curves.items()
        ),
    )
    return (Comparison(plot.caption, (), (), (claim,), plots=(plot,)),)


def _figure5_runs(scale: Scale) -> Mapping[str, Settings]:
    """At the radius of the training; at full for CIFAR-10, as in the paper."""
    budget, radii = (_CIFAR, CIFAR_RADII) if scale == "full" else (_BUDGETS[scale], RADII)
    return _sweep_runs(budget, radii, (1.0,))


def _figure5(findings: Findings) -> Sequence[Comparison]:
    run = findings["own gradients"]
    cells = {net: [run.one(seed=seed, defense=defense) for seed in findings.seeds] for net, defense in _NETS.items()}
    watched = courses(run, [cell for each in cells.values() for cell in each])
    n = len(findings.seeds)
    by_net = {net: watched[i * n : (i + 1) * n] for i, net in enumerate(_NETS)}
    epochs = {net: tuple(float(_converged(course)) for course in found) for net, found in by_net.items()}
    claim = Claim(
        "shaham2015.claim.epochs",
        f"robust nets come within {_NEAR} points of their last accuracy in at most {_LONGER} times the baseline's epochs",
        tuple(
            Inequality(
                f"{_LONGER} x epochs of the baseline - epochs of {net}",
                tuple(_LONGER * base - own for base, own in zip(epochs["baseline"], epochs[net], strict=True)),
                above=-0.1,  # multiples of a fifth: at most, not less
            )
            for net in _NETS
            if net != "baseline"
        ),
    )
    last = {net: [(course.clean[-1], course.attacked[-1]) for course in found] for net, found in by_net.items()}
    rows = tuple(
        (
            net,
            (
                Pair(None, Ours(epochs[net])),
                Pair(None, Ours(tuple(clean for clean, _ in last[net]))),
                Pair(None, Ours(tuple(attacked for _, attacked in last[net]))),
            ),
        )
        for net in _NETS
    )
    columns = ((f"epochs to within {_NEAR} points", ""), ("clean, last epoch", "%"), ("own fast-sign, last epoch", "%"))
    plots = (
        _by_epoch("Accuracy on clean test images by epoch", {net: [one.clean for one in by_net[net]] for net in _NETS}),
        _by_epoch(
            "Accuracy on one's own fast-sign adversarials, radius of the training, by epoch",
            {net: [one.attacked for one in by_net[net]] for net in _NETS},
        ),
    )
    return (Comparison("Convergence of the baseline and of the robust nets", columns, rows, (claim,), plots=plots),)


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


def _input_bn_runs(scale: Scale) -> Mapping[str, Settings]:
    norms = NORMS if scale == "full" else ("linf",)
    return {
        "own gradients": {
            **_BUDGETS[scale],
            "architecture": ["shaham2015/convnet", _INPUT_BN],
            "matrix": ["white-box"],
            "defense": _defenses(RADII, norms),
            "norm": "linf",
            "clip": False,
            "epsilon": [RADII["linf"]],
            "attack": ["fgsm"],
        }
    }


def _input_bn(findings: Findings) -> Sequence[Comparison]:
    run = findings["own gradients"]
    nets = [net for net, defense in _NETS.items() if run.all(defense=defense)]
    found = {
        (net, architecture): [run.one(seed=seed, defense=_NETS[net], architecture=architecture) for seed in findings.seeds]
        for net in nets
        for architecture in ("shaham2015/convnet", _INPUT_BN)
    }
    clean = {key: tuple(cell.clean_accuracy for cell in cells) for key, cells in found.items()}
    own = {key: tuple(cell.accuracy for cell in cells) for key, cells in found.items()}
    rows = tuple(
        (
            net + (", batch norm of the input" if architecture == _INPUT_BN else ""),
            (Pair(None, Ours(clean[net, architecture])), Pair(None, Ours(own[net, architecture]))),
        )
        for net, architecture in found
    )
    with_layer = ("baseline", _INPUT_BN)
    robust = [net for net in nets if net != "baseline"]
    claims = tuple(
        Claim(
            f"shaham2015.input_bn.{which}",
            f"without the layer that only their robust nets had, each robust net beats the baseline with it, {text}",
            tuple(
                above(f"{net} - baseline with input batch norm", values[net, "shaham2015/convnet"], values[with_layer])
                for net in robust
            ),
        )
        for which, text, values in (("clean", "on clean images", clean), ("own", "on one's own adversarials", own))
    )
    columns = (("clean", "%"), (f"own fast-sign, ε {RADII['linf']:g}", "%"))
    caption = (
        "The convnet with and without batch norm of its input, which the authors' scripts give to the robust nets alone"
    )
    return (Comparison(caption, columns, rows, claims),)


def _clean(findings: Findings, defense: str) -> tuple[float, ...]:
    run = findings["linf"]
    return tuple(run.first(seed=seed, defense=defense).clean_accuracy for seed in findings.seeds)


def _on_fixed_set(findings: Findings, norm: str, defense: str) -> tuple[float, ...]:
    """Accuracy on the baseline's adversarials of one norm, by seed, in percent."""
    found = []
    for seed in findings.seeds:
        chosen = _set(findings, norm, seed)
        answers = np.stack([_answers(cell) for cell in _from_baseline(findings, norm, defense, seed)])
        found.append(100.0 * float(answers[chosen].mean()) if chosen.any() else float("nan"))
    return tuple(found)


def _set(findings: Findings, norm: str, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """The fixed adversarials, (radii, n): what the baseline gets right clean and wrong perturbed."""
    cells = _from_baseline(findings, norm, _BASELINE, seed)
    return np.stack([clean_correct(cell.examples) & (_answers(cell) == 0) for cell in cells])


def _answers(cell: Cell) -> Values:
    """The share of correct answers on the perturbed images, whatever becomes of the clean ones, (n,)."""
    shares: Values = cell.examples.report_correct / cell.examples.draws
    return shares


def _from_baseline(findings: Findings, norm: str, defense: str, seed: int) -> list[Cell]:
    """The cells of one target under the baseline's adversarials, by radius."""
    label = findings[norm].first(seed=seed, defense=_BASELINE).record.target["label"]
    found = findings[norm].all(seed=seed, defense=defense, source=label)
    return sorted(found, key=lambda cell: float(cell.record.threat["epsilon"]))


def _differs(scale: Scale) -> Sequence[str]:
    sizes = {
        "smoke": "digits and N100-100-10 in place of MNIST and the convnet, 8 epochs",
        "small": "8 epochs of Adam at a constant rate on 6,000 images, and 2,000 test images",
        "full": "no weight decay in the training",
    }
    return (
        sizes[scale],
        "radii are the public scripts' (0.2, 2, 2 standard deviations for linf, l2, l1), for the text prints none",
        "images of 28 x 28 are attacked in units of pixels; the paper's are 32 x 32, standardised",
    )


def _differs_fixed(scale: Scale) -> Sequence[str]:
    return (*_differs(scale), "every seed has a baseline and a fixed set of its own, made at 0.5, 1 and 2 training radii")


def _differs_cifar(scale: Scale) -> Sequence[str]:
    return (
        _differs(scale)[0],
        "radii of 0.05, 0.05 and 0.005 in pixels for l1, l2 and linf: the scripts' 0.2 standardised units for l2, and for "
        "the others, which are nowhere given, MNIST's proportions; perturbations are of pixels, before the normalisation",
    )


def _differs_cifar_fixed(scale: Scale) -> Sequence[str]:
    return (*_differs_cifar(scale), _differs_fixed(scale)[-1])


def _differs_epochs(scale: Scale) -> Sequence[str]:
    where = "CIFAR-10 as in the paper" if scale == "full" else "the net and the images of table 1, in place of CIFAR-10's"
    return (
        *(_differs_cifar(scale) if scale == "full" else _differs(scale)),
        f"{where}; each training is repeated, which gives the same weights, and measured after every epoch on the scored "
        "test images; the curve of adversarials is not in the paper",
    )


def _differs_input_bn(scale: Scale) -> Sequence[str]:
    return (*_differs(scale), "the paper does not mention the layer; nothing of this is printed there")


_MNIST_TABLE = partial(_fixed_table, table_id="shaham2015.table1", column="A_mnist_accuracy")
_CIFAR_TABLE = partial(_fixed_table, table_id="shaham2015.table2", column="A_cifar10_accuracy")

STUDIES = (
    Study(
        "shaham2015.table1",
        "table 1: clean images and a baseline's adversarials",
        _table1_runs,
        _MNIST_TABLE,
        _differs_fixed,
    ),
    Study(
        "shaham2015.table2",
        "table 2: the same on CIFAR-10",
        _table2_runs,
        _CIFAR_TABLE,
        _differs_cifar_fixed,
        scales=("full",),
    ),
    Study(
        "shaham2015.fig3",
        "figure 3: accuracy on one's own adversarials",
        _figure3_runs,
        partial(_sweep, unit=PIXELS_PER_UNIT),
        _differs,
    ),
    Study("shaham2015.fig5", "figure 5: accuracy by epoch", _figure5_runs, _figure5, _differs_epochs),
    Study(
        "shaham2015.fig6",
        "figure 6: figure 3 on CIFAR-10",
        _figure6_runs,
        partial(_sweep, unit=CIFAR_PIXELS_PER_UNIT),
        _differs_cifar,
        scales=("full",),
    ),
    Study(
        "shaham2015.input_bn",
        "with and without batch norm of the input",
        _input_bn_runs,
        _input_bn,
        _differs_input_bn,
        scales=("small", "full"),
    ),
)
