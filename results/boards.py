"""Boards: the cells of a run by threat, target and training seed, with the numbers that reports show and the gate tests.

A threat is a data set, its scored images, a norm and an epsilon. All targets of a board are attacked at its threat. A
minimal-norm attack without an epsilon stands on every board of its norm. Cells without a pixel range stand on none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from advbench.results.cells import Cell
from advbench.results.flags import Flag, flags
from advbench.results.matrices import RANKED
from advbench.results.record import Examples, Facts, Record
from advbench.results.resubmissions import arrangements
from advbench.results.statistics import Outcome, Values, reports_of_lowest, robust, selection

Counts: TypeAlias = NDArray[np.int64]
_Key = TypeVar("_Key", str, int)
_OWN_WEIGHTS = ("weights", "weights_sha256")
ITSELF = "itself"
"""The source of a transfer, seen from its target, if both are the same model."""


class Attacker(NamedTuple):
    """How adversarials are made: a matrix, an attack, and the source's label, empty in the white-box matrix."""

    matrix: str
    attack: str
    source: str

    def __str__(self) -> str:
        return f"{self.matrix} {self.attack}" + (f" from {self.source}" if self.source else "")

    def seen_by(self, target: str) -> Attacker:
        """The attacker as a target names it: a transfer from the target's own label comes from `ITSELF`."""
        own = self.matrix == "transfer" and self.source == target
        return self._replace(source=ITSELF) if own else self


class BoardThreat(NamedTuple):
    """What all targets of a board have in common: the same images, norm and epsilon (None for no limit).

    run: the runs that the board is made of, in a report in which other runs at the same threat have a board of their own.
    """

    dataset: str
    split: str
    n: int
    fingerprint: str
    norm: str
    epsilon: float | None
    run: str = ""

    def __str__(self) -> str:
        bound = "" if self.epsilon is None else f" {self.epsilon:g}"
        return f"{self.norm}{bound} on {self.dataset}"

    @property
    def family(self) -> BoardThreat:
        """The same at any epsilon."""
        return self._replace(epsilon=None)

    @property
    def on_any_images(self) -> BoardThreat:
        """The same for any images of the data set's split, by which the gate finds the board of another run."""
        return self._replace(n=0, fingerprint="", run="")


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """A model's answers to one attacker's images: counts of correct draws by example, (n,).

    report: what counts. select: what the attacker knew when choosing, one more than the draws if the adversarial is beyond
    epsilon; None for a deterministic model. seconds: of the attack, per image. queries: of the substitute.
    """

    report: Counts
    select: Counts | None = None
    seconds: float | None = None
    queries: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TrainedModel:
    """One training of a target, examples in the order of the data set.

    clean: counts of correct draws on the clean images, (n,). answers: by attacker. failures: why an attacker has no numbers.
    repeats: further answers to attackers that have more than one record.
    """

    seed: int
    weights: str
    device: str
    draws: int
    clean: Counts
    answers: Mapping[Attacker, Answers]
    failures: Mapping[Attacker, str]
    repeats: tuple[tuple[Attacker, Answers], ...] = ()

    def clean_values(self, submissions: int = 1) -> Values:
        """The share of correct answers to clean images by example, (n,); that all of several submissions are right."""
        shares: Values = arrangements(self.clean, submissions) / self._all_right(submissions)
        return shares

    def worst_case(self, attackers: Collection[Attacker] | None = None, submissions: int = 1) -> Values:
        """The share of correct answers under the best of `attackers` (all if None) by example, (n,).

        submissions: how often the attacker submits the image, which is right if every answer is. The attacker with the
        fewest correct selection draws is the best for any number of them. Raises ValueError if none of `attackers` has
        numbers, or for more submissions than a random model has draws.
        """
        chosen = [answers for attacker, answers in self._all() if attackers is None or attacker in attackers]
        if not chosen:
            raise ValueError("Expected at least one attacker, got none")
        reports = np.stack([answers.report for answers in chosen])
        selects = np.stack([answers.report if answers.select is None else answers.select for answers in chosen])
        reported = reports_of_lowest(selects.astype(np.float64), arrangements(reports, submissions))
        return reported / self._all_right(submissions)

    def _all_right(self, submissions: int) -> float:
        """`arrangements` of an image that is right in every draw."""
        if submissions > self.draws:
            raise ValueError(f"Expected at most {self.draws} submissions, one per draw, got {submissions}")
        return float(arrangements(self.draws, submissions))

    def accuracy(self, attacker: Attacker) -> float:
        """The robust accuracy that one attacker alone leaves, the mean over its records."""
        means = [answers.report.mean() / self.draws for other, answers in self._all() if other == attacker]
        return float(np.mean(means))

    def _all(self) -> Iterable[tuple[Attacker, Answers]]:
        return (*self.answers.items(), *self.repeats)


@dataclass(frozen=True, slots=True, eq=False)
class BoardTarget:
    """A defended model by its label.

    facts: defense, architecture, stochastic. models: by seed. flags: names of the signs that its evaluation is incomplete.
    findings: these signs with their numbers, if the target comes from records. problem: why there are no numbers although
    cells were scored, empty if there is no problem.
    """

    label: str
    facts: Facts
    models: tuple[TrainedModel, ...]
    flags: tuple[str, ...] = ()
    findings: tuple[Flag, ...] = ()
    problem: str = ""

    @property
    def scored(self) -> tuple[TrainedModel, ...]:
        """The models with numbers."""
        return tuple(model for model in self.models if model.answers)

    @property
    def attackers(self) -> frozenset[Attacker]:
        """All attackers of the target, with and without numbers."""
        return frozenset(attacker for model in self.models for attacker in (*model.answers, *model.failures))

    @property
    def failures(self) -> dict[Attacker, str]:
        """The attackers without numbers, and why; those that attacked only some of the models among them."""
        reasons = {attacker: reason for model in self.models for attacker, reason in model.failures.items()}
        for model in self.models:
            lacking = self.attackers - set(model.answers) - set(reasons)
            reasons |= dict.fromkeys(sorted(lacking), f"no record for seed {model.seed}")
        return reasons


@dataclass(frozen=True, slots=True, eq=False)
class Board:
    """All targets at one threat, by label.

    box: the pixel range. examples: digest of the images' indices and labels. attacks: name, arguments and source of each, by
    label. cells: all that it is made of, with those of the oblivious matrix; empty if it was read from a baseline.
    """

    threat: BoardThreat
    dataset: Facts
    box: list[float]
    examples: str
    attacks: Mapping[str, Facts]
    targets: tuple[BoardTarget, ...]
    cells: tuple[Cell, ...] = field(default=(), repr=False)

    def target(self, label: str) -> BoardTarget | None:
        """The target of that label, None if there is none."""
        return next((target for target in self.targets if target.label == label), None)


def boards(cells: Iterable[Cell]) -> tuple[Board, ...]:
    """The boards of a run or a report, one for each threat, in the order of the cells."""
    boxed = [cell for cell in cells if cell.record.threat["box"] is not None]
    return tuple(_board(threat, members, boxed) for threat, members in by_threat(boxed).items())


def by_threat(cells: Iterable[Cell]) -> dict[BoardThreat, list[Cell]]:
    """The cells of each board."""
    boxed = [cell for cell in cells if cell.record.threat["box"] is not None]
    threats = dict.fromkeys(threat_of(cell) for cell in boxed if not _for_any_epsilon(cell.record))
    return {threat: [cell for cell in boxed if stands_at(cell, threat)] for threat in threats}


def threat_of(cell: Cell) -> BoardThreat:
    """The threat of a cell; without an epsilon for a minimal-norm attack that has none."""
    dataset, threat = cell.record.dataset, cell.record.threat
    epsilon = None if threat["norm"] == "none" else threat["epsilon"]
    images = (dataset["name"], dataset["split"], dataset["n"], dataset["fingerprint"])
    return BoardThreat(*images, threat["norm"], epsilon, cell.run)


def stands_at(cell: Cell, threat: BoardThreat, *, on_any_images: bool = False) -> bool:
    """Whether a cell stands on the board of a threat. on_any_images: or would if both had the same images."""
    own = threat_of(cell)
    if on_any_images:
        own, threat = own.on_any_images, threat.on_any_images
    return own == threat or (_for_any_epsilon(cell.record) and own == threat.family)


def attacker_of(record: Record) -> Attacker:
    """The attacker of a record."""
    return Attacker(record.matrix, record.attack["label"], record.source["label"] if record.source else "")


def seen_attacker(record: Record) -> Attacker:
    """The attacker of a record as its target names it."""
    return attacker_of(record).seen_by(record.target["label"])


def label_of(cell: Cell) -> str:
    """The label of a cell's target."""
    label: str = cell.record.target["label"]
    return label


def ranking(cells: Iterable[Cell]) -> list[Cell]:
    """The cells that rank a target: those of all matrices but the oblivious one, in which only some targets have cells."""
    return [cell for cell in cells if cell.record.matrix in RANKED]


def facts_of(record: Record) -> Facts:
    """The configuration of a target; of a user's own model without its weights, which differ from seed to seed."""
    facts: Facts = {name: record.target[name] for name in ("defense", "architecture", "stochastic")}
    if facts["defense"]["name"] == "own":
        kept = {name: value for name, value in facts["defense"]["arguments"].items() if name not in _OWN_WEIGHTS}
        facts["defense"] = {"name": "own", "arguments": kept}
    return facts


def attack_facts(record: Record) -> Facts:
    """What an attack's label stands for: its name, every argument, the source that it ran from, and its budget, if any."""
    found: Facts = {name: record.attack[name] for name in ("name", "arguments", "source_hash")}
    return found | {"budget": record.attack["budget"]} if "budget" in record.attack else found


def examples_digest(examples: Examples) -> str:
    """SHA-256 of the indices and labels of the examples, in the order of the data set."""
    order = np.argsort(examples.index, kind="stable")
    ordered = (examples.index[order].astype("<i8"), examples.label[order].astype("<i8"))
    return hashlib.sha256(b"".join(array.tobytes() for array in ordered)).hexdigest()


def _for_any_epsilon(record: Record) -> bool:
    unbounded = record.threat["epsilon"] is None and record.threat["norm"] != "none"
    return unbounded and bool(record.attack["minimal_norm"])


def _board(threat: BoardThreat, members: Sequence[Cell], boxed: Sequence[Cell]) -> Board:
    inside = set(map(id, members))
    others = [cell for cell in boxed if id(cell) not in inside and threat_of(cell).family == threat.family]
    others_by_label = _grouped(ranking(others), label_of)
    attacks: dict[str, Facts] = {}
    for cell in members:
        attacks.setdefault(cell.record.attack["label"], attack_facts(cell.record))
    return Board(
        threat=threat,
        dataset=dict(members[0].record.dataset),
        box=list(members[0].record.threat["box"] or ()),
        examples=next((examples_digest(cell.examples) for cell in members if cell.examples is not None), ""),
        attacks=dict(sorted(attacks.items())),
        targets=tuple(
            _target(threat, label, group, others_by_label.get(label, []))
            for label, group in _grouped(ranking(members), label_of).items()
        ),
        cells=tuple(members),
    )


def _target(threat: BoardThreat, label: str, cells: Sequence[Cell], others: Sequence[Cell]) -> BoardTarget:
    """A target from its cells on a board. others: its cells at other epsilons of the same norm."""
    facts = facts_of(cells[0].record)
    try:
        by_seed = _grouped(cells, lambda cell: cell.record.seed)
        models = tuple(trained_model(seed, group, threat.epsilon) for seed, group in by_seed.items())
        if len({_indices(group) for group in by_seed.values()} - {b""}) > 1:
            raise ValueError("Expected the same examples for every seed, got others")
        findings = flags(_outcomes(cells), threat.epsilon, _outcomes(others))
    except ValueError as error:
        return BoardTarget(label, facts, (), problem=str(error))
    return BoardTarget(label, facts, models, tuple(sorted({flag.name for flag in findings})), findings)


def trained_model(seed: int, cells: Sequence[Cell], epsilon: float | None) -> TrainedModel:
    """A model from its cells at a threat's epsilon. Raises ValueError for cells of different examples or draws."""
    failures = {
        attacker_of(cell.record): cell.record.reason or cell.record.status for cell in cells if cell.examples is None
    }
    outcomes = _outcomes(cells)
    if not outcomes:
        return TrainedModel(seed, "", "", 1, np.zeros(0, np.int64), {}, failures)
    first, examples = outcomes[0]
    digest = examples_digest(examples)
    answers: dict[Attacker, Answers] = {}
    repeats: list[tuple[Attacker, Answers]] = []
    for record, others in outcomes:
        if others.draws != examples.draws or examples_digest(others) != digest:
            raise ValueError(f"Expected cells of the same examples and draws, got others for {record.attack['label']}")
        attacker, counted = attacker_of(record), _answers(record, others, epsilon)
        if answers.setdefault(attacker, counted) is not counted:
            repeats.append((attacker, counted))
    return TrainedModel(
        seed=seed,
        weights=first.weights_sha256,
        device=str(first.measured.get("device", "unknown device")),
        draws=examples.draws,
        clean=examples.clean_correct[np.argsort(examples.index, kind="stable")].astype(np.int64),
        answers=answers,
        failures=failures,
        repeats=tuple(repeats),
    )


def _answers(record: Record, examples: Examples, epsilon: float | None) -> Answers:
    order = np.argsort(examples.index, kind="stable")
    draws, attacked = examples.draws, record.counts["examples"]
    seconds = record.measured.get("seconds")
    report = np.rint(robust(record, examples, epsilon) * draws).astype(np.int64)
    select = None
    if record.target["stochastic"]:
        known = selection(record, examples, epsilon) * draws
        select = np.rint(np.where(np.isfinite(known), known, draws + 1)).astype(np.int64)[order]
    return Answers(
        report=report[order],
        select=select,
        seconds=None if seconds is None or not attacked else seconds / attacked,
        queries=record.details.get("substitute", {}).get("queries"),
    )


def _outcomes(cells: Iterable[Cell]) -> list[Outcome]:
    return [cell.outcome for cell in cells if cell.outcome is not None]


def _indices(cells: Iterable[Cell]) -> bytes:
    """The sorted indices of the first scored cell's examples, empty without any."""
    return next((np.sort(cell.examples.index).tobytes() for cell in cells if cell.examples is not None), b"")


def _grouped(cells: Iterable[Cell], key: Callable[[Cell], _Key]) -> dict[_Key, list[Cell]]:
    """The cells by `key`, keys sorted, cells in the order in which they came."""
    groups: dict[_Key, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(key(cell), []).append(cell)
    return dict(sorted(groups.items()))
