"""Random models by every rule: right on average over fresh draws, or right in each of several submissions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from advbench.reports import formatting
from advbench.reports.section import Column, Entry, Section, Table, first
from advbench.reports.standings import RankedBoard, Standing
from advbench.results.cells import Cell
from advbench.results.known_noise import known_noise
from advbench.results.record import Record
from advbench.results.significance import paired_test
from advbench.results.statistics import OverSeeds, Values


def random_models_section(board: RankedBoard) -> Section | None:
    """The targets by the mean and by the worst of several submissions; None for a board without random targets."""
    standings = [standing for standing in board.standings if standing.robust is not None]
    rules = sorted({n for standing in standings for n in standing.by_submissions})
    if not rules:
        return None
    columns = [Column("Target", heading=True)]
    for name, what in (("Robust", "under attack"), ("Clean", "on the clean images")):
        columns += [Column(f"{name}, {_rule(n)}", f"Share of images that are right {what} {_means(n)}", True) for n in rules]
    known = {standing.label: _known(board.cells_of.get(standing.label, ())) for standing in standings}
    diagnosed = any(value is not None for value in known.values())
    if diagnosed:
        columns.append(Column("Known noise", "Under an attacker who knows each draw; not ranked", True))
    rows = tuple((*_row(standing, rules), *([_share(known[standing.label])] if diagnosed else [])) for standing in standings)
    return Section(
        title="Random models by every rule",
        context=board.title,
        anchor=formatting.anchor(f"random models {board.title}"),
        text="Targets are ranked by the mean over fresh draws. An attacker who may submit an image again waits for the "
        "first wrong answer: under the worst of N, an image counts as right only if N answers in a row are, estimated from "
        "c right ones of K fresh draws as C(c, N) / C(K, N). Clean images are judged by the same rule. Models that are not "
        "random answer the same each time." + (_DIAGNOSED if diagnosed else ""),
        tables=(Table(f"Random models by every rule, {board.title}", tuple(columns), rows),),
        caveats=tuple(first(list(flips(standings)), "more pairs change their order")),
    )


_DIAGNOSED = (
    " Known noise is a diagnostic that counts nowhere: each draw is attacked as a model of its own, by an attacker who "
    "knows it (arXiv:2404.14309). What a target loses there it owes to the attacker's ignorance of the draws."
)


def _known(cells: Sequence[Cell]) -> float | None:
    """Accuracy under known noise, the mean over training seeds; None where no seed has one."""
    seeds: dict[int, list[Record]] = {}
    for cell in cells:
        seeds.setdefault(cell.record.seed, []).append(cell.record)
    found = [values for values in map(known_noise, seeds.values()) if values is not None]
    return float(np.mean([values.mean() for values in found])) if found else None


def _share(value: float | None) -> Entry:
    return Entry(formatting.NONE, tone="muted") if value is None else Entry(formatting.percent(value), order=value)


def flips(standings: Sequence[Standing]) -> Iterator[str]:
    """The pairs, one of them random, whose order under the most submissions is not the order by the mean."""
    complete = [standing for standing in standings if standing.rank is not None]
    for one, other in combinations(complete, 2):
        known = [max(each.by_submissions) for each in (one, other) if each.by_submissions]
        if not known:
            continue
        n = min(known)
        by_mean, by_worst = _difference(one, other, 1), _difference(one, other, n)
        if by_mean * by_worst < 0:
            above, below = (one, other) if by_mean > 0 else (other, one)
            yield (
                f"{above.label} stands above {below.label} by the mean ({_pair(above, below, 1)}) and below it under the "
                f"{_rule(n)} ({_pair(above, below, n)})."
            )


def _row(standing: Standing, rules: Sequence[int]) -> tuple[Entry, ...]:
    entries = [formatting.text_entry(standing.label)]
    for clean in (False, True):
        for n in rules:
            found = _accuracy(standing, n, clean=clean)
            entries.append(formatting.share_entry(found.estimate if found else None))
    return tuple(entries)


def _accuracy(standing: Standing, n: int, *, clean: bool = False) -> OverSeeds | None:
    """By a rule; None for a random target with fewer draws."""
    if not standing.by_submissions:
        return standing.clean if clean else standing.robust
    found = standing.by_submissions.get(n)
    return None if found is None else found.clean if clean else found.robust


def _answers(standing: Standing, n: int) -> Values:
    """By example, the mean over training seeds, (n,)."""
    by_seed = standing.by_submissions[n].answers if standing.by_submissions else standing.answers
    mean: Values = np.mean(np.stack(by_seed), axis=0)
    return mean


def _difference(first: Standing, second: Standing, n: int) -> float:
    return float(_answers(first, n).mean() - _answers(second, n).mean())


def _pair(above: Standing, below: Standing, n: int) -> str:
    """Both accuracies, and how likely so large a difference is by chance."""
    shares = [formatting.percent(float(_answers(one, n).mean())) for one in (above, below)]
    p = paired_test(_answers(above, n), _answers(below, n)).p_value
    return f"{shares[0]} and {shares[1]}, p {'below 0.001' if p < 0.001 else f'{p:.2g}'}"


def _rule(n: int) -> str:
    return "mean" if n == 1 else f"worst of {n}"


def _means(n: int) -> str:
    return "in a fresh draw" if n == 1 else f"in each of {n} fresh draws"
