"""Pairs of targets in two runs, the attackers that both have, and the rows that need no test."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from advbench.results.boards import Attacker, Board, BoardTarget, BoardThreat, TrainedModel
from advbench.results.gate.comparable import comparable
from advbench.results.gate.verdicts import CLEAN, TIME, WORST, GateRow, Question, Terms
from advbench.results.record import Facts
from advbench.results.statistics import Values

BASELINE_SEEDS, CANDIDATE_SEEDS = 5, 3
"""The training seeds that a comparison over seeds takes."""


@dataclass(frozen=True, slots=True, eq=False)
class TargetPair:
    """A target on both sides, and the attackers that count. question: what is fixed. dropped: sources left out."""

    threat: BoardThreat
    before: BoardTarget
    after: BoardTarget
    attackers: frozenset[Attacker]
    question: Question
    note: str = ""

    def models(self) -> tuple[tuple[TrainedModel, ...], tuple[TrainedModel, ...]]:
        """The models that are compared: those of common seeds if they are paired, else all."""
        if self.question == "re-trained":
            return self.before.models, self.after.models
        common = _common_seeds(self.before, self.after)
        if not common:
            return self.before.models, self.after.models
        old, new = (tuple(model for model in side.models if model.seed in common) for side in (self.before, self.after))
        return old, new

    def values(self, quantity: str) -> tuple[list[Values], list[Values]]:
        """Shares by example of each model, before and after."""
        old, new = self.models()
        if quantity == CLEAN:
            return [model.clean_values() for model in old], [model.clean_values() for model in new]
        return [model.worst_case(self.attackers) for model in old], [model.worst_case(self.attackers) for model in new]


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """A board on both sides.

    rows: what needs no test. lacking: what is missing for a test. untimed: why times are not compared.
    """

    before: Board
    pairs: tuple[TargetPair, ...]
    rows: tuple[GateRow, ...]
    lacking: tuple[str, ...]
    untimed: tuple[str, ...] = ()


def match(before: Board, after: Board, terms: Terms) -> Match:
    """The pairs of two boards that can be compared, and the rows of what has no other side, or no test."""
    rows, pairs, lacking = list[GateRow](), list[TargetPair](), list[str]()
    for target in before.targets:
        other = after.target(target.label)
        failures = {} if other is None else other.failures
        if other is None or failures:
            reason = "not in the candidate" if other is None else _first(failures)
            rows.append(_missing(before.threat, target, reason))
            continue
        pair = _pair(before, after, target, other, terms)
        pairs.append(pair)
        lacking += _lacking(pair)
    rows += [new_row(after.threat, target) for target in after.targets if before.target(target.label) is None]
    untimed: list[str] = []
    if terms.time_bound is not None:
        for pair in pairs:
            row = _time(pair, terms.time_bound)
            if isinstance(row, GateRow):
                rows.append(row)
            else:
                untimed.append(row)
    return Match(before, tuple(pairs), tuple(rows), tuple(lacking), tuple(untimed))


def _pair(before: Board, after: Board, target: BoardTarget, other: BoardTarget, terms: Terms) -> TargetPair:
    attackers = comparable(target, after) & comparable(other, before)
    lone = sorted({attacker.source for attacker in target.attackers | other.attackers if attacker not in attackers})
    notes = [f"without transfers from {', '.join(lone)}, which only one side has"] if lone else []
    if _same_weights(target, other):
        sources = {attacker.source for attacker in attackers if attacker.matrix == "transfer"}
        moved = {source for source in sources if not _same_source(before, after, source)}
        steady = {attacker for attacker in attackers if attacker.source not in moved}
        if steady:
            notes += [f"without transfers from {', '.join(sorted(moved))}, re-trained"] if moved else []
            return TargetPair(before.threat, target, other, frozenset(steady), "same weights", "; ".join(notes))
    notes += _fact_differences(target.facts, other.facts)
    question: Question = "checkpoints" if terms.checkpoints_only else "re-trained"
    return TargetPair(before.threat, target, other, frozenset(attackers), question, "; ".join(notes))


def _common_seeds(before: BoardTarget, after: BoardTarget) -> set[int]:
    return {model.seed for model in before.models} & {model.seed for model in after.models}


def _same_weights(before: BoardTarget, after: BoardTarget) -> bool:
    """Whether the models of common seeds are the same, of the same configuration; seeds of one side say nothing."""
    old, new = ({model.seed: model.weights for model in side.models} for side in (before, after))
    common = old.keys() & new.keys()
    return before.facts == after.facts and bool(common) and all(old[seed] == new[seed] for seed in common)


def _fact_differences(before: Facts, after: Facts) -> list[str]:
    """The differences of two configurations of a target."""
    differences = []
    for part in ("defense", "architecture"):
        old, new = (side[part]["arguments"] | {part: side[part]["name"]} for side in (before, after))
        differences += [
            f"{name} {old.get(name, 'absent')}, now {new.get(name, 'absent')}"
            for name in sorted(old.keys() | new.keys())
            if old.get(name, ...) != new.get(name, ...)
        ]
    return differences


def _same_source(before: Board, after: Board, source: str) -> bool:
    old, new = before.target(source), after.target(source)
    return old is not None and new is not None and _same_weights(old, new)


def _lacking(pair: TargetPair) -> list[str]:
    """What a pair lacks for its test."""
    old, new = (len(side) for side in pair.models())
    name = pair.before.label
    if pair.question == "re-trained" and (old < BASELINE_SEEDS or new < CANDIDATE_SEEDS):
        return [
            f"{name} was re-trained, which takes {BASELINE_SEEDS} training seeds in the baseline (got {old}) and "
            f"{CANDIDATE_SEEDS} in the candidate (got {new}): run both with `--seed 0,1,...`, or compare these very models "
            "with --checkpoints-only"
        ]
    if pair.question == "checkpoints" and old != new:
        return [f"{name} has {old} and {new} models without a common seed: which ones to compare is not known"]
    return []


# --- rows without a test


def _missing(threat: BoardThreat, target: BoardTarget, reason: str) -> GateRow:
    """The row of a target that the candidate lacks, or of which it lacks a number."""
    attackers = {attacker for model in target.models for attacker in model.answers}
    value = float(np.mean([model.worst_case(attackers).mean() for model in target.models]))
    return GateRow(
        threat=threat, target=target.label, quantity=WORST, baseline=value, verdict="missing", fails=True, note=reason
    )


def new_row(threat: BoardThreat, target: BoardTarget) -> GateRow:
    """The row of a target that only the candidate has."""
    models = [model for model in target.models if model.answers]
    value = float(np.mean([model.worst_case(set(model.answers)).mean() for model in models])) if models else None
    failures = target.failures
    note = f"incomplete: {_first(failures)}" if failures else ""
    return GateRow(threat=threat, target=target.label, quantity=WORST, candidate=value, verdict="new", note=note)


def _first(failures: Mapping[Attacker, str]) -> str:
    (attacker, reason), *rest = failures.items()
    return f"{attacker}: {reason}" + (f", and {len(rest)} more" if rest else "")


def _time(pair: TargetPair, bound: float) -> GateRow | str:
    """The row of attack times, or why there is none."""
    old, new = pair.models()
    devices = {model.device for model in (*old, *new)}
    if len(devices) > 1:
        return f"{pair.before.label}: times of {' and '.join(sorted(devices))} are not compared"
    before, after = _seconds(old, pair.attackers), _seconds(new, pair.attackers)
    if not before or not after:
        return f"{pair.before.label}: no times were measured"
    slower = after / before > bound
    return GateRow(
        threat=pair.threat,
        target=pair.before.label,
        quantity=TIME,
        baseline=before,
        candidate=after,
        verdict="worse" if slower else "same",
        fails=slower,
        note=f"more than {bound:g} times as long" if slower else "",
    )


def _seconds(models: Sequence[TrainedModel], attackers: Iterable[Attacker]) -> float:
    """Attack seconds per image, summed over the attackers that were timed, the mean over models."""
    wanted = set(attackers)
    sums = [sum(answers.seconds or 0.0 for name, answers in model.answers.items() if name in wanted) for model in models]
    return float(np.mean(sums))
