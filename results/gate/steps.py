"""A baseline's history: the gate from each version to the next, and from a fixed anchor to each.

A gate with a tolerance lets every step lose a little. The anchor is one version that does not move, so that what the steps
were allowed to lose cannot add up to more than the tolerance unnoticed. Both are `compare_runs` on the same terms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from advbench.results.boards import Attacker, BoardThreat
from advbench.results.gate.baseline import Snapshot
from advbench.results.gate.compare import compare_runs
from advbench.results.gate.verdicts import CLEAN, WORST, Terms, Verdicts
from advbench.results.statistics import OverSeeds, over_seeds


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Version:
    """A run at one point of a history.

    name: a commit's short id, or a folder or file. run: None if it could not be read, for the reason in `problem`. commit:
    its full id, date: its day as YYYY-MM-DD, subject: its first line; all empty for what is no commit.
    """

    name: str
    run: Snapshot | None
    commit: str = ""
    date: str = ""
    subject: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Transition:
    """A version and its verdicts.

    change: against the last readable version before, None if there is none. drift: against the anchor, None for the anchor
    itself and for what came before it. Both are None for a version that could not be read.
    """

    version: Version
    change: Verdicts | None = None
    drift: Verdicts | None = None

    @property
    def failing(self) -> frozenset[tuple[BoardThreat, str, str]]:
        """The numbers that fail, against either, as threat on any images, target and quantity."""
        rows = [row for verdicts in (self.change, self.drift) if verdicts is not None for row in verdicts.failures]
        return frozenset((row.threat.on_any_images, row.target, row.quantity) for row in rows)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VersionHistory:
    """Versions in order, each with its verdicts. anchor: the version that all later ones are tested against."""

    terms: Terms
    anchor: Version
    steps: tuple[Transition, ...]

    @property
    def exit_code(self) -> int:
        """That of `advbench check` for the last version, against the one before and against the anchor: the higher one.

        0 if no number is worse, 1 if at least one fails, 2 if it cannot be compared with one of them, or be read. What an
        earlier step lost is judged by the anchor alone.
        """
        last = self.steps[-1]
        if last.version.run is None:
            return 2
        return max((verdicts.exit_code for verdicts in (last.change, last.drift) if verdicts is not None), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A target's worst-case or clean accuracy, the mean over its training seeds."""

    threat: BoardThreat
    target: str
    quantity: str
    rate: OverSeeds


def trace(versions: Sequence[Version], terms: Terms, anchor: Version | None = None) -> VersionHistory:
    """Test each version against the one before and against the anchor.

    anchor: one of `versions`, or one from elsewhere, which all of them are then tested against; the first that could be read
    if None. Raises ValueError if there is no version, or if the anchor could not be read.
    """
    if anchor is None:
        anchor = next((version for version in versions if version.run is not None), None)
    if anchor is None or anchor.run is None or not versions:
        problem = f", got {anchor.name}: {anchor.problem}" if anchor is not None else ", got none"
        raise ValueError(f"Expected a version that can be read as the anchor{problem}")
    steps: list[Transition] = []
    before: Snapshot | None = None
    anchored = anchor not in versions
    for version in versions:
        if version.run is None:
            steps.append(Transition(version=version))
            continue
        change = compare_runs(before, version.run, terms) if before is not None else None
        drift = compare_runs(anchor.run, version.run, terms) if anchored else None
        steps.append(Transition(version=version, change=change, drift=drift))
        before, anchored = version.run, anchored or version is anchor
    return VersionHistory(terms=terms, anchor=anchor, steps=tuple(steps))


def numbers(run: Snapshot) -> Iterator[Number]:
    """The numbers that the gate tests, of the targets that have them."""
    for board in run.boards:
        for target in board.targets:
            models = target.scored
            if models:
                values = {WORST: [model.worst_case() for model in models], CLEAN: [model.clean_values() for model in models]}
                for quantity, by_seed in values.items():
                    yield Number(threat=board.threat, target=target.label, quantity=quantity, rate=over_seeds(by_seed))


def single_attacks(run: Snapshot, threat: BoardThreat) -> dict[tuple[str, Attacker], float]:
    """The accuracy that each attack alone leaves a target at a threat, on any images, the mean over training seeds."""
    found: dict[tuple[str, Attacker], list[float]] = {}
    for board in run.boards:
        if board.threat.on_any_images == threat.on_any_images:
            for target in board.targets:
                for model in target.scored:
                    for attacker in model.answers:
                        found.setdefault((target.label, attacker), []).append(model.accuracy(attacker))
    return {place: sum(values) / len(values) for place, values in found.items()}


def threats(versions: Iterable[Version]) -> list[BoardThreat]:
    """The threats of all versions that could be read, on any images, in the order in which they first come."""
    runs = [version.run for version in versions if version.run is not None]
    return list(dict.fromkeys(board.threat.on_any_images for run in runs for board in run.boards))
