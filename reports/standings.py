"""The rankings: one board per data set and threat, by worst-case robust accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from advbench.reports import formatting
from advbench.reports.cells import Cells
from advbench.results.boards import (
    Attacker,
    Board,
    BoardTarget,
    BoardThreat,
    attacker_of,
    boards,
    by_threat,
    label_of,
    ranking,
    seen_attacker,
)
from advbench.results.cells import Cell
from advbench.results.flags import Flag
from advbench.results.matrices import RANKED
from advbench.results.ranking import Ranking, rank
from advbench.results.record import Record
from advbench.results.resubmissions import rules_of
from advbench.results.statistics import OverSeeds, Values, over_seeds


@dataclass(frozen=True, slots=True, eq=False)
class Resubmitted:
    """A random target when every image is submitted several times and right only if every answer is.

    clean, robust: accuracies over the training seeds. answers: as a standing's, (n,) for each training seed.
    """

    clean: OverSeeds
    robust: OverSeeds
    answers: tuple[Values, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """How one target stands on a board.

    rank: the place in the order shown, from 1, equal values share one; None if the target is incomplete. ranks: the
    interval of ranks that the tests leave open, `advbench.results.ranking`.
    clean, robust: accuracies over the training seeds; None without a scored cell. answers: share of correct answers in the
    worst case by example, in the order of the data set, (n,) for each training seed.
    by_matrix: worst-case robust accuracy of each matrix. by_attacker: robust accuracy of each attacker alone, the lowest of
    which is the `weakest`.
    distortion: the minimal-norm attack with the smallest median distance, and that distance. seconds: attack time per
    example, summed over the attackers of the white-box matrix (of all if it has none), by device.
    lacks: the attackers that other targets on the board have and this one lacks. flags: why its robust accuracy is only an
    upper bound, although no attacker is missing. by_submissions: of a random target, by the number of submissions.
    """

    label: str
    defense: str
    architecture: str
    rank: int | None
    clean: OverSeeds | None
    robust: OverSeeds | None
    by_matrix: Mapping[str, float]
    by_attacker: Mapping[Attacker, float]
    distortion: tuple[str, float] | None
    seconds: Mapping[str, float]
    seeds: tuple[int, ...]
    lacks: tuple[str, ...]
    flags: tuple[Flag, ...] = ()
    ranks: tuple[int, int] | None = None
    answers: tuple[Values, ...] = ()
    by_submissions: Mapping[int, Resubmitted] = field(default_factory=dict)

    @property
    def rank_text(self) -> str:
        """The interval of ranks, as ``2`` or ``2–4``; empty for an unranked target."""
        if self.ranks is None:
            return ""
        low, high = self.ranks
        return str(low) if low == high else f"{low}–{high}"

    @property
    def weakest(self) -> Attacker | None:
        """The attacker that leaves the least robust accuracy."""
        return min(self.by_attacker, key=lambda attacker: self.by_attacker[attacker], default=None)


@dataclass(frozen=True, slots=True, eq=False)
class RankedBoard:
    """A ranking.

    standings: the ranked targets from the top, then the incomplete ones. cells: all that it is made of. ranking: the tests
    of all pairs of ranked targets, by their positions. cells_of: the cells by their target's label.
    """

    threat: BoardThreat
    standings: tuple[Standing, ...]
    cells: tuple[Cell, ...]
    caveats: tuple[str, ...]
    ranking: Ranking
    cells_of: Mapping[str, Sequence[Cell]]

    @property
    def title(self) -> str:
        """The threat in words, as ``linf ≤ 0.3 on mnist``."""
        return formatting.board_title(self.threat)


def ranked_boards(cells: Cells) -> tuple[RankedBoard, ...]:
    """The boards of a report with their ranks, one for each threat."""
    return cells.once(_ranked_boards)


def _ranked_boards(cells: Cells) -> tuple[RankedBoard, ...]:
    return tuple(_ranked_board(board) for board in boards(cells.cells))


def complete(cells: Iterable[Cell]) -> set[tuple[BoardThreat, str]]:
    """The targets that lack nothing of what others on their board have, each with its board's threat; without figures."""
    targets = set()
    for threat, members in by_threat(cells).items():
        ranked = ranking(members)
        needed = _needed(ranked)
        for label, own in by_label(ranked).items():
            scored = [cell for cell in own if cell.examples is not None]
            if scored and not _lacks(label, scored, needed):
                targets.add((threat, label))
    return targets


def _ranked_board(board: Board) -> RankedBoard:
    ranked = ranking(board.cells)
    needed = _needed(ranked)
    own = by_label(ranked)
    standings = [_standing(target, own[target.label], needed) for target in board.targets]
    ordered, tests = _in_order(standings)
    return RankedBoard(board.threat, ordered, board.cells, tuple(_caveats(board.cells)), tests, by_label(board.cells))


def by_label(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """The cells by their target's label, in the order in which they came."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(label_of(cell), []).append(cell)
    return groups


def _needed(cells: Iterable[Cell]) -> set[tuple[Attacker, int]]:
    """The attackers of at least one target of a board, or that would be without a failure, by seed."""
    return {(attacker, cell.record.seed) for cell in cells for attacker in _proven(cell.record)}


def _proven(record: Record) -> Iterable[Attacker]:
    """The attackers that a record shows to exist: its own, and for a transfer to itself that there is such a source."""
    yield seen_attacker(record)
    yield attacker_of(record)


def _standing(target: BoardTarget, cells: Sequence[Cell], needed: Iterable[tuple[Attacker, int]]) -> Standing:
    """How a target stands, yet without its rank. cells: of the target; needed: attackers of the board by seed."""
    scored = [cell for cell in cells if cell.examples is not None]
    problems = (target.problem,) if target.problem else ()
    defense, architecture = formatting.names(cells[0].record)
    worst = [model.worst_case() for model in target.scored]
    return Standing(
        label=target.label,
        defense=defense,
        architecture=architecture,
        rank=None,
        clean=over_seeds([model.clean_values() for model in target.scored]) if worst else None,
        robust=over_seeds(worst) if worst else None,
        by_matrix=_by_matrix(target),
        by_attacker=_by_attacker(target),
        distortion=_distortion(scored),
        seconds=_seconds(scored),
        seeds=tuple(sorted({cell.record.seed for cell in scored})),
        lacks=(*problems, *_lacks(target.label, scored, needed)),
        flags=target.findings,
        answers=tuple(worst),
        by_submissions=_by_submissions(target),
    )


def _lacks(label: str, scored: Sequence[Cell], needed: Iterable[tuple[Attacker, int]]) -> tuple[str, ...]:
    """What a complete target would have, beyond its `scored` cells; a source's transfer to itself is its own row."""
    wanted = {(attacker, seed) for attacker, seed in needed if (attacker.matrix, attacker.source) != ("transfer", label)}
    lacking = wanted - {(seen_attacker(cell.record), cell.record.seed) for cell in scored}
    several = len({seed for _, seed in wanted}) > 1
    return tuple(f"{attacker} (seed {seed})" if several else str(attacker) for attacker, seed in sorted(lacking))


def _by_submissions(target: BoardTarget) -> dict[int, Resubmitted]:
    """A random target by every rule that its fresh draws allow."""
    models = target.scored
    if not (target.facts["stochastic"] and models):
        return {}
    found = {}
    for n in rules_of([model.draws for model in models]):
        worst = tuple(model.worst_case(submissions=n) for model in models)
        clean = over_seeds([model.clean_values(n) for model in models])
        found[n] = Resubmitted(clean, over_seeds(worst), worst)
    return found


def _by_matrix(target: BoardTarget) -> dict[str, float]:
    """The worst-case robust accuracy of each matrix that every model of a target has."""
    rates: dict[str, float] = {}
    for matrix in RANKED:
        attackers = [{attacker for attacker in model.answers if attacker.matrix == matrix} for model in target.scored]
        if attackers and all(attackers):
            values = [model.worst_case(own) for model, own in zip(target.scored, attackers, strict=True)]
            rates[matrix] = over_seeds(values).estimate.value
    return rates


def _by_attacker(target: BoardTarget) -> dict[Attacker, float]:
    """The robust accuracy of each attacker alone, the mean over the models that it attacked."""
    rates: dict[Attacker, list[float]] = {}
    for model in target.scored:
        for attacker in model.answers:
            rates.setdefault(attacker.seen_by(target.label), []).append(model.accuracy(attacker))
    return {attacker: float(np.mean(values)) for attacker, values in rates.items()}


def _distortion(scored: Sequence[Cell]) -> tuple[str, float] | None:
    """The minimal-norm attack that needed the smallest median distance, with its mean over seeds."""
    medians: dict[str, list[float]] = {}
    for cell in scored:
        if cell.statistics is not None and cell.statistics.distortion is not None:
            medians.setdefault(cell.record.attack["label"], []).append(cell.statistics.distortion.median.value)
    means = {attack: float(np.mean(values)) for attack, values in medians.items()}
    return min(means.items(), key=lambda item: item[1], default=None)


def _seconds(scored: Sequence[Cell]) -> dict[str, float]:
    """Attack seconds per example, summed over attackers, the mean over seeds, by device."""
    white_box = [cell for cell in scored if cell.record.matrix == "white-box"]
    times: dict[str, dict[Attacker, list[float]]] = {}
    for cell in white_box or scored:
        if cell.statistics is not None and cell.statistics.seconds is not None:
            device = times.setdefault(str(cell.record.measured.get("device", "unknown device")), {})
            device.setdefault(seen_attacker(cell.record), []).append(cell.statistics.seconds)
    return {device: sum(float(np.mean(values)) for values in by_attacker.values()) for device, by_attacker in times.items()}


def _in_order(standings: Iterable[Standing]) -> tuple[tuple[Standing, ...], Ranking]:
    """Complete targets from the most robust, then the incomplete ones, and the tests of all pairs of the former."""

    def merit(standing: Standing) -> tuple[float, float, str]:
        values = [-1.0 if rate is None else rate.estimate.value for rate in (standing.robust, standing.clean)]
        return -values[0], -values[1], standing.label

    ordered = sorted(standings, key=merit)
    complete = [standing for standing in ordered if not standing.lacks and standing.robust is not None]
    values = [standing.robust.estimate.value for standing in complete if standing.robust is not None]
    ranks = rank([standing.answers for standing in complete])
    ranked = [
        replace(standing, rank=1 + values.index(value), ranks=interval)
        for standing, value, interval in zip(complete, values, ranks.intervals, strict=True)
    ]
    there = {standing.label for standing in complete}
    return (*ranked, *(standing for standing in ordered if standing.label not in there)), ranks


def _caveats(cells: Iterable[Cell]) -> Iterable[str]:
    """Several models under one name, and several records of one attacker."""
    by_label: dict[str, list[Record]] = {}
    for cell in cells:
        if cell.examples is not None:
            by_label.setdefault(label_of(cell), []).append(cell.record)
    for label, records in sorted(by_label.items()):
        models_by_seed: dict[int, set[str]] = {}
        for record in records:
            models_by_seed.setdefault(record.seed, set()).add(record.weights_sha256)
        for seed, models in sorted(models_by_seed.items()):
            if len(models) > 1:
                yield f"{label} stands for {len(models)} different models of seed {seed}; report one run's cells only."
        counts = Counter((seen_attacker(record), record.seed) for record in records)
        repeated = sorted({str(attacker) for (attacker, _), count in counts.items() if count > 1})
        if repeated:
            yield f"{label} has more than one record for {', '.join(repeated)}; the worst of them counts."
