"""Evidence: a number of a leaderboard with the images that show it, which anyone can check without advbench."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from importlib import metadata, resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from advbench.files import write_atomically
from advbench.records.kept_images import clean_images, images_of
from advbench.reports.cells import load
from advbench.reports.standings import RankedBoard, ranked_boards
from advbench.results.archive import is_archive
from advbench.results.boards import ranking, seen_attacker, trained_model
from advbench.results.cells import Cell
from advbench.results.statistics import robust
from advbench.results.store import Store

NAMES = ("evidence.json", "evidence.npz", "verify.py")
"""The claims, the images, and the script that checks both."""
_SCHEMA = 1
_SHOWN = 8
"""The most models that a message names."""


def write_evidence(
    out: str | Path,
    to: str | Path,
    *,
    target: str | None = None,
    norm: str | None = None,
    epsilon: float | None = None,
    seed: int | None = None,
    x: Tensor | None = None,
    data_dir: str | Path | None = None,
) -> list[Path]:
    """Write the evidence of one trained model of a finished run into the folder `to`; returns its files.

    ``evidence.npz`` holds the clean images ``x``, labels ``y``, positions ``index``, and ``x_adv``: of each image the first
    that broke the model within epsilon over all ranked attackers, or the clean one. ``evidence.json`` has the claims, and
    ``verify.py`` checks them with PyTorch and NumPy alone.

    out: the folder that `run` or `evaluate` has left. target: its label on the leaderboard. norm, epsilon, seed: of the
    board, and of the training. What tells it from no other may be left out. x: the clean images that were scored,
    (n, c, h, w), read from the data set, in `data_dir`, if None.

    Raises ValueError, in one line, if no model fits or several do, for a random model or one with a detector, whose answers
    no single pass shows, for an archive, and for images that are not there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:  # "advbench-out": a finished run
    ...     [path.name for path in write_evidence("advbench-out", folder, target="none")]
    ['evidence.json', 'evidence.npz', 'verify.py']
    """
    if is_archive(out):
        raise ValueError(f"Expected the folder of a run, got {out}: an archive holds outcomes, and no images")
    asked: dict[str, object] = {"target": target, "norm": norm, "epsilon": epsilon, "seed": seed}
    board, cells = _one(out, {name: value for name, value in asked.items() if value is not None})
    model = trained_model(cells[0].record.seed, cells, board.threat.epsilon)
    if cells[0].record.target["stochastic"] or _rejects(cells):
        raise ValueError(f"Expected a deterministic model without a detector, got {cells[0].record.target['label']}")
    clean = clean_images(cells[0].record, x, data_dir)
    x_adv = _first_that_broke(Path(out), cells, clean, board.threat.epsilon)
    first, examples = cells[0].record, cells[0].examples
    assert examples is not None
    claim = {
        "schema": _SCHEMA,
        "target": first.target["label"],
        "dataset": dict(first.dataset),
        "norm": board.threat.norm,
        "epsilon": board.threat.epsilon,
        "box": first.threat["box"],
        "seed": first.seed,
        "weights_sha256": first.weights_sha256,
        "n": len(clean),
        "clean_correct": int(model.clean.sum()),
        "robust_correct": int(model.worst_case().sum()),
        "attackers": sorted(str(seen_attacker(cell.record)) for cell in cells),
        "advbench": metadata.version("advbench"),
    }
    content = io.BytesIO()
    np.savez_compressed(content, x=clean.numpy(), x_adv=x_adv.numpy(), y=examples.label, index=examples.index)
    script = (resources.files("advbench.records") / "evidence_check.py").read_bytes()
    contents: tuple[str | bytes, ...] = (json.dumps(claim, indent=1) + "\n", content.getvalue(), script)
    return [write_atomically(Path(to) / name, part) for name, part in zip(NAMES, contents, strict=True)]


def _one(out: str | Path, wanted: dict[str, object]) -> tuple[RankedBoard, list[Cell]]:
    """The board and the ranked cells of the one trained model that fits."""
    found: list[tuple[dict[str, object], RankedBoard, list[Cell]]] = []
    for board in ranked_boards(load(Store(Path(out)))):
        if board.threat.norm == "none" or board.threat.epsilon is None:
            continue
        for label, members in board.cells_of.items():
            scored = [cell for cell in ranking(members) if cell.examples is not None]
            for seed in sorted({cell.record.seed for cell in scored}):
                own = [cell for cell in scored if cell.record.seed == seed]
                facts = {"target": label, "norm": board.threat.norm, "epsilon": board.threat.epsilon, "seed": seed}
                found.append((facts, board, own))
    fitting = [one for one in found if all(_same(one[0][name], value) for name, value in wanted.items())]
    if len(fitting) == 1:
        return fitting[0][1:]
    asked = ", ".join(f"{name}={value!r}" for name, value in wanted.items()) or "no choice"
    there = "; ".join(
        ", ".join(f"{name} {value}" for name, value in facts.items()) for facts, _, _ in (fitting or found)[:8]
    )
    raise ValueError(
        f"Expected one model within a radius in {out} with {asked}, got {len(fitting)}: {there or 'no records'}"
    )


def _same(found: object, wanted: object) -> bool:
    """Whether they are equal, radii but for rounding."""
    if isinstance(found, float) and isinstance(wanted, float):
        return math.isclose(found, wanted, rel_tol=1e-6)
    return found == wanted


def _rejects(cells: Sequence[Cell]) -> bool:
    """Whether a detector has rejected anything."""
    examples = [cell.examples for cell in cells if cell.examples is not None]
    return any(one.clean_rejected.any() or one.report_rejected.any() for one in examples)


def _first_that_broke(out: Path, cells: Sequence[Cell], clean: Tensor, epsilon: float | None) -> Tensor:
    """Of each image the first of all attackers' that broke the model, or the clean one, (n, c, h, w)."""
    x_adv, left = clean.clone(), torch.ones(len(clean), dtype=torch.bool)
    for cell in cells:
        assert cell.examples is not None
        broken = torch.from_numpy((robust(cell.record, cell.examples, epsilon) < 0.5) & (cell.examples.clean_correct > 0))
        if (broken & left).any():
            images = images_of(out, cell.record, cell.examples, clean)
            x_adv = torch.where((broken & left)[:, None, None, None], images.x_adv, x_adv)
            left &= ~broken
    return x_adv
