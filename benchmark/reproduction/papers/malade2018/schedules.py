"""Srinivasan et al. 2018 (arXiv:1805.12017): schedules of MALA and MALADE are chosen on a seed that is not judged."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from torch import Tensor

from advbench.attacks.access import WhiteBox
from advbench.attacks.fgm import FGSM
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel, Untargeted
from advbench.defenses.defended import Defended
from advbench.reproduction.clean import kept_path
from advbench.reproduction.findings import Findings
from advbench.reproduction.papers.malade2018.gan import QUALIFYING, qualification, qualifying_run
from advbench.reproduction.papers.malade2018.grid import FAMILIES, Schedule, ScheduleScore, best, searched
from advbench.reproduction.papers.malade2018.nets import (
    ATTACKER,
    COMMON,
    DEFENSES,
    NAMES,
    OFFSET,
    RADIUS,
    Chosen,
    chosen_key,
    differs,
    unscheduled,
    white_box,
)
from advbench.reproduction.study import EVERY_SCALE, SCALES, Comparison, Ours, Pair, Scale, Settings, Study
from advbench.reproduction.tuning import Tuned, ValidationSearch
from advbench.tasks.artefacts import read, save, whole
from advbench.zoo.data import Split

SEED: Final = 100
"""Of the nets that schedules are chosen on."""
_CLASSIFIERS: Mapping[Scale, tuple[str, ...]] = {
    "smoke": ("D",),
    "small": ("D",),
    "medium": ("B", "D"),
    "full": ("A", "B", "C", "D"),
}
"""Those with schedules of their own; the others take that of D, whose pass costs least."""
_IMAGES: Mapping[Scale, int] = {"smoke": 20, "small": 200, "medium": 500, "full": 1000}
"""The last of the validation images: the first are the black-box attacker's."""
_FAMILIES = {"mala": (OFFSET,), "malade": tuple(FAMILIES)}
"""How step size and noise may fall, by the defense whose schedules are searched so."""


def _runs(scale: Scale) -> Mapping[str, Settings]:
    """The nets of the search; an attack on a few images is what a run needs."""
    seen: Settings = {"norm": "linf", "epsilon": [RADIUS], "attack": ["fgsm"], "n_examples": 10, "batch": 10}
    once: Settings = {**seen, "seed": (SEED,), "score_draws": 1, "draws": 1}
    relaxing = [unscheduled(column) for column in _FAMILIES]
    found = {classifier: white_box(scale, classifier, relaxing, **once) for classifier in _CLASSIFIERS[scale]}
    other = {**COMMON[scale], "matrix": ["white-box"], "architecture": [ATTACKER], "defense": [{"name": "none"}], **once}
    return {**found, ATTACKER: other}


def _with_gan(scale: Scale) -> Mapping[str, Settings]:
    return {**_runs(scale), QUALIFYING: {**qualifying_run(scale), "seed": (SEED,)}}


def points_of(findings: Findings, scale: Scale, classifier: str, column: str, family: str) -> list[ScheduleScore]:
    """All schedules that the search scores for a defense of a classifier; kept beside the run's results."""
    run, other = findings[classifier], findings[ATTACKER]
    cell = run.first(seed=SEED, matrix="white-box", defense=DEFENSES[column])
    grid, images = FAMILIES[family], _IMAGES[scale]
    rule = hashlib.sha256(repr((grid, images)).encode()).hexdigest()[:12]
    path = kept_path(run, cell, f"schedules-{rule}")
    if not whole(path):
        split = held_out(run.plan.data.validation, images)
        net = other.defended(other.first(seed=SEED, matrix="white-box", defense="none"))
        x_adv = _transferred(net, split, ThreatModel("linf", RADIUS, run.plan.data.box))
        found = searched(run.defended(cell), split, x_adv, grid, SEED)
        save(path, numbers=np.array([_numbers(one) for one in found]))
    return [
        ScheduleScore(Schedule(a, d, decay, int(steps), a_end, d_end), clean, attacked, loss)
        for a, d, decay, steps, a_end, d_end, clean, attacked, loss in read(path)["numbers"].tolist()
    ]


def _transferred(net: Defended, split: Split, threat: ThreatModel) -> Tensor:
    """FGSM images of a net, which neither defense stands before, (n, c, h, w)."""
    rng = ExampleRNG.make(SEED, "calibrate", split.index)
    with WhiteBox(net.model, rng.fork("attacker"), stochastic=net.stochastic) as access:
        return FGSM()(access, split.x, Untargeted(split.y), threat, rng.fork("attack"))


def held_out(validation: Split, images: int) -> Split:
    """The last of the validation images, at most half of them."""
    return validation.select(slice(len(validation) - min(images, len(validation) // 2), None))


def _numbers(one: ScheduleScore) -> tuple[float, ...]:
    return (*map(float, one.schedule.settings.values()), one.clean, one.attacked, one.loss)  # type: ignore[arg-type]


def _find(findings: Findings, scale: Scale) -> Tuned:
    chosen, seen = dict[str, float](), dict[str, tuple[tuple[str, tuple[float, ...]], ...]]()
    for classifier in _CLASSIFIERS[scale]:
        for column, families in _FAMILIES.items():
            for family in families:
                found = points_of(findings, scale, classifier, column, family)
                for name, value in best(found).schedule.settings.items():
                    chosen[chosen_key(column, classifier, family, name)] = float(value)  # type: ignore[arg-type]
                seen[f"{NAMES[column]} on {classifier}, {family}"] = tuple(_told(found))
    gan = qualification(findings[QUALIFYING], SEED) if QUALIFYING in findings.runs else {}
    return Tuned({**chosen, **gan}, {}, images=_IMAGES[scale], seen=seen)


def _told(found: Sequence[ScheduleScore]) -> Iterator[tuple[str, tuple[float, ...]]]:
    """The best schedule first, and then the best of each number of steps: the mean accuracy, the clean one, the attacked."""
    first = best(found)
    yield f"{first.schedule.text}, chosen", _figures(first)
    for steps in sorted({one.schedule.steps for one in found} - {first.schedule.steps}):
        one = best(each for each in found if each.schedule.steps == steps)
        yield one.schedule.text, _figures(one)


def _figures(one: ScheduleScore) -> tuple[float, ...]:
    return one.score[0], one.clean, one.attacked


def _before(family: str) -> Schedule:
    """The schedule to plan with before any is searched."""
    offsets = {} if FAMILIES[family].offset else {"step_offset": 0.0, "noise_offset": 0.0}
    return Schedule(1.0, 0.05, 1.0 if family == "constant" else 0.9, 10, **offsets)


_UNTUNED: Chosen = {
    chosen_key(column, "D", family, name): float(value)  # type: ignore[arg-type]
    for column, families in _FAMILIES.items()
    for family in families
    for name, value in _before(family).settings.items()
}
SEARCH = ValidationSearch("malade2018.schedules", _runs, _find, (SEED,), EVERY_SCALE, _UNTUNED)
SEARCH_WITH_GAN = ValidationSearch("malade2018.schedules, Defense-GAN", _with_gan, _find, (SEED,), EVERY_SCALE, _UNTUNED)
"""The same, and whether Defense-GAN qualifies."""


def study(
    name: str,
    title: str,
    runs: Callable[[Scale, Chosen], Mapping[str, Settings]],
    compare: Callable[[Findings], Sequence[Comparison]],
    differs_at: Callable[[Scale], Sequence[str]],
    *,
    scales: tuple[Scale, ...] = SCALES,
    search: ValidationSearch = SEARCH,
    more_seeds: Mapping[Scale, int] | None = None,
) -> Study:
    """A study whose runs have the schedules that were chosen."""
    return Study(
        name,
        title,
        lambda scale: runs(scale, search.untuned),
        compare,
        differs_at,
        scales=scales,
        tuning=search,
        tuned_runs=lambda scale, tuned: runs(scale, tuned.chosen),
        more_seeds=more_seeds or {},
    )


# --- the search as a table


def _compare(findings: Findings) -> Sequence[Comparison]:
    tuned = findings.tuned
    if tuned is None:
        raise ValueError("Expected schedules that were searched on validation images, got none")
    rows = tuple(
        (f"{name}: {text}", tuple(Pair(None, Ours((value,))) for value in figures))
        for name, each in tuned.seen.items()
        for text, figures in each
    )
    columns = (("mean of both", "%"), ("clean", "%"), ("FGSM of another net", "%"))
    caption = f"Schedules on {tuned.images} validation images of seed {SEED}, which no claim counts"
    notes = (
        "every combination is scored by forward passes alone; where the best lies at an edge, the axis is extended and what "
        "is new beside the best is scored (below one step, beyond 40, beyond a_0 = 3 and a decay of 0.97 there is nothing "
        "to add). Of every other number of steps the best stands here; the paper has N = 10",
        "a first step beyond 1 takes away more than the denoiser finds: what FGSM added stands there with the opposite "
        "sign, and helps the classifier. Such a schedule is made for this attack; what it leaves to one who knows it is in "
        "table 2",
    )
    return (Comparison(caption, columns, rows, (), notes),)


def _differs(scale: Scale) -> Sequence[str]:
    return (*differs(scale), "the paper says that it searched step size and noise, and prints neither grid nor numbers")


STUDIES = (
    study("malade2018.schedules", "how schedules were chosen", lambda _, __: {}, _compare, _differs, scales=EVERY_SCALE),
)
