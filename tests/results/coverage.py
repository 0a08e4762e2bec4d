"""How often the crossed intervals hold the truth: `python -m tests.results.coverage` prints the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from advbench.results.crossed import crossed_mean

SEEDS = (3, 5, 8)
IMAGES = (60, 300, 2_000, 10_000)


@dataclass(frozen=True)
class Draws:
    """Tables of per-image differences, (seeds, images), and their true mean; step: as for `crossed_mean`."""

    table: Callable[[np.random.Generator, int, int], NDArray[np.float64]]
    truth: float
    step: float = 0.0


def normal(seed: float, image: float = 1.0, rest: float = 1.0) -> Draws:
    """Normal effects. seed: the variance of seeds in the mean, in units of that of images and the rest."""

    def table(rng: np.random.Generator, seeds: int, images: int) -> NDArray[np.float64]:
        from_images = image**2 / images + rest**2 / (seeds * images)
        by_seed = np.sqrt(seed * seeds * from_images) * rng.standard_normal((seeds, 1))
        noise = rest * rng.standard_normal((seeds, images))
        return np.asarray(by_seed + image * rng.standard_normal(images) + noise)

    return Draws(table, 0.0)


def matched(gained: float, lost: float, shared: float) -> Draws:
    """Differences of two accuracies in percent: shares of images gained and lost; of `shared` images all seeds agree."""

    def table(rng: np.random.Generator, seeds: int, images: int) -> NDArray[np.float64]:
        alike = rng.random(images) < shared
        u = np.where(alike, rng.random(images), rng.random((seeds, images)))
        return 100.0 * (u < gained) - 100.0 * (u > 1 - lost)

    return Draws(table, 100.0 * (gained - lost), 100.0)


CASES: Mapping[str, Draws] = {
    "no seed variance": normal(0.0),
    "no seed variance, shares": matched(0.1, 0.05, 0.8),
    "seeds 0.3 x images": normal(0.3),
    "seeds 3 x images": normal(3.0),
    "seeds 10 x images": normal(10.0),
    "seeds alone": normal(1e4),
}
"""Held to 93 to 97.5%."""
CAUTIOUS: Mapping[str, Draws] = {
    "no seed variance, no image alike": normal(0.0, image=0.0),
    "2% gained and 1% lost, half alike": matched(0.02, 0.01, 0.5),
    "1% gained, all alike": matched(0.01, 0.0, 1.0),
    "5% gained, all alike": matched(0.05, 0.0, 1.0),
}
"""Where the intervals may be wider than they would have to."""


def covered(draws: Draws, seeds: int, images: int, repeats: int) -> float:
    """The share of intervals that hold the truth, in percent."""
    rng = np.random.default_rng((seeds, images))
    hits = 0
    for _ in range(repeats):
        found = crossed_mean(draws.table(rng, seeds, images), draws.step).interval()
        hits += found.low - 1e-9 <= draws.truth <= found.high + 1e-9
    return 100.0 * hits / repeats


def repeats(images: int) -> int:
    """As many as give a standard error of half a point or less at 95%."""
    return 4_000 if images <= 300 else 2_000


def lines(cases: Mapping[str, Draws]) -> Iterator[str]:
    yield "| seeds | images | " + " | ".join(cases) + " |"
    yield "|---" * (len(cases) + 2) + "|"
    for seeds in SEEDS:
        for images in IMAGES:
            found = (f"{covered(draws, seeds, images, repeats(images)):.1f}" for draws in cases.values())
            yield f"| {seeds} | {images:,} | " + " | ".join(found) + " |"


if __name__ == "__main__":
    for line in lines({**CASES, **CAUTIOUS}):
        print(line, flush=True)
