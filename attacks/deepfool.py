"""DeepFool, a minimal-norm attack by linearisation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from advbench.attacks import balls
from advbench.attacks.access import Access, WhiteBox
from advbench.attacks.attack import check_norm, check_positive
from advbench.attacks.capabilities import LOOK, MINIMAL_NORM, Passes, cut
from advbench.attacks.hyperplane import way_to_hyperplane
from advbench.attacks.iterates import BestSoFar, Search, look
from advbench.attacks.losses import margin
from advbench.attacks.nearest import Form, forms_of
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, Targeted, ThreatModel

_SHORTEST = 1e-6
"""The least length of a step, so that a point on the boundary itself crosses it."""

_CAUTION = 0.6
"""The share of the way to a linearised boundary that a step inside the box goes."""


_AHEAD = 1e-4
"""What the authors' code adds to the length of a step, in units of the image, so that it crosses the boundary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepFool:
    """DeepFool, steps to the nearest linearised class boundary (Moosavi-Dezfooli et al. 2016, arXiv:1511.04599).

    steps: linearisations at most. candidates: wrong classes, linearised at every step with a backward each. overshoot: the
    accumulated perturbation, never the single step, is lengthened by this fraction.

    form: ``published`` is the authors' code. The candidates are the likeliest classes of the clean image; as the paper knows
    no box, the lengthened perturbation is clipped before every look, which shortens it: iterates may approach the boundary
    without end. In the ``box-aware`` form the candidates are the likeliest classes of the iterate, and a step goes the
    shortest way that the box allows (`way_to_hyperplane`). That is long where many values are held, so it goes 0.6 of it and
    linearises again; no step but the first is shorter than half the overshoot.

    ``both`` runs the two on every image, at twice the passes, and the nearer adversarial counts: neither is the stronger on
    all models. Images that neither breaks get a third run: each step sets out from the clipped iterate and is lengthened by
    the overshoot, which goes farther but hardly ever stands still. Epsilon is disregarded. Images that the model gets
    wrong come back unchanged, images that the steps do not break as the iterate nearest to being broken.
    """

    steps: int = 50
    candidates: int = 10
    overshoot: float = 0.02
    form: Form = "both"

    norms: ClassVar[frozenset[str]] = frozenset({"linf", "l2"})
    minimal_norm: ClassVar[bool] = True
    knowledge: ClassVar[type[Access]] = WhiteBox
    targeted: ClassVar[bool] = False
    family: ClassVar[str] = MINIMAL_NORM

    def __post_init__(self) -> None:
        check_positive(self, "steps", "candidates")
        if self.overshoot < 0:
            raise ValueError(f"Expected `overshoot` >= 0, got {self.overshoot}")
        forms_of(self.form)

    def passes(self, threat: ThreatModel, classes: int) -> Passes:  # noqa: ARG002
        """For each form a look and a linearisation per step, a backward per candidate, and a last look."""
        candidates = min(self.candidates, classes - 1)
        runs = 3 if self.form == "both" else 1  # the third for what withstands the two forms
        return (Passes(2, candidates) * self.steps + LOOK) * runs

    def short(self) -> Self:
        """A cheap setting, for tests."""
        return cut(self, steps=6)

    def __call__(self, access: WhiteBox, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Return the nearest first adversarial iterate of the forms for each image, shape (n, c, h, w), inside the box."""
        check_norm(self, threat)
        if isinstance(goal, Targeted):
            raise ValueError("Expected an untargeted goal for DeepFool, got a targeted one")
        best = BestSoFar(x)
        rows = torch.arange(len(x), device=x.device)
        both = (self._published, self._box_aware, self._overstepping)
        for run in {"published": both[:1], "box-aware": both[1:2], "both": both}[self.form]:
            if run == self._overstepping and not access.stochastic:  # one lucky draw of a random model breaks nothing
                rows = (~best.achieved).nonzero().squeeze(1)
            search = Search(access.select(rows), x[rows], goal.select(rows), rng.select(rows))
            run(search, threat)
            found = search.best
            distance = balls.distance(found.x_adv - x[rows], threat.norm)
            best.update(found.x_adv, found.achieved, torch.where(found.achieved, -distance, found.loss), rows)
            if not access.stochastic:  # wrong from the outset: nothing is nearer
                rows = rows[~found.achieved | (distance > 0)]
        return best.x_adv

    def _published(self, search: Search[WhiteBox], threat: ThreatModel) -> None:
        """The authors' steps, until the live examples are broken."""
        x_adv, total = search.x, torch.zeros_like(search.x)
        classes: Tensor | None = None
        for _ in range(self.steps):
            look(search, x_adv, margin)
            x_adv, total = search.keep(x_adv, total)
            if not search:
                return
            if classes is not None:
                (classes,) = search.keep(classes)
            boundary = self._nearest(search.access, x_adv, search.goal, threat, classes)
            classes = boundary.classes
            # The raw steps add up in `total`, and the overshoot lengthens the sum only. If every step were lengthened, the
            # overshoot would grow with the number of steps.
            length = (boundary.length + _AHEAD).where(boundary.length.isfinite(), 0)
            total = total + balls.per_example(length, x_adv) * balls.steepest(boundary.normal, threat)
            ahead = search.x + (1 + self.overshoot) * total
            ahead = ahead if threat.box is None else ahead.clamp(*threat.box)
            x_adv = ahead.where(balls.per_example(_waiting(search), x_adv), x_adv)
        look(search, x_adv, margin)

    def _box_aware(self, search: Search[WhiteBox], threat: ThreatModel) -> None:
        """Our steps, until the live examples are broken."""
        box = replace(threat, epsilon=None)
        x_adv = reached = search.x
        for _ in range(self.steps):
            look(search, x_adv, margin)
            x_adv, reached = search.keep(x_adv, reached)
            if not search:
                return
            boundary = self._nearest(search.access, x_adv, search.goal, threat)
            length = boundary.length.clamp(min=_SHORTEST)
            if threat.box is not None:
                least = self.overshoot / 2 * balls.distance(reached - search.x, threat.norm)
                length = (_CAUTION * length).maximum(least)
            # Steps accumulate in `reached`, which has no overshoot, while `x_adv` is what the model sees. Steps of a share
            # of the way would approach the boundary geometrically and never cross it; the least length carries them over.
            level = length.where(length.isfinite(), 0) * boundary.slope
            step = way_to_hyperplane(x_adv, boundary.normal, level, threat)
            reached = balls.project(reached + step * balls.per_example(_waiting(search), step), search.x, box)
            x_adv = balls.project(search.x + (1 + self.overshoot) * (reached - search.x), search.x, box)
        look(search, x_adv, margin)

    def _overstepping(self, search: Search[WhiteBox], threat: ThreatModel) -> None:
        """Steps that overshoot one by one, until the live examples are broken."""
        x_adv = search.x
        for _ in range(self.steps):
            look(search, x_adv, margin)
            (x_adv,) = search.keep(x_adv)
            if not search:
                return
            boundary = self._nearest(search.access, x_adv, search.goal, threat)
            length = (1 + self.overshoot) * (boundary.length + _AHEAD).where(boundary.length.isfinite(), 0)
            step = balls.per_example(length * _waiting(search), x_adv) * balls.steepest(boundary.normal, threat)
            x_adv = balls.project(x_adv + step, search.x, replace(threat, epsilon=None))
        look(search, x_adv, margin)

    def _nearest(
        self, access: WhiteBox, x_adv: Tensor, goal: Goal, threat: ThreatModel, classes: Tensor | None = None
    ) -> _Boundary:
        """The nearest linearised boundary, with one of the `classes`, (m, k); the likeliest wrong ones if None."""
        logits, pull = access.pullback(x_adv)
        true = logits.gather(1, goal.y.unsqueeze(1))
        if classes is None:
            wrong = logits.scatter(1, goal.y.unsqueeze(1), -torch.inf)
            classes = wrong.topk(min(self.candidates, logits.shape[1] - 1), dim=1).indices
        cotangents = functional.one_hot(classes.T, logits.shape[1]) - functional.one_hot(goal.y, logits.shape[1])
        gradients = pull(cotangents.to(logits.dtype))
        gradients = balls.finite(gradients.flatten(0, 1)).view_as(gradients)
        slopes = balls.distance(gradients.flatten(0, 1), balls.DUAL[threat.norm]).view(len(gradients), -1)
        heights = (true - logits.gather(1, classes)).abs().T
        length, nearest = (heights / slopes).where(slopes > 0, torch.inf).min(dim=0)
        number = torch.arange(len(x_adv), device=x_adv.device)
        return _Boundary(classes, length, gradients[nearest, number], slopes[nearest, number])


@dataclass(frozen=True, slots=True, eq=False)
class _Boundary:
    """The nearest linearised boundary of each example.

    classes: those looked at, (m, k), int64. length: how far it is, (m,), infinite where all gradients are zero. normal: the
    gradient, (m, c, h, w), with its dual norm `slope`, (m,).
    """

    classes: Tensor
    length: Tensor
    normal: Tensor
    slope: Tensor


def _waiting(search: Search[WhiteBox]) -> Tensor:
    """The live examples that are not broken yet, (m,), bool; a stochastic model's always stay live."""
    return ~search.best.achieved[search.rows]
