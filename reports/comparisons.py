"""The tests of all pairs of targets on a board, from which its ranks follow."""

from __future__ import annotations

from advbench.reports import formatting
from advbench.reports.section import Column, Entry, Section, Table
from advbench.reports.standings import RankedBoard, Standing
from advbench.results.ranking import Duel
from advbench.results.significance import wilcoxon_signed_rank

_ALL_PAIRS_UP_TO = 10
_FEWEST_CELLS = 6
_COLUMNS = (
    Column("Target", heading=True),
    Column("Compared with"),
    Column("Difference", "Robust accuracy of the target minus that of the other, in points", numeric=True),
    Column("p", "Two-sided p-value of this pair alone", numeric=True),
    Column("p (Holm)", "The same after Holm's correction over all pairs of the board", numeric=True),
    Column("Test"),
    Column("p (cells)", "Wilcoxon's signed-rank test over the cells that both have, as Mosca & Magoulas 2018", numeric=True),
)


def comparison_section(board: RankedBoard) -> Section | None:
    """A row for each pair of ranked targets, or of neighbours in the ranking if there are many; None without pairs."""
    duels = board.ranking.duels
    if not duels:
        return None
    ranked = [standing for standing in board.standings if standing.ranks is not None]
    few = len(ranked) <= _ALL_PAIRS_UP_TO
    shown = [duel for duel in duels if few or duel.second == duel.first + 1]
    return Section(
        title="Comparisons",
        context=board.title,
        anchor=formatting.anchor(f"comparisons {board.title}"),
        text=(
            "The tests behind the ranks. The last column is the test by which Mosca & Magoulas 2018 compare two methods, "
            f"over the single cells that both have, at least {_FEWEST_CELLS}: cells of one model are not independent, so "
            "that it says how consistent a difference is, not how sure."
        ),
        tables=(
            Table(
                f"{'All pairs' if few else 'Neighbours in the ranking'}, {board.title}",
                _COLUMNS,
                tuple(_row(ranked[duel.first], ranked[duel.second], duel) for duel in shown),
                filterable=len(shown) > 8,
            ),
        ),
    )


def _row(first: Standing, second: Standing, duel: Duel) -> tuple[Entry, ...]:
    return (
        formatting.text_entry(first.label),
        formatting.text_entry(second.label),
        formatting.number_entry(-duel.difference, f"{-100 * duel.difference:+.1f}"),
        _p_entry(duel.p_value),
        _p_entry(duel.adjusted),
        formatting.text_entry(duel.test),
        _p_entry(_over_cells(first, second)),
    )


def _over_cells(first: Standing, second: Standing) -> float | None:
    """The p-value over the attackers that both targets met, not those from one of the two; None for too few."""
    own = {first.label, second.label, "itself"}
    common = [attacker for attacker in first.by_attacker.keys() & second.by_attacker.keys() if attacker.source not in own]
    if len(common) < _FEWEST_CELLS:
        return None
    values = [[standing.by_attacker[attacker] for attacker in sorted(common)] for standing in (second, first)]
    return wilcoxon_signed_rank(*values).p_value


def _p_entry(value: float | None) -> Entry:
    return formatting.number_entry(value, "" if value is None else "< 0.0001" if value < 1e-4 else f"{value:.2g}")
