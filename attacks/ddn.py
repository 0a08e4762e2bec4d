"""DDN, which steers the direction of a perturbation by the gradient and its length by whether it fools the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.access import Access, WhiteBox
from advbench.attacks.attack import check_norm, check_positive
from advbench.attacks.capabilities import MINIMAL_NORM, Passes, cut
from advbench.attacks.iterates import Search
from advbench.attacks.nearest import keep_nearest, log_odds, unit_gradient
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, ThreatModel


@dataclass(frozen=True, slots=True, kw_only=True)
class DDN:
    """Decoupled direction and norm, the smallest l2 perturbation (Rony et al. 2019, arXiv:1811.09600).

    Each step adds the unit gradient times a step size that a cosine takes from `step_size` to `final_step_size`, and sets
    the perturbation's length: shorter by the factor 1 - gamma where the last iterate was adversarial, longer by 1 + gamma
    where it was not. initial_norm: the first length, in pixel units. levels: iterates are rounded to so many equally spaced
    pixel values, not at all if None.

    Images that the model gets wrong come back unchanged, images that no iterate breaks as the one with the largest margin.
    Epsilon is disregarded.
    One forward and one backward per step, and one more forward for the last iterate. The gradient is that of the log-odds,
    which has the cross-entropy's direction without its underflow.
    """

    steps: int = 100
    gamma: float = 0.05
    initial_norm: float = 1.0
    step_size: float = 1.0
    final_step_size: float = 0.01
    levels: int | None = None

    norms: ClassVar[frozenset[str]] = frozenset({"l2"})
    minimal_norm: ClassVar[bool] = True
    knowledge: ClassVar[type[Access]] = WhiteBox
    targeted: ClassVar[bool] = True
    family: ClassVar[str] = MINIMAL_NORM

    def __post_init__(self) -> None:
        check_positive(self, "steps", "initial_norm", "step_size", "final_step_size")
        if not 0 < self.gamma < 1:
            raise ValueError(f"Expected `gamma` in (0, 1), got {self.gamma}")
        if self.levels is not None and self.levels < 2:
            raise ValueError(f"Expected `levels` >= 2 or None, got {self.levels}")

    def passes(self, threat: ThreatModel, classes: int) -> Passes:  # noqa: ARG002
        """steps + 1 forwards and steps backwards."""
        return Passes(self.steps + 1, self.steps)

    def short(self) -> Self:
        """A cheap setting, for tests."""
        return cut(self, steps=6)

    def __call__(self, access: WhiteBox, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Return the nearest adversarial image found, else the one nearest to it, shape (n, c, h, w), inside the box."""
        check_norm(self, threat)
        if self.levels is not None and threat.box is None:
            raise ValueError("Expected a threat with a box where `levels` is set, got None: without one there are no levels")
        search = Search(access, x, goal, rng)
        x_adv, norm = x, x.new_full((len(x),), self.initial_norm)
        for step in range(self.steps):
            if not search:
                break
            evaluation = search.access.loss_gradient(x_adv, search.goal, log_odds)
            achieved = keep_nearest(search, x_adv, evaluation.logits, threat)
            x_adv, norm, achieved, gradient = search.keep(x_adv, norm, achieved, evaluation.gradient)
            alpha = self.final_step_size + (self.step_size - self.final_step_size) * cosine(step, self.steps)
            direction = unit_gradient(gradient, search.rng.at(step), evaluation.sloped)
            delta = torch.add(x_adv - search.x, direction, alpha=alpha)
            norm = norm * torch.where(achieved, 1 - self.gamma, 1 + self.gamma)
            x_adv = self._at_length(delta, norm, search.x, threat)
        if search:
            keep_nearest(search, x_adv, search.access.logits(x_adv), threat)
        return search.best.x_adv

    def _at_length(self, delta: Tensor, norm: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
        """The image at the length `norm`, shape (m,), in the direction `delta`, clipped to the box and rounded."""
        x_adv = torch.addcmul(x, balls.steepest(delta, threat), balls.per_example(norm, x))
        if threat.box is None:
            return x_adv
        low, high = threat.box
        if self.levels is not None:
            unit = (high - low) / (self.levels - 1)
            x_adv = low + unit * ((x_adv - low) / unit).round()
        return x_adv.clamp_(low, high)


def cosine(step: int, steps: int) -> float:
    """From 1 down to nearly 0: the annealing factor of a step, counted from 0."""
    return (1 + math.cos(math.pi * step / steps)) / 2
