"""A run as the baseline of later ones: packed outcomes of every target, small enough to be committed.

`snapshot` makes it from records, `to_text` and `from_text` are its file: JSON in a stable order, so that a difference
between two versions can be read, with accuracies for the reader and outcomes, packed to bits, for the tests.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from advbench.reading import json_of
from advbench.results.boards import (
    Answers,
    Attacker,
    Board,
    BoardTarget,
    BoardThreat,
    Counts,
    TrainedModel,
    attacker_of,
    boards,
    label_of,
    ranking,
)
from advbench.results.cells import Cell
from advbench.results.gate.one_run import check_one_run
from advbench.results.parts import BOARDS, check_texts, check_type
from advbench.results.statistics import Values

BASELINE_VERSION = 1
FORMAT = "advbench baseline"
_CONTAINERS = 10**6


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A run: its boards, and the version of advbench that made it."""

    version: str
    boards: tuple[Board, ...]


def snapshot(cells: Iterable[Cell]) -> Snapshot:
    """The boards of records; records without a box and the oblivious matrix are left out.

    Raises ValueError if there is nothing to compare, if two models or two records share a name, or if the cells of one model
    disagree about its clean images.
    """
    boxed = sorted((cell for cell in ranking(cells) if cell.record.threat["box"] is not None), key=_place)
    derived = boards(boxed)
    if not derived:
        raise ValueError("Expected cells with a norm's epsilon and a pixel range, got none: nothing can be compared")
    for board in derived:
        check_one_run(board, boxed)
    versions = {str(cell.record.measured.get("environment", {}).get("advbench", "unknown")) for cell in boxed}
    return Snapshot(", ".join(sorted(versions)), tuple(sorted(derived, key=lambda board: _in_order(board.threat))))


def incomplete(run: Snapshot) -> list[str]:
    """Each missing number of a run, and why; a baseline lacks none."""
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
        content = json_of(text, _CONTAINERS)
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
        check_texts(content)
        check_type("advbench", content["advbench"], (str,))
        BOARDS("boards", content["boards"])
        return Snapshot(content["advbench"], tuple(_board_of(board) for board in content["boards"]))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"Expected a baseline, got damaged content ({error!r:.80}): {again}") from None


# --- from records


def _place(cell: Cell) -> tuple[str, int, Attacker]:
    return label_of(cell), cell.record.seed, attacker_of(cell.record)


def _in_order(threat: BoardThreat) -> tuple[str, str, str, float]:
    return threat.dataset, threat.split, threat.norm, -1.0 if threat.epsilon is None else threat.epsilon


# --- the file


def _checksum(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _board_json(board: Board) -> dict[str, object]:
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


def _model_json(model: TrainedModel) -> dict[str, object]:
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


def _answers_json(attacker: Attacker, answers: Answers, draws: int) -> dict[str, object]:
    entry: dict[str, object] = attacker._asdict() | {
        "accuracy": _shown(answers.report / draws),
        "report": _packed(answers.report, draws),
    }
    if answers.select is not None:
        entry["select"] = _packed(answers.select, draws + 1)
    extra = {"seconds": None if answers.seconds is None else float(f"{answers.seconds:.4g}"), "queries": answers.queries}
    return entry | {name: value for name, value in extra.items() if value is not None}


def _shown(values: Values) -> float:
    return round(float(values.mean()), 6)


def _board_of(content: Mapping[str, Any]) -> Board:
    dataset, threat = content["dataset"], content["threat"]
    n = int(dataset["n"])
    return Board(
        BoardThreat(dataset["name"], dataset["split"], n, dataset["fingerprint"], threat["norm"], threat["epsilon"]),
        dict(dataset),
        list(threat["box"]),
        content["examples"],
        dict(content["attacks"]),
        tuple(_target_of(target, n) for target in content["targets"]),
    )


def _target_of(content: Mapping[str, Any], n: int) -> BoardTarget:
    facts = {name: content[name] for name in ("defense", "architecture", "stochastic")}
    models = tuple(_model_of(model, n) for model in content["models"])
    return BoardTarget(content["label"], facts, models, tuple(content["flags"]))


def _model_of(content: Mapping[str, Any], n: int) -> TrainedModel:
    draws = int(content["draws"])
    answers = {
        Attacker(entry["matrix"], entry["attack"], entry["source"]): Answers(
            _unpacked(entry["report"], draws, n),
            _unpacked(entry["select"], draws + 1, n) if "select" in entry else None,
            entry.get("seconds"),
            entry.get("queries"),
        )
        for entry in content["answers"]
    }
    clean = _unpacked(content["clean"], draws, n)
    return TrainedModel(int(content["seed"]), content["weights"], content["device"], draws, clean, answers, {})


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
