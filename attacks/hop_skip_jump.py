"""HopSkipJump, which walks along the decision boundary and asks for labels alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self, TypeAlias

import torch
from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.access import Access, DecisionBased
from advbench.attacks.attack import check_norm, check_positive
from advbench.attacks.calibration import HeldOut
from advbench.attacks.capabilities import DECISIONS, Need, Passes, cut
from advbench.attacks.iterates import BestSoFar
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, Targeted, ThreatModel

_FIRST_PROBE = 0.1
_HALVINGS = 15
_STARTS = 40
_GRAINS = (1, 2, 4, 8)
_PROBES_AT_ONCE = 16
_IMAGES_AT_ONCE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class HopSkipJump:
    """HopSkipJump, the smallest l2 or linf perturbation from labels alone (Chen et al. 2020, arXiv:1904.02144).

    From a misclassified noise image a binary search goes to the boundary. Then, in each iteration: estimate the boundary's
    normal from the labels of random points nearby, jump along it by a step that is halved until it stays misclassified, and
    search the boundary again. queries: for each image at most; every label that is asked counts. evaluations: random points
    of the first estimate, times the root of the iteration's number in the later ones. gamma: scale of the binary search's
    threshold (gamma / d^(3/2) of the way in l2, gamma / d^2 in linf, for images of d values) and of the random points'
    distance (gamma / d of the perturbation's).

    The paper starts from uniform noise; where that is classified correctly, noise of coarser grain is tried, 40 images in
    all. A detector beside the model, whose rejections count as correct answers, may reject all noise, so that a held-out
    image of another class is a start too: the nearest of `pool`, as many of each class, which the harness hands over before
    the attack runs; where it is classified correctly or rejected, the next nearest, 40 in all. From either start goes a
    search to the boundary, and, where that takes no more than a tenth of the queries, one or two iterations; the walk goes
    on from the nearer image. Without held-out images, as in a call of the attack itself, or with a `pool` of 0, noise alone
    is the start. Within an epsilon a start that stays misclassified when it is projected on the ball, or blended with
    the image, is moved there first.

    Images that the model gets wrong, and those for which no start is found, come back unchanged; of the others the
    nearest image that was misclassified when asked. Epsilon is disregarded. Of a stochastic oracle every label is a fresh
    draw, and the whole batch is asked each time.
    """

    queries: int = 5000
    evaluations: int = 100
    gamma: float = 1.0
    pool: int = 500

    norms: ClassVar[frozenset[str]] = frozenset({"l2", "linf"})
    minimal_norm: ClassVar[bool] = True
    knowledge: ClassVar[type[Access]] = DecisionBased
    targeted: ClassVar[bool] = False
    family: ClassVar[str] = DECISIONS

    def __post_init__(self) -> None:
        check_positive(self, "queries", "evaluations", "gamma")
        if self.pool < 0:
            raise ValueError(f"Expected `pool` >= 0, got {self.pool}")

    @property
    def need(self) -> Need | None:
        """Held-out images alone, where there are to be starts among them."""
        return Need("validation", model=False, optional=True) if self.pool else None

    def calibrate(self, held_out: HeldOut) -> dict[str, Tensor]:
        """The images `x`, (m, c, h, w), and the labels `y`, (m,), of the pool: the first of every class in turn."""
        order = held_out.y.argsort(stable=True)
        sorted_y = held_out.y[order]
        turn = torch.arange(len(order), device=order.device) - torch.searchsorted(sorted_y, sorted_y)
        rows = order[turn.argsort(stable=True)[: self.pool]]
        return {"x": held_out.x[rows], "y": held_out.y[rows]}

    def calibrated(self, values: Mapping[str, Tensor]) -> StartedFromImages:
        """The attack with the pool that `calibrate` found."""
        return StartedFromImages(attack=self, x=values["x"], y=values["y"])

    def passes(self, threat: ThreatModel, classes: int) -> Passes:  # noqa: ARG002
        """All queries; fewer where no start is found, or where too few are left for an iteration."""
        return Passes(self.queries, at_most=True)

    def short(self) -> Self:
        """A cheap setting, for tests."""
        return cut(self, queries=40)

    def __call__(self, access: DecisionBased, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Return the nearest misclassified image found, else the image itself, shape (n, c, h, w), inside the box."""
        return self.from_pool(access, x, goal, threat, rng, x[:0], goal.y[:0])

    def from_pool(
        self,
        access: DecisionBased,
        x: Tensor,
        goal: Goal,
        threat: ThreatModel,
        rng: ExampleRNG,
        pool: Tensor,
        labels: Tensor,
    ) -> Tensor:
        """The same with the images `pool`, (m, c, h, w), m >= 0, of the classes `labels`, (m,), as starts beside noise."""
        check_norm(self, threat)
        if isinstance(goal, Targeted):
            raise ValueError("Expected an untargeted goal for HopSkipJump, got a targeted one")
        oracle, best = _Oracle(access, x, goal.y, self.queries), BestSoFar(x)
        bisections = self._bisections(x, threat)
        everyone = torch.arange(len(x), device=x.device)
        right = everyone[~oracle.misclassified(x, everyone)]
        trial = self._trial(bisections) if len(pool) else 0
        for start in _starts(x, goal.y, pool, labels, threat, rng.fork("start")):
            seeking = right[~best.achieved[right]] if start.spare else right
            x_adv, rows = _first(oracle, x, seeking, start)
            x_adv = _inside(oracle, x_adv, x[rows], rows, threat)
            _note(best, x_adv, x, rows, threat)
            x_adv, rows = _with(bisections, oracle, x_adv, rows)
            x_adv = _to_boundary(oracle, x_adv, x[rows], rows, threat, bisections)
            _note(best, x_adv, x, rows, threat)
            self._walk(oracle, best, x_adv, rows, threat, rng, range(1, trial + 1))
        rows = best.achieved.nonzero().squeeze(1)
        self._walk(oracle, best, best.x_adv[rows], rows, threat, rng, itertools.count(trial + 1))
        return best.x_adv

    def _walk(
        self,
        oracle: _Oracle,
        best: BestSoFar,
        x_adv: Tensor,
        rows: Tensor,
        threat: ThreatModel,
        rng: ExampleRNG,
        iterations: Iterable[int],
    ) -> None:
        """The numbered iterations from boundary images, (m, c, h, w), of the examples `rows`, as far as their queries go."""
        x, bisections = oracle.x, self._bisections(oracle.x, threat)
        for iteration in iterations:
            x_adv, rows = _with(self._probes(iteration) + _HALVINGS + bisections, oracle, x_adv, rows)
            if not len(rows):
                return
            distance = balls.distance(x_adv - x[rows], threat.norm)
            reach = self.gamma * distance / x[0].numel() if iteration > 1 else torch.full_like(distance, _FIRST_PROBE)
            stream = rng.fork("probe", iteration).select(rows)
            normal = _normal(oracle, x_adv, reach, self._probes(iteration), rows, threat, stream)
            x_adv = _jump(oracle, x_adv, normal, distance / math.sqrt(iteration), rows, threat)
            _note(best, x_adv, x, rows, threat)
            x_adv = _to_boundary(oracle, x_adv, x[rows], rows, threat, bisections)
            _note(best, x_adv, x, rows, threat)

    def _probes(self, iteration: int) -> int:
        return round(self.evaluations * math.sqrt(iteration))

    def _trial(self, bisections: int) -> int:
        """The iterations, two at most, that every start is given: they take a tenth of the queries at most."""
        costs = [self._probes(iteration) + _HALVINGS + bisections for iteration in (1, 2)]
        return sum(10 * cost <= self.queries for cost in itertools.accumulate(costs))

    def _bisections(self, x: Tensor, threat: ThreatModel) -> int:
        """Halvings of the way between the image and a misclassified one, down to the threshold of the paper."""
        share = self.gamma * max(1, x[0:1].numel()) ** (-1.5 if threat.norm == "l2" else -2.0)
        return max(1, math.ceil(-math.log2(share)))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StartedFromImages:
    """HopSkipJump that starts from noise and from images of other classes.

    attack: the attack. x: the images, (m, c, h, w). y: their classes, (m,).
    """

    attack: HopSkipJump
    x: Tensor = field(repr=False)
    y: Tensor = field(repr=False)

    norms: ClassVar[frozenset[str]] = HopSkipJump.norms
    minimal_norm: ClassVar[bool] = True
    knowledge: ClassVar[type[Access]] = DecisionBased
    targeted: ClassVar[bool] = False
    family: ClassVar[str] = DECISIONS

    def passes(self, threat: ThreatModel, classes: int) -> Passes:
        """Those of the attack."""
        return self.attack.passes(threat, classes)

    def __call__(self, access: DecisionBased, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Return the nearest misclassified image found, else the image itself, shape (n, c, h, w), inside the box."""
        return self.attack.from_pool(access, x, goal, threat, rng, self.x.to(x), self.y.to(x.device))


class _Oracle:
    """Answers whether images are misclassified, and knows how many queries each example has left.

    A stochastic model is asked about its whole batch each time: it may have a random state of its own.
    """

    def __init__(self, access: DecisionBased, x: Tensor, y: Tensor, queries: int) -> None:
        self.access, self.x, self.y = access, x, y
        self.limit = access.ledger.queries[access.rows] + queries

    def left(self, rows: Tensor) -> Tensor:
        """Questions that the examples `rows` may still ask, shape (m,)."""
        return (self.limit - self.access.ledger.queries[self.access.rows])[rows] // self.access.draws

    def misclassified(self, x_adv: Tensor, rows: Tensor) -> Tensor:
        """Whether the oracle answers anything but the true label; x_adv: (m, c, h, w) of the examples `rows`; (m,), bool."""
        if not len(rows):
            return torch.zeros_like(rows, dtype=torch.bool)
        if self.access.stochastic:
            images = self.x.index_put((rows,), x_adv)
            return (self.access.labels(images) != self.y)[rows]
        parts = zip(torch.split(x_adv, _IMAGES_AT_ONCE), torch.split(rows, _IMAGES_AT_ONCE), strict=True)
        return torch.cat([self.access.select(part).labels(images) != self.y[part] for images, part in parts])

    def several(self, x_adv: Tensor, rows: Tensor) -> Tensor:
        """The same for k images of each example: x_adv (m, k, c, h, w), answers (m, k)."""
        if self.access.stochastic:
            return torch.stack([self.misclassified(images, rows) for images in x_adv.unbind(dim=1)], dim=1)
        return self.misclassified(x_adv.flatten(0, 1), rows.repeat_interleave(x_adv.shape[1])).view(x_adv.shape[:2])


_Propose: TypeAlias = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""(examples (k,), number of the try) -> images (m, c, h, w) and those of the examples that they are for, (m,)."""


@dataclass(frozen=True, slots=True, eq=False)
class _Start:
    """A kind of start. numbers: of the tries. spare: whether it is for the examples that have none yet alone."""

    propose: _Propose
    numbers: range
    spare: bool = False


def _starts(x: Tensor, y: Tensor, pool: Tensor, labels: Tensor, threat: ThreatModel, rng: ExampleRNG) -> tuple[_Start, ...]:
    """Images of the pool, nearest first; noise of every grain; and more noise where nothing has been found."""

    def noise(rows: Tensor, number: int) -> tuple[Tensor, Tensor]:
        return _noise(x[rows], threat, rng.select(rows).at(number), _GRAINS[number % len(_GRAINS)]), rows

    few, grains = min(_STARTS, len(pool)), len(_GRAINS)
    noises = (_Start(noise, range(grains)), _Start(noise, range(grains, _STARTS), spare=True))
    return (_Start(_neighbours(x, y, pool, labels, threat), range(few)), *noises) if few else noises


def _neighbours(x: Tensor, y: Tensor, pool: Tensor, labels: Tensor, threat: ThreatModel) -> _Propose:
    """The images of the pool of other classes, from the nearest on."""
    lengths = torch.cdist(
        x.flatten(1),
        pool.flatten(1),
        p=2.0 if threat.norm == "l2" else torch.inf,
        compute_mode="donot_use_mm_for_euclid_dist",  # the other's rounding depends on the batch
    ).masked_fill(y.unsqueeze(1) == labels, torch.inf)
    lengths, order = lengths.sort(dim=1, stable=True)

    def propose(rows: Tensor, number: int) -> tuple[Tensor, Tensor]:
        rows = rows[lengths[rows, number].isfinite()]
        return _boxed(pool[order[rows, number]], threat), rows

    return propose


def _first(oracle: _Oracle, x: Tensor, seeking: Tensor, start: _Start) -> tuple[Tensor, Tensor]:
    """The first misclassified proposal, (m, c, h, w), for those of the examples `seeking` that have one, (m,)."""
    x_adv, found = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for number in start.numbers:
        seeking = seeking[~found[seeking] & (oracle.left(seeking) > 0)]
        if not len(seeking):
            break
        images, rows = start.propose(seeking, number)
        x_adv[rows] = images
        found[rows] = oracle.misclassified(images, rows)
    rows = found.nonzero().squeeze(1)
    return x_adv[rows], rows


def _inside(oracle: _Oracle, x_adv: Tensor, x: Tensor, rows: Tensor, threat: ThreatModel) -> Tensor:
    """The misclassified images, (m, c, h, w), inside the threat's ball where they are so there too, blended or projected."""
    if threat.epsilon is None:
        return x_adv
    share = threat.epsilon / balls.distance(x_adv - x, threat.norm).clamp(min=threat.epsilon)
    blended = torch.lerp(x, x_adv, balls.per_example(share, x))
    for nearer in (blended, balls.project(x_adv, x, threat))[: 1 if threat.norm == "l2" else 2]:
        asking = (oracle.left(rows) > 0).nonzero().squeeze(1)
        wrong = asking[oracle.misclassified(nearer[asking], rows[asking])]
        x_adv = x_adv.index_put((wrong,), nearer[wrong])
    return x_adv


def _with(needed: int, oracle: _Oracle, x_adv: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The images and rows of the examples that have as many questions left as are `needed`."""
    going = oracle.left(rows) >= needed
    return x_adv[going], rows[going]


def _note(best: BestSoFar, x_adv: Tensor, x: Tensor, rows: Tensor, threat: ThreatModel) -> None:
    """Keep misclassified images that are nearer than what is held."""
    distance = balls.distance(x_adv - x[rows], threat.norm)
    best.update(x_adv, torch.ones_like(rows, dtype=torch.bool), -distance, rows)


def _noise(x: Tensor, threat: ThreatModel, rng: ExampleRNG, grain: int) -> Tensor:
    """Uniform noise over the box, (0, 1) without one, in squares of `grain` pixels."""
    low, high = (0.0, 1.0) if threat.box is None else threat.box
    channels, height, width = x.shape[1:]
    coarse = rng.uniform((channels, -(-height // grain), -(-width // grain)), x.dtype)
    fine = coarse.repeat_interleave(grain, dim=2).repeat_interleave(grain, dim=3)[:, :, :height, :width]
    return low + (high - low) * fine


def _to_boundary(oracle: _Oracle, x_adv: Tensor, x: Tensor, rows: Tensor, threat: ThreatModel, bisections: int) -> Tensor:
    """The last misclassified image of a bisection between `x` and the misclassified `x_adv`, shape (m, c, h, w).

    In l2 it runs along the straight line, in linf over the radius of a ball that `x_adv` is projected on.
    """
    # Of every bracket the upper end has been asked and was misclassified, so that the answer is an image that the oracle has
    # seen, even if the way crosses the boundary several times. In linf a ball clips the largest changes only, which alone
    # make the distance, where the straight line would shrink all of them.
    far, size = x_adv, balls.distance(x_adv - x, "linf")
    low, high, size = torch.zeros_like(size), torch.ones_like(size), balls.per_example(size, x)
    for _ in range(bisections):
        share = balls.per_example((low + high) / 2, x)
        if threat.norm == "l2":
            middle = _boxed(torch.lerp(x, far, share), threat)
        else:
            middle = far.clamp(x - share * size, x + share * size)
        wrong = oracle.misclassified(middle, rows)
        x_adv = middle.where(balls.per_example(wrong, x), x_adv)
        low, high = share.view(-1).where(~wrong, low), share.view(-1).where(wrong, high)
    return x_adv


def _normal(
    oracle: _Oracle, x_adv: Tensor, reach: Tensor, probes: int, rows: Tensor, threat: ThreatModel, rng: ExampleRNG
) -> Tensor:
    """The estimated direction into the misclassified side, of unit length in the threat's norm (section 3.2), (m, c, h, w).

    The mean of random steps, weighted with +1 where they end misclassified and -1 elsewhere, less the mean weight. reach:
    the steps' l2 length, shape (m,); their direction is uniform in l2, that of a uniform vector in linf.
    """
    ahead, drift, votes = torch.zeros_like(x_adv), torch.zeros_like(x_adv), torch.zeros_like(reach)
    length = balls.per_example(reach.clamp(min=torch.finfo(reach.dtype).tiny), x_adv).unsqueeze(1)
    for first in range(0, probes, _PROBES_AT_ONCE):
        numbers = torch.arange(first, min(first + _PROBES_AT_ONCE, probes), device=x_adv.device)
        stream = rng.select(torch.arange(len(rows), device=x_adv.device).repeat_interleave(len(numbers)))
        stream = stream.at(numbers.repeat(len(rows)))
        shape = tuple(x_adv.shape[1:])
        steps = stream.normal(shape, x_adv.dtype) if threat.norm == "l2" else 2 * stream.uniform(shape, x_adv.dtype) - 1
        steps = balls.steepest(steps, ThreatModel("l2", None)).view(len(rows), len(numbers), *shape)
        points = _boxed(x_adv.unsqueeze(1) + length * steps, threat)
        signs = 2 * oracle.several(points, rows).to(x_adv.dtype) - 1
        # The box may have clipped the steps, and a vote is about the point that was asked: weigh what was moved. Around a
        # point beside the boundary most votes agree, which the baseline below takes out of the estimate's variance.
        moves = (points - x_adv.unsqueeze(1)) / length
        ahead = ahead + (moves * signs.view(*signs.shape, 1, 1, 1)).sum(dim=1)
        drift, votes = drift + moves.sum(dim=1), votes + signs.sum(dim=1)
    mean = votes / probes
    baseline = mean.where(mean.abs() < 1, 0)  # where all agree, their mean would leave nothing
    return balls.steepest(ahead - balls.per_example(baseline, x_adv) * drift, threat)


def _jump(oracle: _Oracle, x_adv: Tensor, direction: Tensor, step: Tensor, rows: Tensor, threat: ThreatModel) -> Tensor:
    """The first of the halved steps that stays misclassified, else the image itself; step: the first length, (m,)."""
    landed, seeking = x_adv, torch.arange(len(rows), device=x_adv.device)
    for _ in range(_HALVINGS):
        if not len(seeking):
            break
        ahead = x_adv[seeking] + balls.per_example(step[seeking], x_adv) * direction[seeking]
        ahead = _boxed(ahead, threat)
        wrong = oracle.misclassified(ahead, rows[seeking])
        landed = landed.index_put((seeking[wrong],), ahead[wrong])
        seeking, step = seeking[~wrong], step / 2
    return landed


def _boxed(x: Tensor, threat: ThreatModel) -> Tensor:
    return x if threat.box is None else x.clamp(*threat.box)
