"""Mosca & Magoulas 2018 (doi:10.1007/s00500-017-2998-4): the smooth gradient method under FGSM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy import stats

from advbench.reports.images import around_grey, image_grid
from advbench.reports.section import ImageGrid
from advbench.reproduction.findings import Findings, RunFindings
from advbench.reproduction.study import Claim, Comparison, Inequality, Ours, Pair, Plot, Scale, Series, Settings, Study
from advbench.reproduction.watching import input_updates
from advbench.results.papers import load

EPSILONS = (0.001, 0.01, 0.1, 0.2)
RATES = (-1.0, -0.2, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Input learning rates of the sweep, of which the paper prints nothing but its choice, 0.2."""

_CONTROL, _SGM = "none", "smooth-gradient"
_VARIANTS = {"control": _CONTROL, "sgm": _SGM}
_MNIST: Mapping[Scale, Settings] = {
    "smoke": {"dataset": "digits", "epochs": 10},
    "small": {"dataset": "mnist", "epochs": 4, "n_examples": 500, "optimizer": "wame", "learning_rate": 1e-3},
    "full": {"dataset": "mnist", "epochs": 50, "optimizer": "wame", "learning_rate": 1e-3, "schedule": "tenths"},
}
_IMAGES = {"MNIST-DNN": 2_000, "MNIST-CNN": 3_000}
"""Training images at small: a pass over the DNN costs as much as over a convolutional net of three times its depth."""
_CIFAR: Settings = {
    "epochs": 100,
    "batch_size": 256,
    "optimizer": "wame",
    "learning_rate": 1e-3,
    "schedule": "half-tenth",
    "architecture": [{"name": "mosca2018/all-cnn", "whiten": False}],
}
_SHOWN = 8
"""Training images whose updates are shown."""


def _nets(scale: Scale) -> Mapping[str, Settings]:
    """The settings of a net's trainings, by the paper's name of it."""
    if scale == "smoke":
        return {"MNIST-DNN": {**_MNIST[scale], "architecture": ["gu2014/n200-200-10"]}}
    nets = {}
    for net, architecture in (("MNIST-DNN", "mosca2018/dnn"), ("MNIST-CNN", "mosca2018/cnn")):
        images = {"train_examples": _IMAGES[net]} if scale == "small" else {}
        nets[net] = {**_MNIST[scale], **images, "architecture": [architecture]}
    if scale == "full":
        nets |= {f"CIFAR-{classes}-CNN": {**_CIFAR, "dataset": f"cifar{classes}-zca"} for classes in (10, 100)}
    return nets


def _attacked(net: Settings, defenses: Sequence[Settings], epsilons: Sequence[float], *matrices: str) -> Settings:
    """A run under FGSM, unclipped, of which the white-box matrix has the own gradients."""
    return {
        **net,
        "matrix": list(matrices),
        "defense": [*defenses],
        "norm": "linf",
        "clip": False,
        "epsilon": list(epsilons),
        "attack": ["fgsm"],
    }


def _sgm(rate: float = 0.2, gradient: str = "per-example") -> Settings:
    return {"name": _SGM, "input_lr": rate, "gradient": gradient}


def _runs(scale: Scale) -> Mapping[str, Settings]:
    """Own-gradient adversarials in the white-box matrix, the control's in the transfer matrix."""
    return {
        f"{net}{suffix}": {
            **_attacked(settings, [{"name": _CONTROL}, _sgm()], EPSILONS, "white-box", "transfer"),
            "augmentation": ("elastic" if net.startswith("MNIST") else "rotate-zoom-flip") if suffix else "none",
        }
        for net, settings in _nets(scale).items()
        for suffix in ("", "-AUG")
    }


def _medians(values: Sequence[float]) -> Ours:
    """As the paper shows its runs."""
    return Ours(tuple(values), "median")


def _table4(findings: Findings) -> Sequence[Comparison]:
    table = load("mosca2018").tables["mosca2018.table4"]
    clean = {
        setting: {
            variant: tuple(run.first(seed=seed, defense=defense).clean_accuracy for seed in findings.seeds)
            for variant, defense in _VARIANTS.items()
        }
        for setting, run in findings.runs.items()
    }
    rows = tuple(
        (setting, tuple(Pair(table.cell(variant, setting), _medians(values)) for variant, values in by_variant.items()))
        for setting, by_variant in clean.items()
    )
    claim = Claim(
        "mosca2018.claim.clean",
        "clean accuracies of control and SGM are within half a point in every setting",
        tuple(
            Inequality(
                f"0.5 - |sgm - control|, {setting}",
                tuple(0.5 - abs(a - b) for a, b in zip(one["sgm"], one["control"], strict=True)),
            )
            for setting, one in clean.items()
        ),
    )
    gaps = [float(np.median(one["sgm"]) - np.median(one["control"])) for one in clean.values()]
    note = _statistic("clean accuracy", gaps, "two-sided", "p = 0.23 over 8 pairs")
    return (Comparison(table.caption, (("control", "%"), ("sgm", "%")), rows, (claim,), (note,)),)


def _table5(findings: Findings) -> Sequence[Comparison]:
    own = _accuracies(findings, shared=False)
    shared = _accuracies(findings, shared=True)
    return (
        _fgsm_table("on one's own adversarials", own, findings),
        _fgsm_table("on the control's adversarials, one set for both", shared, findings),
    )


Accuracies = Mapping[tuple[str, str, float], tuple[float, ...]]
"""(setting, variant, epsilon) -> accuracy by seed."""


def _accuracies(findings: Findings, *, shared: bool) -> Accuracies:
    return {
        (setting, variant, epsilon): tuple(_accuracy(run, defense, epsilon, seed, shared) for seed in findings.seeds)
        for setting, run in findings.runs.items()
        for variant, defense in _VARIANTS.items()
        for epsilon in EPSILONS
    }


def _accuracy(run: RunFindings, defense: str, epsilon: float, seed: int, shared: bool) -> float:
    if not shared:
        return run.one(seed=seed, defense=defense, epsilon=epsilon, matrix="white-box").accuracy
    control = run.first(seed=seed, defense=_CONTROL, matrix="white-box").record.target["label"]
    return run.one(seed=seed, defense=defense, epsilon=epsilon, matrix="transfer", source=control).accuracy


def _fgsm_table(which: str, found: Accuracies, findings: Findings) -> Comparison:
    table = load("mosca2018").tables["mosca2018.table5"]
    rows = tuple(
        (
            f"{setting}, {variant}",
            tuple(
                Pair(table.cell(f"eps_{epsilon:g}", _row(setting), variant), _medians(found[setting, variant, epsilon]))
                for epsilon in EPSILONS
            ),
        )
        for setting in findings.runs
        for variant in ("control", "sgm")
    )
    columns = tuple((f"ε {epsilon:g}", "%") for epsilon in EPSILONS)
    claims = _fgsm_claims(which, found, findings)
    gains = [
        float(np.median(found[setting, "sgm", epsilon]) - np.median(found[setting, "control", epsilon]))
        for setting in findings.runs
        for epsilon in EPSILONS
    ]
    note = _statistic(which, gains, "greater", "p = 0.0036 over 32 pairs")
    return Comparison(f"{table.caption} Here {which}.", columns, rows, claims, (note,))


def _row(setting: str) -> str:
    """Table 5 calls the CIFAR settings by other names than table 4."""
    return setting.replace("-CNN", "") if setting.startswith("CIFAR") else setting


def _fgsm_claims(which: str, found: Accuracies, findings: Findings) -> tuple[Claim, ...]:
    settings = list(findings.runs)
    cells = [(setting, epsilon) for setting in settings for epsilon in EPSILONS]
    gains = tuple(float(np.mean(one)) for one in zip(*(_gain(found, *cell) for cell in cells), strict=True))
    strong = [setting for setting in settings if setting.endswith("CNN")]
    weak = [setting for setting in settings if "DNN" in setting or (setting.startswith("CIFAR") and "AUG" in setting)]
    return (
        Claim(
            "mosca2018.claim.headline",
            f"SGM is more accurate under FGSM than the control, the mean over all cells ({which})",
            (Inequality(f"sgm - control, mean of {len(cells)} cells", gains),),
        ),
        Claim(
            "mosca2018.claim.strong_cells",
            f"for CNNs without augmentation SGM gains at least 4 points at ε 0.1 and 0.2 ({which})",
            tuple(
                Inequality(f"sgm - control, {setting}, ε {epsilon:g}", _gain(found, setting, epsilon), above=4.0)
                for setting in strong
                for epsilon in EPSILONS[2:]
            ),
            untested="no CNN at this scale",
        ),
        Claim(
            "mosca2018.claim.weak_cells",
            f"for the DNN, and on CIFAR with augmentation, SGM changes less than a point at ε 0.1 and 0.2 ({which})",
            tuple(
                Inequality(
                    f"1 - |sgm - control|, {setting}, ε {epsilon:g}",
                    tuple(1.0 - abs(gain) for gain in _gain(found, setting, epsilon)),
                )
                for setting in weak
                for epsilon in EPSILONS[2:]
            ),
        ),
    )


def _gain(found: Accuracies, setting: str, epsilon: float) -> tuple[float, ...]:
    pairs = zip(found[setting, "sgm", epsilon], found[setting, "control", epsilon], strict=True)
    return tuple(a - b for a, b in pairs)


def _statistic(what: str, gains: Sequence[float], alternative: str, printed: str) -> str:
    """Wilcoxon's signed-rank test over pairs of medians, which the paper decides by; our verdicts stand on seeds."""
    if not any(gains):
        return f"{what}: all {len(gains)} pairs of medians are equal, which leaves Wilcoxon's test nothing to rank"
    p = float(stats.wilcoxon(gains, alternative=alternative).pvalue)
    wins, losses = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    sided = "one-sided" if alternative == "greater" else alternative
    return (
        f"{what}: Wilcoxon's signed-rank test, the paper's statistic, over {len(gains)} pairs of medians: {sided} "
        f"p = {p:.3g}, {wins} gains and {losses} losses (paper: {printed}). Cells of one net are not independent, so it "
        "overstates what is known"
    )


def _curve_runs(scale: Scale) -> Mapping[str, Settings]:
    """The trainings of table 4 on MNIST without augmentation, and their clean images."""
    runs = _runs(scale)
    return {net: {**runs[net], "matrix": ["white-box"]} for net in ("MNIST-DNN", "MNIST-CNN") if net in runs}


def _curves(findings: Findings) -> Sequence[Comparison]:
    plots = []
    for net, run in findings.runs.items():
        series = []
        for variant, defense in _VARIANTS.items():
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
    runs = _curve_runs(scale)
    net = "MNIST-DNN" if scale == "smoke" else "MNIST-CNN"
    chosen = {net: runs[net]}
    return chosen | ({"CIFAR-10-CNN": _runs(scale)["CIFAR-10-CNN"]} if scale == "full" else {})


def _updates(findings: Findings) -> Sequence[Comparison]:
    """Figures 5 and 6, of the first seed: how every epoch moved some training images."""
    seed = findings.seeds[0]
    grids, plots = [], []
    for net, run in findings.runs.items():
        followed = input_updates(run, run.first(seed=seed, defense=_SGM), torch.arange(_SHOWN))
        grids.append(_update_grid(net, run, followed.updates))
        epochs = tuple(float(epoch) for epoch in range(1, len(followed.rms) + 1))
        sizes = Series("root mean square", epochs, tuple(Ours((size,)) for size in followed.rms))
        plots.append(Plot(f"{net}: size of all updates together by epoch, seed {seed}", "epoch", "pixel units", (sizes,)))
    return (Comparison("Input updates", (), (), plots=tuple(plots), images=tuple(grids)),)


def _update_grid(net: str, run: RunFindings, updates: torch.Tensor) -> ImageGrid:
    """updates: summed up to each epoch, (epochs, n, c, h, w); shown are nine epochs at most, and the sum."""
    steps = torch.cat((updates[:1], updates[1:] - updates[:-1]))[:9]
    training = run.plan.data.train.select(slice(len(updates[0])))
    x = training.x.numpy()
    columns = (x, *(around_grey(step.numpy(), _largest(steps)) for step in steps), around_grey(updates[-1].numpy()))
    low, high = x.min(), x.max()
    shown = np.stack(((x - low) / (high - low), *columns[1:]), axis=1)
    return image_grid(
        shown,
        rows=tuple(f"class {label}" for label in training.y.tolist()),
        columns=("image", *(f"epoch {epoch}" for epoch in range(1, len(steps) + 1)), "sum"),
        alt=f"{len(x)} training images, what each epoch added to them, and the sum of all epochs",
        caption=f"{net}: grey is no change; epochs share one scale of ±{_largest(steps):.2g}, the sum has its own",
        group="Input updates of the smooth gradient method",
    )


def _largest(steps: torch.Tensor) -> float:
    return float(steps.abs().max())


_SWEPT: Mapping[Scale, tuple[float, ...]] = {"smoke": (-0.2, 0.2, 1.0), "small": (-0.2, 0.2, 1.0), "full": RATES}


def _rate_runs(scale: Scale) -> Mapping[str, Settings]:
    """One net without augmentation: the control, the rates, and 0.2 on the gradient of the batch's mean loss."""
    nets = _nets(scale)
    chosen = {"smoke": ["MNIST-DNN"], "small": ["MNIST-CNN"], "full": ["MNIST-CNN", "CIFAR-10-CNN"]}[scale]
    defenses = [{"name": _CONTROL}, *(_sgm(rate) for rate in _SWEPT[scale]), _sgm(gradient="batch-mean")]
    return {net: {**_attacked(nets[net], defenses, EPSILONS[2:], "white-box"), "augmentation": "none"} for net in chosen}


def _rates(findings: Findings) -> Sequence[Comparison]:
    return tuple(_rate_table(net, run, findings.seeds) for net, run in findings.runs.items())


def _rate_table(net: str, run: RunFindings, seeds: Sequence[int]) -> Comparison:
    variants = list(dict.fromkeys(cell.record.target["label"] for cell in run.cells))
    found = {
        (variant, epsilon): [run.one(seed=seed, target=variant, epsilon=epsilon) for seed in seeds]
        for variant in variants
        for epsilon in EPSILONS[2:]
    }
    names = {variant: _variant(run.first(target=variant).record.target["defense"]) for variant in variants}
    rows = tuple(
        (
            names[variant],
            (
                Pair(None, _medians([cell.clean_accuracy for cell in found[variant, EPSILONS[2]]])),
                *(Pair(None, _medians([cell.accuracy for cell in found[variant, epsilon]])) for epsilon in EPSILONS[2:]),
            ),
        )
        for variant in variants
    )
    columns = (("clean", "%"), *((f"own FGSM, ε {epsilon:g}", "%") for epsilon in EPSILONS[2:]))
    return Comparison(f"{net}: input learning rates, and which gradient moves the images", columns, rows)


def _variant(defense: Mapping[str, object]) -> str:
    arguments = defense["arguments"]
    if defense["name"] == _CONTROL or not isinstance(arguments, Mapping):
        return "control"
    gradient = "each image's own loss" if arguments["gradient"] == "per-example" else "the batch's mean loss"
    return f"sgm, rate {arguments['input_lr']:g}, gradient of {gradient}"


def _differs(scale: Scale) -> Sequence[str]:
    sizes = {
        "smoke": "digits and N200-200-10 in place of MNIST and the paper's nets, 10 epochs of Adam",
        "small": "4 epochs of WAME, whose rate rises and falls, on 3,000 images for the CNN and 2,000 for the DNN; 500 "
        "test images; MNIST only",
        "full": "no weight decay in the training; the weights are those of the last epoch",
    }
    return (
        sizes[scale],
        "medians over the training seeds, three where the paper has five runs",
        "every image's own gradient moves it (the text leaves open whether it is the batch's mean)",
    )


def _differs_curves(scale: Scale) -> Sequence[str]:
    return (
        *_differs(scale)[:1],
        "held-out training images, which nothing is chosen on, in place of the test images; means over the seeds",
    )


def _differs_updates(scale: Scale) -> Sequence[str]:
    return (*_differs(scale)[:1], "the training is repeated, which gives the same weights, and its updates are looked at")


def _differs_rates(scale: Scale) -> Sequence[str]:
    return (*_differs(scale)[:2], "the paper prints no numbers for other rates than 0.2")


STUDIES = (
    Study("mosca2018.table4", "table 4: clean accuracy", _runs, _table4, _differs),
    Study("mosca2018.table5", "table 5: accuracy under FGSM", _runs, _table5, _differs),
    Study("mosca2018.fig1", "figures 1 and 2: error by epoch", _curve_runs, _curves, _differs_curves),
    Study("mosca2018.fig5", "figures 5 and 6: input updates", _update_runs, _updates, _differs_updates),
    Study("mosca2018.input_lr", "the input learning rate", _rate_runs, _rates, _differs_rates),
)
