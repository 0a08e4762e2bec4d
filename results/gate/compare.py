"""The gate: whether a number is significantly worse than in the baseline.

The gate tests each target's worst-case and clean accuracy; single cells are listed, not tested. The test
depends on what is fixed:

- A target with equal weights in both runs is one fixed model under two attacks. Its outcomes are paired on the same images,
  by McNemar's exact test, or by sign flips over examples if an outcome is a share (a stochastic model's, or the mean of
  several seeds). The test is two-sided and a rise fails too: without a change of weights, the attack became weaker.
- A re-trained target varies with its seed although the images are fixed, so that pairing them would raise false alarms. Its
  accuracies by seed are compared by a one-sided t-test, with the standard deviation pooled over targets.

Holm's procedure over all of these keeps the chance of any false alarm below alpha; of alpha nine tenths go to the worst
cases and one to the clean accuracies, which spread far less.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from advbench.results.boards import Attacker, Board, BoardTarget, BoardThreat
from advbench.results.gate.baseline import Snapshot
from advbench.results.gate.comparable import board_differences, board_of, version_differences
from advbench.results.gate.matching import Match, TargetPair, match, new_row
from advbench.results.gate.verdicts import CLEAN, WORST, CellChange, GateRow, Terms, Verdicts
from advbench.results.seeds import T_TEST, compare_seeds, shared_spreads
from advbench.results.significance import holm, paired_test
from advbench.results.statistics import Values

_WEIGHTS = {WORST: 9.0, CLEAN: 1.0}
"""How Holm's procedure shares alpha."""


def compare_runs(baseline: Snapshot, candidate: Snapshot, terms: Terms | None = None) -> Verdicts:
    """Compare a run with a baseline.

    A target of the baseline that the candidate lacks, or of which it lacks a number, fails: the number that the baseline
    protects is no longer measured. A target that only the candidate has is new and passes.
    """
    terms = terms or Terms()
    pairs = {board.threat.on_any_images: (board, board_of(candidate, board.threat)) for board in baseline.boards}
    differences = [] if terms.across_versions else version_differences(baseline, candidate)
    for threat, (before, after) in pairs.items():
        differences += [f"{threat}: only in the baseline"] if after is None else board_differences(before, after, terms)
    unknown = [board for board in candidate.boards if board.threat.on_any_images not in pairs]
    if any(after is None for _, after in pairs.values()):
        differences += [f"{board.threat}: only in the candidate" for board in unknown]
    if differences:
        return Verdicts(terms=terms, incomparable=tuple(dict.fromkeys(differences)))
    matched = [match(before, after, terms) for before, after in pairs.values() if after is not None]
    lacking = [line for board_match in matched for line in board_match.lacking]
    if lacking:
        return Verdicts(terms=terms, incomparable=tuple(lacking))
    rows = [row for board_match in matched for row in (*board_match.rows, *_tested(board_match))]
    rows += [new_row(board.threat, target) for board in unknown for target in board.targets]
    judged = tuple(_flagged(row, pairs, terms) for row in _judge(rows, terms))
    changes = tuple(change for before, after in pairs.values() if after is not None for change in _cells(before, after))
    return Verdicts(terms=terms, rows=judged, cells=changes, caveats=_caveats(judged, matched, terms))


# --- tests


def _tested(board_match: Match) -> list[GateRow]:
    """The rows that rest on a test, p-values as they are, both accuracies of every pair."""
    return [
        row
        for quantity in (WORST, CLEAN)
        for row in _tests(board_match.pairs, quantity, 1 / board_match.before.dataset["n"])
    ]


def _tests(pairs: Sequence[TargetPair], quantity: str, step: float) -> list[GateRow]:
    """A row for each pair; p-values one-sided over seeds, else two-sided, uncorrected. A rise of the former is in `note`."""
    by_seed = {id(pair): _means(pair, quantity) for pair in pairs}
    groups = {key: _groups(pair, by_seed[key]) for key, pair in zip(by_seed, pairs, strict=True)}
    pooled = {key: group for key, group in groups.items() if any(len(values) > 1 for values in group)}
    retrained = any(pair.question == "re-trained" for pair in pairs)
    spreads = dict(zip(pooled, shared_spreads(list(pooled.values()), step), strict=True)) if retrained else {}
    rows = []
    for pair in pairs:
        old, new = by_seed[id(pair)]
        row = GateRow(
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
            test = paired_test(first, second)
            rows.append(replace(row, p_value=test.p_value, test=test.test))
    return rows


def _means(pair: TargetPair, quantity: str) -> tuple[Values, Values]:
    """The accuracy of every model, before and after."""
    old, new = pair.values(quantity)
    return np.array([values.mean() for values in old]), np.array([values.mean() for values in new])


def _groups(pair: TargetPair, by_seed: tuple[Values, Values]) -> list[Values]:
    """The sets of accuracies in which a target shows its spread over seeds; equal weights show it once."""
    return list(by_seed) if pair.question == "re-trained" else [by_seed[0]]


def _judge(rows: Sequence[GateRow], terms: Terms) -> tuple[GateRow, ...]:
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


def _p(row: GateRow) -> float:
    return 1.0 if row.p_value is None else row.p_value


def _verdict(row: GateRow, adjusted: float, risen: float, terms: Terms) -> GateRow:
    """The verdict of a tested row.

    adjusted: the corrected p-value of being lower. risen: of being higher, the same if the test is two-sided.
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


def _flagged(row: GateRow, pairs: Mapping[BoardThreat, tuple[Board, Board | None]], terms: Terms) -> GateRow:
    """The row with the flags of its candidate, whose number is then only an upper bound."""
    before, after = pairs.get(row.threat.on_any_images, (None, None))
    target = after.target(row.target) if after is not None else None
    if row.quantity != WORST or target is None or not target.flags:
        return row
    known = before.target(row.target) if before is not None else None
    new = set(target.flags) - set(known.flags if known is not None else ())
    said = ", ".join(f"{flag} (new)" if flag in new else flag for flag in target.flags)
    note = "; ".join(filter(None, [row.note, f"evaluation incomplete, an upper bound: {said}"]))
    return replace(row, note=note, fails=row.fails or (terms.fail_on_flags and bool(new)))


# --- what is shown beside


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


def _by_attacker(target: BoardTarget) -> dict[Attacker, float]:
    accuracies: dict[Attacker, list[float]] = {}
    for model in target.models:
        for attacker in model.answers:
            accuracies.setdefault(attacker, []).append(model.accuracy(attacker))
    return {attacker: float(np.mean(values)) for attacker, values in accuracies.items()}


def _caveats(rows: Sequence[GateRow], matched: Sequence[Match], terms: Terms) -> tuple[str, ...]:
    """The scope of the verdicts."""
    questions = {row.question for row in rows}
    caveats = []
    if "same weights" in questions:
        caveats.append(
            "Targets with equal weights are fixed models, paired on the same images, two-sided: a rise fails too."
        )
    if "re-trained" in questions:
        caveats.append("Re-trained targets are compared as methods: one-sided t over training seeds, on these fixed images.")
    if "checkpoints" in questions:
        caveats.append(
            "Checkpoints only: the claim is about these checkpoints. Training the same code again from another seed may "
            "move them by as much."
        )
    if terms.across_versions:
        caveats.append("Across versions: advbench or the attacks' source may differ, and a difference may be theirs.")
    return (*caveats, *(line for board_match in matched for line in board_match.untimed))
