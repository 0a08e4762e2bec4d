"""FMN, projected gradient ascent in a ball whose radius follows the decision boundary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.access import Access, WhiteBox
from advbench.attacks.attack import check_norm, check_positive
from advbench.attacks.capabilities import MINIMAL_NORM, Passes, cut
from advbench.attacks.ddn import cosine
from advbench.attacks.iterates import Search
from advbench.attacks.losses import margin
from advbench.attacks.nearest import Form, forms_of, keep_nearest, log_odds, unit_gradient
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, ThreatModel

_STEP_SIZES = {"l2": 1.0, "linf": 10.0, "l1": 10.0, "l0": 10.0}
_SMALLEST_RADIUS = 1e-6
_L2 = ThreatModel("l2", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class FMN:
    """Fast minimum-norm attack, in l2, linf, l1 or l0 (Pintor et al. 2021, arXiv:2102.12827).

    Each step follows the gradient of the margin, at l2 length 1, and projects on the ball of the current radius. Before the
    first adversarial iterate the radius is the linear model's distance to the boundary; afterwards it shrinks by the factor
    1 - gamma at an adversarial iterate and grows by 1 + gamma at any other one. A cosine anneals the step size to a
    hundredth and gamma to `final_gamma`. step_size: the l2 length of the first step; None is 1, in the box-aware form 10 but
    for l2.

    form: ``published`` is the paper's algorithm, which projects on the ball and clips to the box afterwards. ``box-aware``
    differs in three things. It projects on ball and box together: what is clipped afterwards is shorter than its radius, and
    never reaches the boundary of some images. It lengthens the first estimates too by 1 + gamma, or the iterates end on the
    boundary. And in the first steps, a share `smooth` of them, it follows the log-odds, the margin with a smooth maximum,
    which does not bind an image to the class that is nearest at the start.

    ``both`` runs the two one after the other, at twice the passes, and keeps the nearer adversarial of each image: neither
    is the stronger on all models. The box-aware form breaks more where images touch the box, the published one may come
    nearer where gradients are masked. A form costs one forward and one backward per step, and one more forward for the last
    iterate.

    Images that the model gets wrong come back unchanged, images that no iterate breaks as the one with the largest margin.
    Epsilon is disregarded.
    """

    steps: int = 100
    step_size: float | None = None
    gamma: float = 0.05
    final_gamma: float = 0.001
    smooth: float = 0.2
    form: Form = "both"

    norms: ClassVar[frozenset[str]] = frozenset({"l2", "linf", "l1", "l0"})
    minimal_norm: ClassVar[bool] = True
    knowledge: ClassVar[type[Access]] = WhiteBox
    targeted: ClassVar[bool] = True
    family: ClassVar[str] = MINIMAL_NORM

    def __post_init__(self) -> None:
        check_positive(self, "steps", *(["step_size"] if self.step_size is not None else []))
        if not 0 < self.final_gamma <= self.gamma < 1:
            raise ValueError(f"Expected 0 < `final_gamma` <= `gamma` < 1, got {self.final_gamma} and {self.gamma}")
        if not 0 <= self.smooth <= 1:
            raise ValueError(f"Expected `smooth` in [0, 1], got {self.smooth}")
        forms_of(self.form)

    def passes(self, threat: ThreatModel, classes: int) -> Passes:  # noqa: ARG002
        """steps + 1 forwards and steps backwards for each form."""
        return Passes(self.steps + 1, self.steps) * len(forms_of(self.form))

    def short(self) -> Self:
        """A cheap setting, for tests."""
        return cut(self, steps=6)

    def __call__(self, access: WhiteBox, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Return the nearest adversarial image found, else the one nearest to it, shape (n, c, h, w), inside the box."""
        check_norm(self, threat)
        search = Search(access, x, goal, rng)
        for form in forms_of(self.form):
            self._run(search, threat, boxed=form == "box-aware")
        return search.best.x_adv

    def _run(self, search: Search[WhiteBox], threat: ThreatModel, *, boxed: bool) -> None:
        """One run from the live examples' images, which records the nearest adversarials; `boxed` is the box-aware form."""
        if not search:
            return
        x_adv, largest = search.x, _largest_radius(search.x, threat)
        radius = torch.full_like(largest, 0.0 if boxed else 1.0)  # what l0 starts from
        nearest = torch.full_like(largest, torch.inf)
        size = self.step_size or (_STEP_SIZES[threat.norm] if boxed else 1.0)
        least = 0.0 if not boxed else 1.0 if threat.norm == "l0" else _SMALLEST_RADIUS
        for step in range(self.steps):
            loss = log_odds if boxed and step < self.smooth * self.steps else margin
            evaluation = search.access.loss_gradient(x_adv, search.goal, loss)
            lead = margin(evaluation.logits, search.goal)
            achieved = keep_nearest(search, x_adv, evaluation.logits, threat)
            if not search:
                return
            x_adv, radius, nearest, achieved = search.keep(x_adv, radius, nearest, achieved)
            lead, gradient, largest = search.keep(lead, evaluation.gradient.nan_to_num(0, 0, 0), largest)
            length = balls.distance(x_adv - search.x, threat.norm)
            nearest = nearest.minimum(length.where(achieved, torch.inf))
            annealing = cosine(step, self.steps)
            gamma = self.final_gamma + (self.gamma - self.final_gamma) * annealing
            alpha = size * (0.01 + 0.99 * annealing)
            radius = _resized(radius, achieved, nearest, gamma, threat)
            if threat.norm != "l0":
                # Before the first adversarial no radius is known to suffice, so there is nothing to shrink: the radius is
                # where the linear model puts the boundary. `nearest` is infinite until then.
                estimate = length + _boundary_distance(lead, gradient, threat)
                radius = (estimate * (1 + gamma) if boxed else estimate).where(nearest.isinf(), radius)
            radius = radius.clamp(min=least).minimum(largest)
            sloped = evaluation.sloped if boxed else True
            direction = unit_gradient(gradient, search.rng.at(step), sloped)
            ahead = torch.add(x_adv, direction, alpha=alpha)
            x_adv = (balls.project if boxed else _ball_then_box)(ahead, search.x, threat, radius)
        keep_nearest(search, x_adv, search.access.logits(x_adv), threat)


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
    return torch.where(achieved, shorter.minimum(nearest), longer)


def _ball_then_box(x_adv: Tensor, x: Tensor, threat: ThreatModel, radius: Tensor) -> Tensor:
    """`x_adv` projected on the ball alone, then clipped to the box.

    In l0 the largest changes stay, as many as the radius allows, one at least, and all that equal the smallest of them.
    """
    if threat.norm == "l0":
        delta = (x_adv - x).flatten(1)
        kept = (radius.long() - 1).clamp(min=0).unsqueeze(1)
        threshold = delta.abs().sort(dim=1, descending=True).values.gather(1, kept)
        x_adv = x + delta.where(delta.abs() >= threshold, 0).view_as(x)
        return x_adv if threat.box is None else x_adv.clamp(*threat.box)
    return balls.ball_then_box(x_adv, x, threat, radius)


def _largest_radius(x: Tensor, threat: ThreatModel) -> Tensor:
    """The distance to the farthest image, shape (n,): infinite without a box, except in l0."""
    if threat.box is None and threat.norm != "l0":
        return torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
    low, high = threat.box if threat.box is not None else (-torch.inf, torch.inf)
    return balls.distance((x - low).maximum(high - x), threat.norm)
