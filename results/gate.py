"""The gate: is anything worse than the baseline, and by more than chance would have it?

Gated are the worst-case robust accuracy and the clean accuracy of every target; single cells are shown, never gated. What is
asked depends on what is fixed:

- A target with equal weights in both runs is one fixed model under two attacks. Its outcomes are paired on the same images,
  by McNemar's exact test, or by sign flips over examples where an outcome is a share (a stochastic model's, or the mean of
  several seeds). The test is two-sided and a rise fails too: without a change of weights, the attack became weaker.
- A re-trained target varies with its seed although the images are fixed, so that pairing them would raise false alarms. Its
  accuracies by seed are compared by a one-sided t-test, with the standard deviation pooled over targets.

Holm's procedure over all of these keeps the chance of any false alarm below alpha; of alpha nine tenths go to the worst
cases and one to the clean accuracies, which spread far less.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from advbench.results.baseline import Attacker, Board, Model, Snapshot, Target, Threat
from advbench.results.record import Facts
from advbench.results.seeds import T_TEST, compare_seeds, shared_spreads
from advbench.results.significance import holm, paired_test
from advbench.results.statistics import Values

Verdict = Literal["better", "same", "worse", "missing", "new"]
Question = Literal["same weights", "re-trained", "checkpoints", ""]
CLEAN, WORST, TIME = "clean accuracy", "robust accuracy", "time per image"
BASELINE_SEEDS, CANDIDATE_SEEDS = 5, 3
_WEIGHTS = {WORST: 9.0, CLEAN: 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What counts as worse.

    alpha: the chance of any false alarm in a gate, in (0, 1). tolerance: a change of at most so much, a share, is the same
    whatever its p-value. checkpoints_only: compare the models at hand, whatever seeds they are of. time_bound: the largest
    allowed ratio of attack times on the same device, not looked at where None. across_versions: whether runs by another
    advbench or with attacks of other source code may be compared; what differs then is what is tested. fail_on_flags:
    whether a flag that the baseline's target has not fails.
    """

    alpha: float = 0.01
    tolerance: float = 0.0
    checkpoints_only: bool = False
    time_bound: float | None = None
    across_versions: bool = False
    fail_on_flags: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"Expected `alpha` in (0, 1), got {self.alpha}")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"Expected `tolerance` in [0, 1), a share such as 0.01 for a point, got {self.tolerance}")
        if self.time_bound is not None and not (self.time_bound >= 1 and math.isfinite(self.time_bound)):
            raise ValueError(f"Expected `time_bound` >= 1, a ratio such as 2, got {self.time_bound}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One number of one target, before and after.

    p_value: after Holm's correction, None where nothing was tested. fails: whether it fails the gate. note: why, or what was
    left out. question: what the comparison is about.
    """

    threat: Threat
    target: str
    quantity: str
    baseline: float | None = None
    candidate: float | None = None
    p_value: float | None = None
    question: Question = ""
    test: str = ""
    verdict: Verdict = "same"
    fails: bool = False
    note: str = ""

    @property
    def difference(self) -> float | None:
        """Candidate minus baseline; of a time, their ratio."""
        if self.baseline is None or self.candidate is None:
            return None
        return self.candidate / self.baseline if self.quantity == TIME else self.candidate - self.baseline


@dataclass(frozen=True, slots=True, kw_only=True)
class CellChange:
    """One attacker's robust accuracy, the mean over training seeds, before and after; shown, never gated."""

    threat: Threat
    target: str
    attacker: Attacker
    baseline: float
    candidate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """What the gate found. incomparable: what differs, so that nothing was tested; the rows are then empty."""

    terms: Terms
    rows: tuple[Row, ...] = ()
    cells: tuple[CellChange, ...] = ()
    caveats: tuple[str, ...] = ()
    incomparable: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows that fail."""
        return tuple(row for row in self.rows if row.fails)

    @property
    def exit_code(self) -> int:
        """0 nothing worse, 1 something fails, 2 the runs cannot be compared."""
        return 2 if self.incomparable else 1 if self.failures else 0


def compare(baseline: Snapshot, candidate: Snapshot, terms: Terms | None = None) -> Verdicts:
    """Hold a run against a baseline.

    A target of the baseline that the candidate lacks, or of which it lacks a number, fails: what was guarded is no longer
    measured. One that is only in the candidate is new and passes.
    """
    terms = terms or Terms()
    pairs = {board.threat: (board, _board_of(candidate, board.threat)) for board in baseline.boards}
    differences = [] if terms.across_versions else _versions(baseline, candidate)
    for threat, (before, after) in pairs.items():
        differences += [f"{threat}: only in the baseline"] if after is None else _differences(before, after, terms)
    if any(after is None for _, after in pairs.values()):
        differences += [f"{board.threat}: only in the candidate" for board in candidate.boards if board.threat not in pairs]
    if differences:
        return Verdicts(terms=terms, incomparable=tuple(dict.fromkeys(differences)))
    matched = [_match(before, after, terms) for before, after in pairs.values() if after is not None]
    lacking = [line for match in matched for line in match.lacking]
    if lacking:
        return Verdicts(terms=terms, incomparable=tuple(lacking))
    rows = [row for match in matched for row in (*match.rows, *match.tested())]
    unknown = [board for board in candidate.boards if board.threat not in pairs]
    rows += [_new(board.threat, target) for board in unknown for target in board.targets]
    judged = tuple(_flagged(row, pairs, terms) for row in _judge(rows, terms))
    changes = tuple(change for before, after in pairs.values() if after is not None for change in _cells(before, after))
    return Verdicts(terms=terms, rows=judged, cells=changes, caveats=_caveats(judged, matched, terms))


# --- what must be equal


def _board_of(run: Snapshot, threat: Threat) -> Board | None:
    return next((board for board in run.boards if board.threat == threat), None)


def _versions(baseline: Snapshot, candidate: Snapshot) -> list[str]:
    if baseline.version == candidate.version:
        return []
    return [f"advbench {baseline.version} in the baseline, {candidate.version} in the candidate"]


def _differences(before: Board, after: Board, terms: Terms) -> list[str]:
    """Why two boards at one threat cannot be compared; nothing where they can."""
    found = [
        f"the data set's {name}: {before.dataset[name]!s:.12} in the baseline, {after.dataset[name]!s:.12} in the candidate"
        for name in ("n", "fingerprint")
        if before.dataset[name] != after.dataset[name]
    ]
    if before.box != after.box:
        found.append(f"the pixel range: {before.box} in the baseline, {after.box} in the candidate")
    if not found and after.examples and before.examples != after.examples:
        found.append("other examples: the candidate's images or labels are not those of the baseline")
    for label in before.attacks.keys() & after.attacks.keys():
        found += _attack_differences(label, before.attacks[label], after.attacks[label], terms)
    return found + _attacker_differences(before, after)


def _attack_differences(label: str, before: Facts, after: Facts, terms: Terms) -> list[str]:
    if before["name"] != after["name"]:
        return [f"the attack {label}: {before['name']} in the baseline, {after['name']} in the candidate"]
    old, new = before["arguments"], after["arguments"]
    found = [
        f"the attack {label}: {name} {old.get(name, 'absent')} in the baseline, {new.get(name, 'absent')} in the candidate"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, ...) != new.get(name, ...)
    ]
    if not found and not terms.across_versions and before["source_hash"] != after["source_hash"]:
        hashes = " and ".join(str(one["source_hash"])[:8] for one in (before, after))
        found.append(f"the attack {label}: another version of its source ({hashes}); --across-versions compares them")
    return found


def _attacker_differences(before: Board, after: Board) -> list[str]:
    """The attackers that only one side has, beside transfers from targets that only one side has."""
    found: dict[str, None] = {}
    for target in before.targets:
        other = after.target(target.label)
        if other is None:
            continue
        old, new = _comparable(target, after), _comparable(other, before)
        found |= dict.fromkeys(f"{attacker}: only in the baseline" for attacker in sorted(old - new))
        found |= dict.fromkeys(f"{attacker}: only in the candidate" for attacker in sorted(new - old))
        found |= dict.fromkeys(_query_differences(target, other))
    return list(found)


def _comparable(target: Target, other: Board) -> set[Attacker]:
    """The attackers of a target, without transfers from sources that the other board has not."""
    return {one for one in target.attackers if one.matrix != "transfer" or other.target(one.source) is not None}


def _query_differences(before: Target, after: Target) -> Iterable[str]:
    old, new = (
        {name: one.queries for model in side.models for name, one in model.answers.items()} for side in (before, after)
    )
    for attacker in sorted(old.keys() & new.keys()):
        if old[attacker] != new[attacker]:
            yield f"{attacker}: {old[attacker]} queries in the baseline, {new[attacker]} in the candidate"


# --- what is compared with what


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """A target on both sides, and the attackers that count. question: what is fixed. dropped: sources left out."""

    threat: Threat
    before: Target
    after: Target
    attackers: frozenset[Attacker]
    question: Question
    note: str = ""

    def models(self) -> tuple[tuple[Model, ...], tuple[Model, ...]]:
        """The models that are compared: those of common seeds where they are paired, else all."""
        if self.question == "re-trained":
            return self.before.models, self.after.models
        common = _common_seeds(self.before, self.after)
        if not common:
            return self.before.models, self.after.models
        old, new = (tuple(one for one in side.models if one.seed in common) for side in (self.before, self.after))
        return old, new

    def values(self, quantity: str) -> tuple[list[Values], list[Values]]:
        """Shares by example of each model, before and after."""
        old, new = self.models()
        if quantity == CLEAN:
            return [one.clean_values() for one in old], [one.clean_values() for one in new]
        return [one.worst_case(self.attackers) for one in old], [one.worst_case(self.attackers) for one in new]


@dataclass(frozen=True, slots=True, eq=False)
class _Match:
    """A board on both sides.

    rows: what needs no test. lacking: what is missing for a test. untimed: why times are not compared.
    """

    before: Board
    pairs: tuple[_Pair, ...]
    rows: tuple[Row, ...]
    lacking: tuple[str, ...]
    untimed: tuple[str, ...] = ()

    def tested(self) -> list[Row]:
        """The rows that rest on a test, p-values as they are, both accuracies of every pair."""
        return [row for quantity in (WORST, CLEAN) for row in _tests(self.pairs, quantity, 1 / self.before.dataset["n"])]


def _match(before: Board, after: Board, terms: Terms) -> _Match:
    rows, pairs, lacking = list[Row](), list[_Pair](), list[str]()
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
    rows += [_new(after.threat, target) for target in after.targets if before.target(target.label) is None]
    untimed: list[str] = []
    if terms.time_bound is not None:
        for pair in pairs:
            row = _time(pair, terms.time_bound)
            if isinstance(row, Row):
                rows.append(row)
            else:
                untimed.append(row)
    return _Match(before, tuple(pairs), tuple(rows), tuple(lacking), tuple(untimed))


def _pair(before: Board, after: Board, target: Target, other: Target, terms: Terms) -> _Pair:
    attackers = _comparable(target, after) & _comparable(other, before)
    lone = sorted({one.source for one in target.attackers | other.attackers if one not in attackers})
    notes = [f"without transfers from {', '.join(lone)}, which only one side has"] if lone else []
    if _same_weights(target, other):
        sources = {one.source for one in attackers if one.matrix == "transfer"}
        moved = {source for source in sources if not _same_source(before, after, source)}
        steady = {one for one in attackers if one.source not in moved}
        if steady:
            notes += [f"without transfers from {', '.join(sorted(moved))}, re-trained"] if moved else []
            return _Pair(before.threat, target, other, frozenset(steady), "same weights", "; ".join(notes))
    notes += _fact_differences(target.facts, other.facts)
    question: Question = "checkpoints" if terms.checkpoints_only else "re-trained"
    return _Pair(before.threat, target, other, frozenset(attackers), question, "; ".join(notes))


def _common_seeds(before: Target, after: Target) -> set[int]:
    return {one.seed for one in before.models} & {one.seed for one in after.models}


def _same_weights(before: Target, after: Target) -> bool:
    """Whether the models of common seeds are the same, of the same configuration; seeds of one side say nothing."""
    old, new = ({one.seed: one.weights for one in side.models} for side in (before, after))
    common = old.keys() & new.keys()
    return before.facts == after.facts and bool(common) and all(old[seed] == new[seed] for seed in common)


def _fact_differences(before: Facts, after: Facts) -> list[str]:
    """What a target is configured otherwise."""
    found = []
    for part in ("defense", "architecture"):
        old, new = (side[part]["arguments"] | {part: side[part]["name"]} for side in (before, after))
        found += [
            f"{name} {old.get(name, 'absent')}, now {new.get(name, 'absent')}"
            for name in sorted(old.keys() | new.keys())
            if old.get(name, ...) != new.get(name, ...)
        ]
    return found


def _same_source(before: Board, after: Board, source: str) -> bool:
    old, new = before.target(source), after.target(source)
    return old is not None and new is not None and _same_weights(old, new)


def _lacking(pair: _Pair) -> list[str]:
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


# --- tests


def _tests(pairs: Sequence[_Pair], quantity: str, step: float) -> list[Row]:
    """A row for each pair; p-values one-sided over seeds, else two-sided, uncorrected. A rise of the former is in `note`."""
    by_seed = {id(pair): _means(pair, quantity) for pair in pairs}
    groups = {key: _groups(pair, by_seed[key]) for key, pair in zip(by_seed, pairs, strict=True)}
    pooled = {key: group for key, group in groups.items() if any(len(values) > 1 for values in group)}
    retrained = any(pair.question == "re-trained" for pair in pairs)
    spreads = dict(zip(pooled, shared_spreads(list(pooled.values()), step), strict=True)) if retrained else {}
    rows = []
    for pair in pairs:
        old, new = by_seed[id(pair)]
        row = Row(
            threat=pair.threat,
            target=pair.before.label,
            quantity=quantity,
            baseline=float(old.mean()),
            candidate=float(new.mean()),
            question=pair.question,
            note=pair.note if quantity == WORST else "",
        )
        if pair.question == "re-trained":
            spread = spreads[id(pair)]
            p_value = compare_seeds(old, new, (spread, spread)).lower
            rows.append(replace(row, p_value=p_value, test=T_TEST))
        else:
            first, second = (np.mean(side, axis=0) for side in pair.values(quantity))
            found = paired_test(first, second)
            rows.append(replace(row, p_value=found.p_value, test=found.test))
    return rows


def _means(pair: _Pair, quantity: str) -> tuple[Values, Values]:
    """The accuracy of every model, before and after."""
    old, new = pair.values(quantity)
    return np.array([one.mean() for one in old]), np.array([one.mean() for one in new])


def _groups(pair: _Pair, by_seed: tuple[Values, Values]) -> list[Values]:
    """The sets of accuracies in which a target shows its spread over seeds; equal weights show it once."""
    return list(by_seed) if pair.question == "re-trained" else [by_seed[0]]


def _judge(rows: Sequence[Row], terms: Terms) -> tuple[Row, ...]:
    """Correct the p-values over the family, and decide."""
    family = [row for row in rows if row.p_value is not None]
    if not family:
        return tuple(rows)
    sizes = {quantity: sum(row.quantity == quantity for row in family) for quantity in _WEIGHTS}
    weights = [_WEIGHTS[row.quantity] / sizes[row.quantity] for row in family]
    adjusted = holm([_p(row) for row in family], weights)
    risen = holm([1 - _p(row) if row.question == "re-trained" else _p(row) for row in family], weights)
    judged = {
        id(row): _verdict(row, float(lower), float(higher), terms)
        for row, lower, higher in zip(family, adjusted, risen, strict=True)
    }
    return tuple(judged.get(id(row), row) for row in rows)


def _p(row: Row) -> float:
    return 1.0 if row.p_value is None else row.p_value


def _verdict(row: Row, adjusted: float, risen: float, terms: Terms) -> Row:
    """The verdict of a tested row.

    adjusted: the corrected p-value of being lower. risen: of being higher, the same where the test is two-sided.
    """
    difference = row.difference or 0.0
    if abs(difference) <= terms.tolerance:
        return replace(row, p_value=adjusted)
    if difference < 0:
        worse = adjusted <= terms.alpha
        return replace(row, p_value=adjusted, verdict="worse" if worse else "same", fails=worse)
    better = risen <= terms.alpha
    fails = better and row.question == "same weights"
    why = ["a rise with equal weights: the attack became weaker"] if fails else []
    note = "; ".join(filter(None, [*why, row.note]))
    return replace(row, p_value=risen, verdict="better" if better else "same", fails=fails, note=note)


def _flagged(row: Row, pairs: Mapping[Threat, tuple[Board, Board | None]], terms: Terms) -> Row:
    """The row with the flags of its candidate, whose number is then only an upper bound."""
    before, after = pairs.get(row.threat, (None, None))
    target = after.target(row.target) if after is not None else None
    if row.quantity != WORST or target is None or not target.flags:
        return row
    known = before.target(row.target) if before is not None else None
    new = set(target.flags) - set(known.flags if known is not None else ())
    said = ", ".join(f"{flag} (new)" if flag in new else flag for flag in target.flags)
    note = "; ".join(filter(None, [row.note, f"evaluation incomplete, an upper bound: {said}"]))
    return replace(row, note=note, fails=row.fails or (terms.fail_on_flags and bool(new)))


# --- rows without a test


def _missing(threat: Threat, target: Target, reason: str) -> Row:
    """A target that the candidate has not, or not wholly."""
    attackers = {one for model in target.models for one in model.answers}
    value = float(np.mean([model.worst_case(attackers).mean() for model in target.models]))
    return Row(
        threat=threat, target=target.label, quantity=WORST, baseline=value, verdict="missing", fails=True, note=reason
    )


def _new(threat: Threat, target: Target) -> Row:
    models = [model for model in target.models if model.answers]
    value = float(np.mean([model.worst_case(set(model.answers)).mean() for model in models])) if models else None
    failures = target.failures
    note = f"incomplete: {_first(failures)}" if failures else ""
    return Row(threat=threat, target=target.label, quantity=WORST, candidate=value, verdict="new", note=note)


def _first(failures: Mapping[Attacker, str]) -> str:
    (attacker, reason), *rest = failures.items()
    return f"{attacker}: {reason}" + (f", and {len(rest)} more" if rest else "")


def _time(pair: _Pair, bound: float) -> Row | str:
    """The ratio of attack times, or why there is none."""
    old, new = pair.models()
    devices = {one.device for one in (*old, *new)}
    if len(devices) > 1:
        return f"{pair.before.label}: times of {' and '.join(sorted(devices))} are not compared"
    before, after = _seconds(old, pair.attackers), _seconds(new, pair.attackers)
    if not before or not after:
        return f"{pair.before.label}: no times were measured"
    slower = after / before > bound
    return Row(
        threat=pair.threat,
        target=pair.before.label,
        quantity=TIME,
        baseline=before,
        candidate=after,
        verdict="worse" if slower else "same",
        fails=slower,
        note=f"more than {bound:g} times as long" if slower else "",
    )


def _seconds(models: Sequence[Model], attackers: Iterable[Attacker]) -> float:
    """Attack seconds per image, summed over the attackers that were timed, the mean over models."""
    wanted = set(attackers)
    sums = [sum(one.seconds or 0.0 for name, one in model.answers.items() if name in wanted) for model in models]
    return float(np.mean(sums))


def _cells(before: Board, after: Board) -> Iterable[CellChange]:
    for target in before.targets:
        other = after.target(target.label)
        if other is None:
            continue
        old, new = _by_attacker(target), _by_attacker(other)
        for attacker in sorted(old.keys() & new.keys()):
            yield CellChange(
                threat=before.threat,
                target=target.label,
                attacker=attacker,
                baseline=old[attacker],
                candidate=new[attacker],
            )


def _by_attacker(target: Target) -> dict[Attacker, float]:
    found: dict[Attacker, list[float]] = {}
    for model in target.models:
        for attacker in model.answers:
            found.setdefault(attacker, []).append(model.accuracy(attacker))
    return {attacker: float(np.mean(values)) for attacker, values in found.items()}


def _caveats(rows: Sequence[Row], matched: Sequence[_Match], terms: Terms) -> tuple[str, ...]:
    """What the verdicts claim, and what they do not."""
    questions = {row.question for row in rows}
    found = []
    if "same weights" in questions:
        found.append("Targets with equal weights are fixed models, paired on the same images, two-sided: a rise fails too.")
    if "re-trained" in questions:
        found.append("Re-trained targets are compared as methods: one-sided t over training seeds, on these fixed images.")
    if "checkpoints" in questions:
        found.append(
            "Checkpoints only: the claim is about these very models. Training the same code again from another seed may "
            "move them by as much."
        )
    if terms.across_versions:
        found.append("Across versions: advbench or the attacks' source may differ, and a difference may be theirs.")
    return (*found, *(line for match in matched for line in match.untimed))
