"""FAB: the smallest perturbation, by walking along the decision boundary towards the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self, TypeAlias

import torch
from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.access import Access, WhiteBox
from advbench.attacks.aims import Aim, likeliest_targets
from advbench.attacks.attack import check_norm, check_positive
from advbench.attacks.capabilities import LOOK, MINIMAL_NORM, Passes, cut
from advbench.attacks.hyperplane import way_to_hyperplane
from advbench.attacks.iterates import Search, Stop
from advbench.attacks.losses import lead, margin
from advbench.attacks.nearest import keep_nearest
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, Targeted, ThreatModel

Boundary: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Logits (m, classes), and the linearised boundary at the iterates: its height (m,), negative on the clean side, and the
height's gradient (m, c, h, w)."""

Linearise: TypeAlias = Callable[[Search[WhiteBox], Tensor], Boundary]
"""(search, iterates of the live examples) -> the boundary there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FAB:
    """Fast adaptive boundary attack on the nearest class (Croce & Hein 2020, arXiv:1907.02044).

    steps: steps of each run. eta: overshoot over the boundary. alpha_max: the most that a step is drawn to the shortest way
    from the image itself. beta: how far an adversarial iterate stays away from the image. targets: 0 linearises the
    boundaries to all classes in each step, at one backward per wrong class; else one run after the other goes to the
    boundary with each of so many wrong classes, the likeliest of the clean image first, at one backward per step. stop:
    with a threat that has an epsilon, whether an example is left alone as soon as an adversarial is that near.

    Among all points looked at the nearest adversarial is kept, even where it lies beyond epsilon; an image that is never
    broken comes back as the point with the highest margin. Runs start at the image, without randomness.

    As in the authors' code, a step linearises at its start and a second forward evaluates its end, since an adversarial
    iterate steps back towards the image before the next step. A boundary seen from the adversarial side does not serve that
    step: on nets whose gradients are masked it misleads.
    """

    steps: int = 100
    eta: float = 1.05
    alpha_max: float = 0.1
    beta: float = 0.9
    targets: int = 0
    stop: Stop = "success"

    norms: ClassVar[frozenset[str]] = frozenset({"linf", "l2", "l1"})
    minimal_norm: ClassVar[bool] = True
    knowledge: ClassVar[type[Access]] = WhiteBox
    targeted: ClassVar[bool] = True
    family: ClassVar[str] = MINIMAL_NORM

    def __post_init__(self) -> None:
        check_positive(self, "steps", "eta", "beta")
        if not 0 <= self.alpha_max <= 1:
            raise ValueError(f"Expected `alpha_max` in [0, 1], got {self.alpha_max}")
        if self.targets < 0:
            raise ValueError(f"Expected `targets` >= 0, got {self.targets}")

    def passes(self, threat: ThreatModel, classes: int) -> Passes:  # noqa: ARG002
        """Two forwards per step and run, with a backward, or one for each wrong class in a run without a target."""
        if not self.targets:
            return Passes(2, classes - 1) * self.steps
        return LOOK + Passes(2, 1) * self.steps * min(self.targets, classes - 1)

    def short(self) -> Self:
        """A cheap setting, for tests."""
        return cut(self, steps=6, targets=3)

    def __call__(self, access: WhiteBox, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Return the nearest adversarial image found for each image, shape (n, c, h, w)."""
        check_norm(self, threat)
        search = Search(access, x, goal, rng, self.stop)
        targets: Sequence[Tensor | None] = [None]
        if search and self.targets and not isinstance(goal, Targeted):
            targets = likeliest_targets(search.access.logits(x), goal.y, self.targets)
        for target in targets:
            self.walk(search, threat, target)
        return search.best.x_adv

    def walk(self, search: Search[WhiteBox], threat: ThreatModel, target: Tensor | None = None) -> None:
        """One run from the live examples' images, which records the nearest adversarials.

        target: classes of all examples of the search, whose boundaries it goes to, shape (n,), int64; the goal's own ones
        if None.
        """
        if target is not None:
            linearise = _towards(Aim(_lead, target))
        elif isinstance(search.goal, Targeted):
            linearise = _towards(Aim(margin))
        else:
            linearise = _nearest(threat)
        z, enough = search.x, threat.epsilon or 0.0
        for _ in range(self.steps):
            if not search:
                return
            logits, height, normal = linearise(search, z)
            keep_nearest(search, z, logits, threat, enough)
            z, height, normal = search.keep(z, height, normal)
            if not search:
                return
            z = self._step(z, search.x, height, normal, threat)
            adversarial = keep_nearest(search, z, search.access.logits(z), threat, enough)
            z, adversarial = search.keep(z, adversarial)
            back = search.x + self.beta * (z - search.x)
            z = back.where(balls.per_example(adversarial, z), z)

    def _step(self, z: Tensor, x: Tensor, height: Tensor, normal: Tensor, threat: ThreatModel) -> Tensor:
        """Equation 9 of the paper: over the boundary, a little along the shortest way from the image.

        height, normal: of the boundary linearised at `z`.
        """
        points, normals = torch.cat((z, x)), torch.cat((normal, normal))
        # Iterate and image face the same hyperplane, so that its height at the image follows without a pass, and one call
        # finds both ways.
        heights = torch.cat((height, height + ((x - z) * normal).flatten(1).sum(dim=1)))
        ways = way_to_hyperplane(points, normals, -heights, threat)
        here, there = balls.distance(ways, threat.norm).chunk(2)
        # The farther the iterate is from the hyperplane, the more its step is drawn to the image's own shortest way. Both
        # overshoot by eta, so that their mixture crosses the hyperplane too.
        alpha = (here / (here + there).clamp(min=torch.finfo(x.dtype).tiny)).clamp(max=self.alpha_max)
        over, direct = (points + self.eta * ways).chunk(2)
        ahead = torch.lerp(over, direct, balls.per_example(alpha, x))
        return ahead if threat.box is None else ahead.clamp(*threat.box)


@dataclass(frozen=True, slots=True, kw_only=True)
class FABT(FAB):
    """Fast adaptive boundary attack on nine classes, one after the other (Croce & Hein 2020, arXiv:1907.02044).

    The parameters are those of `FAB`.
    """

    targets: int = 9


def _towards(aim: Aim) -> Linearise:
    """The boundary on which the aim's loss, a difference of logits, is zero: one backward."""

    def linearise(search: Search[WhiteBox], z: Tensor) -> Boundary:
        evaluation = aim.observe(search, z)
        return evaluation.logits, evaluation.loss, evaluation.gradient

    return linearise


def _lead(logits: Tensor, goal: Goal) -> Tensor:
    return lead(logits, goal.y, goal.target) if isinstance(goal, Targeted) else margin(logits, goal)


def _nearest(threat: ThreatModel) -> Linearise:
    """The boundary that is nearest in the linear model, among those to every wrong class: one backward for each."""

    def linearise(search: Search[WhiteBox], z: Tensor) -> Boundary:
        logits, pull = search.access.pullback(z)
        true = torch.nn.functional.one_hot(search.goal.y, logits.shape[1]).to(logits.dtype)
        wrong = (1 - true).nonzero()[:, 1].view(len(logits), -1)
        differences = torch.nn.functional.one_hot(wrong.T, logits.shape[1]).to(logits.dtype) - true
        normals = pull(differences)
        heights = (differences * logits).sum(dim=2)
        slopes = balls.distance(normals.flatten(0, 1), balls.DUAL[threat.norm]).view_as(heights)
        nearest = (heights.abs() / slopes).nan_to_num(torch.inf).argmin(dim=0)
        rows = torch.arange(len(z), device=z.device)
        return logits, heights[nearest, rows], normals[nearest, rows]

    return linearise
