"""Test-time defenses against three attackers, and what their detectors catch at other thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from advbench.reports import figures, formatting
from advbench.reports.section import Column, Entry, Section, Table
from advbench.reports.standings import RankedBoard, Standing
from advbench.results.cells import Cell
from advbench.results.matrices import OBLIVIOUS
from advbench.results.record import Examples, Record
from advbench.results.statistics import OverSeeds, Values, clean_correct, over_seeds, worst_case

_FALSE_ALARMS = (0.001, 0.01, 0.05, 0.1)
_THRESHOLDS = 200


@dataclass(frozen=True, slots=True)
class _Attacker:
    """Some of the cells of a target, under a name."""

    name: str
    help: str
    takes: Callable[[Record], bool]


def _black_box(kind: str) -> Callable[[Record], bool]:
    return lambda record: record.matrix == "black-box" and record.source is not None and record.source["kind"] == kind


_IGNORES = _Attacker(
    "Ignores the defense",
    "The images of an attack on the model without its test-time parts, shown to the defended model",
    lambda record: record.matrix == OBLIVIOUS,
)
_WHITE_BOX = _Attacker(
    "Adaptive white-box",
    "Worst over the surrogates and attacks of the white-box matrix",
    lambda record: record.matrix == "white-box",
)
_SUBSTITUTE = _Attacker(
    "Substitute black-box", "Worst over the substitutes and attacks of the black-box matrix", _black_box("substitute")
)
_QUERIES = _Attacker(
    "Queries", "Worst over the attacks that ask for labels or scores, without a substitute", _black_box("queries")
)
_HEADLINE = Column(
    "Minimum of white-box and substitute", "The headline of Srinivasan et al. 2018 (arXiv:1805.12017)", numeric=True
)


def attackers_section(board: RankedBoard) -> Section | None:
    """A row for each defense with test-time parts: three attackers side by side; None if the board has none."""
    labels = {cell.record.target["label"] for cell in board.cells if _IGNORES.takes(cell.record)}
    standings = [standing for standing in board.standings if standing.label in labels]
    if not standings:
        return None
    queries = any(_QUERIES.takes(cell.record) for cell in board.cells if cell.record.target["label"] in labels)
    shown = (_IGNORES, _WHITE_BOX, _SUBSTITUTE, *([_QUERIES] if queries else []))
    columns = (
        Column("Defense", heading=True),
        Column("Clean", "Accuracy on the clean images; a rejected one is lost", numeric=True),
        *(Column(attacker.name, attacker.help, numeric=True) for attacker in shown),
        _HEADLINE,
        Column("Architecture"),
    )
    rows = tuple(_row(board, standing, shown) for standing in standings)
    return Section(
        title="Test-time defenses",
        context=board.title,
        anchor=formatting.anchor(f"test time defenses {board.title}"),
        text="What three attackers leave of each defense with parts that work when it answers: one who ignores these parts, "
        "one who differentiates through them or around them by every surrogate, and one who trains a substitute on the "
        "labels. Each is the worst case over the attacks that were run. Only the last two say how robust a defense is.",
        tables=(Table(f"Three attackers, {board.title}", columns, rows), _by_surrogate(board, standings)),
        caveats=tuple(_caveats(board, labels, shown)),
    )


def _by_surrogate(board: RankedBoard, standings: Sequence[Standing]) -> Table:
    """What each surrogate alone leaves in each white-box cell, and the draws that its gradients average."""
    cells = [
        cell
        for standing in standings
        for cell in board.cells_of[standing.label]
        if _WHITE_BOX.takes(cell.record) and cell.examples is not None
    ]
    surrogates = {name for cell in cells for name in cell.record.details.get("candidates", {})}
    names = sorted(surrogates, key=lambda name: (not name.startswith("faithful"), name == "base", name))
    several = len({cell.record.seed for cell in cells}) > 1
    columns = (
        Column("Defense", heading=True),
        Column("Attack"),
        *([Column("Seed", numeric=True)] if several else []),
        *(Column(name, "Robust accuracy under the images crafted on this surrogate alone", numeric=True) for name in names),
        Column("Draws", "The most passes that a gradient of a surrogate averages", numeric=True),
    )
    rows = tuple(
        (
            formatting.text_entry(cell.record.target["label"]),
            formatting.text_entry(cell.record.attack["label"]),
            *([Entry(str(cell.record.seed), order=cell.record.seed)] if several else []),
            *(_reached(cell.record.details.get("candidates", {}), name) for name in names),
            _draws(cell.record),
        )
        for cell in cells
    )
    return Table(f"White-box robust accuracy by surrogate, {board.title}", columns, rows)


def _reached(accuracies: Mapping[str, float | None], name: str) -> Entry:
    if name not in accuracies:
        return Entry(formatting.NONE, tone="muted")
    value = accuracies[name]
    return Entry("no gradient", tone="muted") if value is None else Entry(formatting.percent(value), order=value)


def _draws(record: Record) -> Entry:
    """The most draws that a gradient of a surrogate averages."""
    most = max(record.details.get("draws", {}).values(), default=None)
    return formatting.number_entry(most, f"{most:,}") if most else Entry(formatting.NONE, tone="muted")


def _row(board: RankedBoard, standing: Standing, shown: Sequence[_Attacker]) -> tuple[Entry, ...]:
    rates = {attacker.name: _accuracy(board, standing.label, attacker) for attacker in shown}
    both = [rates[attacker.name] for attacker in (_WHITE_BOX, _SUBSTITUTE)]
    lowest = min((rate.estimate.value for rate in both if rate is not None), default=None)
    bounded = formatting.percent(lowest) if None not in both else f"≤ {formatting.percent(lowest)}"
    return (
        formatting.text_entry(standing.defense),
        formatting.share_entry(standing.clean.estimate if standing.clean else None),
        *(formatting.share_entry(rate.estimate if rate else None) for rate in rates.values()),
        formatting.number_entry(lowest, bounded),
        formatting.text_entry(standing.architecture),
    )


def _accuracy(board: RankedBoard, label: str, attacker: _Attacker) -> OverSeeds | None:
    """What an attacker leaves of a target, over its seeds; None if he was not run with every one of them."""
    cells = board.cells_of[label]
    seeds = sorted({cell.record.seed for cell in cells})
    by_seed: list[Values] = []
    for seed in seeds:
        own = [cell.outcome for cell in cells if cell.record.seed == seed and attacker.takes(cell.record)]
        outcomes = [outcome for outcome in own if outcome is not None]
        if not outcomes:
            return None
        by_seed.append(worst_case(outcomes, board.threat.epsilon).values)
    return over_seeds(by_seed) if len({len(values) for values in by_seed}) == 1 else None


def _caveats(board: RankedBoard, labels: set[str], shown: Sequence[_Attacker]) -> list[str]:
    """Numbers that rest on fewer attacks than they should, and draws that were not enough."""
    caveats = []
    for label in sorted(labels):
        cells = board.cells_of[label]
        for attacker in shown:
            lost = sum(cell.examples is None for cell in cells if attacker.takes(cell.record))
            if lost:
                caveats.append(
                    f"{label}: {formatting.plural(lost, 'cell')} of the attacker {attacker.name!r} have no numbers."
                )
        for name, draws, cosine in sorted({each for cell in cells for each in _capped(cell.record)}):
            caveats.append(
                f"{label}: {draws} draws were not enough for the mean gradient of {name} to settle (cosine {cosine:.2f}); "
                "its white-box number is an upper bound."
            )
    return caveats


def _capped(record: Record) -> list[tuple[str, int, float]]:
    """The surrogates whose EOT was cut short: name, draws and the lower of the cosines."""
    if record.matrix != "white-box":
        return []
    return [
        (
            name,
            values.get("draws", 0),
            min((each for each in values.get("cosines", ()) if each is not None), default=math.nan),
        )
        for name, values in record.details.get("preparation", {}).items()
        if values.get("capped")
    ]


def detectors_section(board: RankedBoard) -> Section | None:
    """What the detectors of a board reject as their thresholds move; None if it has none.

    Rates are those of the white-box attack that leaves the least robust accuracy, for each target.
    """
    cells = [cell for cell in (_strongest(board, standing) for standing in board.standings) if cell is not None]
    if not cells:
        return None
    panels = [figures.Panel(cell.record.target["label"], _curves(cell)) for cell in cells]
    columns = (
        Column("Target", heading=True),
        Column("Attack"),
        Column("Threshold"),
        Column("Clean rejected", "Share of the clean images that the detector rejects", numeric=True),
        Column("Adversarials caught", "Share of the misclassified adversarial images that it rejects", numeric=True),
        Column("Undetected successes", "Share of all images whose adversarial is misclassified and accepted", numeric=True),
    )
    return Section(
        title="Detectors",
        context=board.title,
        anchor=formatting.anchor(f"detectors {board.title}"),
        text="What a detector rejects as its threshold moves, under the white-box attack that leaves the least robust "
        "accuracy. That attack evades the detector at the threshold that was set; at another one an attacker would craft "
        "other images. Images of which the model gets the clean one wrong are left out of the last two columns.",
        tables=(Table(f"Rates of the detectors, {board.title}", columns, _detector_rows(cells)),),
        figures=(
            figures.line_plots(
                panels,
                x_label="clean images rejected",
                y_label="share",
                caption=f"Detectors as their thresholds move, {board.title}",
                alt="Adversarials caught and undetected successes against the clean images rejected; see the table",
            ),
        ),
    )


def _strongest(board: RankedBoard, standing: Standing) -> Cell | None:
    """The white-box cell of a target with a detector that leaves the least robust accuracy."""
    cells = [cell for cell in board.cells_of[standing.label] if _WHITE_BOX.takes(cell.record) and cell.examples is not None]
    detected = [cell for cell in cells if cell.examples is not None and cell.examples.detected]
    return min(detected, key=lambda cell: worst_case([_outcome(cell)], board.threat.epsilon).values.mean(), default=None)


def _outcome(cell: Cell) -> tuple[Record, Examples]:
    if cell.outcome is None:
        raise ValueError(f"Expected a scored cell, got {cell.record.key}")
    return cell.outcome


def _detector_rows(cells: Sequence[Cell]) -> tuple[tuple[Entry, ...], ...]:
    rows = []
    for cell in cells:
        _, examples = _outcome(cell)
        thresholds = [("as set", 0.0)]
        thresholds += [(f"{formatting.percent(rate)} false alarms", _threshold(examples, rate)) for rate in _FALSE_ALARMS]
        for name, threshold in thresholds:
            rates = [float(rate[0]) for rate in detector_rates(examples, np.array([threshold]))]
            rows.append(
                (
                    formatting.text_entry(cell.record.target["label"]),
                    formatting.text_entry(cell.record.attack["label"]),
                    Entry(name),
                    *(formatting.number_entry(rate, formatting.percent(rate)) for rate in rates),
                )
            )
    return tuple(rows)


def _threshold(examples: Examples, rate: float) -> float:
    """The score above which at most a share `rate` of the clean images lies."""
    return float(np.quantile(examples.clean_score, 1 - rate, method="higher"))


def _curves(cell: Cell) -> tuple[figures.Curve, ...]:
    _, examples = _outcome(cell)
    scores = np.concatenate((examples.clean_score, examples.report_score))
    thresholds = np.unique(np.quantile(scores, np.linspace(0, 1, _THRESHOLDS), method="nearest"))
    thresholds = np.concatenate(([-np.inf], thresholds))
    rejected, caught, undetected = detector_rates(examples, thresholds)
    return (
        figures.Curve("adversarials caught", rejected[::-1], caught[::-1]),
        figures.Curve("undetected successes", rejected[::-1], undetected[::-1]),
    )


def detector_rates(examples: Examples, thresholds: Values) -> tuple[Values, Values, Values]:
    """Three shares at every threshold of the score, (m,) each: what a detector rejects if its score is above it.

    Clean images rejected, of all. Adversarials caught, of those that the model gets wrong (NaN without any), and undetected
    successes, of all; both for images whose clean one the model gets right, whether or not the detector accepts it. Scores
    are means over draws, and so is what the model gets wrong.
    """
    accepted_or_not = clean_correct(examples) | (examples.clean_prediction == examples.label)
    wrong = np.where(accepted_or_not, examples.report_wrong / examples.draws, 0.0)
    above = examples.report_score[:, None] > thresholds
    rejected = (examples.clean_score[:, None] > thresholds).mean(axis=0)
    total = wrong.sum()
    caught = (wrong[:, None] * above).sum(axis=0) / total if total else np.full(len(thresholds), np.nan)
    return rejected, caught, (wrong[:, None] * ~above).sum(axis=0) / len(examples)
