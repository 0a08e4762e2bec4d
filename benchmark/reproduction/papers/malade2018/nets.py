"""Srinivasan et al. 2018 (arXiv:1805.12017): what its experiments share, and how large they are here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from advbench.reproduction.findings import RunFindings, ScoredCell
from advbench.reproduction.measured import SeedFigure
from advbench.reproduction.study import FIRST_SEEDS, Scale, Settings
from advbench.results.papers import PaperTable, load

RADIUS = 0.3
CLASSIFIERS = {letter: f"malade2018/{letter.lower()}" for letter in "ABCD"}
"""The paper's letters and ours."""
PAIRS: Mapping[Scale, Mapping[str, tuple[str, ...]]] = {
    "smoke": {"D": ("D",)},
    "small": {"C": ("D",), "D": ("D",)},
    "medium": {"A": ("B", "C"), "B": ("A", "D"), "C": ("B", "D"), "D": ("A", "D")},
    "full": {"A": ("B", "C"), "B": ("A", "D"), "C": ("B", "D"), "D": ("A", "D")},
}
"""The architectures of the substitutes, by that of the classifier that they imitate."""
DEFENSES = {
    "no_defense": "none",
    "mala": "mala",
    "malade": "malade",
    "defense_gan": "defense-gan",
    "magnet": "magnet",
}
"""The paper's columns and our defenses."""
NAMES = {
    "no_defense": "no defense",
    "mala": "MALA",
    "malade": "MALADE",
    "defense_gan": "Defense-GAN",
    "magnet": "MagNet",
}
"""The columns as the paper calls them."""
ATTACKER = "gu2014/n100-100-10"
"""The other net, on whose FGSM images schedules are searched."""
OFFSET = "annealed, with an offset"
"""How step size and noise fall where nothing else is said."""
COMMON: Mapping[Scale, Settings] = {
    "smoke": {
        "dataset": "digits",
        "epochs": 3,
        "train_examples": 400,
        "n_examples": 10,
        "batch": 10,
        "draws": 1,
        "score_draws": 2,
        "substitute_rounds": 1,
        "substitute_seeds": 60,
    },
    "small": {
        "dataset": "mnist",
        "epochs": 4,
        "train_examples": 8_000,
        "batch_size": 32,
        "n_examples": 1_000,
        "batch": 50,
        "score_draws": 1,
        "substitute_rounds": 6,
    },
    "medium": {"dataset": "mnist", "epochs": 10, "n_examples": 1_000, "score_draws": 3, "substitute_rounds": 6},
    "full": {"dataset": "mnist", "epochs": 50, "substitute_rounds": 6},
}
"""Of every run: the budget of trainings, and how many images and draws."""
_GAN: Mapping[Scale, Settings] = {
    "smoke": {"steps": 5, "restarts": 1, "generator": "generator(network='dense', width=16, iterations=40)"},
    "small": {
        "steps": 100,
        "restarts": 4,
        "generator": "generator(network='dense', iterations=5000, learning_rate=0.0005)",
    },
    "medium": {
        "steps": 200,
        "restarts": 4,
        "generator": "generator(network='dense', width=128, iterations=20000, learning_rate=0.0003)",
    },
    "full": {"steps": 200, "restarts": 10, "generator": "generator(iterations=200000)"},
}
DEAR_SEEDS: Mapping[Scale, Settings] = {
    "smoke": {FIRST_SEEDS: 1},
    "small": {FIRST_SEEDS: 3},
    "medium": {FIRST_SEEDS: 3},
    "full": {},
}
"""Of runs that cost much: as few seeds as decide anything."""
MORE_SEEDS: Mapping[Scale, int] = {"small": 2, "medium": 2}
"""Judged beside those that were asked for, where a seed costs little."""

Chosen: TypeAlias = Mapping[str, float]
"""What was chosen on a seed that is not judged, by name: the numbers of the schedules, and what qualifies Defense-GAN."""


def chosen_key(column: str, classifier: str, family: str, name: str) -> str:
    """The name of a number of a schedule among what was chosen."""
    return f"{column} on {classifier}, {family}: {name}"


def schedule(chosen: Chosen, column: str, classifier: str, family: str = OFFSET) -> Settings:
    """The chosen schedule of MALA or MALADE before a classifier, as arguments; that of D where it has none of its own."""
    on = classifier if chosen_key(column, classifier, family, "steps") in chosen else "D"
    names = ("step_size", "noise", "decay", "step_offset", "noise_offset")
    found: dict[str, object] = {name: chosen[chosen_key(column, on, family, name)] for name in names}
    return {**found, "steps": int(chosen[chosen_key(column, on, family, "steps")])}


def unscheduled(column: str) -> Settings:
    """MALA or MALADE with some schedule, for its parts alone."""
    return {"name": DEFENSES[column], "step_size": 1.0, "noise": 0.0}


def relaxing(column: str, chosen: Chosen, classifier: str, family: str = OFFSET, **arguments: object) -> Settings:
    """MALA or MALADE with its chosen schedule, as a run takes it."""
    return {"name": DEFENSES[column], **schedule(chosen, column, classifier, family), **arguments}


def defense(column: str, scale: Scale) -> Settings:
    """One of the paper's columns that has no schedule, as a run takes it."""
    usual: Mapping[str, Settings] = {"defense_gan": _GAN[scale], "magnet": {"detector": None}}
    return {"name": DEFENSES[column], **usual.get(column, {})}


def columns(scale: Scale, chosen: Chosen, classifier: str, *, gan: bool) -> list[Settings]:
    """All columns before a classifier. gan: whether Defense-GAN is among them."""
    return [
        relaxing(column, chosen, classifier) if column in ("mala", "malade") else defense(column, scale)
        for column in DEFENSES
        if gan or column != "defense_gan"
    ]


def black_box(scale: Scale, classifier: str, defenses: Sequence[Settings], **settings: object) -> Settings:
    """FGSM through the substitutes of one classifier, each of them for every defense."""
    return {
        **COMMON[scale],
        "matrix": ["black-box"],
        "architecture": [CLASSIFIERS[classifier]],
        "substitute": [CLASSIFIERS[one] for one in PAIRS[scale][classifier]],
        "defense": list(defenses),
        "attack": ["fgsm"],
        "norm": "linf",
        "epsilon": [RADIUS],
        **settings,
    }


def white_box(scale: Scale, classifier: str, defenses: Sequence[Settings], **settings: object) -> Settings:
    """Attackers who know the defenses of one classifier."""
    return {
        **COMMON[scale],
        "matrix": ["white-box"],
        "architecture": [CLASSIFIERS[classifier]],
        "defense": list(defenses),
        **settings,
    }


def one_pair(scale: Scale, classifier: str, defenses: Sequence[Settings], **settings: object) -> Settings:
    """FGSM through the last substitute of one classifier, for every defense."""
    last = CLASSIFIERS[PAIRS[scale][classifier][-1]]
    return black_box(scale, classifier, defenses, **{"substitute": [last], **settings})


def table(name: str) -> PaperTable:
    """A table of the paper."""
    return load("malade2018").tables[f"malade2018.{name}"]


def source(substitute: str) -> str:
    """The label of a substitute of one of the paper's letters."""
    return f"substitute {CLASSIFIERS[substitute]}"


def substitutes(run: RunFindings) -> list[str]:
    """The labels of the substitutes of a run, in its order."""
    return [f"substitute {spec.name}" for spec in run.plan.config.substitute or ()]


def by_seed(
    run: RunFindings, figure: Callable[[ScoredCell], float], arguments: Mapping[str, object] | None = None, **facts: object
) -> SeedFigure:
    """A figure of the one cell with these facts, for each training seed of the run.

    arguments: of the defense, where several of one name ran. Raises ValueError unless there is one such cell per seed.
    """
    found = []
    for seed in run.plan.config.seed:
        cells = [cell for cell in run.all(seed=seed, **facts) if _has(cell, arguments or {})]
        if len(cells) != 1:
            said = ", ".join(f"{name}={value}" for name, value in {**facts, **(arguments or {})}.items())
            raise ValueError(f"Expected one cell with seed={seed}, {said}; got {len(cells)}")
        found.append(figure(cells[0]))
    return SeedFigure.of(found)


def _has(cell: ScoredCell, arguments: Mapping[str, object]) -> bool:
    given = cell.record.target["defense"]["arguments"]
    return all(given[name] == value for name, value in arguments.items())


def accuracy(cell: ScoredCell) -> float:
    """Under the attack, in percent."""
    return cell.accuracy


def clean(cell: ScoredCell) -> float:
    """Accuracy without an attack, in percent."""
    return cell.clean_accuracy


def letter_of(label: str) -> str:
    """The paper's letter of a substitute's label."""
    return next(letter for letter in CLASSIFIERS if source(letter) == label)


def pair_of(run: RunFindings) -> str:
    """The paper's letters of a run's classifier and its last substitute."""
    name = (run.plan.config.architecture or ())[0].name
    classifier = next(letter for letter, each in CLASSIFIERS.items() if each == name)
    return f"{classifier}/{letter_of(substitutes(run)[-1])}"


def differs(scale: Scale) -> tuple[str, ...]:
    """What is other than in the paper."""
    sizes = {
        "smoke": "digits, classifier D alone; 3 epochs on 400 images, 10 test images; Defense-GAN with 5 steps, one restart "
        "and a small dense generator; substitutes from 60 images and one round of augmentation",
        "small": "pairs C/D and D/D; 4 epochs on 8,000 images, 1,000 test images, stochastic models scored on one draw; "
        "Defense-GAN with L=100, R=4 and a dense generator after 5,000 updates; C on three training "
        "seeds and with D's schedule",
        "medium": "10 epochs, 1,000 test images; Defense-GAN with L=200, R=4 and a dense generator after 20,000 updates; "
        "all but D on three training seeds",
        "full": "optimizer and schedule, which the paper does not print",
    }
    return (
        sizes[scale],
        "the paper's step sizes, noise and annealing are lost: a_t = a_0 decay^t + 0.05, d_t = d_0 decay^t + 0.005; a_0, "
        "d_0, decay and the number of steps are searched on validation images of a seed that is not judged, by the mean of "
        "clean accuracy and of that on another net's FGSM; the filters of its denoiser are lost too",
        "Defense-GAN, the substitute and the sizes of A to D follow the code of Samangouei et al. 2018, to which the paper "
        "compares itself",
    )
