"""Srinivasan et al. 2018 (arXiv:1805.12017), black-box: FGSM from a substitute that saw a defended model's labels alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from advbench.reproduction.findings import Cell, Findings, RunFindings
from advbench.reproduction.malade2018_nets import (
    CLASSIFIERS,
    DEFENSES,
    PAIRS,
    RADIUS,
    black_box,
    by_seed,
    defense,
    differs,
    once,
    source,
    substitutes,
    table,
)
from advbench.reproduction.study import (
    Claim,
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
)

_RADII: Mapping[Scale, tuple[float, ...]] = {
    "smoke": (0.1, 0.3),
    "small": (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4),
    "full": (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4),
}
_SIGMAS: Mapping[Scale, tuple[float, ...]] = {
    "smoke": (0.1, 0.3),
    "small": (0.01, 0.1, 0.2, 0.3, 0.4),
    "full": (0.01, 0.1, 0.2, 0.3, 0.4),
}
_WEIGHTS: Mapping[Scale, tuple[float, ...]] = {
    "smoke": (0.0, 1.0),
    "small": (0.0, 1.0),
    "full": (0.0, 0.5, 1.0, 2.0, 4.0),
}
"""Of the sDAE's term, in units of 2 sigma^2, which is the usual weight."""
_STRENGTHS: Mapping[Scale, tuple[tuple[float, float], ...]] = {
    "smoke": ((0.2, 0.0), (1.0, 0.0)),
    "small": ((0.1, 0.0), (0.4, 0.0), (1.0, 0.0), (1.0, 0.05), (1.0, 0.1), (2.0, 0.05)),
    "full": tuple((step, noise) for step in (0.1, 0.2, 0.4, 1.0, 2.0) for noise in (0.0, 0.02, 0.05, 0.1)),
}
"""a_0 and d_0 of the sweep."""
_SWEPT: Mapping[Scale, str] = {"smoke": "D", "small": "D", "full": "C"}
"""The classifier of the sweeps; its last substitute attacks it."""


def accuracy(cell: Cell) -> float:
    """Under the attack, in percent."""
    return cell.accuracy


# --- table 1


def _pair_runs(scale: Scale) -> Mapping[str, Settings]:
    defenses = [defense(name, scale) for name in DEFENSES]
    return {classifier: black_box(scale, classifier, defenses) for classifier in PAIRS[scale]}


def pair_accuracies(run: RunFindings, label: str) -> dict[str, tuple[float, ...]]:
    """Accuracies by seed under FGSM from the substitute of that label, by the paper's columns."""
    return {
        column: by_seed(run, accuracy, matrix="black-box", defense=name, source=label, epsilon=RADIUS)
        for column, name in DEFENSES.items()
    }


def _pairs(findings: Findings) -> Sequence[Comparison]:
    printed, rows, beats_mala, beats = table("table1"), [], [], list[Inequality]()
    for classifier, run in findings.runs.items():
        clean = {
            column: by_seed(run, lambda cell: cell.clean_accuracy, defense=name, source=substitutes(run)[0])
            for column, name in DEFENSES.items()
        }
        for label in substitutes(run):
            pair = f"{classifier}/{_letter(label)}"
            found = pair_accuracies(run, label)
            cells = [Pair(printed.cell("clean_accuracy", pair), Ours(clean["no_defense"]))]
            cells += [Pair(printed.cell(column, pair), Ours(found[column])) for column in DEFENSES]
            cells += [Pair(None, Ours(clean[column])) for column in list(DEFENSES)[1:]]
            rows.append((pair, (*cells, Pair(None, Ours(_fidelity(run, label))))))
            beats_mala.append(above(f"MALADE - MALA, {pair}", found["malade"], found["mala"]))
            beats += [
                above(f"MALADE - {other}, {pair}", found["malade"], found[other]) for other in ("defense_gan", "magnet")
            ]
    claims = (
        Claim("malade2018.claim.blackbox", "MALADE is above Defense-GAN (8 of 8) and MagNet (6 of 8)", tuple(beats)),
        Claim("malade2018.claim.malade_beats_mala", "MALADE is above MALA", tuple(beats_mala)),
    )
    columns = (
        ("clean, no defense", "%"),
        *((f"FGSM, {_named(column)}", "%") for column in DEFENSES),
        *((f"clean, {_named(column)}", "%") for column in list(DEFENSES)[1:]),
        ("the substitute of MALADE agrees", "%"),
    )
    notes = ("the paper prints no clean accuracy of a defended classifier",)
    return (Comparison(printed.caption, columns, tuple(rows), claims, notes),)


def _letter(label: str) -> str:
    """The paper's letter of a substitute's label."""
    return next(letter for letter in CLASSIFIERS if source(letter) == label)


def _fidelity(run: RunFindings, label: str) -> tuple[float, ...]:
    """The share of held-out images that the substitute labels as MALADE does, in percent, by seed."""
    return by_seed(
        run, lambda cell: 100.0 * (cell.record.details["substitute"]["fidelity"] or 0.0), defense="malade", source=label
    )


def _named(column: str) -> str:
    return {
        "no_defense": "no defense",
        "mala": "MALA",
        "malade": "MALADE",
        "defense_gan": "Defense-GAN",
        "magnet": "MagNet",
    }[column]


# --- table 3


def _radius_runs(scale: Scale) -> Mapping[str, Settings]:
    classifier = "C" if scale != "smoke" else "D"
    defenses = [defense(name, scale) for name in ("no_defense", "malade")]
    return {"radii": black_box(scale, classifier, defenses, epsilon=list(_RADII[scale]))}


def _radius(findings: Findings) -> Sequence[Comparison]:
    printed, run = table("table3"), findings["radii"]
    label = substitutes(run)[-1]
    radii = run.plan.config.epsilon or ()
    found = {
        (column, radius): by_seed(run, accuracy, defense=DEFENSES[column], source=label, epsilon=radius)
        for column in ("no_defense", "malade")
        for radius in radii
    }
    clean = by_seed(run, lambda cell: cell.clean_accuracy, defense="none", source=label, epsilon=radii[0])
    lines = {row[0]: row for row in printed.rows}
    rows = tuple(
        (
            f"{radius:g}",
            (
                Pair(float(lines[radius][1]), Ours(clean)),
                Pair(float(lines[radius][2]), Ours(found["no_defense", radius])),
                Pair(float(lines[radius][3]), Ours(found["malade", radius])),
            ),
        )
        for radius in radii
    )
    first, usual = radii[0], RADIUS
    dropped = {column: _gaps(found[column, first], found[column, usual]) for column in ("no_defense", "malade")}
    claim = Claim(
        "malade2018.claim.eps",
        "MALADE is never below no defense, and loses less than 3 points from 0.1 to 0.3 where no defense loses more than 30",
        (
            *(above(f"MALADE - no defense at {r:g}", found["malade", r], found["no_defense", r]) for r in radii),
            Inequality("3 - MALADE's loss", tuple(3.0 - one for one in dropped["malade"])),
            Inequality("no defense's loss", dropped["no_defense"], above=30.0),
        ),
    )
    columns = (("clean", "%"), ("FGSM, no defense", "%"), ("FGSM, MALADE", "%"))
    plot = Plot(
        "Accuracy under FGSM from a substitute",
        "radius",
        "accuracy (%)",
        tuple(
            Series(_named(column), tuple(radii), tuple(Ours(found[column, radius]) for radius in radii))
            for column in ("no_defense", "malade")
        ),
    )
    return (Comparison(printed.caption, columns, rows, (claim,), (f"pair {_pair_of(run)}",), (plot,)),)


# --- table 4


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


_CIFAR_RADIUS = 8 / 255


def _cifar(findings: Findings) -> Sequence[Comparison]:
    printed, run = table("table4"), findings["cifar"]
    found = {column: by_seed(run, accuracy, defense=DEFENSES[column]) for column in ("no_defense", "mala", "malade")}
    clean = by_seed(run, lambda cell: cell.clean_accuracy, defense="none")
    cells = [Pair(printed.cell("clean_accuracy", "blackbox", "FGSM"), Ours(clean))]
    cells += [Pair(printed.cell(column, "blackbox", "FGSM"), Ours(values)) for column, values in found.items()]
    claim = Claim(
        "malade2018.claim.malade_beats_mala",
        "MALADE is above MALA",
        (above("MALADE - MALA", found["malade"], found["mala"]),),
    )
    columns = (("clean, no defense", "%"), *((f"FGSM, {_named(column)}", "%") for column in found))
    return (Comparison(printed.caption, columns, (("CIFAR-10", tuple(cells)),), (claim,)),)


def _cifar_differs(scale: Scale) -> Sequence[str]:
    return (*differs(scale), "the paper names neither its CIFAR net nor the radius: sgr2018/cifar-cnn and 8/255 stand in")


# --- table 5, the sweep of strengths, and the sDAE's term


def _sigma_runs(scale: Scale) -> Mapping[str, Settings]:
    defenses = [defense("malade", scale, sigma=sigma) for sigma in _SIGMAS[scale]]
    return {"sigmas": black_box(scale, _SWEPT[scale], defenses, **once(scale))}


def _sigma(findings: Findings) -> Sequence[Comparison]:
    printed, run = table("table5"), findings["sigmas"]
    sigmas = sorted({cell.record.target["defense"]["arguments"]["sigma"] for cell in run.cells})
    found = {sigma: _both(run, "malade", {"sigma": sigma})[0] for sigma in sigmas}
    lines = {row[0]: float(row[1]) for row in printed.rows}
    rows = tuple((f"{sigma:g}", (Pair(lines[sigma], Ours(values)),)) for sigma, values in found.items())
    claim = Claim(
        "malade2018.claim.sigma",
        "the accuracy has its maximum at a training noise of 0.3",
        tuple(above(f"0.3 - {sigma:g}", found[0.3], values) for sigma, values in found.items() if sigma != 0.3),
    )
    return (Comparison(printed.caption, (("MALADE", "%"),), rows, (claim,), (f"pair {_pair_of(run)}",)),)


def _strength_runs(scale: Scale) -> Mapping[str, Settings]:
    defenses = [defense("malade", scale, step_size=step, noise=noise, epsilon=RADIUS) for step, noise in _STRENGTHS[scale]]
    return {"strengths": black_box(scale, _SWEPT[scale], defenses, **once(scale))}


def _strength(findings: Findings) -> Sequence[Comparison]:
    run = findings["strengths"]
    rows = [
        (f"a_0 = {step:g}, d_0 = {noise:g}", _both(run, "malade", {"step_size": step, "noise": noise})[1])
        for step, noise in _pairs_of(run)
    ]
    columns = (("clean", "%"), ("FGSM", "%"))
    caption = "MALADE with given step sizes and noise, black-box FGSM (the paper swept them and prints no numbers)"
    return (Comparison(caption, columns, tuple(rows), notes=(f"pair {_pair_of(run)}",)),)


def _pairs_of(run: RunFindings) -> list[tuple[float, float]]:
    """The strengths that ran, in order."""
    arguments = [cell.record.target["defense"]["arguments"] for cell in run.cells]
    return sorted({(one["step_size"], one["noise"]) for one in arguments})


def _weight_of(share: float) -> float | None:
    """The weight of the sDAE's term, in units of the usual one, as the defense takes it."""
    return None if share == 1.0 else round(2 * RADIUS**2 * share, 4)


def _weight_runs(scale: Scale) -> Mapping[str, Settings]:
    defenses = [defense("malade", scale, weight=_weight_of(share)) for share in _WEIGHTS[scale]]
    return {"weights": black_box(scale, _SWEPT[scale], [*defenses, defense("mala", scale)])}


def _weight(findings: Findings) -> Sequence[Comparison]:
    run = findings["weights"]
    there = {cell.record.target["defense"]["arguments"].get("weight", "none") for cell in run.cells}
    shares = [share for share in _WEIGHTS["full"] if _weight_of(share) in there]
    found = {share: _both(run, "malade", {"weight": _weight_of(share)}) for share in shares}
    rows = [(f"{share:g} * 2 sigma^2", pairs) for share, (_, pairs) in found.items()]
    rows.append(("MALA", _both(run, "mala", {})[1]))
    claim = Claim(
        "malade2018.ablation",
        "the sDAE's term helps: with it MALADE is above itself without it",
        (above("with - without", found[1.0][0], found[0.0][0]),),
    )
    notes = (
        f"pair {_pair_of(run)}; without its term the sDAE is the DAE and MALADE is MALA",
        "the paper leaves this ablation out; with a perfect classifier the term has mean zero to first order",
    )
    caption = "MALADE by the weight of the sDAE's cross-entropy, black-box FGSM"
    return (Comparison(caption, (("clean", "%"), ("FGSM", "%")), tuple(rows), (claim,), notes),)


def _both(run: RunFindings, name: str, arguments: Mapping[str, object]) -> tuple[tuple[float, ...], tuple[Pair, Pair]]:
    """The accuracies by seed of a defense under attack; clean and under attack as the cells of a row."""
    facts = {"defense": name, "source": substitutes(run)[-1]}
    clean, attacked = (by_seed(run, figure, arguments, **facts) for figure in (lambda cell: cell.clean_accuracy, accuracy))
    return attacked, (Pair(None, Ours(clean)), Pair(None, Ours(attacked)))


def _pair_of(run: RunFindings) -> str:
    """The paper's letters of a run's classifier and its last substitute."""
    name = (run.plan.config.architecture or ())[0].name
    classifier = next(letter for letter, each in CLASSIFIERS.items() if each == name)
    return f"{classifier}/{_letter(substitutes(run)[-1])}"


def _gaps(ours: Sequence[float], others: Sequence[float]) -> tuple[float, ...]:
    return tuple(a - b for a, b in zip(ours, others, strict=True))


def _sweep_differs(scale: Scale) -> Sequence[str]:
    seeds = () if scale == "full" else ("one training seed, which decides no claim",)
    return (*differs(scale), *seeds)


STUDIES = (
    Study("malade2018.table1", "table 1: black-box FGSM by classifier and substitute", _pair_runs, _pairs, differs),
    Study("malade2018.table3", "table 3: black-box FGSM by radius", _radius_runs, _radius, differs),
    Study("malade2018.table4", "table 4: black-box FGSM on CIFAR-10", _cifar_runs, _cifar, _cifar_differs, ("full",)),
    Study("malade2018.table5", "table 5: the denoiser's training noise", _sigma_runs, _sigma, _sweep_differs),
    Study("malade2018.stepsize", "step sizes and noise of the Langevin steps", _strength_runs, _strength, _sweep_differs),
    Study("malade2018.ablation", "the sDAE without its term", _weight_runs, _weight, differs),
)
