"""Srinivasan et al. 2018 (arXiv:1805.12017): what MALADE depends on, its denoiser's training and its steps, black-box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from advbench.reproduction.findings import Findings, RunFindings, ScoredCell
from advbench.reproduction.measured import SeedFigure
from advbench.reproduction.papers.malade2018.grid import FAMILIES
from advbench.reproduction.papers.malade2018.nets import (
    DEAR_SEEDS,
    OFFSET,
    Chosen,
    accuracy,
    by_seed,
    clean,
    differs,
    one_pair,
    pair_of,
    relaxing,
    schedule,
    substitutes,
    table,
)
from advbench.reproduction.papers.malade2018.schedules import SEARCH, study
from advbench.reproduction.study import EVERY_SCALE, Comparison, Ours, Pair, Plot, Scale, Series, Settings, above, claim_of

_SWEPT: Mapping[Scale, str] = {"smoke": "D", "small": "D", "medium": "C", "full": "C"}
"""The classifier of the sweeps; its last substitute attacks it."""
_SIGMAS: Mapping[Scale, tuple[float, ...]] = {
    "smoke": (0.1, 0.3),
    "medium": (0.01, 0.1, 0.2, 0.3, 0.4),
    "full": (0.01, 0.1, 0.2, 0.3, 0.4),
}
"""Not at small: twelve more denoisers and substitutes, where three seeds cannot tell 0.2 and 0.4 from 0.3."""
_COLUMNS = (("clean", "%"), ("FGSM", "%"))


def _run(scale: Scale, defenses: Sequence[Settings]) -> Settings:
    """Defenses of the swept classifier under FGSM from its last substitute."""
    return {**one_pair(scale, _SWEPT[scale], defenses), **DEAR_SEEDS[scale]}


def _both(run: RunFindings, arguments: Mapping[str, object], name: str = "malade") -> tuple[SeedFigure, SeedFigure]:
    """Clean and attacked accuracies, by seed, of a defense with these arguments."""
    facts = {"defense": name, "source": substitutes(run)[-1]}
    return by_seed(run, clean, arguments, **facts), by_seed(run, accuracy, arguments, **facts)


def _pairs(found: Sequence[Sequence[float]]) -> tuple[Pair, ...]:
    """Figures that the paper does not print, each by seed."""
    return tuple(Pair(None, Ours(values)) for values in found)


def _series(name: str, found: Mapping[float, Sequence[float]]) -> Series:
    """A line through figures by position, each by seed."""
    return Series(name, tuple(found), tuple(Ours(values) for values in found.values()))


# --- table 5: the noise that the sDAE is trained on


def _sigma_runs(scale: Scale, chosen: Chosen) -> Mapping[str, Settings]:
    relaxed = [relaxing("malade", chosen, _SWEPT[scale], sigma=sigma) for sigma in _SIGMAS[scale]]
    return {"sigmas": _run(scale, relaxed)}


def _sigma(findings: Findings) -> Sequence[Comparison]:
    printed, run = table("table5"), findings["sigmas"]
    lines = {float(row[0]): float(row[1]) for row in printed.rows}
    both = {sigma: _both(run, {"sigma": sigma}) for sigma in _values(run, "sigma")}
    rows = tuple(
        (f"{sigma:g}", (Pair(lines[sigma], Ours(attacked)), Pair(None, Ours(unharmed))))
        for sigma, (unharmed, attacked) in both.items()
    )
    found = {sigma: attacked for sigma, (_, attacked) in both.items()}
    claim = claim_of(
        "malade2018.claim.sigma",
        (above(f"0.3 - {sigma:g}", found[0.3], values) for sigma, values in found.items() if sigma != 0.3),
    )
    plot = Plot(
        "MALADE by the noise of its denoiser's training",
        "deviation of the noise",
        "accuracy (%)",
        (
            _series("FGSM", found),
            _series("clean", {sigma: unharmed for sigma, (unharmed, _) in both.items()}),
        ),
    )
    columns = (("FGSM, MALADE", "%"), ("clean, MALADE", "%"))
    notes = (f"pair {pair_of(run)}", "all with the schedule that was chosen at a noise of 0.3, which favours that one")
    return (Comparison(printed.caption, columns, rows, (claim,), notes, (plot,)),)


def _values(run: RunFindings, argument: str) -> list[float]:
    """The values of an argument of MALADE that ran, in order."""
    return sorted({_arguments(cell)[argument] for cell in run.cells})


def _arguments(cell: ScoredCell) -> Mapping[str, float]:
    """Those of a cell's defense."""
    return cell.record.target["defense"]["arguments"]


# --- how step sizes and noise fall


def _schedule_runs(scale: Scale, chosen: Chosen) -> Mapping[str, Settings]:
    return {"schedules": _run(scale, [relaxing("malade", chosen, _SWEPT[scale], family) for family in FAMILIES])}


def _schedules(findings: Findings) -> Sequence[Comparison]:
    run = findings["schedules"]
    chosen = SEARCH.untuned if findings.tuned is None else findings.tuned.chosen
    given = {family: schedule(chosen, "malade", _classifier(run), family) for family in FAMILIES}
    found = {family: _both(run, arguments) for family, arguments in given.items()}
    numbers = ("steps", "step_size", "noise", "decay")
    rows = tuple(
        (family, (*_pairs(both), *(Pair(None, Ours((float(given[family][name]),))) for name in numbers)))  # type: ignore[arg-type]
        for family, both in found.items()
    )
    claim = claim_of(
        "malade2018.stepsize",
        (above(f"with an offset - {name}", found[OFFSET][1], both[1]) for name, both in found.items() if name != OFFSET),
    )
    columns = (*_COLUMNS, ("N", ""), ("a_0", ""), ("d_0", ""), ("decay", ""))
    caption = "MALADE by how step size and noise fall, black-box FGSM (the paper says which was best, without numbers)"
    notes = (f"pair {pair_of(run)}; the schedule of each was searched on the same grid of a seed that is not judged",)
    return (Comparison(caption, columns, rows, (claim,), notes),)


def _classifier(run: RunFindings) -> str:
    return pair_of(run).partition("/")[0]


def _differs(scale: Scale) -> Sequence[str]:
    other = f"classifier {_SWEPT[scale]} in place of C, whose numbers the paper's seem to be"
    return (*differs(scale), *(() if _SWEPT[scale] == "C" else (other,)))


STUDIES = (
    study(
        "malade2018.table5",
        "table 5: the denoiser's training noise",
        _sigma_runs,
        _sigma,
        _differs,
        scales=("smoke", "medium", "full"),
    ),
    study(
        "malade2018.stepsize",
        "how step sizes and noise of the Langevin steps fall",
        _schedule_runs,
        _schedules,
        _differs,
        scales=EVERY_SCALE,
    ),
)
