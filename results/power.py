"""What a run could have told: the power of a claim's test, from variances that other training seeds gave.

A calculation is committed before the run that it speaks of. Where a claim stays undecided and its run had less than an even
chance, the verdict is that it was not decidable there, and the calculation names a run that would decide.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from advbench.results.crossed import half_width
from advbench.results.statistics import Values

LEAST = 0.5
"""A run of less power could not have decided."""
ENOUGH = 0.8
"""The run that is named has at least this."""
_RUNS = 10_000


@dataclass(frozen=True, slots=True)
class Deviations:
    """Standard deviations of a difference: of a seed's effect, of an image's, and of what is left of the two together."""

    seed: float
    image: float
    rest: float


@dataclass(frozen=True, slots=True)
class Size:
    """How much a run has: training seeds and test images."""

    seeds: int
    images: int


@dataclass(frozen=True, slots=True)
class PowerCalculation:
    """A claim at a scale, the difference that it is about, and what it takes to see it.

    effect: how far from its bar the difference is expected, in the unit of the claim. pilot: the training seeds that the
    deviations come from, none of those that are judged. here, decides: the run at this scale, and one that would decide.
    command: of the latter.
    """

    claim: str
    scale: str
    effect: float
    pilot: tuple[int, ...]
    deviations: Deviations
    here: Size
    decides: Size
    command: str

    @property
    def power(self) -> float:
        """Of the run at this scale."""
        return power(self.effect, self.deviations, self.here)

    def speaks_of(self, seeds: Iterable[int]) -> bool:
        """Whether these judged seeds are others than the pilot's."""
        return not set(self.pilot) & set(seeds)


def power(effect: float, deviations: Deviations, size: Size) -> float:
    """The probability that the 95% interval of `advbench.results.crossed` lies above the bar, for normal effects.

    The share of simulated runs, of which the mean squares are drawn, so that their size costs nothing; within a point.
    Raises ValueError for fewer than two seeds or images.

    >>> round(power(1.0, Deviations(seed=0.5, image=0.0, rest=0.0), Size(3, 1000)), 1)
    0.5
    """
    seeds, images = size.seeds, size.images
    if seeds < 2 or images < 2:
        raise ValueError(f"Expected at least two seeds and two images, got {seeds} and {images}")
    rest = deviations.rest**2 / (seeds * images)
    by_seed, by_image = deviations.seed**2 / seeds, deviations.image**2 / images
    rng = np.random.default_rng(0)

    def drawn(variance: float, degrees: int) -> Values:
        square: Values = variance * rng.chisquare(degrees, _RUNS) / degrees
        return square

    terms = drawn(by_seed + rest, seeds - 1), drawn(by_image + rest, images - 1), drawn(rest, (seeds - 1) * (images - 1))
    means = effect + math.sqrt(by_seed + by_image + rest) * rng.standard_normal(_RUNS)
    return float((means > half_width(*terms, seeds, images)).mean())


@cache
def calculations() -> tuple[PowerCalculation, ...]:
    """Those that are committed, from `power.toml` beside the papers."""
    text = (resources.files("advbench.results.papers") / "power.toml").read_text(encoding="utf-8")
    return tuple(read(entry) for entry in tomllib.loads(text).get("power", []))


def read(entry: Mapping[str, Any]) -> PowerCalculation:
    """A calculation from its table. Raises ValueError where the run that is named would not decide."""
    made = PowerCalculation(
        claim=entry["claim"],
        scale=entry["scale"],
        effect=float(entry["effect"]),
        pilot=tuple(entry["pilot_seeds"]),
        deviations=Deviations(float(entry["seed_sd"]), float(entry["image_sd"]), float(entry["rest_sd"])),
        here=Size(entry["seeds"], entry["images"]),
        decides=Size(entry["deciding_seeds"], entry["deciding_images"]),
        command=entry["command"],
    )
    found = power(made.effect, made.deviations, made.decides)
    if found < ENOUGH:
        raise ValueError(f"{made.claim}: expected a deciding run of power >= {ENOUGH:g}, got {found:.2f}")
    return made
