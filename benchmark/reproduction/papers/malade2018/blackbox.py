"""Srinivasan et al. 2018 (arXiv:1805.12017), black-box: FGSM from a substitute that saw a defended model's labels alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TypeAlias

from advbench.reproduction.clean import clean_accuracy
from advbench.reproduction.findings import Findings, RunFindings, ScoredCell
from advbench.reproduction.measured import SeedFigure
from advbench.reproduction.papers.malade2018.gan import qualifies, told, withheld
from advbench.reproduction.papers.malade2018.nets import (
    DEAR_SEEDS,
    DEFENSES,
    MORE_SEEDS,
    NAMES,
    PAIRS,
    RADIUS,
    Chosen,
    accuracy,
    black_box,
    by_seed,
    clean,
    columns,
    defense,
    differs,
    letter_of,
    one_pair,
    pair_of,
    relaxing,
    substitutes,
    table,
)
from advbench.reproduction.papers.malade2018.relaxation import grids, relaxed
from advbench.reproduction.papers.malade2018.schedules import SEARCH_WITH_GAN, study
from advbench.reproduction.study import (
    EVERY_SCALE,
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
from advbench.results.papers import PaperTable

_RADII: Mapping[Scale, tuple[float, ...]] = {
    "smoke": (0.1, 0.3),
    "small": (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4),
    "medium": (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4),
    "full": (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4),
}
_MOST = 6 / 8
"""The share of the pairs in which MALADE is above MagNet."""
_FAITHFUL = 80.0
"""Percent of held-out images that a substitute labels as its target, below which its attack is a weak one."""
_NEVER_BELOW = 0.01
"""Points, the last digit of the paper's table: "never below" has no other margin."""


# --- table 1


def _pair_runs(scale: Scale, chosen: Chosen) -> Mapping[str, Settings]:
    return {one: pair_run(scale, chosen, one, gan=qualifies(chosen)) for one in PAIRS[scale]}


def pair_run(scale: Scale, chosen: Chosen, classifier: str, *, gan: bool) -> Settings:
    """The black-box run of a classifier; D, whose passes cost least, has all training seeds."""
    seeds = {} if classifier == "D" and not gan else DEAR_SEEDS[scale]
    return {**black_box(scale, classifier, columns(scale, chosen, classifier, gan=gan)), **seeds}


def pair_accuracies(run: RunFindings, label: str) -> dict[str, SeedFigure]:
    """Accuracies by seed under FGSM from the substitute of that label, by the paper's columns."""
    return {
        column: by_seed(run, accuracy, matrix="black-box", defense=name, source=label, epsilon=RADIUS)
        for column, name in there(run).items()
    }


def there(run: RunFindings) -> dict[str, str]:
    """The paper's columns that ran, and our defenses: Defense-GAN may not have qualified."""
    names = {cell.record.target["defense"]["name"] for cell in run.cells}
    return {column: name for column, name in DEFENSES.items() if name in names}


def _pairs(findings: Findings) -> Sequence[Comparison]:
    printed, rows, beats_mala, beats, gains = table("table1"), [], list[Inequality](), list[Inequality](), list[SeedFigure]()
    for classifier, run in findings.runs.items():
        unharmed = _unharmed(run, substitutes(run)[0])
        for label in substitutes(run):
            pair = f"{classifier}/{letter_of(label)}"
            found = pair_accuracies(run, label)
            rows.append((pair, _row(printed, pair, found, unharmed, _fidelities(run, label))))
            beats_mala.append(above(f"MALADE - MALA, {pair}", found["malade"], found["mala"]))
            if "defense_gan" in found:
                beats.append(above(f"MALADE - Defense-GAN, {pair}", found["malade"], found["defense_gan"]))
            gains.append(found["malade"] - found["magnet"])
    most = math.ceil(_MOST * len(gains))
    of_most = sorted(gains, key=fmean, reverse=True)[most - 1]
    magnet = Inequality(f"MALADE - MagNet, {most} of {len(gains)} pairs have as much or more", of_most)
    chosen = {} if findings.tuned is None else findings.tuned.chosen
    claims = (
        claim_of("malade2018.claim.blackbox", (*beats, magnet), withheld=withheld(chosen)),
        claim_of("malade2018.claim.malade_beats_mala", beats_mala, where="each with its own substitutes"),
    )
    columns_ = (
        ("clean, no defense", "%"),
        *((f"FGSM, {NAMES[column]}", "%") for column in DEFENSES),
        *((f"clean, {NAMES[column]}", "%") for column in list(DEFENSES)[1:]),
        *((f"the substitute of {NAMES[column]} agrees", "%") for column in DEFENSES),
    )
    notes = (
        "the paper prints no clean accuracy of a defended classifier; that of the bare net is on all test images",
        f"a substitute that agrees on less than {_FAITHFUL:g}% of held-out images makes the accuracy an upper bound",
        *(_unfaithful(rows)),
        *((told(chosen),) if told(chosen) else ()),
    )
    return (Comparison(printed.caption, columns_, tuple(rows), claims, notes),)


def _unharmed(run: RunFindings, label: str) -> dict[str, SeedFigure]:
    """Clean accuracies by seed, by the paper's columns; of models without parts at test time on all test images."""
    return {
        column: by_seed(run, lambda cell: clean_accuracy(run, cell), defense=name, source=label)
        for column, name in there(run).items()
    }


_Row: TypeAlias = tuple[Pair, ...]


def _row(
    printed: PaperTable,
    pair: str,
    found: Mapping[str, SeedFigure],
    unharmed: Mapping[str, SeedFigure],
    fidelities: Mapping[str, SeedFigure],
) -> _Row:
    """The paper's row beside ours, and the columns that it does not have; nothing for a defense that did not run."""

    def ours(figures: Mapping[str, SeedFigure], column: str) -> Ours | None:
        return Ours(figures[column]) if column in figures else None

    cells = [Pair(printed.cell("clean_accuracy", pair), Ours(unharmed["no_defense"]))]
    cells += [Pair(printed.cell(column, pair), ours(found, column)) for column in DEFENSES]
    cells += [Pair(None, ours(unharmed, column)) for column in list(DEFENSES)[1:]]
    cells += [Pair(None, ours(fidelities, column)) for column in DEFENSES]
    return tuple(cells)


def _unfaithful(rows: Sequence[tuple[str, _Row]]) -> list[str]:
    """A line for each pair with substitutes below the bar: whose black-box accuracies are upper bounds."""
    lines = []
    for pair, cells in rows:
        shares = zip(DEFENSES, cells[-len(DEFENSES) :], strict=True)
        low = [NAMES[column] for column, cell in shares if cell.ours is not None and cell.ours.centre < _FAITHFUL]
        if low:
            lines.append(f"{pair}: the black-box accuracies of {', '.join(low)} are upper bounds")
    return lines


def _fidelities(run: RunFindings, label: str) -> dict[str, SeedFigure]:
    return {column: _fidelity(run, label, name) for column, name in there(run).items()}


def _fidelity(run: RunFindings, label: str, name: str) -> SeedFigure:
    """The share of held-out images that the substitute labels as its target does, in percent, by seed."""

    def agreement(cell: ScoredCell) -> float:
        found = cell.record.details["substitute"]["fidelity"]
        return math.nan if found is None else 100.0 * found

    return by_seed(run, agreement, defense=name, source=label)


# --- table 3


def _radius_runs(scale: Scale, chosen: Chosen) -> Mapping[str, Settings]:
    classifier = "C" if scale != "smoke" else "D"
    defenses = [defense("no_defense", scale), relaxing("malade", chosen, classifier)]
    return {"radii": {**one_pair(scale, classifier, defenses, epsilon=list(_RADII[scale])), **DEAR_SEEDS[scale]}}


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
        column: by_seed(
            run, lambda cell: clean_accuracy(run, cell), defense=DEFENSES[column], source=label, epsilon=radii[0]
        )
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
    searching = [{"name": name, "epsilon": _CIFAR_RADIUS} for name in ("mala", "malade")]
    cifar: Settings = {
        "dataset": "cifar10",
        "architecture": ["sgr2018/cifar-cnn"],
        "substitute": ["sgr2018/cifar-cnn"],
        "epsilon": [_CIFAR_RADIUS],
        "augmentation": "crop-flip",
    }
    return {"cifar": black_box(scale, "C", [defense("no_defense", scale), *searching], **cifar)}


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
    study(
        "malade2018.table1",
        "table 1: black-box FGSM by classifier and substitute",
        _pair_runs,
        _pairs,
        differs,
        scales=EVERY_SCALE,
        search=SEARCH_WITH_GAN,
        more_seeds=MORE_SEEDS,
    ),
    study("malade2018.table3", "table 3: black-box FGSM by radius", _radius_runs, _radius, differs, scales=EVERY_SCALE),
    Study("malade2018.table4", "table 4: black-box FGSM on CIFAR-10", _cifar_runs, _cifar, _cifar_differs, ("full",)),
)
