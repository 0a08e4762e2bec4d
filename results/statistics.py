"""Rates, intervals and distortions, derived from records when they are read.

An example is clean-correct if the model answers its clean image correctly, for a stochastic model in at least one draw;
every other example counts as not robust under any attack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from advbench.results.record import Examples, Record

Values: TypeAlias = NDArray[np.float64]
Number = TypeVar("Number", np.float64, np.int64)

TOLERANCE = 1e-5
"""How far, as a fraction of epsilon, a distance may lie beyond epsilon and still count as within."""
SURVIVORS_BELOW = 0.99
_Z = 1.959963984540054
_RESAMPLES = 4000
_TAILS = (0.025, 0.975)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Distortion:
    """How far a minimal-norm attack had to go, in the threat's norm.

    median: over clean-correct examples, failures at infinity. mean_rms, mean_ratio (l2 of the perturbation over l2 of the
    image): over successes among the clean-correct, NaN without any. survivors: whether fewer than 99% succeeded, so that
    the two means speak of survivors only.
    """

    median: Estimate
    mean_rms: float
    mean_ratio: float
    survivors: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CellStatistics:
    """The figures of one scored cell.

    robust_accuracy: at the record's epsilon; None for a minimal-norm attack without one. success_all, success_clean_correct:
    the share of all (clean errors are successes) and of clean-correct examples that the attack made wrong at any distance;
    the latter is NaN if no example is clean-correct. distortion: None for fixed-epsilon attacks. seconds, forwards,
    backwards, queries: per attacked example, None if no example was attacked or nothing was measured.
    """

    n: int
    clean_accuracy: Estimate
    robust_accuracy: Estimate | None
    success_all: Estimate
    success_clean_correct: Estimate
    distortion: Distortion | None
    seconds: float | None
    forwards: float | None
    backwards: float | None
    queries: float | None


@dataclass(frozen=True, slots=True, eq=False)
class WorstOutcome:
    """The worst case over several attackers.

    values: share of correct answers by example, (n,). chosen: the attacker used on each example, (n,), -1 if none is
    within epsilon and the clean image stands.
    """

    values: Values
    chosen: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class OverSeeds:
    """A rate over several training seeds: mean with an interval over examples, and the value of every seed."""

    estimate: Estimate
    by_seed: tuple[float, ...]


Outcome: TypeAlias = tuple[Record, Examples]


def wilson(successes: float, n: int) -> Estimate:
    """The share `successes` / `n` with Wilson's 95% score interval (Wilson 1927).

    Raises ValueError unless 0 <= successes <= n and n > 0.

    >>> found = wilson(90, 100)
    >>> round(found.value, 3), round(found.low, 3), round(found.high, 3)
    (0.9, 0.826, 0.945)
    """
    if not (n > 0 and 0 <= successes <= n):
        raise ValueError(f"Expected 0 <= `successes` <= `n` and `n` > 0, got {successes} and {n}")
    p, z2 = successes / n, _Z**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n**2)) / (1 + z2 / n)
    return Estimate(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def bootstrap_mean(values: Values, seed: int = 0) -> Estimate:
    """The mean of `values`, (n,), with the 95% percentile bootstrap interval over examples (Efron 1979).

    A resample is drawn as the counts of its distinct values, which are multinomial, so that thousands of resamples of counts
    out of a few draws cost next to nothing.

    >>> found = bootstrap_mean(np.repeat([0.2, 0.8], 50))
    >>> round(found.value, 3), round(found.low, 2), round(found.high, 2)
    (0.5, 0.44, 0.56)
    """
    distinct, counts = np.unique(_not_empty(values), return_counts=True)
    resamples = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=_RESAMPLES)
    low, high = np.quantile(resamples @ distinct / len(values), _TAILS)
    return Estimate(float(values.mean()), float(low), float(high))


def bootstrap_median(values: Values, seed: int = 0) -> Estimate:
    """The median of `values`, (n,), infinities allowed, with the 95% percentile bootstrap interval over examples.

    The median of a resample is an order statistic of n uniform positions. These follow beta distributions, so that the
    resamples' medians are drawn directly: the m-th smallest of n uniforms is Beta(m, n - m + 1), and the next one divides
    the rest as Beta(1, n - m).

    >>> bootstrap_median(np.array([1.0, 2.0, 3.0, np.inf, np.inf]))  # the attack failed on two of five
    Estimate(value=3.0, low=1.0, high=inf)
    """
    ordered = np.sort(_not_empty(values))
    n, rng = len(ordered), np.random.default_rng(seed)
    m = (n + 1) // 2
    lower = rng.beta(m, n - m + 1, size=_RESAMPLES)
    upper = lower if n % 2 else lower + (1 - lower) * rng.beta(1, n - m, size=_RESAMPLES)
    # A uniform number times n, rounded down, is the position in the sorted values of what a resample drew. The median of an
    # even number of values is the mean of the middle two.
    positions = np.minimum((np.stack((lower, upper)) * n).astype(np.int64), n - 1)
    low, high = np.quantile(ordered[positions].mean(axis=0), _TAILS, method="closest_observation")
    return Estimate(float(np.median(ordered)), float(low), float(high))


def quantile(values: Values, share: float) -> float:
    """The `share`-quantile of `values`, (n,), infinities allowed: the mean of the two values between which it falls.

    The averaged inverse of the distribution function (Hyndman & Fan 1996, definition 2), whose median is the usual one.
    Raises ValueError for no value, or a share outside (0, 1).

    >>> [quantile(np.array([1.0, 2.0, 3.0, np.inf]), share) for share in (0.25, 0.5, 0.6)]
    [1.5, 2.5, 3.0]
    """
    if not 0 < share < 1:
        raise ValueError(f"Expected `share` in (0, 1), got {share}")
    ordered = np.sort(_not_empty(values))
    place = round(share * len(ordered), 9)
    upper = min(math.floor(place), len(ordered) - 1)
    lower = upper - 1 if place == math.floor(place) else upper
    return float((ordered[lower] + ordered[upper]) / 2)


def rate(values: Values) -> Estimate:
    """The mean of shares in [0, 1], (n,): Wilson's interval if each is 0 or 1, the bootstrap over examples otherwise.

    >>> rate(np.array([1.0, 1.0, 0.0, 1.0])) == wilson(3, 4)
    True
    """
    if np.isin(_not_empty(values), (0.0, 1.0)).all():
        return wilson(float(values.sum()), len(values))
    return bootstrap_mean(values)


def clean_correct(examples: Examples) -> NDArray[np.bool_]:
    """Which examples are clean-correct, shape (n,)."""
    return examples.clean_correct > 0


def distance(record: Record, examples: Examples) -> Values:
    """Distances in the norm of the record's threat, shape (n,); in l2 if the threat has no norm."""
    norm = record.threat["norm"]
    distances: Values = getattr(examples, "distance_l2" if norm == "none" else f"distance_{norm}")
    return distances


def robust(record: Record, examples: Examples, epsilon: float | None = None) -> Values:
    """The share of correct answers under attack by example, shape (n,): 0 or 1 for a deterministic model.

    epsilon: epsilon, by default the record's own; any epsilon for a minimal-norm attack, which breaks an example only
    where it is within. Beyond, the clean image stands. Raises ValueError if the record cannot speak of `epsilon`.
    """
    reported = np.where(within(record, examples, epsilon), examples.report_correct, examples.clean_correct)
    return np.where(clean_correct(examples), reported / examples.draws, 0.0)


def within(record: Record, examples: Examples, epsilon: float | None = None) -> NDArray[np.bool_]:
    """Which adversarials may be used at `epsilon` (by default the record's own), shape (n,). Raises as `robust` does."""
    own = record.threat["epsilon"]
    epsilon = own if epsilon is None else epsilon
    if not record.attack["minimal_norm"]:
        if record.threat["norm"] != "none" and epsilon != own:
            raise ValueError(f"Expected epsilon {own}, at which {record.attack['label']} ran, got {epsilon}")
        return np.ones(len(examples), dtype=np.bool_)
    if epsilon is None:
        raise ValueError(f"Expected an `epsilon` for the minimal-norm attack {record.attack['label']}, got None")
    return distance(record, examples) <= epsilon * (1 + TOLERANCE)


def robust_curve(record: Record, examples: Examples, epsilons: Values) -> Values:
    """Robust accuracy of a minimal-norm cell at every epsilon of `epsilons`, shape (m,)."""
    clean = np.where(clean_correct(examples), examples.clean_correct / examples.draws, 0.0)
    drops = clean - np.where(clean_correct(examples), examples.report_correct / examples.draws, 0.0)
    # Sorted by distance, the curve at any epsilon is a prefix of the cumulative loss: one sort serves all epsilons. Images
    # that were not attacked have no distance and are never lost.
    distances = np.nan_to_num(distance(record, examples), nan=np.inf)
    order = np.argsort(distances, kind="stable")
    lost = np.concatenate(([0.0], np.cumsum(drops[order])))
    broken = np.searchsorted(distances[order], epsilons * (1 + TOLERANCE), side="right")
    curve: Values = np.clip((clean.sum() - lost[broken]) / len(examples), 0.0, 1.0)  # no -0.0 from rounding
    return curve


def worst_case(outcomes: Sequence[Outcome], epsilon: float | None = None) -> WorstOutcome:
    """The attacker's best choice among several cells of one target, example by example.

    For a deterministic model that is the minimum. For a stochastic one the attacker is chosen by the select draws and its
    report draws are what counts, since the minimum over noisy reports would be biased; attackers that the select draws
    cannot tell apart count with the mean of their reports. Attackers beyond `epsilon` are out.
    Raises ValueError for no cell, or cells whose examples differ.
    """
    _check_aligned(outcomes)
    selected = np.stack([selection(record, examples, epsilon) for record, examples in outcomes])
    shares = np.stack([robust(record, examples, epsilon) for record, examples in outcomes])
    lowest = selected.min(axis=0)
    return WorstOutcome(
        reports_of_lowest(selected, shares),
        np.where(np.isfinite(lowest), (selected == lowest).argmax(axis=0), -1),
    )


def reports_of_lowest(selected: NDArray[Number], reported: NDArray[Number]) -> Values:
    """The report of the attacker with the lowest select by example, (n,), the mean over attackers that tie.

    selected, reported: counts or shares of correct answers by attacker and example, (attackers, n).

    The second attacker is chosen on the first image; on the second image both tie, so that their mean counts:

    >>> reports_of_lowest(np.array([[9, 5], [3, 5]]), np.array([[8, 6], [4, 5]]))
    array([4. , 5.5])
    """
    lowest: Values = reported.mean(axis=0, where=selected == selected.min(axis=0))
    return lowest


def over_seeds(values_by_seed: Sequence[Values]) -> OverSeeds:
    """The mean over training seeds of shares by example, each (n,), with an interval over the examples.

    The interval says how sure the mean of these very seeds is; how far seeds differ is seen in `by_seed`.
    """
    by_seed = tuple(float(_not_empty(values).mean()) for values in values_by_seed)
    return OverSeeds(rate(np.mean(np.stack(values_by_seed), axis=0)), by_seed)


def cell_statistics(record: Record, examples: Examples) -> CellStatistics:
    """All figures of one scored cell. Raises ValueError if it has no example."""
    _not_empty(examples.index)
    right = clean_correct(examples)
    missed = np.where(_attack_failed(examples), 1.0, examples.report_correct / examples.draws)
    success = np.where(right, 1.0 - missed, 1.0)
    bounded = not record.attack["minimal_norm"] or record.threat["epsilon"] is not None
    attacked = record.counts["examples"]
    costs: dict[str, float | None] = {name: record.counts[name] for name in ("forwards", "backwards", "queries")}
    costs["seconds"] = record.measured.get("seconds")
    return CellStatistics(
        n=len(examples),
        clean_accuracy=rate(examples.clean_correct / examples.draws),
        robust_accuracy=rate(robust(record, examples)) if bounded else None,
        success_all=rate(success),
        success_clean_correct=rate(success[right]) if right.any() else Estimate(math.nan, math.nan, math.nan),
        distortion=distortion(record, examples) if record.attack["minimal_norm"] else None,
        **{name: None if total is None or attacked == 0 else total / attacked for name, total in costs.items()},
    )


def distortion(record: Record, examples: Examples) -> Distortion | None:
    """The distortion of a minimal-norm attack; None if no clean-correct example was attacked."""
    distances = distance(record, examples)
    attacked = clean_correct(examples) & ~np.isnan(distances)
    if not attacked.any():
        return None
    success = attacked & ~_attack_failed(examples) & (2 * examples.report_correct < examples.draws)
    shown = success & (examples.image_l2 > 0)
    return Distortion(
        median=bootstrap_median(np.where(success, distances, np.inf)[attacked]),
        mean_rms=float(examples.rms[success].mean()) if success.any() else math.nan,
        mean_ratio=float((examples.distance_l2[shown] / examples.image_l2[shown]).mean()) if shown.any() else math.nan,
        survivors=bool(success.sum() < SURVIVORS_BELOW * attacked.sum()),
    )


def _attack_failed(examples: Examples) -> NDArray[np.bool_]:
    return np.isinf(examples.distance_l2)


def selection(record: Record, examples: Examples, epsilon: float | None) -> Values:
    """What the attacker knows when choosing: the share of correct answers, infinity for what may not be used."""
    known = examples.select_correct if record.target["stochastic"] else examples.report_correct
    return np.where(within(record, examples, epsilon), known / examples.draws, np.inf)


def _check_aligned(outcomes: Sequence[Outcome]) -> None:
    if not outcomes:
        raise ValueError("Expected at least one cell, got none")
    _, first = outcomes[0]
    for record, examples in outcomes[1:]:
        same = np.array_equal(examples.index, first.index) and np.array_equal(examples.label, first.label)
        if not same or examples.draws != first.draws:
            raise ValueError(f"Expected cells of the same examples and draws, got others for {record.attack['label']}")


def _not_empty(values: NDArray[np.generic]) -> NDArray[np.generic]:
    if len(values) == 0:
        raise ValueError("Expected at least one example, got none")
    return values
