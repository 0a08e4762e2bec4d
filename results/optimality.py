"""How near to the best attack's each adversarial image lies: local optimality against an envelope of attacks.

The envelope is, for each image, the nearest adversarial image that any attack of a run found on the model. A score is
relative to it: scores that rest on different envelopes must not be compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from advbench.results.boards import attack_facts, attacker_of, examples_digest, threat_of
from advbench.results.cells import Cell
from advbench.results.record import Examples, Record
from advbench.results.statistics import Values, clean_correct, distance

FEWEST = 5
"""An envelope of fewer attacks says little of any of them."""


@dataclass(frozen=True, slots=True, eq=False)
class Envelope:
    """What all attacks of a run together found on one model.

    cells: the scored ones, of any matrix. reached: of each cell, the distance by example, (cells, n), zero for images that
    the model gets wrong, infinite for those that the attack leaves. visited: of each cell, the distance of the best that
    the attack asked about, likewise, NaN where nobody watched; it never counts in the envelope. nearest: the least of what
    was reached, (n,). digest: of who is in it: attacks with their arguments, source, matrix, data, norm; the same for models
    that the same attacks attacked.
    """

    cells: tuple[Cell, ...]
    reached: Values
    visited: Values
    nearest: Values
    digest: str

    def optimality(self, row: int) -> float:
        """`local_optimality` of a cell by its position."""
        return local_optimality(self.reached[row], self.nearest)

    def share(self, row: int, epsilon: float) -> tuple[int, int]:
        """Of the images that some attack broke within `epsilon`, how many this cell broke, and how many there are."""
        broken = (self.nearest <= epsilon) & (self.nearest > 0)
        return int((self.reached[row] <= epsilon)[broken].sum()), int(broken.sum())


def envelope_of(cells: Sequence[Cell]) -> Envelope:
    """The envelope of a model's scored cells. ValueError for none, or for cells of other images."""
    outcomes = [cell.outcome for cell in cells if cell.outcome is not None]
    if not outcomes:
        raise ValueError("Expected at least one scored cell, got none")
    if len({examples_digest(examples) for _, examples in outcomes}) > 1:
        raise ValueError("Expected cells of the same images, got others")
    reached = np.stack([_in_order(reach(*outcome), outcome[1]) for outcome in outcomes])
    scored = tuple(cell for cell in cells if cell.outcome is not None)
    members = sorted(json.dumps([*attacker_of(record), attack_facts(record)], sort_keys=True) for record, _ in outcomes)
    threat = threat_of(scored[0])
    told = json.dumps([members, threat.dataset, threat.split, threat.norm, examples_digest(outcomes[0][1])])
    visited = np.stack([_in_order(visits(examples), examples) for _, examples in outcomes])
    return Envelope(scored, reached, visited, reached.min(axis=0), hashlib.sha256(told.encode()).hexdigest())


def reach(record: Record, examples: Examples) -> Values:
    """The distance of each adversarial image in the threat's norm, (n,): 0 where the model is wrong without it, infinite
    where the attack failed; a random model is broken where most fresh draws are wrong.
    """
    distances = np.nan_to_num(distance(record, examples), nan=np.inf)
    broken: NDArray[np.bool_] = 2 * examples.report_correct < examples.draws
    reached: Values = np.where(clean_correct(examples), np.where(broken, distances, np.inf), 0.0)
    return reached


def visits(examples: Examples) -> Values:
    """The distance of the best image that the attack asked about, (n,): 0 where the model is wrong without it, infinite
    where none was adversarial, NaN where nobody watched.
    """
    found: Values = np.where(clean_correct(examples) | np.isnan(examples.visited), examples.visited, 0.0)
    return found


def local_optimality(reached: Values, nearest: Values) -> float:
    """How much of what the envelope takes from the robust-accuracy curve an attack takes, in [0, 1].

    reached: distances of the attack, (n,), infinite for failures. nearest: of the envelope, (n,). Both curves are robust
    accuracy over epsilon from 0 to the envelope's farthest finite distance; the area under one is the mean of the distances
    cut off there, and the score is the area that the attack takes from a curve that never falls, as a share of what the
    envelope takes (Cinà et al. 2025, AttackBench, arXiv:2404.19460). NaN where the envelope takes nothing.

    An attack that breaks half the images as near as any, and none of the others:

    >>> local_optimality(np.array([1.0, np.inf]), np.array([1.0, 2.0]))
    1.0
    >>> local_optimality(np.array([1.0, np.inf, np.inf]), np.array([1.0, 1.0, 2.0]))
    0.5
    """
    attacked = nearest > 0
    finite = nearest[np.isfinite(nearest) & attacked]
    if not len(finite):
        return float("nan")
    farthest = finite.max()
    taken = [float((farthest - np.minimum(each[attacked], farthest)).sum()) for each in (reached, nearest)]
    return taken[0] / taken[1] if taken[1] > 0 else float("nan")


def _in_order(values: Values, examples: Examples) -> Values:
    return values[np.argsort(examples.index, kind="stable")]
