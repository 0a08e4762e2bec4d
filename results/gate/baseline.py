"""A run as what a later one is held against: packed outcomes of every target, small enough to be committed.

`snapshot` makes it from records, `to_text` and `from_text` are its file: JSON in a stable order, so that a difference
between two versions can be read, with accuracies for the reader and outcomes, packed to bits, for the tests.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from advbench.results.flags import flags
from advbench.results.record import RANKED, Examples, Facts, Record
from advbench.results.statistics import Outcome, Values, robust, selection

BASELINE_VERSION = 1
FORMAT = "advbench baseline"
_OWN_WEIGHTS = ("weights", "weights_sha256")
Counts: TypeAlias = NDArray[np.int64]
_Cell: TypeAlias = tuple[Record, Examples | None]


class Attacker(NamedTuple):
    """How adversarials are made: a matrix, an attack, and the source's label, empty in the white-box matrix."""

    matrix: str
    attack: str
    source: str

    def __str__(self) -> str:
        return f"{self.matrix} {self.attack}" + (f" from {self.source}" if self.source else "")


class BaselineThreat(NamedTuple):
    """What targets must have in common to be compared at all."""

    dataset: str
    split: str
    norm: str
    epsilon: float | None

    def __str__(self) -> str:
        radius = "" if self.epsilon is None else f" {self.epsilon:g}"
        return f"{self.norm}{radius} on {self.dataset}"


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """A model's answers to one attacker's images: counts of correct draws by example, (n,).

    report: what counts. select: what the attacker knew when choosing, one more than the draws where the adversarial is
    beyond the radius; None for a deterministic model. seconds: of the attack, per image. queries: of the substitute.
    """

    report: Counts
    select: Counts | None = None
    seconds: float | None = None
    queries: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class BaselineModel:
    """One training of a target: its answers by attacker, and the reasons of attackers without numbers."""

    seed: int
    weights: str
    device: str
    draws: int
    clean: Counts
    answers: Mapping[Attacker, Answers]
    failures: Mapping[Attacker, str]

    def clean_values(self) -> Values:
        """The share of correct answers to clean images by example, (n,)."""
        return self.clean / self.draws

    def worst_case(self, attackers: Collection[Attacker]) -> Values:
        """The share of correct answers under the best of `attackers` by example, (n,); `statistics.worst_case` on counts."""
        chosen = [self.answers[attacker] for attacker in self.answers if attacker in attackers]
        if not chosen:
            raise ValueError("Expected at least one attacker, got none")
        reports = np.stack([one.report for one in chosen])
        selects = np.stack([one.report if one.select is None else one.select for one in chosen])
        lowest: Values = reports.mean(axis=0, where=selects == selects.min(axis=0)) / self.draws
        return lowest

    def accuracy(self, attacker: Attacker) -> float:
        """The robust accuracy that one attacker alone leaves."""
        return float(self.answers[attacker].report.mean() / self.draws)


@dataclass(frozen=True, slots=True, eq=False)
class BaselineTarget:
    """A defended model by its label.

    facts: defense, architecture, stochastic. models: by seed. flags: names of the signs that its evaluation is incomplete.
    """

    label: str
    facts: Facts
    models: tuple[BaselineModel, ...]
    flags: tuple[str, ...] = ()

    @property
    def attackers(self) -> frozenset[Attacker]:
        """Everybody who attacked it, whether there are numbers or not."""
        return frozenset(one for model in self.models for one in (*model.answers, *model.failures))

    @property
    def failures(self) -> dict[Attacker, str]:
        """The attackers without numbers, and why; those that attacked only some of the models among them."""
        found = {attacker: reason for model in self.models for attacker, reason in model.failures.items()}
        for model in self.models:
            lacking = self.attackers - set(model.answers) - set(found)
            found |= dict.fromkeys(sorted(lacking), f"no record for seed {model.seed}")
        return found


@dataclass(frozen=True, slots=True, eq=False)
class BaselineBoard:
    """All targets at one threat. examples: digest of the images' indices and labels. attacks: name, arguments and source."""

    threat: BaselineThreat
    dataset: Facts
    box: list[float]
    examples: str
    attacks: Mapping[str, Facts]
    targets: tuple[BaselineTarget, ...]

    def target(self, label: str) -> BaselineTarget | None:
        """The target of that label, None where there is none."""
        return next((target for target in self.targets if target.label == label), None)


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A run: its boards, and the version of advbench that made it."""

    version: str
    boards: tuple[BaselineBoard, ...]


def snapshot(cells: Iterable[_Cell]) -> Snapshot:
    """What records say, one board for each threat; records without a box stand on none, nor does the oblivious matrix.

    Raises ValueError where there is nothing to compare, where two models or two records share a name, or where the cells of
    one model disagree about its clean images.
    """
    boxed = [cell for cell in cells if cell[0].threat["box"] is not None and cell[0].matrix in RANKED]
    threats = dict.fromkeys(_threat(record) for record, _ in boxed if not _any_radius(record))
    if not threats:
        raise ValueError("Expected cells with a norm's radius and a pixel range, got none: nothing can be compared")
    versions = {str(record.measured.get("environment", {}).get("advbench", "unknown")) for record, _ in boxed}
    boards = tuple(_board(threat, boxed) for threat in threats)
    return Snapshot(", ".join(sorted(versions)), tuple(sorted(boards, key=lambda board: _in_order(board.threat))))


def incomplete(run: Snapshot) -> list[str]:
    """Each target that lacks a number, and why; a baseline has none of these."""
    return [
        f"{target.label}, {attacker}: {reason}"
        for board in run.boards
        for target in board.targets
        for attacker, reason in target.failures.items()
    ]


def to_text(run: Snapshot) -> str:
    """The file of a baseline. Raises ValueError for a run that lacks numbers."""
    lacking = incomplete(run)
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        raise ValueError(f"Expected a complete run for a baseline, got cells without numbers: {lacking[0]}{more}")
    content = {"advbench": run.version, "boards": [_board_json(board) for board in run.boards]}
    head = {"format": FORMAT, "schema_version": BASELINE_VERSION, "checksum": _checksum(content)}
    return json.dumps(head | content, indent=1, allow_nan=False) + "\n"


def from_text(text: str) -> Snapshot:
    """Read what `to_text` wrote. Raises ValueError, in one line, for anything else."""
    again = "write it again with `advbench baseline`"
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"Expected a baseline as JSON, got a cut off or damaged file ({error}): {again}") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise ValueError(f"Expected a baseline, got another kind of JSON: {again}")
    version = content.pop("schema_version", None)
    if version != BASELINE_VERSION:
        raise ValueError(
            f"Expected a baseline of schema version {BASELINE_VERSION}, got {version!r}: use a matching advbench, or {again}"
        )
    if content.pop("checksum", None) != _checksum(content):
        raise ValueError(f"Expected a baseline as it was written, got one that was changed, such as by a merge: {again}")
    try:
        return Snapshot(content["advbench"], tuple(_board_of(board) for board in content["boards"]))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"Expected a baseline, got damaged content ({error!r:.80}): {again}") from None


# --- from records


def _threat(record: Record) -> BaselineThreat:
    norm = record.threat["norm"]
    epsilon = None if norm == "none" else record.threat["epsilon"]
    return BaselineThreat(record.dataset["name"], record.dataset["split"], norm, epsilon)


def _any_radius(record: Record) -> bool:
    return record.threat["epsilon"] is None and record.threat["norm"] != "none" and bool(record.attack["minimal_norm"])


def _belongs(record: Record, threat: BaselineThreat) -> bool:
    own = _threat(record)
    return own == threat or (_any_radius(record) and own == threat._replace(epsilon=None))


def _in_order(threat: BaselineThreat) -> tuple[str, str, str, float]:
    return threat.dataset, threat.split, threat.norm, -1.0 if threat.epsilon is None else threat.epsilon


def _board(threat: BaselineThreat, boxed: Sequence[_Cell]) -> BaselineBoard:
    cells = [cell for cell in boxed if _belongs(cell[0], threat)]
    kin = [cell for cell in boxed if not _belongs(cell[0], threat) and _threat(cell[0])[:3] == threat[:3]]
    datasets = {json.dumps(record.dataset, sort_keys=True): record.dataset for record, _ in cells}
    if len(datasets) > 1:
        raise ValueError(f"Expected one set of images at {threat}, got {len(datasets)}: keep the cells of one run")
    by_label = _grouped(cells, lambda record: str(record.target["label"]))
    digests = {_digest(examples) for _, examples in cells if examples is not None}
    if len(digests) > 1:
        raise ValueError(f"Expected the same images in every cell at {threat}, got {len(digests)} sets")
    attacks: dict[str, Facts] = {}
    for record, _ in cells:
        facts = {name: record.attack[name] for name in ("name", "arguments", "source_hash")}
        if attacks.setdefault(record.attack["label"], facts) != facts:
            raise ValueError(f"Expected one attack named {record.attack['label']}, got several versions of it")
    return BaselineBoard(
        threat,
        dict(cells[0][0].dataset),
        list(cells[0][0].threat["box"]),
        digests.pop() if digests else "",
        dict(sorted(attacks.items())),
        tuple(
            _target(threat, label, group, [cell for cell in kin if cell[0].target["label"] == label])
            for label, group in by_label.items()
        ),
    )


def _target(threat: BaselineThreat, label: str, cells: Sequence[_Cell], kin: Sequence[_Cell]) -> BaselineTarget:
    facts = _facts(cells[0][0])
    if any(_facts(record) != facts for record, _ in cells):
        raise ValueError(f"Expected one model named {label}, got several configurations")
    by_seed = _grouped(cells, lambda record: record.seed)
    models = tuple(_model(threat, label, seed, group) for seed, group in by_seed.items())
    found = flags(_outcomes(cells), threat.epsilon, _outcomes(kin))
    return BaselineTarget(label, facts, models, tuple(sorted({flag.name for flag in found})))


def _facts(record: Record) -> Facts:
    """The configuration of a target; of a user's own model without its weights, which differ from seed to seed."""
    facts = {name: record.target[name] for name in ("defense", "architecture", "stochastic")}
    if facts["defense"]["name"] == "own":
        kept = {name: value for name, value in facts["defense"]["arguments"].items() if name not in _OWN_WEIGHTS}
        facts["defense"] = {"name": "own", "arguments": kept}
    return facts


def _outcomes(cells: Sequence[_Cell]) -> list[Outcome]:
    return [(record, examples) for record, examples in cells if examples is not None]


def _model(threat: BaselineThreat, label: str, seed: int, cells: Sequence[_Cell]) -> BaselineModel:
    name = f"{label} of seed {seed}"
    attackers = [_attacker(record) for record, _ in cells]
    if len(set(attackers)) < len(attackers):
        raise ValueError(f"Expected one record of each attacker for {name}, got several: keep the cells of one run")
    scored = [(record, _ordered(examples)) for record, examples in cells if examples is not None]
    failures = {_attacker(record): record.reason or record.status for record, examples in cells if examples is None}
    if not scored:
        return BaselineModel(seed, "", "", 1, np.zeros(0, np.int64), {}, failures)
    weights = {record.weights_sha256 for record, _ in scored}
    if len(weights) > 1:
        raise ValueError(f"Expected one model named {name}, got {len(weights)}: keep the cells of one run")
    (record, first), *_ = scored
    for other, examples in scored:
        if examples.draws != first.draws or not np.array_equal(examples.clean_correct, first.clean_correct):
            attacker = _attacker(other)
            raise ValueError(
                f"Expected one answer of {name} to its clean images, got another in {attacker}: shuffled cells?"
            )
    return BaselineModel(
        seed,
        weights.pop(),
        str(record.measured.get("device", "unknown device")),
        first.draws,
        first.clean_correct.astype(np.int64),
        {_attacker(record): _answers(record, examples, threat.epsilon) for record, examples in scored},
        failures,
    )


def _attacker(record: Record) -> Attacker:
    return Attacker(record.matrix, record.attack["label"], record.source["label"] if record.source else "")


def _answers(record: Record, examples: Examples, epsilon: float | None) -> Answers:
    draws, attacked = examples.draws, record.counts["examples"]
    seconds = record.measured.get("seconds")
    queries = record.details.get("substitute", {}).get("queries")
    report = np.rint(robust(record, examples, epsilon) * draws).astype(np.int64)
    select = None
    if record.target["stochastic"]:
        chosen = selection(record, examples, epsilon) * draws
        select = np.rint(np.where(np.isfinite(chosen), chosen, draws + 1)).astype(np.int64)
    per_image = None if seconds is None or not attacked else float(f"{seconds / attacked:.4g}")
    return Answers(report, select, per_image, queries)


def _ordered(examples: Examples) -> Examples:
    """The same in the order of the data set."""
    order = np.argsort(examples.index, kind="stable")
    names = [name for name in examples.__dataclass_fields__ if np.ndim(getattr(examples, name)) == 1]
    return replace(examples, **{name: getattr(examples, name)[order] for name in names})


def _digest(examples: Examples) -> str:
    ordered = _ordered(examples)
    return hashlib.sha256(ordered.index.astype("<i8").tobytes() + ordered.label.astype("<i8").tobytes()).hexdigest()


def _grouped(cells: Sequence[_Cell], key: Any) -> dict[Any, list[_Cell]]:
    ordered = sorted(cells, key=lambda cell: (key(cell[0]), *_attacker(cell[0])))
    return {name: list(group) for name, group in groupby(ordered, key=lambda cell: key(cell[0]))}


# --- the file


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _board_json(board: BaselineBoard) -> dict[str, Any]:
    return {
        "dataset": board.dataset,
        "examples": board.examples,
        "threat": {"norm": board.threat.norm, "epsilon": board.threat.epsilon, "box": board.box},
        "attacks": board.attacks,
        "targets": [
            {
                "label": target.label,
                **target.facts,
                "flags": list(target.flags),
                "models": [_model_json(model) for model in target.models],
            }
            for target in board.targets
        ],
    }


def _model_json(model: BaselineModel) -> dict[str, Any]:
    return {
        "seed": model.seed,
        "weights": model.weights,
        "device": model.device,
        "draws": model.draws,
        "clean_accuracy": _shown(model.clean_values()),
        "robust_accuracy": _shown(model.worst_case(model.answers)),
        "clean": _packed(model.clean, model.draws),
        "answers": [_answers_json(attacker, answers, model.draws) for attacker, answers in model.answers.items()],
    }


def _answers_json(attacker: Attacker, answers: Answers, draws: int) -> dict[str, Any]:
    found = attacker._asdict() | {"accuracy": _shown(answers.report / draws), "report": _packed(answers.report, draws)}
    if answers.select is not None:
        found["select"] = _packed(answers.select, draws + 1)
    extra = {"seconds": answers.seconds, "queries": answers.queries}
    return found | {name: value for name, value in extra.items() if value is not None}


def _shown(values: Values) -> float:
    return round(float(values.mean()), 6)


def _board_of(content: Mapping[str, Any]) -> BaselineBoard:
    dataset, threat = content["dataset"], content["threat"]
    n = int(dataset["n"])
    return BaselineBoard(
        BaselineThreat(dataset["name"], dataset["split"], threat["norm"], threat["epsilon"]),
        dict(dataset),
        list(threat["box"]),
        content["examples"],
        dict(content["attacks"]),
        tuple(_target_of(target, n) for target in content["targets"]),
    )


def _target_of(content: Mapping[str, Any], n: int) -> BaselineTarget:
    facts = {name: content[name] for name in ("defense", "architecture", "stochastic")}
    models = tuple(_model_of(model, n) for model in content["models"])
    return BaselineTarget(content["label"], facts, models, tuple(content["flags"]))


def _model_of(content: Mapping[str, Any], n: int) -> BaselineModel:
    draws = int(content["draws"])
    answers = {
        Attacker(one["matrix"], one["attack"], one["source"]): Answers(
            _unpacked(one["report"], draws, n),
            _unpacked(one["select"], draws + 1, n) if "select" in one else None,
            one.get("seconds"),
            one.get("queries"),
        )
        for one in content["answers"]
    }
    clean = _unpacked(content["clean"], draws, n)
    return BaselineModel(int(content["seed"]), content["weights"], content["device"], draws, clean, answers, {})


def _packed(counts: Counts, largest: int) -> str:
    """Counts in [0, largest] as base64 of as few bits as they need."""
    bits = counts[:, None] >> np.arange(largest.bit_length()) & 1
    return base64.b64encode(np.packbits(bits.astype(np.uint8)).tobytes()).decode("ascii")


def _unpacked(text: str, largest: int, n: int) -> Counts:
    width = largest.bit_length()
    raw = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    if len(raw) != -(-n * width // 8):
        raise ValueError(f"Expected outcomes of {n} examples, got {len(raw)} bytes")
    bits = np.unpackbits(raw, count=n * width).reshape(n, width).astype(np.int64)
    counts: Counts = (bits << np.arange(width)).sum(axis=1)
    if n and counts.max() > largest:
        raise ValueError(f"Expected counts up to {largest}, got {counts.max()}")
    return counts
