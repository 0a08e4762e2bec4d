"""Srinivasan et al. 2018 (arXiv:1805.12017): MALA beside MALADE on the same adversarials, and the weight of the sDAE's term.

Black-box, each defense has a substitute and with it adversarials of its own, so that a difference is partly the attack's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from advbench.reproduction.clean import kept_path
from advbench.reproduction.findings import Findings, RunFindings, ScoredCell
from advbench.reproduction.measured import Figure, SeedFigure, percent
from advbench.reproduction.oblivious import answers, crafted
from advbench.reproduction.papers.malade2018.nets import (
    DEAR_SEEDS,
    DEFENSES,
    MORE_SEEDS,
    NAMES,
    RADIUS,
    Chosen,
    defense,
    differs,
    one_pair,
    relaxing,
    schedule,
    substitutes,
    white_box,
)
from advbench.reproduction.papers.malade2018.schedules import SEARCH, study
from advbench.reproduction.study import EVERY_SCALE, Comparison, Ours, Pair, Plot, Scale, Series, Settings, above, claim_of
from advbench.tasks.artefacts import read, save, whole

_CLASSIFIER = "D"
_SIGMA = 0.3
_SOURCES = ("no_defense", "mala", "malade")
"""Whose substitutes made the adversarials."""
_RELAXING = ("mala", "malade")
_WEIGHTS: Mapping[Scale, tuple[float, ...]] = {
    "smoke": (10.0,),
    "small": (10.0, 100.0),
    "medium": (0.01, 0.1, 0.5, 2.0, 10.0, 100.0),
    "full": (0.01, 0.1, 0.5, 2.0, 4.0, 10.0, 100.0),
}
"""Of the sDAE's term, in units of 2 sigma^2; 0, which is the DAE, and 1, the usual one, stand beside them."""


def _runs(scale: Scale, chosen: Chosen) -> Mapping[str, Settings]:
    """The adversarials, and beside them denoisers under the other's schedule and of other weights, for their nets alone."""
    own = [defense("no_defense", scale), *(relaxing(name, chosen, _CLASSIFIER) for name in _RELAXING)]
    seen: Settings = {"norm": "linf", "epsilon": [RADIUS], "attack": ["fgsm"], "n_examples": 10, "batch": 10, "draws": 1}
    swapped = [_under(chosen, name, other) for name, other in zip(_RELAXING, reversed(_RELAXING), strict=True)]
    weighted = [_under(chosen, "malade", "malade", weight=_weight(share)) for share in _WEIGHTS[scale]]
    return {
        "own": one_pair(scale, _CLASSIFIER, own),
        "swapped": white_box(scale, _CLASSIFIER, swapped, **seen),
        "weights": {**white_box(scale, _CLASSIFIER, weighted, **seen), **DEAR_SEEDS[scale]},
    }


def _under(chosen: Chosen, name: str, other: str, **arguments: object) -> Settings:
    """A denoiser under the schedule that was chosen for `other`."""
    return {"name": DEFENSES[name], **schedule(chosen, other, _CLASSIFIER), **arguments}


def _weight(share: float) -> float:
    return round(2 * _SIGMA**2 * share, 6)


def shown(run: RunFindings, cell: ScoredCell, source_run: RunFindings, source: ScoredCell) -> Figure:
    """The accuracy of a cell's target, in percent, on the adversarials of another cell; the answers are kept."""
    (craft,) = source.record.details["crafts"]
    path = kept_path(run, cell, f"shown-{craft[:16]}")
    if not whole(path):
        split = crafted(source_run, source)
        found = answers(run.defended(cell), split, seed=cell.record.seed)
        save(path, correct=(found.report / found.draws).numpy(), index=split.index.numpy())
    kept = read(path)
    return percent(kept["correct"].astype(np.float64), kept["index"].astype(np.int64))


def _on(findings: Findings, name: str, settings: Settings, source: str) -> SeedFigure:
    """A denoiser's accuracy by seed on the adversarials of one of the sources. name: of its run."""
    run, own = findings[name], findings["own"]
    figures = []
    for seed in run.plan.config.seed:
        cell = run.trained(settings, seed=seed, matrix="black-box" if name == "own" else "white-box")
        made = own.first(seed=seed, matrix="black-box", defense=DEFENSES[source], source=substitutes(own)[-1])
        figures.append(shown(run, cell, own, made))
    return SeedFigure.of(figures)


def _compare(findings: Findings) -> Sequence[Comparison]:
    chosen = SEARCH.untuned if findings.tuned is None else findings.tuned.chosen
    return (_side_by_side(findings, chosen), _by_weight(findings, chosen))


def _side_by_side(findings: Findings, chosen: Chosen) -> Comparison:
    """Both denoisers under both schedules, on the adversarials of every source."""
    found = {
        (name, under, source): _on(findings, "own" if name == under else "swapped", _under(chosen, name, under), source)
        for name in _RELAXING
        for under in _RELAXING
        for source in _SOURCES
    }
    rows = tuple(
        (f"{NAMES[name]}, schedule of {NAMES[under]}", tuple(Pair(None, Ours(found[name, under, one])) for one in _SOURCES))
        for name in _RELAXING
        for under in _RELAXING
    )

    def gain(malade: str, mala: str) -> list[tuple[str, SeedFigure, SeedFigure]]:
        return [
            (f"MALADE - MALA, adversarials of {NAMES[one]}", found["malade", malade, one], found["mala", mala, one])
            for one in _SOURCES
        ]

    claims = (
        claim_of(
            "malade2018.claim.malade_beats_mala",
            [above(*one) for one in gain("malade", "mala")],
            where="on the same adversarials, each with its own schedule",
            attributable=[above(*one) for one in gain("mala", "mala")],
        ),
        claim_of("malade2018.ablation", [above(*one) for one in gain("malade", "malade")]),
    )
    notes = (
        f"pair {_CLASSIFIER}/{_CLASSIFIER}; attributable: both with the schedule that was chosen for MALA; the ablation: "
        "both with that of MALADE",
        "without its term the sDAE is the DAE, bit for bit: MALA under MALADE's schedule is MALADE without the term",
    )
    columns = tuple((f"FGSM, substitute of {NAMES[one]}", "%") for one in _SOURCES)
    return Comparison("MALA beside MALADE on the same adversarials", columns, rows, claims, notes)


def _by_weight(findings: Findings, chosen: Chosen) -> Comparison:
    """MALADE by the weight of its denoiser's term, at equal epochs and under one schedule."""
    there = {cell.record.target["defense"]["arguments"]["weight"] for cell in findings["weights"].cells}
    shares = [share for share in sorted({share for each in _WEIGHTS.values() for share in each}) if _weight(share) in there]
    known = {0.0: _on(findings, "swapped", _under(chosen, "mala", "malade"), "malade")}
    known |= {1.0: _on(findings, "own", _under(chosen, "malade", "malade"), "malade")}
    known |= {
        share: _on(findings, "weights", _under(chosen, "malade", "malade", weight=_weight(share)), "malade")
        for share in shares
    }
    found = dict(sorted(known.items()))
    rows = tuple((f"{share:g} * 2 sigma^2", (Pair(None, Ours(values)),)) for share, values in found.items())
    positions = tuple(share for share in found if share)
    series = Series("MALADE", positions, tuple(Ours(found[share]) for share in positions))
    return Comparison(
        "MALADE by the weight of the sDAE's cross-entropy, on the adversarials of MALADE's substitute",
        (("FGSM, substitute of MALADE", "%"),),
        rows,
        notes=(
            "as many epochs for every weight, and the schedule that was chosen for the usual one; of other weights than 0 "
            "and 1 fewer training seeds",
            "the paper leaves this ablation out; with a perfect classifier the term has mean zero to first order",
        ),
        plots=(Plot("Accuracy by the term's weight", "weight / (2 sigma^2)", "accuracy (%)", (series,)),),
    )


def _differs(scale: Scale) -> Sequence[str]:
    return (*differs(scale), "the paper compares them on adversarials of each one's own substitute alone")


STUDIES = (
    study(
        "malade2018.ablation",
        "MALA beside MALADE on the same adversarials, and the weight of the sDAE's term",
        _runs,
        _compare,
        _differs,
        scales=EVERY_SCALE,
        more_seeds=MORE_SEEDS,
    ),
)
