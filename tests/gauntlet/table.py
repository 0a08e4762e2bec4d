"""Ours beside the references: rows, verdicts by the gauntlet's bars, and a Markdown table."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Norm, ThreatModel, Untargeted
from advbench.results.significance import exact_mcnemar
from tests.gauntlet.pairs import PAIRS
from tests.gauntlet.references import ENSEMBLE, Book, Key, Outcome, run, verified
from tests.gauntlet.training import Problem

FARTHER = 1.02
"""A median may be so many times the reference's."""
ALPHA = 0.01
POOLED = 0.002
"""How much higher the robust accuracy pooled over models may be."""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """An attack of ours beside one reference on one model in one norm; epsilon is None for minimal-norm attacks."""

    model: str
    norm: Norm
    epsilon: float | None
    attack: str
    library: str
    ours: Outcome
    theirs: Outcome

    @property
    def gained(self) -> int:
        """Images that only ours breaks."""
        return int((self.ours.distances.isfinite() & self.theirs.distances.isinf()).sum())

    @property
    def lost(self) -> int:
        """Images that only the reference breaks."""
        return int((self.theirs.distances.isfinite() & self.ours.distances.isinf()).sum())

    @property
    def p_value(self) -> float:
        """Of McNemar's exact test, one-sided, that ours breaks fewer images."""
        return float(exact_mcnemar(self.lost, self.gained, one_sided=True))

    @property
    def loses(self) -> bool:
        """Whether ours misses the bar: distances, or the images broken at a fixed radius."""
        if self.epsilon is not None:
            return self.p_value < ALPHA
        fewer = broken(self.ours) < broken(self.theirs)
        return fewer or median(self.ours) > FARTHER * median(self.theirs)


def median(outcome: Outcome) -> float:
    """The median distance, failures at infinity: of an even number the lower of the middle two."""
    return float(outcome.distances.median())


def broken(outcome: Outcome) -> int:
    """How many images are broken."""
    return int(outcome.distances.isfinite().sum())


def attack(problem: Problem, name: str, norm: Norm, epsilon: float | None, theirs: Outcome, seed: int = 0) -> Outcome:
    """Run ours, and verify its images. theirs: of the reference, whose queries HopSkipJump is given."""
    queries = round(theirs.forwards) if name == "hop-skip-jump" else problem.recipe.queries
    ours = PAIRS[name].ours(norm, queries)
    threat = ThreatModel(norm, epsilon)
    rng = ExampleRNG.make(seed, "attack", problem.index)
    start = time.perf_counter()
    with ours.knowledge(problem.model, rng.fork("model")) as access:
        x_adv = ours(access, problem.x, Untargeted(problem.y), threat, rng)
    seconds = time.perf_counter() - start
    distances, refused = verified(problem.model, problem.x, problem.y, x_adv, threat)
    forwards, backwards = (float(passes.double().mean()) for passes in (access.ledger.forwards, access.ledger.backwards))
    return Outcome(distances, forwards, backwards, seconds, refused)


def rows_of(problem: Problem, book: Book, name: str, norm: Norm, seed: int = 0) -> list[Row]:
    """Ours beside every reference that the book has of the attack in the norm and with the seed."""
    pair = PAIRS[name]
    keys = [Key(norm, name, library, seed) for library in pair.references] or [Key(norm, ENSEMBLE, "pyautoattack", seed)]
    keys = [key for key in keys if key in book.outcomes]
    if not keys:
        return []
    epsilon = None if pair.minimal else book.radii[norm]
    ours = attack(problem, name, norm, epsilon, book.outcomes[keys[0]], seed)
    return [Row(problem.recipe.name, norm, epsilon, name, key.library, ours, book.outcomes[key]) for key in keys]


def again(problem: Problem, row: Row, seeds: int) -> str:
    """The images whose outcomes differ, with so many seeds of both: how many each breaks, seed by seed."""
    differ = row.ours.distances.isfinite() != row.theirs.distances.isfinite()
    if not differ.any() or row.attack in (ENSEMBLE, "auto"):
        return ""
    rows = differ.nonzero().squeeze(1)
    part = Problem(problem.recipe, problem.model, problem.weights, problem.x[rows], problem.y[rows], problem.index[rows])
    ours = [attack(part, row.attack, row.norm, row.epsilon, row.theirs, seed) for seed in range(seeds)]
    theirs = [run(part, Key(row.norm, row.attack, row.library, seed), row.epsilon) for seed in range(seeds)]
    return f"of {len(rows)}: {'/'.join(str(broken(o)) for o in ours)} and {'/'.join(str(broken(o)) for o in theirs)}"


def markdown(rows: Sequence[Row]) -> str:
    """Two tables, of minimal-norm attacks and of those with a radius, and the pooled figures."""
    minimal = [_minimal_cells(row) for row in rows if row.epsilon is None]
    fixed = [_fixed_cells(row) for row in rows if row.epsilon is not None]
    parts, names = [], ("model", "norm", "attack", "reference")
    if minimal:
        heads = (
            "model",
            "norm",
            "attack",
            "reference",
            "broken %",
            "theirs",
            "median",
            "theirs",
            "ratio",
            "passes",
            "theirs",
            "",
        )
        parts.append(tabulate(minimal, heads, tablefmt="github", disable_numparse=True))
    if fixed:
        heads = (*names, "robust %", "theirs", "lost", "gained", "p", "passes", "theirs", "")
        parts.append(tabulate(fixed, heads, tablefmt="github", disable_numparse=True))
        parts.append(tabulate(pooled(rows), ("attack", "images", "robust %", "theirs", "points", ""), tablefmt="github"))
    return "\n\n".join(parts)


def pooled(rows: Sequence[Row]) -> list[tuple[object, ...]]:
    """By attack of fixed radius: images, robust accuracies over all models and norms, and how far apart they are."""
    cells: list[tuple[object, ...]] = []
    fixed = [row for row in rows if row.epsilon is not None]
    for name in dict.fromkeys(row.attack for row in fixed):
        own = [row for row in fixed if row.attack == name]
        n = sum(len(row.ours.distances) for row in own)
        fewer = sum(broken(row.theirs) - broken(row.ours) for row in own)
        ours, theirs = (1 - sum(broken(getattr(row, side)) for row in own) / n for side in ("ours", "theirs"))
        loses = "LOSES" if fewer > POOLED * n else ""
        cells.append((name, n, f"{100 * ours:.1f}", f"{100 * theirs:.1f}", f"{100 * (ours - theirs):+.2f}", loses))
    return cells


def keep(folder: Path, row: Row, seed: int, note: str = "") -> None:
    """Append a row with all distances of ours to a file of JSON lines."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        "time": time.strftime("%Y-%m-%d %H:%M"),
        "model": row.model,
        "norm": row.norm,
        "epsilon": row.epsilon,
        "attack": row.attack,
        "seed": seed,
        "library": row.library,
        "loses": row.loses,
        "broken": [broken(row.ours), broken(row.theirs)],
        "median": [median(row.ours), median(row.theirs)],
        "passes": [_passes(row.ours), _passes(row.theirs)],
        "seconds": [round(row.ours.seconds, 1), round(row.theirs.seconds, 1)],
        "note": note,
        "distances": [round(value, 5) for value in row.ours.distances.tolist()],
    }
    with (folder / "rows.jsonl").open("a") as file:
        file.write(json.dumps(told) + "\n")


def _minimal_cells(row: Row) -> tuple[str, ...]:
    n = len(row.ours.distances)
    near, theirs = median(row.ours), median(row.theirs)
    ratio = "" if near == theirs else f"{near / theirs:.3f}"
    shares = (f"{100 * broken(outcome) / n:.0f}" for outcome in (row.ours, row.theirs))
    return (
        *_names(row), *shares, f"{near:.4g}", f"{theirs:.4g}", ratio, _passes(row.ours), _passes(row.theirs), _verdict(row)
    )  # fmt: skip


def _fixed_cells(row: Row) -> tuple[str, ...]:
    n = len(row.ours.distances)
    shares = (f"{100 * (1 - broken(outcome) / n):.1f}" for outcome in (row.ours, row.theirs))
    counts = (str(row.lost), str(row.gained), f"{row.p_value:.2g}")
    return (*_names(row), *shares, *counts, _passes(row.ours), _passes(row.theirs), _verdict(row))


def _names(row: Row) -> tuple[str, ...]:
    norm = row.norm if row.epsilon is None else f"{row.norm} {row.epsilon:g}"
    return row.model, norm, row.attack, row.library


def _passes(outcome: Outcome) -> str:
    return f"{outcome.forwards:.0f}+{outcome.backwards:.0f}"


def _verdict(row: Row) -> str:
    refused = f" ({row.theirs.refused} refused)" if row.theirs.refused else ""
    return ("LOSES" if row.loses else "") + refused
