"""Roth et al. 2018 (arXiv:1805.08736): long-range correlated noise, which short-range perturbations leave out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from advbench.reproduction.findings import Findings
from advbench.reproduction.measured import SeedFigure, difference
from advbench.reproduction.papers.sgr2018.nets import BUDGETS, COEFFICIENT, by_seed, differs, labels
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
    claim_of,
)
from advbench.results.papers import load

DECAYS = (1, 2, 4, 8, 16)
SIGMAS: Mapping[Scale, tuple[float, ...]] = {
    "smoke": (0.1, 0.5),
    "small": (0.05, 0.1, 0.2, 0.5),
    "full": (0.01, 0.05, 0.1, 0.2, 0.4, 0.5, 0.7),
}
"""Beside 0.3, which the other experiments have too."""
_MAIN = 0.3

_NETS: Mapping[str, Settings] = {
    "clean": {"name": "none"},
    "gn": {"name": "gradient-norm", "coefficient": COEFFICIENT},
    "sgr": {"name": "sgr-correlated", "coefficient": COEFFICIENT, "decay_length": 8.0},
    "lrc_augmented": {"name": "lrc-augmented"},
}
_DATA_NETS: Mapping[str, Settings] = {**_NETS, "sgr": {"name": "sgr-data", "coefficient": COEFFICIENT}}


def _noise(decay_length: float, sigma: float) -> Settings:
    return {"name": "correlated-noise", "decay_length": decay_length, "sigma": sigma}


def _run(scale: Scale, nets: Mapping[str, Settings], attacks: Sequence[Settings]) -> Settings:
    return {
        **BUDGETS[scale],
        "matrix": ["white-box"],
        "defense": list(nets.values()),
        "norm": "none",
        "attack": list(attacks),
    }


def _decay_runs(scale: Scale) -> Mapping[str, Settings]:
    return {"noise": _run(scale, _NETS, [_noise(float(decay), _MAIN) for decay in DECAYS])}


def _decay(findings: Findings) -> Sequence[Comparison]:
    found = _curves(findings, "noise", "decay_length")
    rows = tuple((row, tuple(Pair(None, Ours(found[row][decay])) for decay in DECAYS)) for row in found)
    gap = {decay: difference(found["sgr"][decay], found["gn"][decay]) for decay in DECAYS}
    claim = claim_of(
        "sgr2018.claim.headline_lrc",
        (Inequality("sgr - gn at 16", gap[16], 20.0), above("gap at 16 - gap at 1", gap[16], gap[1])),
    )
    columns = tuple((f"decay length {decay}", "%") for decay in DECAYS)
    caption = "Accuracy on the worst of 100 draws of long-range correlated noise (figure 3 prints curves, on CIFAR-10)"
    plot = Plot("Noise of deviation 0.3", "decay length (pixels)", "accuracy (%)", _series(found))
    return (Comparison(caption, columns, rows, (claim,), (), (plot,)),)


def _strength_runs(scale: Scale) -> Mapping[str, Settings]:
    return {"noise": _run(scale, _NETS, [_noise(16.0, sigma) for sigma in sorted({*SIGMAS[scale], _MAIN})])}


def _strength(findings: Findings) -> Sequence[Comparison]:
    found = _curves(findings, "noise", "sigma")
    sigmas = list(found["clean"])
    rows = tuple((row, tuple(Pair(None, Ours(found[row][sigma])) for sigma in sigmas)) for row in found)
    claim = claim_of(
        "sgr2018.fig4_lrc_eps",
        (above(f"sgr - {other} at 0.3", found["sgr"][_MAIN], found[other][_MAIN]) for other in ("gn", "clean")),
    )
    columns = tuple((f"noise {sigma:g}", "%") for sigma in sigmas)
    caption = "Accuracy on the worst of 100 draws of noise of decay length 16 (figure 4 prints curves, on CIFAR-10)"
    plot = Plot("Noise of decay length 16", "deviation (pixel range)", "accuracy (%)", _series(found))
    return (Comparison(caption, columns, rows, (claim,), (), (plot,)),)


def _data_runs(scale: Scale) -> Mapping[str, Settings]:
    return {"noise": _run(scale, _DATA_NETS, [{"name": "estimated-noise", "sigma": _MAIN}])}


def _data(findings: Findings) -> Sequence[Comparison]:
    table, label = load("sgr2018").tables["sgr2018.iclr_lrc_dataset_cov"], labels(findings, "noise", _DATA_NETS)
    found = {row: by_seed(findings, "noise", lambda cell: cell.accuracy, target=target) for row, target in label.items()}
    rows = tuple((row, (Pair(table.cell("accuracy", row), Ours(values)),)) for row, values in found.items())
    order = ("sgr", "lrc_augmented", "gn", "clean")
    claim = claim_of("sgr2018.claim.data_cov", (above(f"{a} - {b}", found[a], found[b]) for a, b in pairwise(order)))
    return (Comparison(table.caption, (("accuracy", "%"),), rows, (claim,), ("the paper's numbers are of CIFAR-10",)),)


def _curves(findings: Findings, run: str, argument: str) -> dict[str, dict[float, SeedFigure]]:
    """Accuracies by seed of each net, by what the argument of the noise was."""
    found: dict[str, dict[float, SeedFigure]] = {}
    for row, label in labels(findings, run, _NETS).items():
        cells = {seed: findings[run].all(seed=seed, target=label) for seed in findings.seeds}
        values = sorted({cell.record.attack["arguments"][argument] for cell in next(iter(cells.values()))})
        found[row] = {
            value: SeedFigure.of(
                next(cell.accuracy for cell in cells[seed] if cell.record.attack["arguments"][argument] == value)
                for seed in findings.seeds
            )
            for value in values
        }
    return found


def _series(found: Mapping[str, Mapping[float, SeedFigure]]) -> tuple[Series, ...]:
    return tuple(Series(row, tuple(curve), tuple(Ours(values) for values in curve.values())) for row, curve in found.items())


STUDIES = (
    Study("sgr2018.fig3_lrc", "figure 3: long-range correlated noise", _decay_runs, _decay, differs),
    Study("sgr2018.fig4_lrc_eps", "figure 4: the strength of correlated noise", _strength_runs, _strength, differs),
    Study("sgr2018.iclr_lrc_dataset_cov", "noise with the covariance of the images", _data_runs, _data, differs),
)
