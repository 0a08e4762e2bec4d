"""Whether attacks have converged: robust accuracy by what an attack was given, such as steps, restarts, queries or draws."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from advbench.reports import figures, formatting
from advbench.reports.section import LONGEST_BOARD, Column, Drawing, Entry, Section, Table, Tone
from advbench.reports.standings import RankedBoard
from advbench.results.boards import examples_digest, ranking, seen_attacker
from advbench.results.cells import Cell
from advbench.results.record import Record
from advbench.results.significance import paired_test
from advbench.results.statistics import Values, over_seeds, rate, robust

POINT = 0.01
"""An attack whose dearest setting breaks this share more than all cheaper ones has not converged."""
LEVEL = 0.05
"""Of the test over images, below which such a gain is said without a may."""
_TOGETHER = "worst-case"
"""The attack that runs others, and may set their draws."""


@dataclass(frozen=True, slots=True, eq=False)
class AttackSetting:
    """An attack with its arguments on one target.

    passes: forwards and backwards for each attacked image, the mean over training seeds. values: by training seed, the share
    of correct answers to each image, (n,). by_image: the mean over training seeds, (n,). accuracy: the robust accuracy, in
    [0, 1].
    """

    name: str
    passes: float
    values: tuple[Values, ...]
    by_image: Values
    accuracy: float

    @staticmethod
    def of(name: str, passes: float, values: Sequence[Values]) -> AttackSetting:
        """A setting from its answers by training seed."""
        by_image: Values = np.mean(np.stack(values), axis=0)
        return AttackSetting(name, passes, tuple(values), by_image, float(by_image.mean()))


@dataclass(frozen=True, slots=True, eq=False)
class Escalation:
    """The settings of one attack on one target, those of fewer passes first."""

    target: str
    attack: str
    settings: tuple[AttackSetting, ...]

    def below(self, setting: AttackSetting) -> AttackSetting | None:
        """The strongest of the settings that take fewer passes; None for the cheapest."""
        return min((one for one in self.settings if one.passes < setting.passes), key=lambda one: one.accuracy, default=None)

    def gain(self, setting: AttackSetting) -> float | None:
        """By how much a setting is below all of fewer passes, in [-1, 1]; None for the cheapest."""
        below = self.below(setting)
        return None if below is None else below.accuracy - setting.accuracy

    def p_value(self, setting: AttackSetting) -> float:
        """Of the two-sided paired test over images of that gain; 1 for the cheapest."""
        below = self.below(setting)
        return 1.0 if below is None else paired_test(below.by_image, setting.by_image).p_value

    @property
    def converged(self) -> bool:
        """Whether the setting of most passes gains less than `POINT`."""
        gain = self.gain(self.settings[-1])
        return gain is None or gain < POINT - 1e-9


def convergence_section(board: RankedBoard) -> Section | None:
    """A row for each setting of an attack that ran at several on the same target; None where none did."""
    found = ladders(board)
    if not found:
        return None
    columns = (
        Column("Target", heading=True, choice=True),
        Column("Attack", choice=True),
        Column("Setting"),
        Column("Passes", "Forwards and backwards for each attacked image", numeric=True),
        Column("Robust accuracy", "Under this setting alone", numeric=True),
        Column("Gain", "Points below the strongest setting of fewer passes; p of the paired test over images", numeric=True),
    )
    rows = tuple(_row(ladder, setting) for ladder in found for setting in ladder.settings)
    return Section(
        title="Convergence",
        context=board.title,
        anchor=formatting.anchor(f"convergence {board.title}"),
        text="Attacks that ran at several settings on the same target, on the target itself. An attack that has converged "
        f"gains less than {100 * POINT:g} point from its setting of most passes: more of the same finds nothing. That "
        "says nothing of other attacks. Of equal passes, more draws of a random model are fewer steps.",
        tables=(Table(f"Settings, {board.title}", columns, rows, filterable=len(rows) > 8, longest=LONGEST_BOARD),),
        caveats=tuple(_open(found)),
        figures=(_drawing(found, board),),
    )


def ladders(board: RankedBoard) -> list[Escalation]:
    """The attacks that ran at several settings on one target, targets in the board's order."""
    groups: dict[tuple[str, str], dict[str, list[Cell]]] = {}
    for cell in ranking(board.cells):
        record = cell.record
        if cell.examples is not None and _direct(record):
            group = groups.setdefault((record.target["label"], _attack(record)), {})
            group.setdefault(_setting(record), []).append(cell)
    places = {standing.label: place for place, standing in enumerate(board.standings)}
    found = (_ladder(target, attack, settings, board.threat.epsilon) for (target, attack), settings in groups.items())
    several = [ladder for ladder in found if len(ladder.settings) > 1]
    return sorted(several, key=lambda one: (places.get(one.target, len(places)), one.target, one.attack))


def _direct(record: Record) -> bool:
    """Whether the target itself was attacked, by passes that are known: images found elsewhere took none."""
    asked = record.matrix == "white-box" or (record.source is not None and record.source["kind"] == "queries")
    known = record.threat["epsilon"] is not None or not record.attack["minimal_norm"]
    counts = record.counts
    return asked and known and bool(counts.get("examples")) and counts["forwards"] + counts["backwards"] > 0


def _attack(record: Record) -> str:
    """The name of an attack without its arguments; of one attack that runs alone in a worst case its own."""
    listed = record.attack["arguments"].get("attacks")
    if record.attack["name"] == _TOGETHER and isinstance(listed, list | tuple) and len(listed) == 1:
        return str(listed[0]).partition("(")[0]
    return record.attack["name"]


def _setting(record: Record) -> str:
    attacker = seen_attacker(record)
    budget = record.attack.get("budget")
    return attacker.attack if budget is None else f"{attacker.attack}, budget {budget:,}"


def _ladder(target: str, attack: str, settings: dict[str, list[Cell]], epsilon: float | None) -> Escalation:
    """The settings that the same trained models faced as the first one did, on the same images."""
    faced = [sorted((cell.record.seed, _images(cell)) for cell in cells) for cells in settings.values()]
    same = [name for name, own in zip(settings, faced, strict=True) if own == faced[0]]
    found = [_measured(name, settings[name], epsilon) for name in same]
    return Escalation(target, attack, tuple(sorted(found, key=lambda one: one.passes)))


def _images(cell: Cell) -> str:
    return "" if cell.examples is None else examples_digest(cell.examples)


def _measured(name: str, cells: Iterable[Cell], epsilon: float | None) -> AttackSetting:
    passes, values = list[float](), list[Values]()
    for cell in sorted(cells, key=lambda cell: cell.record.seed):
        counts = cell.record.counts
        assert cell.examples is not None
        passes.append((counts["forwards"] + counts["backwards"]) / counts["examples"])
        values.append(robust(cell.record, cell.examples, epsilon)[np.argsort(cell.examples.index, kind="stable")])
    return AttackSetting.of(name, float(np.mean(passes)), values)


def _row(ladder: Escalation, setting: AttackSetting) -> tuple[Entry, ...]:
    gain = ladder.gain(setting)
    if gain is None:
        told = Entry(formatting.NONE, tone="muted")
    else:
        tone: Tone = "warning" if setting is ladder.settings[-1] and not ladder.converged else ""
        told = Entry(f"{100 * gain:+.1f}", f"p {ladder.p_value(setting):.2g}", gain, tone=tone)
    return (
        formatting.text_entry(ladder.target),
        formatting.text_entry(ladder.attack),
        formatting.text_entry(setting.name),
        formatting.number_entry(setting.passes, formatting.number(setting.passes)),
        formatting.share_entry(over_seeds(setting.values).estimate),
        told,
    )


def _open(found: Sequence[Escalation]) -> Iterable[str]:
    for ladder in found:
        gain = ladder.gain(ladder.settings[-1])
        if gain is not None and not ladder.converged:
            p = ladder.p_value(ladder.settings[-1])
            yield (
                f"{ladder.attack} on {ladder.target} {'has not' if p < LEVEL else 'may not have'} converged: "
                f"{ladder.settings[-1].name} breaks another {100 * gain:.1f} points (p {p:.2g}), so that its accuracy is an "
                "upper bound."
            )


def _drawing(found: Sequence[Escalation], board: RankedBoard) -> Drawing:
    panels = [
        figures.Panel(attack, tuple(_curve(ladder) for ladder in found if ladder.attack == attack))
        for attack in dict.fromkeys(ladder.attack for ladder in found)
    ]
    return figures.line_plots(
        panels,
        x_label="passes for each image",
        y_label="robust accuracy",
        caption=f"Robust accuracy by passes, {board.title}",
        alt="Curves of robust accuracy over the passes of an attack, the numbers of the table of this section",
        log_x=True,
    )


def _curve(ladder: Escalation) -> figures.Curve:
    ends = [rate(setting.by_image) for setting in ladder.settings]
    return figures.Curve(
        ladder.target,
        np.array([setting.passes for setting in ladder.settings]),
        np.array([end.value for end in ends]),
        marked=True,
        low=np.array([end.low for end in ends]),
        high=np.array([end.high for end in ends]),
    )
