"""The box-constrained L-BFGS attack with one constant c for all images, and the search for that constant."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.access import Access, Evaluation, Loss, WhiteBox
from advbench.attacks.attack import check_norm, check_positive
from advbench.attacks.calibration import HeldOut
from advbench.attacks.capabilities import MINIMAL_NORM, Need, Passes, cut
from advbench.attacks.iterates import BestSoFar
from advbench.attacks.progress import tell
from advbench.attacks.quasi_newton import minimise
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, Targeted, ThreatModel, cross_entropy

_FEW = 32
_STRONGEST, _WEAKEST = 1e-4, 1e2
"""The constants between which one is searched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LBFGS:
    """Box-constrained L-BFGS towards a wrong label (Szegedy et al. 2014, arXiv:1312.6199), with one c for all images.

    Minimises c ||r|| + cross-entropy(x + r, label) over the images x + r in the box, from r = 0, as Gu & Rigazio 2014
    (arXiv:1412.5068, equation 1) state it: the l2 norm of r is not squared unless `squared`, and c is the same for every
    image of a model and a data set. If it is None the harness finds it on held-out images before the attack runs: the one
    that breaks at least a share `rate` of them, 99% in the paper, with the smallest total distance (`search_constant`).
    With an untargeted goal the label is drawn uniformly from the wrong ones, from the example's own stream, while any
    misclassification is a success. steps: evaluations of each image at most, a forward and a backward each. history:
    curvature pairs that are remembered.

    Images that the model gets wrong come back unchanged; of the others the misclassified iterate with the lowest objective
    (in general where the minimisation ends), else the iterate with the lowest objective. Epsilon is disregarded.
    """

    c: float | None = None
    steps: int = 100
    history: int = 10
    squared: bool = False
    rate: float = 0.99

    norms: ClassVar[frozenset[str]] = frozenset({"l2"})
    minimal_norm: ClassVar[bool] = True
    knowledge: ClassVar[type[Access]] = WhiteBox
    targeted: ClassVar[bool] = True
    family: ClassVar[str] = MINIMAL_NORM
    returns: ClassVar[str] = "the misclassified iterate of lowest objective"

    def __post_init__(self) -> None:
        check_positive(self, *(() if self.c is None else ("c",)), "steps", "history")
        if not 0 < self.rate <= 1:
            raise ValueError(f"Expected `rate` in (0, 1], got {self.rate}")

    @property
    def need(self) -> Need | None:
        """Held-out images and the model, where the constant is open."""
        return Need("validation", model=True) if self.c is None else None

    def calibrate(self, held_out: HeldOut) -> dict[str, Tensor]:
        """The constant `c` of the model by `search_constant` on the held-out images, and the share of them that it breaks.

        A few of the images find its order of magnitude, all of them the rest, to a twentieth. Where no constant breaks
        enough, as through a surrogate whose gradient is a guess, it is the smallest, at which the attack is strongest; the
        share says so. Both are float64 scalars.
        """
        shares: dict[tuple[int, float], float] = {}

        def attacked(images: HeldOut) -> Callable[[float], tuple[Tensor, Tensor]]:
            def at(c: float) -> tuple[Tensor, Tensor]:
                trial = images.attacked(replace(self, c=c))
                shares[len(images), c] = float(trial.broken.double().mean())
                return trial.broken, balls.distance(trial.x_adv - images.x, "l2")

            return at

        def searched(images: HeldOut, low: float = _STRONGEST, high: float = _WEAKEST, steps: int = 12) -> float | None:
            try:
                return search_constant(attacked(images), rate=self.rate, low=low, high=high, steps=steps)
            except RuntimeError:
                return None

        rough = searched(held_out.first(_FEW), steps=6)
        c = None if rough is None else searched(held_out, rough / 4, rough * 4, 6)
        c = searched(held_out) if c is None else c
        c = _STRONGEST if c is None else c
        return {
            name: torch.tensor(each, dtype=torch.float64) for name, each in (("c", c), ("broken", shares[len(held_out), c]))
        }

    def calibrated(self, values: Mapping[str, Tensor]) -> LBFGS:
        """The attack with the constant that `calibrate` found."""
        return replace(self, c=float(values["c"]))

    def passes(self, threat: ThreatModel, classes: int) -> Passes:  # noqa: ARG002
        """One forward and one backward per evaluation; the minimisation ends where it makes no progress."""
        return Passes(1, 1, at_most=True) * self.steps

    def short(self) -> Self:
        """A cheap setting, for tests, with a constant."""
        return replace(cut(self, steps=6), c=0.5 if self.c is None else self.c)

    def __call__(self, access: WhiteBox, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Return the perturbed images, shape (n, c, h, w), inside the box."""
        check_norm(self, threat)
        c = self._constant()
        if not len(x):
            return x.clone()
        best, ask = BestSoFar(x), _Question(access, x, goal, rng.fork("label"))

        def objective(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            x_adv = points.view(-1, *x.shape[1:])
            answer = ask(x_adv, rows)
            delta = x_adv - x[rows]
            distance = balls.distance(delta, "l2")
            price = c * (distance.square() if self.squared else distance)
            value = price - answer.loss
            # A value without a finite slope stays: an infinite one at its bound would hold up all others.
            ascent = answer.gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            gradient = self._pull(c, delta, distance, ascent, x_adv, threat) - ascent
            achieved = goal.select(rows).achieved(answer.logits)
            best.update(x_adv, achieved, -value, rows)
            tell(access.rows[rows], achieved)
            # An image that is misclassified as it is needs nothing: with a zero gradient its minimisation ends.
            needless = achieved & (distance == 0) & (not access.stochastic)
            return value, gradient.masked_fill(balls.per_example(needless, x), 0).flatten(1)

        low, high = (-torch.inf, torch.inf) if threat.box is None else threat.box
        start = x.flatten(1)
        bounds = torch.full_like(start, low), torch.full_like(start, high)
        minimise(objective, start, *bounds, steps=self.steps, history=self.history)
        return best.x_adv

    def _constant(self) -> float:
        if self.c is None:
            raise ValueError(
                "Expected a constant `c`: give a number, or find it with advbench.attacks.calibration.calibrate"
            )
        return self.c

    def _pull(self, c: float, delta: Tensor, distance: Tensor, ascent: Tensor, x_adv: Tensor, threat: ThreatModel) -> Tensor:
        """The gradient of c ||r||; where r is zero, the subgradient that leaves the least of the objective's gradient.

        ascent: the direction in which the loss rises, shape (m, c, h, w); values that the box holds back do not count.
        """
        if self.squared:
            return 2 * c * delta
        free = ascent.where(balls.headroom(ascent, x_adv, threat) > 0, 0)
        length = balls.distance(free, "l2")
        resting = free * balls.per_example(c / length.clamp(min=c), free)
        moving = delta * balls.per_example(c / distance.where(distance > 0, 1), delta)
        return torch.where(balls.per_example(distance > 0, delta), moving, resting)


class _Question:
    """The loss towards the label, for some of the examples.

    A stochastic model sees the whole batch every time, as it may have a random state of its own.
    """

    def __init__(self, access: WhiteBox, x: Tensor, goal: Goal, label: ExampleRNG) -> None:
        self.access, self.images, self.goal, self.label = access, x.clone(), goal, label

    def __call__(self, x_adv: Tensor, rows: Tensor) -> Evaluation:
        """Loss, gradient and logits of the examples `rows`, shape (m,), at `x_adv`, shape (m, c, h, w)."""
        if not self.access.stochastic:
            return self.access.select(rows).loss_gradient(x_adv, self.goal.select(rows), _towards(self.label.select(rows)))
        self.images[rows] = x_adv
        answer = self.access.loss_gradient(self.images, self.goal, _towards(self.label))
        return Evaluation(answer.loss[rows], answer.gradient[rows], answer.logits[rows])


def _towards(label: ExampleRNG) -> Loss:
    """Minus the cross-entropy of the target, or of a wrong label that is uniform over them and the same in every call."""

    def loss(logits: Tensor, goal: Goal) -> Tensor:
        if isinstance(goal, Targeted):
            return cross_entropy(logits, goal)
        shift = 1 + label.integers(logits.shape[1] - 1)
        wrong = (goal.y + shift.repeat(len(goal.y) // len(shift))) % logits.shape[1]
        return cross_entropy(logits, Targeted(goal.y, wrong))

    return loss


def search_constant(
    attacked: Callable[[float], tuple[Tensor, Tensor]],
    *,
    rate: float = 0.99,
    low: float = _STRONGEST,
    high: float = _WEAKEST,
    steps: int = 12,
) -> float:
    """The one c of a model: of those tried, the one with the smallest total distance that still breaks enough images.

    This is the rule of Gu & Rigazio 2014 (arXiv:1412.5068, section 3). A larger c gives smaller perturbations and fewer
    misclassified images, so the largest c that suffices is bisected on a logarithmic scale.

    attacked: c -> (misclassified (n,) bool, l2 distance (n,)) of the same held-out images attacked with that c; images that
    are wrong without an attack count as misclassified, at distance zero. rate: the share that has to be misclassified.
    low, high: the range of c. steps: bisections.
    Raises ValueError for a range or a rate that makes no sense, and RuntimeError if even `low` does not suffice.
    """
    if not 0 < low < high:
        raise ValueError(f"Expected 0 < `low` < `high`, got {low} and {high}")
    if not 0 < rate <= 1:
        raise ValueError(f"Expected `rate` in (0, 1], got {rate}")
    totals: dict[float, float] = {}
    shares: dict[float, float] = {}

    def suffices(c: float) -> bool:
        misclassified, distance = attacked(c)
        shares[c] = float(misclassified.double().mean())
        if shares[c] < rate:
            return False
        totals[c] = float(distance.double().sum())
        return True

    if not suffices(low):
        raise RuntimeError(f"Expected c = {low:g} to break {rate:.1%} of the held-out images, got {shares[low]:.1%}: give c")
    if not suffices(high):
        for _ in range(steps):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if suffices(middle) else (low, middle)
    return min(totals, key=lambda c: (totals[c], -c))
