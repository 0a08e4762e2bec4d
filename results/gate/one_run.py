"""Whether cells come from one run, as the gate needs it: one set of images, one model of a name, one record per attacker."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from advbench.results.boards import Board, attack_facts, attacker_of, examples_digest, facts_of, label_of, ranking, stands_at
from advbench.results.cells import Cell
from advbench.results.record import Facts


def check_one_run(board: Board, cells: Sequence[Cell]) -> None:
    """Raise ValueError, in one line, if the cells of a board are not those of one run. cells: all cells of the run."""
    _check_images(board, cells)
    attacks: dict[str, Facts] = {}
    configurations: dict[str, Facts] = {}
    models: dict[tuple[str, int], list[Cell]] = {}
    for cell in ranking(board.cells):
        record, label = cell.record, label_of(cell)
        name = record.attack["label"]
        if attacks.setdefault(name, attack_facts(record)) != attack_facts(record):
            raise ValueError(f"Expected one attack named {name}, got several versions of it")
        if configurations.setdefault(label, facts_of(record)) != facts_of(record):
            raise ValueError(f"Expected one model named {label}, got several configurations")
        models.setdefault((label, record.seed), []).append(cell)
    for (label, seed), own in models.items():
        _check_model(f"{label} of seed {seed}", own)
    for target in board.targets:
        if target.problem:
            raise ValueError(f"{target.label}: {target.problem}")


def _check_images(board: Board, cells: Sequence[Cell]) -> None:
    """Check that all cells at the board's threat have one data set, and the same images of it."""
    at_threat = [cell for cell in cells if stands_at(cell, board.threat, on_any_images=True)]
    datasets = {json.dumps(cell.record.dataset, sort_keys=True) for cell in at_threat}
    if len(datasets) > 1:
        raise ValueError(f"Expected one set of images at {board.threat}, got {len(datasets)}: keep the cells of one run")
    digests = {examples_digest(cell.examples) for cell in at_threat if cell.examples is not None}
    if len(digests) > 1:
        raise ValueError(f"Expected the same images in every cell at {board.threat}, got {len(digests)} sets")


def _check_model(name: str, cells: Sequence[Cell]) -> None:
    """Check that each attacker has one record, and that all have the same weights and the same clean answers."""
    attackers = [attacker_of(cell.record) for cell in cells]
    if len(set(attackers)) < len(attackers):
        raise ValueError(f"Expected one record of each attacker for {name}, got several: keep the cells of one run")
    outcomes = [cell.outcome for cell in cells if cell.outcome is not None]
    weights = {record.weights_sha256 for record, _ in outcomes}
    if len(weights) > 1:
        raise ValueError(f"Expected one model named {name}, got {len(weights)}: keep the cells of one run")
    clean = [examples.clean_correct[np.argsort(examples.index)] for _, examples in outcomes]
    for (record, examples), answers in zip(outcomes, clean, strict=True):
        if examples.draws != outcomes[0][1].draws or not np.array_equal(answers, clean[0]):
            raise ValueError(
                f"Expected one answer of {name} to its clean images, got another in {attacker_of(record)}: shuffled cells?"
            )
