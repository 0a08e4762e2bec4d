"""Robustness against a union of threats: what withstands in every norm that a model was attacked in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np

from advbench.reports import formatting
from advbench.reports.section import LONGEST_BOARD, Column, Entry, Section, Table
from advbench.reports.standings import RankedBoard, Standing
from advbench.results.boards import BoardThreat
from advbench.results.statistics import OverSeeds, over_seeds


def union_sections(boards: Sequence[RankedBoard]) -> list[Section]:
    """A section for each set of images on which models were attacked in several norms."""
    groups: dict[BoardThreat, list[RankedBoard]] = {}
    for board in boards:
        if board.threat.epsilon is not None:
            groups.setdefault(board.threat.family._replace(norm=""), []).append(board)
    sections = (_section(_largest(group)) for group in groups.values())
    return [section for section in sections if section is not None]


def _largest(boards: Sequence[RankedBoard]) -> list[RankedBoard]:
    """For each norm the board of the largest epsilon."""
    found: dict[str, RankedBoard] = {}
    for board in boards:
        known = found.get(board.threat.norm)
        if known is None or (board.threat.epsilon or 0.0) > (known.threat.epsilon or 0.0):
            found[board.threat.norm] = board
    return list(found.values())


def _section(boards: Sequence[RankedBoard]) -> Section | None:
    rows = [(label, found) for label in _labels(boards) if (found := _in_all(boards, label)) is not None]
    if len(boards) < 2 or not rows:
        return None
    rows.sort(key=lambda row: -union(row[1]).estimate.value)
    threat = boards[0].threat
    context = f"{threat.dataset} {threat.run}".strip()
    names = [formatting.threat(board.threat.norm, board.threat.epsilon) for board in boards]
    columns = (
        Column("Target", heading=True),
        Column("Union of threats", "Robust accuracy where each image is attacked at the worst of the threats", numeric=True),
        *(Column(name, "Worst case of this threat alone", numeric=True) for name in names),
    )
    entries = tuple(
        (
            formatting.text_entry(label),
            formatting.share_entry(union(standings).estimate),
            *(
                Entry(formatting.NONE) if one.robust is None else formatting.share_entry(one.robust.estimate)
                for one in standings
            ),
        )
        for label, standings in rows
    )
    return Section(
        title="Union of threats",
        context=context,
        anchor=formatting.anchor(f"union of threats {context}"),
        text="For each image the worst of all threats that the model was attacked at; of random models the lowest share of "
        "correct draws, an upper bound. Of a norm with several epsilons the largest counts. A model that stands in some "
        "norms alone, or was trained anew for one of them, is not here.",
        tables=(Table(f"Robust accuracy against {', '.join(names)} together", columns, entries, longest=LONGEST_BOARD),),
        caveats=tuple(_flagged(rows)),
    )


def union(standings: Sequence[Standing]) -> OverSeeds:
    """The robust accuracy of one model against all threats together. standings: of each threat, of the same seeds."""
    by_seed = zip(*(one.answers for one in standings), strict=True)
    return over_seeds([reduce(np.minimum, answers) for answers in by_seed])


def _labels(boards: Sequence[RankedBoard]) -> list[str]:
    return list(dict.fromkeys(standing.label for board in boards for standing in board.standings))


def _in_all(boards: Sequence[RankedBoard], label: str) -> list[Standing] | None:
    """How a target stands on each board; None unless it is complete on all, with the same weights and seeds."""
    found = [one for board in boards for one in board.standings if one.label == label and one.rank is not None]
    weights = [_weights(board, label) for board in boards]
    same = all(one == weights[0] for one in weights) and len({one.seeds for one in found}) == 1
    return found if len(found) == len(boards) and same else None


def _weights(board: RankedBoard, label: str) -> Mapping[int, str]:
    """The weights of a target's models, by seed."""
    return {cell.record.seed: cell.record.weights_sha256 for cell in board.cells_of.get(label, ())}


def _flagged(rows: Sequence[tuple[str, Sequence[Standing]]]) -> list[str]:
    flagged = [label for label, standings in rows if any(one.flags for one in standings)]
    return [f"Flagged in some norm, so that the union is an upper bound: {', '.join(flagged)}"] if flagged else []
