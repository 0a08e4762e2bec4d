"""Roth et al. 2018 (arXiv:1805.08736): transfer between nine nets, the PGD images of each shown to all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from advbench.reproduction.clean import clean_by_seed
from advbench.reproduction.findings import Findings, ScoredCell
from advbench.reproduction.measured import SeedFigure, difference
from advbench.reproduction.papers.sgr2018 import nets
from advbench.reproduction.papers.sgr2018.nets import GRADIENT_METHODS, by_seed, differs, labels, printed, strengths_of
from advbench.reproduction.study import (
    EVERY_SCALE,
    Claim,
    Comparison,
    Ours,
    Pair,
    Scale,
    Settings,
    Study,
    above,
    ambiguity,
    at_most,
    claim_of,
    within,
)
from advbench.results.papers import load

_RADII = {"appx_mnist_a": 32, "appx_mnist_b": 64, "appx_cifar10_a": 4, "appx_cifar10_b": 8}
"""In 1/255; the captions are lost."""
_SCALES: Mapping[str, tuple[Scale, ...]] = {
    "appx_mnist_a": EVERY_SCALE,
    "appx_mnist_b": ("smoke", "medium", "full"),
    "appx_cifar10_a": ("medium", "full"),
    "appx_cifar10_b": ("medium", "full"),
}
_NINE = ("clean", "wdecay", "pgd", "fgsm", *GRADIENT_METHODS)
_FEWER = ("clean", "wdecay", "pgd", "gn", "sgr_sign")

Accuracies = Mapping[tuple[str, str], SeedFigure]


def _study(name: str) -> Study:
    mnist, radius = "mnist" in name, _RADII[name] / 255

    def runs(scale: Scale, chosen: nets.Strengths) -> Mapping[str, Settings]:
        trainings = printed(_FEWER if scale == "smoke" else _NINE, chosen, radius)
        return {
            "matrix": {
                **(nets.BUDGETS if mnist else nets.CIFAR)[scale],
                "matrix": ["transfer"],
                "defense": nets.at(scale, trainings.values()),
                "norm": "linf",
                "epsilon": [radius],
                "attack": ["pgd(steps=20)"],
            }
        }

    def told(scale: Scale) -> Sequence[str]:
        fewer = ("five of the nine trainings",) if scale == "smoke" else ()
        read = ambiguity("sgr2018.amb.eps_of_matrices")
        elsewhere = (f"strengths were chosen at {of:g}/255",) if (of := 32 if mnist else 4) != _RADII[name] else ()
        return (*(differs(scale) if mnist else differs(scale)[1:]), *fewer, *elsewhere, read, "PGD has 20 steps")

    return nets.study(
        f"sgr2018.{name}",
        f"PGD at {_RADII[name]}/255 on {'MNIST' if mnist else 'CIFAR-10'}, from every net on every net",
        runs,
        lambda findings: _compare(findings, name),
        told,
        nets.TUNING if mnist else nets.CIFAR_TUNING,
        scales=_SCALES[name],
    )


def _compare(findings: Findings, name: str) -> Sequence[Comparison]:
    table, run = load("sgr2018").tables[f"sgr2018.{name}"], findings["matrix"]
    label = labels(findings, "matrix", printed(_NINE, strengths_of(findings), _RADII[name] / 255))
    accuracy = {
        (row, column): by_seed(findings, "matrix", _accuracy, target=label[row], source=label[column])
        for row in label
        for column in label
    }
    clean = {
        row: clean_by_seed(run, [run.first(seed=seed, target=target) for seed in findings.seeds])
        for row, target in label.items()
    }
    rows = tuple(
        (
            row,
            (
                Pair(table.cell("test", row), Ours(clean[row])),
                *(Pair(table.cell(column, row), Ours(accuracy[row, column])) for column in label),
            ),
        )
        for row in label
    )
    gradient = [row for row in GRADIENT_METHODS if row in label]
    claims = [_clean_kept(clean, gradient, 0.3 if "mnist" in name else 1.5)]
    if name == "appx_mnist_a":
        claims.append(_mnist_white_box(accuracy, gradient))
    if name == "appx_cifar10_a":
        claims.append(_cifar_white_box(accuracy, gradient))
    if "cifar10" in name:
        claims += [_asymmetry(accuracy, gradient), _like_gradient_norm(accuracy, gradient)]
    strengths = nets.chosen_note(findings.tuned, GRADIENT_METHODS)
    columns = (("test", "%"), *((f"from {column}", "%") for column in label))
    note = "rows are the nets under attack, columns those that the adversarials were made on; the diagonal is white-box"
    return (Comparison(table.caption, columns, rows, tuple(claims), (note, *strengths)),)


def _accuracy(cell: ScoredCell) -> float:
    return cell.accuracy


def _clean_kept(clean: Mapping[str, SeedFigure], gradient: Sequence[str], most: float) -> Claim:
    return claim_of(
        "sgr2018.claim.clean_kept",
        (at_most(f"clean - {row}", difference(clean["clean"], clean[row]), most) for row in gradient),
    )


def _mnist_white_box(accuracy: Accuracies, gradient: Sequence[str]) -> Claim:
    """Plain training has the recipe of the others and no strength, so that what the paper printed is attributable."""
    plain = accuracy["clean", "clean"]
    parts = [above(f"{row} - clean", accuracy[row, row], plain, by=40.0) for row in gradient]
    return claim_of("sgr2018.claim.mnist_whitebox", parts, attributable=parts)


def _cifar_white_box(accuracy: Accuracies, gradient: Sequence[str]) -> Claim:
    own = {row: values for (row, column), values in accuracy.items() if row == column}
    parts = [above(f"{row} - clean", own[row], own["clean"]) for row in gradient]
    parts += [above(f"fgsm - {row}", own["fgsm"], own[row]) for row in gradient]
    return claim_of("sgr2018.claim.cifar_intermediate", (*parts, above("pgd - fgsm", own["pgd"], own["fgsm"])))


def _asymmetry(accuracy: Accuracies, gradient: Sequence[str]) -> Claim:
    parts = [
        above(f"{row} from clean - clean from {row}", accuracy[row, "clean"], accuracy["clean", row]) for row in gradient
    ]
    parts += [
        above(f"clean from {other} - clean from {row}", accuracy["clean", other], accuracy["clean", row])
        for row in gradient
        for other in ("pgd", "fgsm")
    ]
    return claim_of("sgr2018.claim.asymmetry", parts)


def _like_gradient_norm(accuracy: Accuracies, gradient: Sequence[str]) -> Claim:
    return claim_of(
        "sgr2018.claim.sgr_equals_gn_short_range",
        (within(f"{row} - gn", accuracy[row, row], accuracy["gn", "gn"], 7.0) for row in gradient if row != "gn"),
    )


STUDIES = tuple(_study(name) for name in _RADII)
