"""The attack board of the gauntlet: all attacks of the registry and the peers on its models, with what they visited.

Every attack runs as a cell of an evaluation: the harness counts its passes, keeps the best image that it asked about, and
verifies what it returns. A model's images are those that it gets right; attacks that fail are named with their reasons.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from tabulate import tabulate

from advbench import evaluate
from advbench.attacks.threat import Norm, ThreatModel
from advbench.attacks.watch import WatchSettings
from advbench.defenses.defended import Surrogate
from advbench.registry import registry
from advbench.registry.specs import Spec
from advbench.reports.attack_board import attack_board_section
from advbench.reports.cells import Cells
from advbench.reports.markdown import to_markdown
from advbench.reports.standings import ranked_boards
from advbench.results.cells import Cell
from advbench.tasks.evaluation import craft
from advbench.zoo.data import Split
from tests.gauntlet.peers import ours, registered, theirs
from tests.gauntlet.training import Problem

COSTS = ("fgsm", "pgd", "apgd-ce", "square(queries=200)", "fmn", "deepfool")
"""Attacks on which the price of watching is measured."""


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """What attacks did to one model in one norm. failures: of attacks without numbers, the reasons."""

    cells: tuple[Cell, ...]
    failures: tuple[str, ...]


def standing(
    faced: Problem, norm: Norm, epsilon: float, attacks: Sequence[str] = (), *, seed: int = 0, out: Path | None = None
) -> Standing:
    """Run attacks by their names on a model, by default those of `ours` and `theirs`. out: a folder for the records."""
    with registered():
        found = evaluate(
            faced.model,
            faced.x,
            faced.y,
            norm=norm,
            epsilon=epsilon,
            attack=list(attacks or (*ours(norm), *theirs(norm))),
            visited=True,
            name=faced.recipe.name,
            seed=seed,
            batch=len(faced.x),
            out=out,
        )
    cells = [Cell(record, examples) for record, examples in found.cells]
    failed = [f"{one.record.attack['label']}: {one.record.reason}" for one in cells if one.examples is None]
    return Standing(tuple(cells), (*failed, *(f"{each}: no record" for each in found.missing)))


def markdown(standings: Sequence[Standing], title: str) -> str:
    """The attack board of some models: a table for each threat and set of images, and the attacks that failed."""
    cells = Cells(tuple(cell for each in standings for cell in each.cells))
    sections = [attack_board_section(board) for board in ranked_boards(cells)]
    text = to_markdown([section for section in sections if section is not None], title=title)
    failures = [failure for each in standings for failure in each.failures]
    return text + "".join(f"\n- {failure:.200}" for failure in failures) + ("\n" if failures else "")


def prices(faced: Problem, norm: Norm, epsilon: float, repeats: int = 3) -> list[tuple[str, float, float]]:
    """Attacks with the processor time of one run, in seconds, without and with watching: medians of alternating runs."""
    rows, split = [], Split(faced.x, faced.y, faced.index)
    for name in COSTS:
        attack = registry.attacks.create(Spec.parse(name))
        if norm not in attack.norms:
            continue
        threat = ThreatModel(norm, None if attack.minimal_norm else epsilon)
        spent: dict[bool, list[float]] = {False: [], True: []}
        for visited in (False, True) * repeats:
            begun = time.process_time()
            craft(
                attack,
                Surrogate(faced.model),
                split,
                threat,
                seed=0,
                draws=1,
                batch=len(split),
                device=torch.device("cpu"),
                watching=WatchSettings(visited=visited),
            )
            spent[visited].append(time.process_time() - begun)
        rows.append((name, median(spent[False]), median(spent[True])))
    return rows


def priced(model: str, rows: Sequence[tuple[str, float, float]]) -> str:
    """The prices as a Markdown table."""
    cells = [(model, name, f"{bare:.3f}", f"{seen:.3f}", f"{seen / bare:.2f}") for name, bare, seen in rows]
    heads = ("model", "attack", "processor s without", "with watching", "times")
    return tabulate(cells, heads, tablefmt="github", disable_numparse=True)
