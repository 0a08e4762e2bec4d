"""DeepFool, a minimal-norm attack by linearisation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from advbench.attacks import balls
from advbench.attacks.access import Access, WhiteBox
from advbench.attacks.attack import check_norm, check_positive
from advbench.attacks.hyperplane import way_to_hyperplane
from advbench.attacks.iterates import Search, look
from advbench.attacks.losses import margin
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, Targeted, ThreatModel

_SHORTEST = 1e-6
"""The least length of a step, so that a point on the boundary itself crosses it."""

_CAUTION = 0.6
"""The share of the way to a linearised boundary that a step inside the box goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepFool:
    """DeepFool, steps to the nearest linearised class boundary (Moosavi-Dezfooli et al. 2016, arXiv:1511.04599).

    steps: linearisations at most. candidates: the likeliest wrong classes, linearised at every step with a backward each.
    overshoot: the accumulated perturbation, never the single step, is lengthened by this fraction.

    The paper knows no box, and clipping its steps shortens them: they approach the boundary without end. Here a step inside
    the box goes the shortest way that the box allows (`way_to_hyperplane`), which is long where many values are held, so it
    goes 0.6 of it and linearises again; no step but the first is shorter than half the overshoot. Epsilon is disregarded.
    Images that the model gets wrong come back unchanged, images that the steps do not break as the iterate nearest to being
    broken.
    """

    steps: int = 50
    candidates: int = 10
    overshoot: float = 0.02

    norms: ClassVar[frozenset[str]] = frozenset({"linf", "l2"})
    minimal_norm: ClassVar[bool] = True
    knowledge: ClassVar[type[Access]] = WhiteBox
    targeted: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_positive(self, "steps", "candidates")
        if self.overshoot < 0:
            raise ValueError(f"Expected `overshoot` >= 0, got {self.overshoot}")

    def __call__(self, access: WhiteBox, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Return the first iterate that breaks each image, shape (n, c, h, w), inside the box."""
        check_norm(self, threat)
        if isinstance(goal, Targeted):
            raise ValueError("Expected an untargeted goal for DeepFool, got a targeted one")
        box = replace(threat, epsilon=None)
        search = Search(access, x, goal, rng)
        x_adv = reached = x
        for _ in range(self.steps):
            look(search, x_adv, margin)
            x_adv, reached = search.keep(x_adv, reached)
            if not search:
                break
            least = self.overshoot / 2 * balls.distance(reached - search.x, threat.norm)
            step = self._step(search.access, x_adv, search.goal, threat, least)
            waiting = ~search.best.achieved[search.rows]
            reached = balls.project(reached + step * balls.per_example(waiting, x), search.x, box)
            x_adv = balls.project(search.x + (1 + self.overshoot) * (reached - search.x), search.x, box)
        look(search, x_adv, margin)
        return search.best.x_adv

    def _step(self, access: WhiteBox, x_adv: Tensor, goal: Goal, threat: ThreatModel, least: Tensor) -> Tensor:
        """The step to the nearest linearised boundary: at a distance of |f_k - f_y| over the dual norm of its gradient.

        least: the length of a step inside the box at least, shape (m,).
        """
        logits, pull = access.pullback(x_adv)
        true = logits.gather(1, goal.y.unsqueeze(1))
        wrong = logits.scatter(1, goal.y.unsqueeze(1), -torch.inf).topk(min(self.candidates, logits.shape[1] - 1), dim=1)
        cotangents = functional.one_hot(wrong.indices.T, logits.shape[1]) - functional.one_hot(goal.y, logits.shape[1])
        gradients = pull(cotangents.to(logits.dtype)).nan_to_num()
        slopes = balls.distance(gradients.flatten(0, 1), balls.DUAL[threat.norm]).view(len(gradients), -1)
        lengths = ((true - wrong.values).abs().T / slopes).clamp(min=_SHORTEST).where(slopes > 0, torch.inf)
        length, nearest = lengths.min(dim=0)
        number = torch.arange(len(x_adv), device=x_adv.device)
        if threat.box is not None:
            length = (_CAUTION * length).maximum(least)
        level = length.where(length.isfinite(), 0) * slopes[nearest, number]
        return way_to_hyperplane(x_adv, gradients[nearest, number], level, threat)
