"""How strong contraction and weight decay are in the experiments of Gu & Rigazio 2014 (arXiv:1412.5068), and why.

The paper prints neither lambda nor a rule, but "train until the error is nearly that of the original model". Here a strength
is the largest such that it and all smaller ones of its grid lose at most a quarter of a point on the validation split, half
of the half point that clean errors are judged at, averaged over training seeds that no verdict counts. Weight decay has as
many grid points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from advbench.registry.specs import Spec
from advbench.reproduction.findings import Findings, RunFindings
from advbench.reproduction.measured import SeedFigure
from advbench.reproduction.oblivious import error
from advbench.reproduction.papers.gu2014.nets import NETS, PLAIN, by_seed, cell_of, own
from advbench.reproduction.study import Comparison, Ours, Pair, Plot, Scale, Series, Settings, Study

SEEDS = (10, 11)
"""Of the trainings that the strengths were chosen by."""
ALLOWED = 0.25
"""Percent points of validation error."""
_METHODS = {"contraction": "deep-contractive", "weight decay": PLAIN}
_BARE = Spec.of(PLAIN, {"coefficient": 1e-3})
_METHOD_GRIDS: Mapping[str, tuple[float, ...]] = {
    "contraction": (1.78e-4, 3.16e-4, 5.62e-4, 1e-3, 1.78e-3, 3.16e-3),
    "weight decay": (1.15e-3, 1.33e-3, 1.54e-3, 1.78e-3, 2.05e-3, 2.37e-3),
}
"""Quarter decades of contraction; sixteenths of a decade of decay, above the paper's 1e-3, which is on both sides."""
_EXTENDED: Mapping[tuple[str, str], tuple[float, ...]] = {
    ("AE400-10", "contraction"): (5.62e-3, 1e-2),
    ("AE400-10", "weight decay"): (1.07e-3, 1.24e-3),
}
"""Where the rule ended on the edge of a grid, the points beyond it, and as many for the other method."""
_NETS = ("N100-100-10", "N200-200-10", "AE400-10")

CHOSEN: Mapping[tuple[str, str], float] = {
    ("N100-100-10", "contraction"): 5.62e-4,
    ("N200-200-10", "contraction"): 1e-3,
    ("AE400-10", "contraction"): 5.62e-3,
    ("ConvNet", "contraction"): 1e-5,
    ("N100-100-10", "weight decay"): 1.33e-3,
    ("N200-200-10", "weight decay"): 1.33e-3,
    ("AE400-10", "weight decay"): 1.15e-3,
}
"""For the trainings of the scale `small`, by net and method: what `gu2014.strengths` finds, of equally many strengths each.

The ConvNet's is of whole decades and one seed: 1e-5 costs 0.03 points of validation error, 1e-4 costs 0.67.
"""


def grid(net: str, method: str) -> tuple[float, ...]:
    """The strengths of a method (`contraction`, `weight decay`) that are tried on a net, increasing."""
    return tuple(sorted((*_METHOD_GRIDS[method], *_EXTENDED.get((net, method), ()))))


def contraction(scale: Scale, net: str) -> Spec:
    """The contractive training of a net: with the strength that was chosen for `small`, with a search of its own above."""
    if scale in ("smoke", "small"):
        return Spec.of("deep-contractive", {"coefficient": CHOSEN[net, "contraction"]})
    return Spec.of("deep-contractive", {"tolerance": ALLOWED / 100})


def network_contraction() -> Spec:
    """The training by equation 5, whose penalty is on the Jacobian of the whole network, with a search of its own."""
    return Spec.of("deep-contractive", {"tolerance": ALLOWED / 100, "jacobian": "network"})


def decay(scale: Scale, net: str) -> Spec | None:
    """Weight decay that costs as much clean error as the contraction; None where it was not chosen."""
    if scale not in ("smoke", "small") or (net, "weight decay") not in CHOSEN:
        return None
    return Spec.of(PLAIN, {"coefficient": CHOSEN[net, "weight decay"]})


def largest(errors: Mapping[float, float], plain: float) -> float:
    """The largest strength such that it and all smaller ones have at most `ALLOWED` points more error; 0 if none has.

    >>> largest({1e-3: 3.0, 1e-2: 3.2, 1e-1: 3.3, 1.0: 3.2}, plain=3.0)
    0.01
    """
    kept = 0.0
    for strength in sorted(errors):
        if errors[strength] > plain + ALLOWED + 1e-9:
            break
        kept = strength
    return kept


def _trainings(scale: Scale, net: str) -> list[Spec]:
    few = slice(2 if scale == "smoke" else None)
    specs = [Spec.of(of, {"coefficient": each}) for method, of in _METHODS.items() for each in grid(net, method)[few]]
    return [_BARE, *specs]


def _runs(scale: Scale) -> Mapping[str, Settings]:
    nets = _NETS[:1] if scale == "smoke" else _NETS
    of: Scale = "smoke" if scale == "smoke" else "small"
    steps, images = (40, 20) if scale == "smoke" else (200, 200)
    return {
        net: {
            **own(of, net),
            "seed": SEEDS,
            "matrix": ["white-box"],
            "norm": "l2",
            "defense": [str(spec) for spec in _trainings(scale, net)],
            "architecture": [NETS[net]],
            "attack": [f"ddn(steps={steps})"],
            "n_examples": images,
        }
        for net in nets
    }


def _compare(findings: Findings) -> Sequence[Comparison]:
    rows = list[tuple[str, tuple[Pair, ...]]]()
    notes, errors, distances = list[str](), list[Series](), list[Series]()
    for net, run in findings.runs.items():
        bare = _missed(run, _BARE)
        for method, name in _METHODS.items():
            there = [each for each in grid(net, method) if _trained(run, name, each)]
            specs = {each: Spec.of(name, {"coefficient": each}) for each in there}
            missed = {each: _missed(run, spec) for each, spec in specs.items()}
            rms = {each: by_seed(run, spec, "mean_rms", "ddn") for each, spec in specs.items()}
            for each in there:
                values = (missed[each], missed[each] - bare, rms[each])
                rows.append((f"{net}, {method} {each:g}", tuple(Pair(None, Ours(value)) for value in values)))
            kept = largest({each: fmean(value) for each, value in missed.items()}, fmean(bare))
            notes.append(f"{net}, {method}: the rule chooses {kept:g}; the other tables have {CHOSEN[net, method]:g}")
            steps = tuple(math.log10(each) for each in there)
            errors.append(Series(f"{net}, {method}", steps, tuple(Ours(missed[each]) for each in there)))
            distances.append(Series(f"{net}, {method}", steps, tuple(Ours(rms[each]) for each in there)))
        bare_row = (bare, bare - bare, by_seed(run, _BARE, "mean_rms", "ddn"))
        rows.append((f"{net}, weight decay 0.001 alone", tuple(Pair(None, Ours(value)) for value in bare_row)))
    columns = (("validation error", "%"), ("more than at a weight decay of 1e-3", "points"), ("distortion, DDN", "RMS"))
    plots = (
        Plot("Validation error against the strength", "log10 of the strength", "error (%)", tuple(errors)),
        Plot("Distortion by DDN against the strength", "log10 of the strength", "distortion (RMS)", tuple(distances)),
    )
    caption = "Strengths on their grids; a contraction has the weight decay of 1e-3 too"
    return (Comparison(caption, columns, tuple(rows), notes=tuple(notes), plots=plots),)


def _missed(run: RunFindings, spec: Spec) -> SeedFigure:
    """The error on the validation split in percent, by seed."""
    held_out = run.plan.data.validation
    cells = {seed: cell_of(run, spec, seed, "ddn") for seed in SEEDS}
    return SeedFigure.of(error(run.defended(cell), held_out, seed=seed) for seed, cell in cells.items())


def _trained(run: RunFindings, name: str, strength: float) -> bool:
    return any(cell.record.target["defense"]["arguments"]["coefficient"] == strength for cell in run.all(defense=name))


def _differs(scale: Scale) -> Sequence[str]:
    return (
        "the paper has no such table. A strength is the largest such that it and all smaller ones of the grid lose at most "
        f"{ALLOWED:g} points of validation error on seeds {SEEDS[0]} and {SEEDS[1]}; fixed before the other tables were run",
        "digits, two strengths of each, which chose nothing" if scale == "smoke" else "the trainings of the scale small",
    )


STUDIES = (Study("gu2014.strengths", "how strengths were chosen", _runs, _compare, _differs, ("smoke", "medium")),)
