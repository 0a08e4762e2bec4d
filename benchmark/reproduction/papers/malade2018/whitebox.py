"""Srinivasan et al. 2018 (arXiv:1805.12017), white-box: attackers who know the defense, the paper's and stronger ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from advbench.reproduction.clean import clean_accuracy
from advbench.reproduction.findings import Findings, RunFindings, ScoredCell
from advbench.reproduction.measured import SeedFigure, highest, lowest, percent
from advbench.reproduction.papers.malade2018.blackbox import pair_accuracies, pair_run, there
from advbench.reproduction.papers.malade2018.gan import qualifies, withheld
from advbench.reproduction.papers.malade2018.nets import (
    CLASSIFIERS,
    DEAR_SEEDS,
    DEFENSES,
    NAMES,
    PAIRS,
    RADIUS,
    Chosen,
    columns,
    defense,
    differs,
    substitutes,
    table,
    white_box,
)
from advbench.reproduction.papers.malade2018.schedules import SEARCH_WITH_GAN, study
from advbench.reproduction.study import (
    EVERY_SCALE,
    Claim,
    Comparison,
    Inequality,
    Ours,
    Pair,
    Scale,
    Settings,
    above,
    at_most,
    claim_of,
)
from advbench.results.papers import PaperTable
from advbench.results.statistics import worst_case

_ATTACKS = {"FGSM": "fgsm", "R+FGSM": "r-fgsm", "CW": "carlini-wagner"}
"""The paper's attacks and ours."""
_BOUNDED: tuple[Settings, ...] = ({"name": "fgsm"}, {"name": "r-fgsm", "alpha": 1 / 6})
_STRONG = "adaptive"
"""The row of the attacks that the paper does not have."""
_ADAPTIVE: Mapping[Scale, tuple[str, ...]] = {
    "smoke": ("pgd(steps=3, step_size=0.4)",),
    "small": ("pgd(steps=40, step_size=0.1, stop='never')",),
    "medium": ("pgd(steps=40, step_size=0.1, stop='never')",),
    "full": ("pgd(steps=100, step_size=0.05, stop='never')",),
}
"""Stronger attacks within the radius, through every surrogate."""
_HUNDRED = "carlini-wagner(steps=100, search_steps=1, initial_constant=100.0, learning_rate=0.1)"
_CW: Mapping[Scale, str] = {
    "smoke": "carlini-wagner(steps=5, search_steps=1, initial_constant=100.0, learning_rate=0.1)",
    "small": _HUNDRED,
    "medium": _HUNDRED,
    "full": _HUNDRED,
}
_FEWER: Mapping[Scale, Settings] = {
    "smoke": {"n_examples": 5},
    "small": {"n_examples": 15, "batch": 15, "score_draws": 5},
    "medium": {"n_examples": 100, "batch": 50, "score_draws": 5},
    "full": {},
}
"""The images of the white-box runs."""
_CLASSIFIERS: Mapping[Scale, tuple[str, ...]] = {
    "smoke": ("D",),
    "small": ("D",),
    "medium": ("C", "D"),
    "full": tuple(CLASSIFIERS),
}
_CHEAP = ("no_defense", "magnet")
"""Those that take no draws: they meet CW on the classifiers of all pairs."""
_CW_DRAWS: Mapping[Scale, int] = {"smoke": 1, "small": 2, "medium": 2, "full": 4}
"""Passes averaged per gradient of CW: how many converge is found at a radius, and CW has none."""
_ANY_DISTANCE = 28.0
"""The l2 diameter of MNIST's box: the paper counts CW's images at any distance."""


def _runs(scale: Scale, chosen: Chosen) -> Mapping[str, Settings]:
    """Runs by classifier: within the radius, CW, and the black-box ones of table 1, which the headline needs."""
    gan, runs = qualifies(chosen), dict[str, Settings]()
    near: Settings = {"norm": "linf", "epsilon": [RADIUS], "attack": [*_BOUNDED, *_ADAPTIVE[scale]]}
    far: Settings = {"norm": "l2", "epsilon": [_ANY_DISTANCE], "attack": [_CW[scale]], "draws": _CW_DRAWS[scale]}
    for classifier in _CLASSIFIERS[scale]:
        defenses, few = columns(scale, chosen, classifier, gan=gan), {**_FEWER[scale], **DEAR_SEEDS[scale]}
        runs[classifier] = {**white_box(scale, classifier, defenses, **near), **few}
        runs[_cw(classifier)] = {**white_box(scale, classifier, defenses, **far), **few}
        runs[_substitutes_of(classifier)] = {**pair_run(scale, chosen, classifier, gan=gan), **DEAR_SEEDS[scale]}
    for classifier in [one for one in PAIRS[scale] if one not in _CLASSIFIERS[scale]]:
        cheap = [defense(name, scale) for name in _CHEAP]
        runs[_cw(classifier)] = {**white_box(scale, classifier, cheap, **far), **_FEWER[scale], **DEAR_SEEDS[scale]}
    return runs


def _cw(classifier: str) -> str:
    return f"{classifier}, CW"


def _run_of(findings: Findings, classifier: str, attack: str) -> RunFindings:
    return findings[_cw(classifier) if attack == "CW" else classifier]


def _substitutes_of(classifier: str) -> str:
    return f"{classifier}, black-box"


def through(cell: ScoredCell) -> float:
    """Accuracy, in percent, under what was crafted through the defense's own gradient; NaN where it has none."""
    return _alone(cell, "faithful")


def worst(cell: ScoredCell) -> float:
    """Accuracy, in percent, under the worst of all surrogates: per example where the attack has a radius."""
    if not cell.record.attack["minimal_norm"]:
        return cell.accuracy
    found = cell.record.details["candidates"].items()
    return 100.0 * min(float(value) for name, value in found if name != "whole budget" and value is not None)


def ignoring(cell: ScoredCell) -> float:
    """Accuracy, in percent, under what was crafted on the classifier as if there were no defense."""
    return _alone(cell, "base" if "base" in cell.record.details["candidates"] else "faithful")


def _alone(cell: ScoredCell, surrogate: str) -> float:
    """What one surrogate leaves, in percent."""
    found = cell.record.details["candidates"].get(surrogate)
    return math.nan if found is None else 100.0 * float(found)


def _compare(findings: Findings) -> Sequence[Comparison]:
    printed = table("table2")
    rows: list[tuple[str, tuple[Pair, ...]]] = []
    for classifier in _classifiers(findings):
        for attack in (*_ATTACKS, _STRONG):
            rows += _rows(findings, attack, classifier, printed)
        rows += [_all_row(findings, classifier, column) for column in there(findings[classifier])]
    for classifier in [one for one in _with_cw(findings) if one not in findings.runs]:
        rows += _rows(findings, "CW", classifier, printed)
    columns_ = (
        ("through the defense", "%"),
        ("worst of all surrogates", "%"),
        ("ignoring the defense", "%"),
        ("clean", "%"),
    )
    claims = (_headline(findings, _PAPERS), _headline(findings, _STRONGEST), _above_mala(findings), _magnet(findings))
    return (Comparison(printed.caption, columns_, tuple(rows), claims, tuple(_broken(findings))),)


def _classifiers(findings: Findings) -> list[str]:
    return [name for name in CLASSIFIERS if name in findings.runs]


def _with_cw(findings: Findings) -> list[str]:
    return [name for name in CLASSIFIERS if _cw(name) in findings.runs]


def _row(classifier: str, attack: str, column: str) -> str:
    return f"{classifier}, {attack}, {NAMES[column]}"


def _rows(findings: Findings, attack: str, classifier: str, printed: PaperTable) -> list[tuple[str, tuple[Pair, ...]]]:
    """The rows of an attack on a classifier, one per defense that it was run on."""
    rows = []
    run = _run_of(findings, classifier, attack)
    figures: tuple[Callable[[ScoredCell], float], ...] = (through, worst, ignoring, partial(clean_accuracy, run))
    for column, name in there(run).items():
        paper = printed.cell(column, attack, classifier) if attack in _ATTACKS else None
        found = [_smallest(run, name, attack, figure) for figure in figures]
        pairs = (Pair(paper, Ours(found[0])), *(Pair(None, Ours(values)) for values in found[1:]))
        rows.append((_row(classifier, attack, column), pairs))
    return rows


def _all_row(findings: Findings, classifier: str, column: str) -> tuple[str, tuple[Pair, ...]]:
    """The attacker who takes, for every example, the worst of all attacks within the radius."""
    nothing, left = Pair(None, None), Ours(_least_white_box(findings, classifier, column))
    row = nothing, Pair(_reported(classifier, column), left), nothing, nothing
    return _row(classifier, "all within the radius", column), row


def _reported(classifier: str, column: str) -> float:
    """The least accuracy that the paper reports under an attack within the radius."""
    return min(table("table2").cell(column, attack, classifier) for attack in ("FGSM", "R+FGSM"))


def _smallest(run: RunFindings, name: str, attack: str, figure: Callable[[ScoredCell], float]) -> SeedFigure:
    """A figure of a defense by seed under one of the paper's attacks; of the adaptive ones the smallest."""
    found = []
    for seed in run.plan.config.seed:
        cells = [cell for cell in run.all(seed=seed, matrix="white-box", defense=name) if _is(cell, attack)]
        if not cells:
            raise ValueError(f"Expected a cell of {attack} on {name} with seed={seed}; got none")
        found.append(min(figure(cell) for cell in cells))
    return SeedFigure.of(found)


def _is(cell: ScoredCell, attack: str) -> bool:
    """Whether a cell is of one of the paper's attacks, or of an adaptive one."""
    name = cell.record.attack["name"]
    return name == _ATTACKS[attack] if attack in _ATTACKS else name not in _ATTACKS.values()


def _least_white_box(findings: Findings, classifier: str, column: str) -> SeedFigure:
    """What the strongest white-box attacker within the radius leaves, by seed: per example the worst of all attacks."""
    run, found = findings[classifier], []
    for seed in run.plan.config.seed:
        cells = run.all(seed=seed, matrix="white-box", defense=DEFENSES[column])
        left = worst_case([(cell.record, cell.examples) for cell in cells]).values
        found.append(percent(left, cells[0].examples.index))
    return SeedFigure.of(found)


def _broken(findings: Findings) -> list[str]:
    """A line for each defense: how far below the paper's white-box numbers our attack gets."""
    lines = []
    for classifier in _classifiers(findings):
        for column in list(there(findings[classifier]))[1:]:
            ours = _least_white_box(findings, classifier, column)
            paper = _reported(classifier, column)
            left = sum(ours) / len(ours)
            if left < paper:
                lines.append(
                    f"{NAMES[column]} on {classifier}: the adaptive attack leaves {left:.1f}% at radius {RADIUS:g} where "
                    f"the paper reports {paper:.1f}% under FGSM and R+FGSM, {paper - left:.1f} points less"
                )
    return lines or ["the adaptive attack breaks nothing that the paper reports as robust"]


_PAPERS, _STRONGEST = "under the paper's own attacks, CW among them", "under adaptive attacks within the radius"


def _headline(findings: Findings, attacks: str) -> Claim:
    """The least of black-box and white-box accuracy of MALADE against those of its rivals, by one of the attackers."""
    parts = list[Inequality]()
    for classifier in _classifiers(findings):
        names = [name for name in ("defense_gan", "magnet") if name in there(findings[classifier])]
        least = {column: _least(findings, classifier, column, attacks) for column in ("malade", *names)}
        rivals = highest([least[name] for name in names])
        of = "the better of Defense-GAN and MagNet" if "defense_gan" in names else "MagNet"
        parts.append(above(f"MALADE - {of}, {classifier}", least["malade"], rivals))
    chosen = {} if findings.tuned is None else findings.tuned.chosen
    return claim_of("malade2018.claim.headline", parts, where=attacks, withheld=withheld(chosen))


def _least(findings: Findings, classifier: str, column: str, attacks: str) -> SeedFigure:
    """The smallest accuracy of a defense by seed, over its substitutes and the white-box attacks."""
    run = findings[_substitutes_of(classifier)]
    found = [pair_accuracies(run, label)[column] for label in substitutes(run)]
    if attacks == _STRONGEST:
        return lowest([_least_white_box(findings, classifier, column), *found])
    whites = [_smallest(_run_of(findings, classifier, attack), DEFENSES[column], attack, through) for attack in _ATTACKS]
    return lowest([*whites, *found])


def _above_mala(findings: Findings) -> Claim:
    """MALADE against MALA through the defenses' own gradients, as the paper's attacks."""
    parts = []
    for classifier in _classifiers(findings):
        for attack in _ATTACKS:
            run = _run_of(findings, classifier, attack)
            found = {column: _smallest(run, DEFENSES[column], attack, through) for column in ("malade", "mala")}
            parts.append(above(f"MALADE - MALA, {attack}, {classifier}", found["malade"], found["mala"]))
    return claim_of("malade2018.claim.malade_beats_mala", parts, where="under white-box attacks")


def _magnet(findings: Findings) -> Claim:
    """MagNet under Carlini and Wagner's attack."""
    parts = []
    for classifier in _with_cw(findings):
        left = _smallest(findings[_cw(classifier)], "magnet", "CW", worst)
        parts.append(at_most(f"MagNet's accuracy, {classifier}", left, 1.0))
    return claim_of("malade2018.claim.magnet_whitebox", parts)


def _differs(scale: Scale) -> Sequence[str]:
    sizes = {
        "smoke": ("5 test images; PGD of 3 steps and CW of 5",),
        "small": (
            "classifier D alone, 15 test images, three training seeds, stochastic models scored on 5 draws; PGD of 40 "
            "steps; on C CW alone, on no defense and MagNet",
        ),
        "medium": ("classifiers C and D, 100 test images, three training seeds",),
        "full": (),
    }
    return (
        *differs(scale),
        *sizes[scale],
        "the paper does not say what its white-box gradients run through: here all steps, with fresh noise, averaged over "
        "as many draws as held-out images ask for (CW: a fixed number); beside it stands the worst of the defense's "
        "surrogates (BPDA, the classifier alone) per example, and the worst of all attacks within the radius",
        "R+FGSM takes a sixth of the radius at random and CW one constant of 100, as the code of Samangouei et al. 2018; CW "
        "has a rate of 0.1 in place of 10; its images count at any distance, those of its best surrogate",
    )


STUDIES = (
    study(
        "malade2018.table2",
        "table 2: white-box attacks, the paper's and an adaptive one",
        _runs,
        _compare,
        _differs,
        scales=EVERY_SCALE,
        search=SEARCH_WITH_GAN,
    ),
)
