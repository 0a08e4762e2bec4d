"""What a reproduction is made of: studies, each a table or figure of a paper, with its runs and its comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from advbench.reports.section import ImageGrid
from advbench.reproduction.findings import Findings
from advbench.reproduction.measured import difference
from advbench.results.papers import load

if TYPE_CHECKING:
    from advbench.reproduction.tuning import Selection, Tuned

Scale = Literal["smoke", "small", "medium", "full"]
EVERY_SCALE: tuple[Scale, ...] = ("smoke", "small", "medium", "full")
SCALES: tuple[Scale, ...] = ("smoke", "small", "full")
"""Those of a study that says nothing else: few have a medium one."""

FIRST_SEEDS = "first_seeds"
Settings: TypeAlias = Mapping[str, object]
"""Of one `advbench run`, by the names of its flags; `FIRST_SEEDS`: how many of the training seeds it takes, else all."""


class Ours(NamedTuple):
    """What was measured: one value per training seed, in the paper's unit, and whether their mean or median is shown."""

    values: Sequence[float]
    shown: Literal["mean", "median"] = "mean"

    @property
    def centre(self) -> float:
        """The mean or the median."""
        return float(median(self.values)) if self.shown == "median" else sum(self.values) / len(self.values)


class Pair(NamedTuple):
    """A number of the paper, None where it printed none, and ours, None where there is nothing to compare."""

    paper: float | None
    ours: Ours | None


Relation = Literal["above", "at most", "within"]


@dataclass(frozen=True, slots=True)
class Inequality:
    """A part of a claim: a difference that should exceed a threshold, stay at most at one, or within it on either side.

    text: what is compared. differences: one per training seed, in the unit of the table; a `SeedFigure` where the images are
    known. bound: the threshold, of `within` the margin. relation: `at most` is a test of non-inferiority, `within` one of
    equivalence (two one-sided tests, Schuirmann 1987): neither follows from a difference that is not significant.
    """

    text: str
    differences: Sequence[float]
    bound: float = 0.0
    relation: Relation = "above"


def above(text: str, ours: Sequence[float], others: Sequence[float], by: float = 0.0) -> Inequality:
    """That ours exceed the others by more than `by`."""
    return Inequality(text, difference(ours, others), by)


def at_most(text: str, figure: Sequence[float], bound: float) -> Inequality:
    """That a figure is no more than a bound."""
    return Inequality(text, figure, bound, "at most")


def within(text: str, ours: Sequence[float], others: Sequence[float], margin: float) -> Inequality:
    """That ours and the others differ by less than a margin, either way."""
    return Inequality(text, difference(ours, others), margin, "within")


class Withheld(NamedTuple):
    """Why inequalities that hold, or decide nothing, do not make a claim hold, and the verdict that stands there instead."""

    verdict: Literal["undecided", "not decidable here", "not tested"]
    reason: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A statement of the paper as inequalities, all of which must hold.

    id: as in the paper's file. text: the statement. parts: the inequalities as printed, by the paper's recipe on each side;
    none if it could not be tested, which `untested` explains. attributable: the same with one recipe, an equal tuning budget
    and equal clean error on both sides, so that a difference is the method's; none if no such comparison was made. withheld:
    why the inequalities alone do not suffice, such as a test of the paper that the run is too small for.
    """

    id: str
    text: str
    parts: tuple[Inequality, ...]
    untested: str = ""
    attributable: tuple[Inequality, ...] = ()
    withheld: Withheld | None = None


def claim_of(
    id_: str,
    parts: Iterable[Inequality],
    *,
    where: str = "",
    untested: str = "",
    attributable: Iterable[Inequality] = (),
    withheld: Withheld | None = None,
) -> Claim:
    """A claim in the words of the paper's file. where: what this table has of it. Raises ValueError for an unknown id."""
    text = load(id_.split(".")[0]).claim(id_).text
    return Claim(id_, f"{text} ({where})" if where else text, tuple(parts), untested, tuple(attributable), withheld)


def ambiguity(id_: str) -> str:
    """What a paper leaves open and how it is read here, from the paper's file. Raises ValueError for an unknown id."""
    known = load(id_.split(".")[0]).ambiguities
    if id_ not in known:
        raise ValueError(f"Expected an ambiguity among {', '.join(known)}, got {id_!r}")
    return known[id_]


@dataclass(frozen=True, slots=True)
class Series:
    """A line of a plot.

    x: positions, ascending. ours: what was measured at each, by training seed.
    """

    name: str
    x: tuple[float, ...]
    ours: tuple[Ours, ...]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.ours):
            raise ValueError(f"Expected a value for each of {len(self.x)} positions of {self.name!r}, got {len(self.ours)}")


@dataclass(frozen=True, slots=True)
class Plot:
    """Curves: means over training seeds with the range between the lowest and the highest, and a table of the same numbers.

    x_label, y_label: with their units, such as ``accuracy (%)``.
    """

    caption: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A table of the paper beside ours.

    columns: headings of the values, with their units. rows: a label and a pair for each column, none where there are only
    figures. notes: of this table alone. plots, images: the figures that belong to it (`advbench.reports.images.image_grid`
    makes a grid of images).
    """

    caption: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, tuple[Pair, ...]], ...]
    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = ()
    plots: tuple[Plot, ...] = ()
    images: tuple[ImageGrid, ...] = ()


@dataclass(frozen=True, slots=True)
class Study:
    """A table or figure that can be reproduced.

    name: PAPER.TABLE. title: in words. runs: by name, the settings of the runs at a scale, without seeds and folders;
    compare: what the runs found beside the paper. differs: what is other than in the paper at a scale. scales: those at
    which it exists. tuning, tuned_runs: how strengths are chosen before the runs, and the runs with these; `runs` has them
    untuned. more_seeds: by scale, how many training seeds are judged beside those that were asked for.
    """

    name: str
    title: str
    runs: Callable[[Scale], Mapping[str, Settings]]
    compare: Callable[[Findings], Sequence[Comparison]]
    differs: Callable[[Scale], Sequence[str]]
    scales: tuple[Scale, ...] = SCALES
    tuning: Selection | None = None
    tuned_runs: Callable[[Scale, Tuned], Mapping[str, Settings]] | None = None
    more_seeds: Mapping[Scale, int] = field(default_factory=dict)

    def seeds(self, asked: Sequence[int], scale: Scale) -> tuple[int, ...]:
        """The training seeds of a call: those that were asked for, and if more are judged at the scale the next ones."""
        return (*asked, *range(max(asked) + 1, max(asked) + 1 + self.more_seeds.get(scale, 0)))

    @property
    def paper(self) -> str:
        """The paper's key."""
        return self.name.split(".")[0]
