"""Srinivasan et al. 2018 (arXiv:1805.12017): what MALADE depends on, its denoiser's training and its steps, black-box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from advbench.reproduction.findings import Findings, RunFindings, ScoredCell
from advbench.reproduction.measured import SeedFigure
from advbench.reproduction.papers.malade2018.nets import (
    RADIUS,
    accuracy,
    by_seed,
    clean,
    defense,
    differs,
    once,
    one_pair,
    pair_of,
    substitutes,
    table,
)
from advbench.reproduction.study import Comparison, Ours, Pair, Plot, Scale, Series, Settings, Study, above, claim_of

_SWEPT: Mapping[Scale, str] = {"smoke": "D", "small": "D", "full": "C"}
"""The classifier of the sweeps; its last substitute attacks it."""
_SIGMAS: Mapping[Scale, tuple[float, ...]] = {
    "smoke": (0.1, 0.3),
    "small": (0.01, 0.1, 0.2, 0.3, 0.4),
    "full": (0.01, 0.1, 0.2, 0.3, 0.4),
}
_STRENGTHS: Mapping[Scale, tuple[tuple[float, float], ...]] = {
    "smoke": ((0.2, 0.0), (1.0, 0.0)),
    "small": ((0.1, 0.0), (0.4, 0.0), (1.0, 0.0), (0.1, 0.1), (0.4, 0.1), (1.0, 0.1)),
    "full": tuple((step, noise) for step in (0.1, 0.2, 0.4, 1.0, 2.0) for noise in (0.0, 0.02, 0.05, 0.1)),
}
"""a_0 and d_0 of the sweep."""
_OFFSET = "annealed, with an offset"
_SCHEDULES: Mapping[str, Mapping[str, float]] = {
    "constant": {"decay": 1.0, "step_offset": 0.0, "noise_offset": 0.0},
    "annealed": {"decay": 0.9, "step_offset": 0.0, "noise_offset": 0.0},
    _OFFSET: {"decay": 0.9, "step_offset": 0.05, "noise_offset": 0.005},
}
"""Of step size and noise alike; the last is the usual one."""
_WEIGHTS: Mapping[Scale, tuple[float, ...]] = {
    "smoke": (0.0, 1.0),
    "small": (0.0, 1.0),
    "full": (0.0, 0.5, 1.0, 2.0, 4.0),
}
"""Of the sDAE's term, in units of 2 sigma^2, which is the usual weight."""
_COLUMNS = (("clean", "%"), ("FGSM", "%"))


def _run(scale: Scale, defenses: Sequence[Settings]) -> Settings:
    """Defenses of the swept classifier under FGSM from its last substitute."""
    return one_pair(scale, _SWEPT[scale], defenses)


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


def _sigma_runs(scale: Scale) -> Mapping[str, Settings]:
    return {"sigmas": _run(scale, [defense("malade", scale, sigma=sigma) for sigma in _SIGMAS[scale]])}


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
    return (Comparison(printed.caption, columns, rows, (claim,), (f"pair {pair_of(run)}",), (plot,)),)


def _values(run: RunFindings, argument: str) -> list[float]:
    """The values of an argument of MALADE that ran, in order."""
    return sorted({_arguments(cell)[argument] for cell in run.cells})


def _arguments(cell: ScoredCell) -> Mapping[str, float]:
    """Those of a cell's defense."""
    return cell.record.target["defense"]["arguments"]


# --- step sizes and noise, and how they fall


def _strength_runs(scale: Scale) -> Mapping[str, Settings]:
    given = [defense("malade", scale, step_size=step, noise=noise) for step, noise in _STRENGTHS[scale]]
    falling = [defense("malade", scale, **schedule) for schedule in _SCHEDULES.values()]
    return {"strengths": {**_run(scale, given), **once(scale)}, "schedules": _run(scale, falling)}


def _strength(findings: Findings) -> Sequence[Comparison]:
    return _by_strength(findings["strengths"]), _by_schedule(findings["schedules"])


def _by_strength(run: RunFindings) -> Comparison:
    both = {
        (step, noise): _both(run, {"step_size": step, "noise": noise})
        for noise in _values(run, "noise")
        for step in _values(run, "step_size")
        if any((_arguments(cell)["step_size"], _arguments(cell)["noise"]) == (step, noise) for cell in run.cells)
    }
    rows = tuple((f"a_0 = {step:g}, d_0 = {noise:g}", _pairs(found)) for (step, noise), found in both.items())
    series = [
        _series(f"d_0 = {noise:g}", {step: attacked for (step, one), (_, attacked) in both.items() if one == noise})
        for noise in _values(run, "noise")
    ]
    caption = "MALADE with given step sizes and noise, black-box FGSM (the paper swept them and prints no numbers)"
    plot = Plot("MALADE under FGSM by step size and noise", "a_0", "accuracy (%)", tuple(series))
    return Comparison(caption, _COLUMNS, rows, notes=(f"pair {pair_of(run)}",), plots=(plot,))


def _by_schedule(run: RunFindings) -> Comparison:
    found = {name: _both(run, schedule) for name, schedule in _SCHEDULES.items()}
    searched = _arguments(run.cells[0])["step_size"] is None
    rows = [
        (name, (*_pairs(both), *(_pairs(_chosen(run, _SCHEDULES[name])) if searched else ())))
        for name, both in found.items()
    ]
    claim = claim_of(
        "malade2018.stepsize",
        (above(f"with an offset - {name}", found[_OFFSET][1], both[1]) for name, both in found.items() if name != _OFFSET),
    )
    columns = (*_COLUMNS, *((("a_0", ""), ("d_0", "")) if searched else ()))
    how = "a_0 and d_0 of each searched on held-out images" if searched else "the same a_0 and d_0 for each"
    caption = "MALADE by how step size and noise fall, black-box FGSM (the paper says which was best, without numbers)"
    return Comparison(caption, columns, tuple(rows), (claim,), (f"pair {pair_of(run)}; {how}",))


def _chosen(run: RunFindings, arguments: Mapping[str, object]) -> tuple[SeedFigure, ...]:
    """The a_0 and d_0 that the search found, by seed."""
    facts = {"defense": "malade", "source": substitutes(run)[-1]}
    return tuple(
        by_seed(run, lambda cell, name=name: float(cell.record.details["train_facts"][name]), arguments, **facts)  # type: ignore[misc]
        for name in ("step_size", "noise")
    )


# --- the sDAE's term


def _weight_of(share: float) -> float | None:
    """The weight of the sDAE's term, in units of the usual one, as the defense takes it."""
    return None if share == 1.0 else round(2 * RADIUS**2 * share, 4)


def _weighted(share: float) -> tuple[str, Mapping[str, object]]:
    """The defense whose denoiser has that weight: without its term the sDAE is the DAE, bit for bit, and MALADE is MALA."""
    return ("malade", {"weight": _weight_of(share)}) if share else ("mala", {})


def _weight_runs(scale: Scale) -> Mapping[str, Settings]:
    return {"weights": _run(scale, [defense(name, scale, **given) for name, given in map(_weighted, _WEIGHTS[scale])])}


def _weight(findings: Findings) -> Sequence[Comparison]:
    run = findings["weights"]
    there = {(cell.record.target["defense"]["name"], _arguments(cell).get("weight")) for cell in run.cells}
    shares = [share for share in _WEIGHTS["full"] if (_weighted(share)[0], _weighted(share)[1].get("weight")) in there]
    found = {share: _both(run, arguments, name) for share in shares for name, arguments in (_weighted(share),)}
    rows = tuple(
        (f"{share:g} * 2 sigma^2" + (", usual" if share == 1 else "" if share else ", MALA"), _pairs(both))
        for share, both in found.items()
    )
    claim = claim_of("malade2018.ablation", (above("with - without", found[1.0][1], found[0.0][1]),))
    notes = (
        f"pair {pair_of(run)}; without its term the sDAE is the DAE, bit for bit, and MALADE is MALA",
        "the paper leaves this ablation out; with a perfect classifier the term has mean zero to first order",
    )
    caption = "MALADE by the weight of the sDAE's cross-entropy, black-box FGSM"
    return (Comparison(caption, _COLUMNS, rows, (claim,), notes),)


def _differs(scale: Scale) -> Sequence[str]:
    pair = () if scale == "full" else (f"classifier {_SWEPT[scale]} in place of C, whose numbers the paper's seem to be",)
    return (*differs(scale), *pair)


def _strength_differs(scale: Scale) -> Sequence[str]:
    seeds = () if scale == "full" else ("given step sizes and noise on one training seed; how they fall on all",)
    return (*_differs(scale), *seeds)


STUDIES = (
    Study("malade2018.table5", "table 5: the denoiser's training noise", _sigma_runs, _sigma, _differs),
    Study("malade2018.stepsize", "step sizes and noise of the Langevin steps", _strength_runs, _strength, _strength_differs),
    Study("malade2018.ablation", "the sDAE without its term", _weight_runs, _weight, _differs),
)
