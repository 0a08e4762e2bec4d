"""Shaham et al. 2015: how far a training goes decides what robust optimisation adds, which is regularisation among others.

The setting of the tables stands between one that stops early and one that goes on without weight decay. All three are
printed; claims are judged in the setting of the tables alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from advbench.reproduction.clean import clean_by_seed
from advbench.reproduction.findings import Findings, RunFindings
from advbench.reproduction.measured import SeedFigure, difference
from advbench.reproduction.papers.shaham2015.nets import MNIST, MORE_SEEDS, NETS, RADII, differs
from advbench.reproduction.papers.shaham2015.shown import trained_accuracy
from advbench.reproduction.papers.shaham2015.sweep import sweep_runs
from advbench.reproduction.study import FIRST_SEEDS, Comparison, Ours, Pair, Scale, Settings, Study

_EARLY: Mapping[Scale, int] = {"smoke": 2, "small": 3, "full": 5}
"""Epochs of the under-fitted setting."""
_SEEDS: Mapping[Scale, int] = {"smoke": 3, "small": 1, "full": 3}
"""Training seeds of the settings that no claim is about."""
_RATE = 5.0
"""The rate of the over-fitted setting, in rates of the tables, for half the epochs: as far as 2.5 times as many."""
_UNDER, _TABLES, _OVER = "under-fitted", "as in the tables", "over-fitted"


def _fit_runs(scale: Scale) -> Mapping[str, Settings]:
    budget = MNIST[scale]
    rate, epochs = budget.get("learning_rate", 1e-3), budget["epochs"]
    if not isinstance(rate, float) or not isinstance(epochs, int):
        raise TypeError(f"Expected numbers as `learning_rate` and `epochs`, got {rate!r} and {epochs!r}")
    over = {**budget, "epochs": epochs // 2, "learning_rate": _RATE * rate, "weight_decay": 0.0}
    (tables,) = sweep_runs(budget, RADII, (1.0,)).values()
    (early,) = sweep_runs({**budget, "epochs": _EARLY[scale]}, RADII, (1.0,)).values()
    (far,) = sweep_runs(over, RADII, (1.0,)).values()
    few = {FIRST_SEEDS: _SEEDS[scale]}
    return {_UNDER: {**early, **few}, _TABLES: tables, _OVER: {**far, **few}}


def _fit(findings: Findings) -> Sequence[Comparison]:
    rows = tuple(
        (f"{setting}, {net}", pairs) for setting, run in findings.runs.items() for net, pairs in _of_setting(run).items()
    )
    columns = (
        ("training images", "%"),
        ("clean", "%"),
        ("clean, beyond the baseline", "points"),
        (f"own fast-sign, ε {RADII['linf']:g}", "%"),
        ("own fast-sign, beyond the baseline", "points"),
    )
    caption = "The nets under-fitted, as in the tables, and over-fitted"
    return (Comparison(caption, columns, rows),)


def _of_setting(run: RunFindings) -> Mapping[str, tuple[Pair, ...]]:
    """The row of each net, its gains beside the baseline of the same setting and seed."""
    cells = {net: [run.one(seed=seed, defense=defense) for seed in run.plan.config.seed] for net, defense in NETS.items()}
    clean = {net: clean_by_seed(run, each) for net, each in cells.items()}
    own = {net: SeedFigure.of(cell.accuracy for cell in each) for net, each in cells.items()}
    found = {}
    for net, each in cells.items():
        trained = tuple(trained_accuracy(run, cell) for cell in each)
        values = [trained, clean[net], difference(clean[net], clean["baseline"])]
        values += [own[net], difference(own[net], own["baseline"])]
        found[net] = tuple(Pair(None, Ours(value)) for value in values)
    return found


def _differs_fit(scale: Scale) -> Sequence[str]:
    return (
        *differs(scale),
        f"under-fitted: {_EARLY[scale]} epochs; over-fitted: {_RATE:g} times the rate for half the epochs, as far as "
        f"{_RATE / 2:g} times as many, without weight decay; both on {_SEEDS[scale]} of the training seeds, in no verdict",
        "the paper has neither; training images are the first 2,000 of those that a net was trained on",
    )


STUDIES = (
    Study("shaham2015.fit", "under-fitted and over-fitted nets", _fit_runs, _fit, _differs_fit, more_seeds=MORE_SEEDS),
)
