"""What two runs must share before the gate compares them: images, epsilons, attacks, queries, versions."""

from __future__ import annotations

from collections.abc import Iterable

from advbench.results.boards import Attacker, Board, BoardTarget, BoardThreat
from advbench.results.gate.baseline import Snapshot
from advbench.results.gate.verdicts import Terms
from advbench.results.record import Facts


def board_of(run: Snapshot, threat: BoardThreat) -> Board | None:
    """The board of a run at a threat, of any images; None if it has none."""
    return next((board for board in run.boards if board.threat.on_any_images == threat.on_any_images), None)


def version_differences(baseline: Snapshot, candidate: Snapshot) -> list[str]:
    """Which other version of advbench one of the runs was made by."""
    if baseline.version == candidate.version:
        return []
    return [f"advbench {baseline.version} in the baseline, {candidate.version} in the candidate"]


def board_differences(before: Board, after: Board, terms: Terms) -> list[str]:
    """Why two boards at one threat cannot be compared; nothing if they can."""
    differences = [
        f"the data set's {name}: {before.dataset[name]!s:.12} in the baseline, {after.dataset[name]!s:.12} in the candidate"
        for name in ("n", "fingerprint")
        if before.dataset[name] != after.dataset[name]
    ]
    if before.box != after.box:
        differences.append(f"the pixel range: {before.box} in the baseline, {after.box} in the candidate")
    if not differences and after.examples and before.examples != after.examples:
        differences.append("other examples: the candidate's images or labels are not those of the baseline")
    for label in before.attacks.keys() & after.attacks.keys():
        differences += _attack_differences(label, before.attacks[label], after.attacks[label], terms)
    return differences + _attacker_differences(before, after)


def _attack_differences(label: str, before: Facts, after: Facts, terms: Terms) -> list[str]:
    if before["name"] != after["name"]:
        return [f"the attack {label}: {before['name']} in the baseline, {after['name']} in the candidate"]
    old, new = before["arguments"], after["arguments"]
    differences = [
        f"the attack {label}: {name} {old.get(name, 'absent')} in the baseline, {new.get(name, 'absent')} in the candidate"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, ...) != new.get(name, ...)
    ]
    old_budget, new_budget = (attack.get("budget", "no budget") for attack in (before, after))
    if old_budget != new_budget:
        differences.append(f"the attack {label}: {old_budget} in the baseline, {new_budget} passes in the candidate")
    if not differences and not terms.across_versions and before["source_hash"] != after["source_hash"]:
        hashes = " and ".join(str(attack["source_hash"])[:8] for attack in (before, after))
        differences.append(f"the attack {label}: another version of its source ({hashes}); --across-versions compares them")
    return differences


def _attacker_differences(before: Board, after: Board) -> list[str]:
    """The attackers that only one side has, beside transfers from targets that only one side has."""
    differences: dict[str, None] = {}
    for target in before.targets:
        other = after.target(target.label)
        if other is None:
            continue
        old, new = comparable(target, after), comparable(other, before)
        differences |= dict.fromkeys(f"{attacker}: only in the baseline" for attacker in sorted(old - new))
        differences |= dict.fromkeys(f"{attacker}: only in the candidate" for attacker in sorted(new - old))
        differences |= dict.fromkeys(_query_differences(target, other))
    return list(differences)


def comparable(target: BoardTarget, other: Board) -> set[Attacker]:
    """The attackers of a target, without transfers from sources that the other board has not."""
    return {
        attacker
        for attacker in target.attackers
        if attacker.matrix != "transfer" or other.target(attacker.source) is not None
    }


def _query_differences(before: BoardTarget, after: BoardTarget) -> Iterable[str]:
    old, new = (
        {name: answers.queries for model in side.models for name, answers in model.answers.items()}
        for side in (before, after)
    )
    for attacker in sorted(old.keys() & new.keys()):
        if old[attacker] != new[attacker]:
            yield f"{attacker}: {old[attacker]} queries in the baseline, {new[attacker]} in the candidate"
