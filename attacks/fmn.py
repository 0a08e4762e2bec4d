"""FMN, projected gradient ascent in a ball whose radius follows the decision boundary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.access import Access, WhiteBox
from advbench.attacks.attack import check_norm, check_positive
from advbench.attacks.ddn import cosine
from advbench.attacks.iterates import Search
from advbench.attacks.losses import margin
from advbench.attacks.nearest import keep_nearest, log_odds, unit_gradient
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, ThreatModel

_STEP_SIZES = {"l2": 1.0, "linf": 10.0, "l1": 10.0, "l0": 10.0}
_SMALLEST_RADIUS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class FMN:
    """Fast minimum-norm attack, in l2, linf, l1 or l0 (Pintor et al. 2021, arXiv:2102.12827).

    Each step follows the unit gradient of the margin and projects on the ball of the current radius. Before the first
    adversarial iterate the radius is the linear model's distance to the boundary; afterwards it shrinks by the factor
    1 - gamma at an adversarial iterate and grows by 1 + gamma at any other one. A cosine anneals the step size to a
    hundredth and gamma to `final_gamma`. step_size: the l2 length of the first step; None is the paper's 1 in l2, and 10 in
    the other norms, where 100 steps of 1 end farther away.

    Three things differ from the paper. The projection is on the ball and the box together: clipping what was projected
    leaves the perturbation shorter than its radius, which then never reaches the boundary of up to a third of the images.
    The first estimates too are lengthened by 1 + gamma, or the iterates end on the boundary. And in the first steps, a share
    `smooth` of them (0 in the paper), the gradient is that of the log-odds, the margin with a smooth maximum, which does not
    bind an image to the class that happens to be the nearest at the outset.

    Images that the model gets wrong come back unchanged, images that no iterate breaks as the one with the largest margin.
    Epsilon is disregarded. One forward and one backward per step, and one more forward for the last iterate.
    """

    steps: int = 100
    step_size: float | None = None
    gamma: float = 0.05
    final_gamma: float = 0.001
    smooth: float = 0.2

    norms: ClassVar[frozenset[str]] = frozenset({"l2", "linf", "l1", "l0"})
    minimal_norm: ClassVar[bool] = True
    knowledge: ClassVar[type[Access]] = WhiteBox
    targeted: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive(self, "steps", *(["step_size"] if self.step_size is not None else []))
        if not 0 < self.final_gamma <= self.gamma < 1:
            raise ValueError(f"Expected 0 < `final_gamma` <= `gamma` < 1, got {self.final_gamma} and {self.gamma}")
        if not 0 <= self.smooth <= 1:
            raise ValueError(f"Expected `smooth` in [0, 1], got {self.smooth}")

    def __call__(self, access: WhiteBox, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Return the nearest adversarial image found, else the one nearest to it, shape (n, c, h, w), inside the box."""
        check_norm(self, threat)
        step_size = _STEP_SIZES[threat.norm] if self.step_size is None else self.step_size
        search = Search(access, x, goal, rng)
        x_adv, radius, largest = x, x.new_zeros(len(x)), _largest_radius(x, threat)
        nearest = torch.full_like(radius, torch.inf)
        for step in range(self.steps):
            if not search:
                break
            loss = log_odds if step < self.smooth * self.steps else margin
            evaluation = search.access.loss_gradient(x_adv, search.goal, loss)
            lead, gradient = margin(evaluation.logits, search.goal), evaluation.gradient.nan_to_num()
            achieved = keep_nearest(search, x_adv, evaluation.logits, threat)
            x_adv, radius, nearest, achieved = search.keep(x_adv, radius, nearest, achieved)
            lead, gradient, largest = search.keep(lead, gradient, largest)
            length = balls.distance(x_adv - search.x, threat.norm)
            nearest = nearest.minimum(length.where(achieved, torch.inf))
            annealing = cosine(step, self.steps)
            gamma = self.final_gamma + (self.gamma - self.final_gamma) * annealing
            first = nearest.isinf()
            if threat.norm != "l0" and first.any():
                estimate = length + _boundary_distance(lead, gradient, threat)
                radius = estimate.where(first, radius)
            radius = _resized(radius, achieved, nearest, gamma, threat).minimum(largest)
            alpha = step_size * (0.01 + 0.99 * annealing)
            ahead = torch.add(x_adv, unit_gradient(gradient, search.rng.at(step)), alpha=alpha)
            x_adv = balls.project(ahead, search.x, threat, radius)
        if search:
            keep_nearest(search, x_adv, search.access.logits(x_adv), threat)
        return search.best.x_adv


def _boundary_distance(lead: Tensor, gradient: Tensor, threat: ThreatModel) -> Tensor:
    """How far the linear model's boundary is: abs(lead) over the gradient's dual norm; shape (n,). Any magnitude is safe."""
    size = balls.distance(gradient, "linf")
    size = size.clamp(min=torch.finfo(size.dtype).tiny)
    slope = balls.distance(gradient / balls.per_example(size, gradient), balls.DUAL[threat.norm])
    return lead.abs() / size / slope.clamp(min=1)


def _resized(radius: Tensor, achieved: Tensor, nearest: Tensor, gamma: float, threat: ThreatModel) -> Tensor:
    """The radius after an iterate, shape (n,): shorter by 1 - gamma where it was adversarial, longer by 1 + gamma elsewhere.

    It is never longer than the `nearest` adversarial. In l0 it is a whole number, and changes by one at least.
    """
    shorter, longer = radius * (1 - gamma), radius * (1 + gamma)
    if threat.norm == "l0":
        shorter, longer = shorter.floor().minimum(radius - 1), longer.floor().maximum(radius + 1)
    least = 1.0 if threat.norm == "l0" else _SMALLEST_RADIUS
    return torch.where(achieved, shorter.minimum(nearest), longer).clamp(min=least)


def _largest_radius(x: Tensor, threat: ThreatModel) -> Tensor:
    """The distance to the farthest image, shape (n,): infinite without a box, but for l0."""
    if threat.box is None and threat.norm != "l0":
        return torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
    low, high = threat.box if threat.box is not None else (-torch.inf, torch.inf)
    return balls.distance((x - low).maximum(high - x), threat.norm)
