"""Who is ranked against whom: one board per data set and threat, by worst-case robust accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

import numpy as np

from advbench.reports import formatting
from advbench.reports.cells import Cell, Cells
from advbench.results import ranking
from advbench.results.flags import Flag, flags
from advbench.results.ranking import Ranking
from advbench.results.record import OBLIVIOUS, RANKED, Record
from advbench.results.statistics import Outcome, OverSeeds, Values, over_seeds, robust, worst_case


class Strategy(NamedTuple):
    """What an attacker does: a matrix, an attack, and where the adversarials come from."""

    matrix: str
    attack: str
    source: str

    def __str__(self) -> str:
        return formatting.strategy(*self)


class Threat(NamedTuple):
    """What all targets of a board have in common: the very same images and the same radius.

    run: the runs that it is made of, where others at the same threat have a board of their own.
    """

    dataset: str
    split: str
    n: int
    fingerprint: str
    norm: str
    epsilon: float | None
    run: str = ""

    @property
    def title(self) -> str:
        """The threat in words, as ``linf ≤ 0.3 on mnist``."""
        return f"{formatting.threat(self.norm, self.epsilon)} on {self.dataset}" + (f" ({self.run})" if self.run else "")

    @property
    def family(self) -> Threat:
        """The same at any radius."""
        return self._replace(epsilon=None)


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """How one target stands on a board.

    rank: the place in the order shown, from 1, equal values share one; None where the target is incomplete. ranks: the
    interval of ranks that the tests leave open, `advbench.results.ranking`. clean, robust: accuracies over the training
    seeds; None without a scored cell. by_matrix: worst-case robust accuracy of each matrix. by_strategy: robust accuracy of
    each strategy alone, the lowest of which is the `weakest`. distortion: the minimal-norm attack with the smallest median
    distance, and that distance. seconds: attack time per example, summed over the strategies of the white-box matrix (of
    all where it has none), by device. lacks: what others on the board have and this target has not. flags: why its
    robust accuracy is only an upper bound, although nothing lacks. answers: share of correct answers in the worst case by
    example, in the order of the data set, (n,) for each training seed.
    """

    label: str
    defense: str
    architecture: str
    rank: int | None
    clean: OverSeeds | None
    robust: OverSeeds | None
    by_matrix: Mapping[str, float]
    by_strategy: Mapping[Strategy, float]
    distortion: tuple[str, float] | None
    seconds: Mapping[str, float]
    seeds: tuple[int, ...]
    lacks: tuple[str, ...]
    flags: tuple[Flag, ...] = ()
    ranks: tuple[int, int] | None = None
    answers: tuple[Values, ...] = ()

    @property
    def rank_text(self) -> str:
        """The interval of ranks, as ``2`` or ``2–4``; empty for an unranked target."""
        if self.ranks is None:
            return ""
        low, high = self.ranks
        return str(low) if low == high else f"{low}–{high}"

    @property
    def weakest(self) -> Strategy | None:
        """The strategy that leaves the least robust accuracy."""
        return min(self.by_strategy, key=lambda strategy: self.by_strategy[strategy], default=None)


@dataclass(frozen=True, slots=True, eq=False)
class Board:
    """A ranking.

    standings: the ranked targets from the top, then the incomplete ones. cells: all that it is made of. ranking: the tests
    of all pairs of ranked targets, by their positions.
    """

    threat: Threat
    standings: tuple[Standing, ...]
    cells: tuple[Cell, ...]
    caveats: tuple[str, ...]
    ranking: Ranking


def boards(cells: Cells) -> tuple[Board, ...]:
    """The boards of a report, one for each threat that some cell was run at.

    A minimal-norm attack without a radius stands on every board of its norm. Records without a box stand on none.
    """
    boxed = [cell for cell in cells.cells if cell.record.threat["box"] is not None]
    return tuple(_board(threat, boxed) for threat in _threats(boxed))


def complete(cells: Iterable[Cell]) -> set[tuple[Threat, str]]:
    """The targets that lack nothing of what others on their board have, each with its board's threat; without figures."""
    boxed = [cell for cell in cells if cell.record.threat["box"] is not None]
    found = set()
    for threat in _threats(boxed):
        members = [cell for cell in boxed if _belongs(cell, threat)]
        seen = _seen(members)
        for label in {_label(cell) for cell in members}:
            scored = [cell for cell in members if _label(cell) == label and cell.examples is not None]
            if scored and not _lacks(label, scored, seen):
                found.add((threat, label))
    return found


def _threats(boxed: Iterable[Cell]) -> list[Threat]:
    return list(dict.fromkeys(threat_of(cell) for cell in boxed if not _for_any_radius(cell.record)))


def threat_of(cell: Cell) -> Threat:
    """The board on which a cell stands."""
    dataset, threat = cell.record.dataset, cell.record.threat
    epsilon = None if threat["norm"] == "none" else threat["epsilon"]
    return Threat(dataset["name"], dataset["split"], dataset["n"], dataset["fingerprint"], threat["norm"], epsilon, cell.run)


def strategy_of(record: Record) -> Strategy:
    """What the attacker of a record does."""
    return Strategy(record.matrix, record.attack["label"], formatting.source(record))


def _for_any_radius(record: Record) -> bool:
    unbounded = record.threat["epsilon"] is None and record.threat["norm"] != "none"
    return unbounded and bool(record.attack["minimal_norm"])


def _belongs(cell: Cell, threat: Threat) -> bool:
    own = threat_of(cell)
    return own == threat or (_for_any_radius(cell.record) and own == threat.family)


def _board(threat: Threat, boxed: Sequence[Cell]) -> Board:
    cells = [cell for cell in boxed if _belongs(cell, threat)]
    own = set(map(id, cells))
    kin = [cell for cell in boxed if id(cell) not in own and threat_of(cell).family == threat.family]
    by_target = {
        label: list(group)
        for label, group in groupby(sorted(cells, key=lambda cell: cell.record.target["label"]), key=_label)
    }
    seen = _seen(cells)
    standings = [
        _standing(threat, _ranking(group), seen, [cell for cell in _ranking(kin) if _label(cell) == label])
        for label, group in by_target.items()
        if _ranking(group)
    ]
    ordered, tests = _ranked(standings)
    return Board(threat, ordered, tuple(cells), tuple(_caveats(by_target)), tests)


def _seen(cells: Iterable[Cell]) -> set[tuple[Strategy, int]]:
    """What some target of a board has, or would have had without a failure, by seed."""
    return {(strategy, cell.record.seed) for cell in _ranking(cells) for strategy in _proven(cell.record)}


def _ranking(cells: Iterable[Cell]) -> list[Cell]:
    """The cells that rank: not those of an attacker who ignores a defense, which only some targets have."""
    return [cell for cell in cells if cell.record.matrix != OBLIVIOUS]


def _proven(record: Record) -> Iterable[Strategy]:
    """The strategies that a record shows to exist: its own, and a transfer to itself that there is such a source."""
    own = strategy_of(record)
    yield own
    if own.source == "itself":
        yield own._replace(source=record.target["label"])


def _label(cell: Cell) -> str:
    label: str = cell.record.target["label"]
    return label


def _standing(
    threat: Threat, cells: Sequence[Cell], seen: Iterable[tuple[Strategy, int]], kin: Sequence[Cell] = ()
) -> Standing:
    first = cells[0].record
    scored = [cell for cell in cells if cell.examples is not None]
    seeds = tuple(sorted({cell.record.seed for cell in scored}))
    lacks = _lacks(first.target["label"], scored, seen)
    try:
        clean, robust_all, by_matrix, by_strategy, answers = _accuracies(threat, scored, seeds)
        found = flags(_outcomes(scored), threat.epsilon, _outcomes(kin))
    except ValueError as error:
        clean, robust_all, by_matrix, by_strategy, answers, found = None, None, {}, {}, (), ()
        lacks = (str(error), *lacks)
    defense, architecture = formatting.names(first)
    return Standing(
        label=first.target["label"],
        defense=defense,
        architecture=architecture,
        rank=None,
        clean=clean,
        robust=robust_all,
        by_matrix=by_matrix,
        by_strategy=by_strategy,
        distortion=_distortion(scored),
        seconds=_seconds(scored),
        seeds=seeds,
        lacks=lacks,
        flags=found,
        answers=answers,
    )


def _outcomes(cells: Iterable[Cell]) -> list[Outcome]:
    return [cell.outcome for cell in cells if cell.outcome is not None]


def _lacks(label: str, scored: Sequence[Cell], seen: Iterable[tuple[Strategy, int]]) -> tuple[str, ...]:
    """What a complete target would have, beyond its `scored` cells; a source's transfer to itself is its own row."""
    wanted = {(strategy, seed) for strategy, seed in seen if (strategy.matrix, strategy.source) != ("transfer", label)}
    lacking = wanted - {(strategy_of(cell.record), cell.record.seed) for cell in scored}
    several = len({seed for _, seed in wanted}) > 1
    return tuple(f"{strategy} (seed {seed})" if several else str(strategy) for strategy, seed in sorted(lacking))


def _accuracies(
    threat: Threat, scored: Sequence[Cell], seeds: Sequence[int]
) -> tuple[OverSeeds | None, OverSeeds | None, dict[str, float], dict[Strategy, float], tuple[Values, ...]]:
    """Clean accuracy, worst-case robust accuracy over everything, by matrix, that of each strategy, and by example."""
    outcomes = {seed: [cell.outcome for cell in scored if cell.outcome and cell.record.seed == seed] for seed in seeds}
    if not outcomes:
        return None, None, {}, {}, ()
    _check_same_images(outcomes.values())
    clean = [found[0][1].clean_correct / found[0][1].draws for found in outcomes.values()]
    by_matrix = {}
    for matrix in RANKED:
        parts = [[outcome for outcome in found if outcome[0].matrix == matrix] for found in outcomes.values()]
        if all(parts):
            by_matrix[matrix] = over_seeds(_worst(parts, threat)).estimate.value
    by_strategy: dict[Strategy, list[float]] = {}
    for record, examples in (outcome for found in outcomes.values() for outcome in found):
        values = robust(record, examples, threat.epsilon)
        by_strategy.setdefault(strategy_of(record), []).append(float(values.mean()))
    means = {strategy: float(np.mean(values)) for strategy, values in by_strategy.items()}
    worst = _worst(outcomes.values(), threat)
    order = np.argsort(next(iter(outcomes.values()))[0][1].index)
    return over_seeds(clean), over_seeds(worst), by_matrix, means, tuple(values[order] for values in worst)


def _worst(outcomes_by_seed: Iterable[Sequence[Outcome]], threat: Threat) -> list[Values]:
    return [worst_case(outcomes, threat.epsilon).values for outcomes in outcomes_by_seed]


def _check_same_images(outcomes_by_seed: Iterable[Sequence[Outcome]]) -> None:
    indices = [outcomes[0][1].index for outcomes in outcomes_by_seed]
    if not all(np.array_equal(index, indices[0]) for index in indices):
        raise ValueError("Expected the same examples for every seed, got others")


def _distortion(scored: Sequence[Cell]) -> tuple[str, float] | None:
    """The minimal-norm attack that needed the smallest median distance, with its mean over seeds."""
    medians: dict[str, list[float]] = {}
    for cell in scored:
        if cell.statistics is not None and cell.statistics.distortion is not None:
            medians.setdefault(cell.record.attack["label"], []).append(cell.statistics.distortion.median.value)
    means = {attack: float(np.mean(values)) for attack, values in medians.items()}
    return min(means.items(), key=lambda item: item[1], default=None)


def _seconds(scored: Sequence[Cell]) -> dict[str, float]:
    """Attack seconds per example, summed over strategies, the mean over seeds, by device."""
    white_box = [cell for cell in scored if cell.record.matrix == "white-box"]
    times: dict[str, dict[Strategy, list[float]]] = {}
    for cell in white_box or scored:
        if cell.statistics is not None and cell.statistics.seconds is not None:
            device = times.setdefault(str(cell.record.measured.get("device", "unknown device")), {})
            device.setdefault(strategy_of(cell.record), []).append(cell.statistics.seconds)
    return {device: sum(float(np.mean(values)) for values in found.values()) for device, found in times.items()}


def _ranked(standings: Iterable[Standing]) -> tuple[tuple[Standing, ...], Ranking]:
    """Complete targets from the most robust, then the incomplete ones, and the tests of all pairs of the former."""

    def merit(standing: Standing) -> tuple[float, float, str]:
        values = [-1.0 if rate is None else rate.estimate.value for rate in (standing.robust, standing.clean)]
        return -values[0], -values[1], standing.label

    ordered = sorted(standings, key=merit)
    complete = [standing for standing in ordered if not standing.lacks and standing.robust is not None]
    values = [standing.robust.estimate.value for standing in complete if standing.robust is not None]
    found = ranking.rank([standing.answers for standing in complete])
    ranked = [
        replace(standing, rank=1 + values.index(value), ranks=interval)
        for standing, value, interval in zip(complete, values, found.intervals, strict=True)
    ]
    return (*ranked, *(standing for standing in ordered if standing not in complete)), found


def _caveats(by_target: Mapping[str, Sequence[Cell]]) -> Iterable[str]:
    """What would make a board unfair: several models or configurations under one name."""
    for label, cells in by_target.items():
        scored = [cell.record for cell in cells if cell.examples is not None]
        for seed in sorted({record.seed for record in scored}):
            models = {record.weights_sha256 for record in scored if record.seed == seed}
            if len(models) > 1:
                yield f"{label} stands for {len(models)} different models of seed {seed}; report one run's cells only."
        strategies = [(strategy_of(record), record.seed) for record in scored]
        repeated = sorted({str(strategy) for strategy, seed in strategies if strategies.count((strategy, seed)) > 1})
        if repeated:
            yield f"{label} has more than one record for {', '.join(repeated)}; the worst of them counts."
