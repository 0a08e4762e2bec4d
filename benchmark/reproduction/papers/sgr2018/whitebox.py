"""Roth et al. 2018 (arXiv:1805.08736): nets under their own gradients, and how smooth they are on the way there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from advbench.reproduction.clean import clean_by_seed
from advbench.reproduction.findings import Findings
from advbench.reproduction.measured import Figure, SeedFigure, mean_of
from advbench.reproduction.papers.sgr2018.nets import (
    BUDGETS,
    RADIUS,
    Strengths,
    at,
    by_rule,
    by_seed,
    chosen_note,
    differs,
    labels,
    printed,
    strengths_of,
    study,
)
from advbench.reproduction.study import (
    Comparison,
    Inequality,
    Ours,
    Pair,
    Plot,
    Scale,
    Series,
    Settings,
    above,
    claim_of,
)
from advbench.results.papers import load

_METHODS = ("clean", "wdecay", "pgd", "fgsm", "gn", "sgr_sign")
_RIVALS = ("wdecay", "pgd")
_LEAKING: Settings = {"name": "robust-linf", "alpha": 0.5, "epsilon": RADIUS}
"""FGSM training with the true labels, which lets them leak (Kurakin et al. 2017, arXiv:1611.01236)."""
_TUNED = ", by the rule"
"""Behind the name of a rival whose strength the rule chose too."""
_RADII: Mapping[Scale, tuple[int, ...]] = {
    "smoke": (16, 32),
    "small": (11, 21, 32),
    "medium": (8, 16, 24, 32),
    "full": (4, 8, 12, 16, 20, 24, 28, 32),
}
"""In 1/255. The public version of the paper averages over 0 to 32 and does not say at how many."""
_STEPS: Mapping[Scale, int] = {"smoke": 10, "small": 20, "medium": 40, "full": 40}
_POINTS = 21
"""Positions on a line from an image to its adversarial."""


def _pgd(scale: Scale) -> str:
    return f"pgd(steps={_STEPS[scale]})"


def _rows(chosen: Strengths) -> dict[str, Settings]:
    """The nets as printed, and the rivals by the rule."""
    return printed(_METHODS, chosen) | {row + _TUNED: each for row, each in by_rule(_RIVALS, chosen).items()}


def _runs(scale: Scale, chosen: Strengths) -> Mapping[str, Settings]:
    trainings = at(scale, (printed(_METHODS, chosen) if scale == "smoke" else _rows(chosen)).values())
    common = {**BUDGETS[scale], "matrix": ["white-box"], "defense": trainings}
    radii = [radius / 255 for radius in _RADII[scale]]
    return {
        "linf": {**common, "norm": "linf", "epsilon": radii, "attack": ["uniform-noise", "fgsm", _pgd(scale)]},
        "l2": {**common, "norm": "l2", "attack": ["fgm", "deepfool"]},
        "leaking": {**common, "defense": [_LEAKING], "norm": "linf", "epsilon": radii[-1:], "attack": ["fgsm"]},
    }


def _compare(findings: Findings) -> Sequence[Comparison]:
    table = load("sgr2018").tables["sgr2018.iclr_table1_mnist"]
    label = labels(findings, "linf", _rows(strengths_of(findings)))
    radii = sorted({cell.radius for cell in findings["linf"].cells})

    def curve(row: str, attack: str) -> list[SeedFigure]:
        """Accuracy in percent at radius zero and at every other."""
        clean = by_seed(
            findings, "linf", lambda cell: cell.clean_accuracy, target=label[row], attack="fgsm", epsilon=radii[0]
        )
        attacked = (
            by_seed(findings, "linf", lambda cell: cell.accuracy, target=label[row], attack=attack, epsilon=radius)
            for radius in radii
        )
        return [clean, *attacked]

    curves = {(row, attack): curve(row, attack) for row in label for attack in ("uniform-noise", "fgsm", "pgd")}
    averages = {key: _average([0.0, *radii], each) for key, each in curves.items()}
    ratio = {
        row: by_seed(findings, "l2", lambda cell: cell.mean_ratio, target=target, attack="deepfool")
        for row, target in label.items()
    }
    step = {
        row: by_seed(findings, "l2", lambda cell: cell.accuracy, target=target, attack="fgm")
        for row, target in label.items()
    }
    clean = {
        row: clean_by_seed(findings["linf"], [findings["linf"].first(seed=seed, target=target) for seed in findings.seeds])
        for row, target in label.items()
    }
    rows = tuple(
        (
            row,
            (
                Pair(table.cell("test", paper), Ours(clean[row])),
                Pair(table.cell("wb_rand", paper), Ours(averages[row, "uniform-noise"])),
                Pair(None, Ours(averages[row, "fgsm"])),
                Pair(table.cell("wb_pgd", paper), Ours(averages[row, "pgd"])),
                Pair(table.cell("deepfool", paper), Ours(ratio[row])),
                Pair(None, Ours(step[row])),
            ),
        )
        for row in label
        for paper in [row.removesuffix(_TUNED).removesuffix("_sign")]
    )

    def between(rival: str) -> list[Inequality]:
        """That the regularised nets stand between plain training and the rival."""
        return [
            part
            for row in ("gn", "sgr_sign")
            for part in (
                above(f"{row} - clean, PGD", averages[row, "pgd"], averages["clean", "pgd"]),
                above(f"{rival} - {row}, PGD", averages[rival, "pgd"], averages[row, "pgd"]),
                above(f"{row} - clean, DeepFool", ratio[row], ratio["clean"]),
                above(f"{rival} - {row}, DeepFool", ratio[rival], ratio[row]),
            )
        ]

    ruled = "pgd" + _TUNED
    claims = (
        claim_of("sgr2018.iclr_table1_mnist", between("pgd"), attributable=between(ruled) if ruled in label else ()),
        claim_of(
            "sgr2018.label_leaking",
            (
                above(
                    "clean - FGSM with true labels at the largest radius",
                    curves["sgr_sign", "fgsm"][0],
                    curves["sgr_sign", "fgsm"][-1],
                ),
            ),
        ),
    )
    columns = (
        ("test", "%"),
        ("random noise, mean over radii", "%"),
        ("FGSM, mean over radii", "%"),
        ("PGD, mean over radii", "%"),
        ("DeepFool", "mean ||r||/||x||"),
        ("one l2 step", "%"),
    )
    plots = tuple(
        Plot(
            f"Accuracy under {said}",
            "linf radius (1/255)",
            "accuracy (%)",
            tuple(
                Series(row, tuple(255 * r for r in (0.0, *radii)), tuple(map(Ours, curves[row, attack]))) for row in label
            ),
        )
        for attack, said in (("fgsm", "FGSM"), ("pgd", "PGD"))
    )
    note = f"the paper's numbers are those of its public version; means run over the radii 0 to {255 * radii[-1]:.0f}/255"
    strengths = chosen_note(findings.tuned, ("gn", "sgr_sign", *_RIVALS))
    main = Comparison(table.caption, columns, rows, claims, (note, *strengths), plots)
    return (
        main,
        _leaking(findings, {row: (each[0], each[-1]) for (row, attack), each in curves.items() if attack == "fgsm"}),
    )


def _leaking(findings: Findings, fgsm: Mapping[str, tuple[SeedFigure, SeedFigure]]) -> Comparison:
    """Accuracy under FGSM less that on clean images: label leaking where it is above zero.

    fgsm: by net, the accuracies on clean images and at the largest radius.
    """
    leaking = tuple(
        by_seed(findings, "leaking", figure, attack="fgsm")
        for figure in (lambda cell: cell.clean_accuracy, lambda cell: cell.accuracy)
    )
    shown = {"fgsm, true labels": leaking, **fgsm}
    rows = tuple(
        (row, (Pair(None, Ours(clean)), Pair(None, Ours(attacked)), Pair(None, Ours(attacked - clean))))
        for row, (clean, attacked) in shown.items()
    )
    columns = (("clean", "%"), ("FGSM with true labels", "%"), ("gained", "points"))
    caption = "Label leaking: what is gained by images perturbed with their true labels, at the largest radius"
    note = "fgsm, true labels: trained on FGSM images of the true labels, the contrast; all others see predicted labels"
    return Comparison(caption, columns, rows, (), (note,))


def _average(radii: Sequence[float], accuracy: Sequence[SeedFigure]) -> SeedFigure:
    """The mean over the radii, by the trapezoid rule."""
    strips = [mean_of((low, high)) for low, high in pairwise(accuracy)]
    widths = [(high - low) / radii[-1] for low, high in pairwise(radii)]
    total = strips[0] * widths[0]
    for strip, width in zip(strips[1:], widths[1:], strict=True):
        total = total + strip * width
    return total


def _smooth_runs(scale: Scale, chosen: Strengths) -> Mapping[str, Settings]:
    return {
        "lines": {
            **BUDGETS[scale],
            "matrix": ["white-box"],
            "defense": list(printed(("clean", "sgr_sign"), chosen).values()),
            "norm": "linf",
            "epsilon": [RADIUS],
            "attack": [_pgd(scale)],
        }
    }


def _smooth(findings: Findings) -> Sequence[Comparison]:
    run, label = findings["lines"], labels(findings, "lines", printed(("clean", "sgr_sign"), strengths_of(findings)))
    bend: dict[str, list[Figure]] = {row: [] for row in label}
    lines: dict[str, list[Tensor]] = {row: [] for row in label}
    for row, target in label.items():
        for seed in findings.seeds:
            cell = run.one(seed=seed, target=target)
            x, x_adv = run.images(cell)
            answers = along(run.defended(cell).model, x, x_adv)
            bends = second_differences(answers).double().mean(dim=(0, 2)).numpy()
            bend[row].append(Figure(bends, cell.examples.index))
            lines[row].append(answers.gather(2, torch.from_numpy(cell.examples.label).view(1, -1, 1).expand(_POINTS, -1, 1)))
    found = {row: SeedFigure.of(values) for row, values in bend.items()}
    claim = claim_of("sgr2018.fig6_smoothness", (above("clean - sgr", found["clean"], found["sgr_sign"]),))
    positions = tuple(float(each) for each in torch.linspace(0, 1, _POINTS))
    plot = Plot(
        "The true label's probability on the way from an image (0) to its adversarial (1), mean over images",
        "position",
        "probability",
        tuple(
            Series(
                row,
                positions,
                tuple(Ours(tuple(float(one[point].mean()) for one in lines[row])) for point in range(_POINTS)),
            )
            for row in label
        ),
    )
    rows = tuple((row, (Pair(None, Ours(values)),)) for row, values in found.items())
    columns = (("mean absolute second difference of the softmax", f"per step of 1/{_POINTS - 1}"),)
    caption = "Softmax along straight lines from clean images to PGD adversarials (figure 6 prints curves)"
    return (Comparison(caption, columns, rows, (claim,), (), (plot,)),)


def along(model: nn.Module, x: Tensor, x_adv: Tensor) -> Tensor:
    """Softmax outputs on straight lines from `x` to `x_adv`, (n, c, h, w) each: (points, n, classes)."""
    with torch.inference_mode():
        return torch.stack([model(torch.lerp(x, x_adv, float(t))).softmax(dim=1) for t in torch.linspace(0, 1, _POINTS)])


def second_differences(answers: Tensor) -> Tensor:
    """The absolute second differences of outputs along lines, (points, n, classes): (points - 2, n, classes)."""
    return (answers[2:] - 2 * answers[1:-1] + answers[:-2]).abs()


def _differs(scale: Scale) -> Sequence[str]:
    return (
        *differs(scale),
        f"PGD has {_STEPS[scale]} steps; the paper's attack table is lost",
        "its nets trained on perturbations see 32/255, as the attack; no targeted PGD",
    )


STUDIES = (
    study("sgr2018.whitebox", "white-box attacks, the main table of its public version", _runs, _compare, _differs),
    study("sgr2018.fig6_smoothness", "figure 6: softmax on the way to adversarials", _smooth_runs, _smooth, _differs),
)
