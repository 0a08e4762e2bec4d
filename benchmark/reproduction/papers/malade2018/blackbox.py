"""Srinivasan et al. 2018 (arXiv:1805.12017), black-box: FGSM from a substitute that saw a defended model's labels alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from advbench.reproduction.findings import Findings, RunFindings, ScoredCell
from advbench.reproduction.measured import SeedFigure
from advbench.reproduction.papers.malade2018.nets import (
    DEFENSES,
    NAMES,
    PAIRS,
    RADIUS,
    accuracy,
    black_box,
    by_seed,
    clean,
    defense,
    differs,
    letter_of,
    one_pair,
    pair_of,
    substitutes,
    table,
)
from advbench.reproduction.papers.malade2018.relaxation import grids, relaxed
from advbench.reproduction.study import (
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
    at_most,
    claim_of,
)

_RADII: Mapping[Scale, tuple[float, ...]] = {
    "smoke": (0.1, 0.3),
    "small": (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4),
    "full": (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4),
}
_MOST = 6 / 8
"""The share of the pairs in which MALADE is above MagNet."""
_NEVER_BELOW = 0.01
"""Points, the last digit of the paper's table: "never below" has no other margin."""


# --- table 1


def _pair_runs(scale: Scale) -> Mapping[str, Settings]:
    defenses = [defense(name, scale) for name in DEFENSES]
    return {classifier: black_box(scale, classifier, defenses) for classifier in PAIRS[scale]}


def pair_accuracies(run: RunFindings, label: str) -> dict[str, SeedFigure]:
    """Accuracies by seed under FGSM from the substitute of that label, by the paper's columns."""
    return {
        column: by_seed(run, accuracy, matrix="black-box", defense=name, source=label, epsilon=RADIUS)
        for column, name in DEFENSES.items()
    }


def _pairs(findings: Findings) -> Sequence[Comparison]:
    printed, rows, beats_mala, beats, gains = table("table1"), [], [], list[Inequality](), list[SeedFigure]()
    for classifier, run in findings.runs.items():
        unharmed = {
            column: by_seed(run, clean, defense=name, source=substitutes(run)[0]) for column, name in DEFENSES.items()
        }
        for label in substitutes(run):
            pair = f"{classifier}/{letter_of(label)}"
            found = pair_accuracies(run, label)
            cells = [Pair(printed.cell("clean_accuracy", pair), Ours(unharmed["no_defense"]))]
            cells += [Pair(printed.cell(column, pair), Ours(found[column])) for column in DEFENSES]
            cells += [Pair(None, Ours(unharmed[column])) for column in list(DEFENSES)[1:]]
            rows.append((pair, (*cells, Pair(None, Ours(_fidelity(run, label))))))
            beats_mala.append(above(f"MALADE - MALA, {pair}", found["malade"], found["mala"]))
            beats.append(above(f"MALADE - Defense-GAN, {pair}", found["malade"], found["defense_gan"]))
            gains.append(found["malade"] - found["magnet"])
    most = math.ceil(_MOST * len(gains))
    of_most = sorted(gains, key=fmean, reverse=True)[most - 1]
    magnet = Inequality(f"MALADE - MagNet, {most} of {len(gains)} pairs have as much or more", of_most)
    claims = (
        claim_of("malade2018.claim.blackbox", (*beats, magnet)),
        claim_of("malade2018.claim.malade_beats_mala", beats_mala),
    )
    columns = (
        ("clean, no defense", "%"),
        *((f"FGSM, {NAMES[column]}", "%") for column in DEFENSES),
        *((f"clean, {NAMES[column]}", "%") for column in list(DEFENSES)[1:]),
        ("the substitute of MALADE agrees", "%"),
    )
    notes = ("the paper prints no clean accuracy of a defended classifier",)
    return (Comparison(printed.caption, columns, tuple(rows), claims, notes),)


def _fidelity(run: RunFindings, label: str) -> SeedFigure:
    """The share of held-out images that the substitute labels as MALADE does, in percent, by seed."""

    def agreement(cell: ScoredCell) -> float:
        found = cell.record.details["substitute"]["fidelity"]
        return math.nan if found is None else 100.0 * found

    return by_seed(run, agreement, defense="malade", source=label)


# --- table 3


def _radius_runs(scale: Scale) -> Mapping[str, Settings]:
    classifier = "C" if scale != "smoke" else "D"
    defenses = [defense(name, scale) for name in ("no_defense", "malade")]
    return {"radii": one_pair(scale, classifier, defenses, epsilon=list(_RADII[scale]))}


def _radius(findings: Findings) -> Sequence[Comparison]:
    printed, run = table("table3"), findings["radii"]
    label = substitutes(run)[-1]
    radii = run.plan.config.epsilon or ()
    found = {
        (column, radius): by_seed(run, accuracy, defense=DEFENSES[column], source=label, epsilon=radius)
        for column in ("no_defense", "malade")
        for radius in radii
    }
    unharmed = {
        column: by_seed(run, clean, defense=DEFENSES[column], source=label, epsilon=radii[0])
        for column in ("no_defense", "malade")
    }
    lines = {row[0]: row for row in printed.rows}
    rows = tuple(
        (
            f"{radius:g}",
            (
                Pair(float(lines[radius][1]), Ours(unharmed["no_defense"])),
                Pair(float(lines[radius][2]), Ours(found["no_defense", radius])),
                Pair(float(lines[radius][3]), Ours(found["malade", radius])),
                Pair(None, Ours(unharmed["malade"])),
            ),
        )
        for radius in radii
    )
    first, usual = radii[0], RADIUS
    dropped = {column: found[column, first] - found[column, usual] for column in ("no_defense", "malade")}
    claim = claim_of(
        "malade2018.claim.eps",
        (
            *(
                at_most(f"no defense - MALADE at {r:g}", found["no_defense", r] - found["malade", r], _NEVER_BELOW)
                for r in radii
            ),
            at_most("MALADE's loss", dropped["malade"], 3.0),
            Inequality("no defense's loss", dropped["no_defense"], 30.0),
        ),
    )
    columns = (("clean, no defense", "%"), ("FGSM, no defense", "%"), ("FGSM, MALADE", "%"), ("clean, MALADE", "%"))
    plot = Plot(
        "Accuracy under FGSM from a substitute",
        "radius",
        "accuracy (%)",
        tuple(
            Series(NAMES[column], tuple(radii), tuple(Ours(found[column, radius]) for radius in radii))
            for column in ("no_defense", "malade")
        ),
    )
    return (Comparison(printed.caption, columns, rows, (claim,), (f"pair {pair_of(run)}",), (plot,)),)


# --- table 4 and appendix D

_CIFAR_RADIUS = 8 / 255


def _cifar_runs(scale: Scale) -> Mapping[str, Settings]:
    defenses = [defense(name, scale, epsilon=_CIFAR_RADIUS) for name in ("mala", "malade")]
    cifar: Settings = {
        "dataset": "cifar10",
        "architecture": ["sgr2018/cifar-cnn"],
        "substitute": ["sgr2018/cifar-cnn"],
        "epsilon": [_CIFAR_RADIUS],
        "augmentation": "crop-flip",
    }
    return {"cifar": black_box(scale, "C", [defense("no_defense", scale), *defenses], **cifar)}


def _cifar(findings: Findings) -> Sequence[Comparison]:
    printed, run = table("table4"), findings["cifar"]
    found = {column: by_seed(run, accuracy, defense=DEFENSES[column]) for column in ("no_defense", "mala", "malade")}
    unharmed = by_seed(run, clean, defense="none")
    cells = [Pair(printed.cell("clean_accuracy", "blackbox", "FGSM"), Ours(unharmed))]
    cells += [Pair(printed.cell(column, "blackbox", "FGSM"), Ours(values)) for column, values in found.items()]
    claim = claim_of("malade2018.claim.malade_beats_mala", (above("MALADE - MALA", found["malade"], found["mala"]),))
    columns = (("clean, no defense", "%"), *((f"FGSM, {NAMES[column]}", "%") for column in found))
    seed = run.plan.config.seed[0]
    images = tuple(grid for column in ("mala", "malade") for grid in grids(relaxed(run, column, seed), NAMES[column]))
    return (Comparison(printed.caption, columns, (("CIFAR-10", tuple(cells)),), (claim,), images=images),)


def _cifar_differs(scale: Scale) -> Sequence[str]:
    return (*differs(scale), "the paper names neither its CIFAR net nor the radius: sgr2018/cifar-cnn and 8/255 stand in")


STUDIES = (
    Study("malade2018.table1", "table 1: black-box FGSM by classifier and substitute", _pair_runs, _pairs, differs),
    Study("malade2018.table3", "table 3: black-box FGSM by radius", _radius_runs, _radius, differs),
    Study("malade2018.table4", "table 4: black-box FGSM on CIFAR-10", _cifar_runs, _cifar, _cifar_differs, ("full",)),
)
