"""Iterated gradient steps with momentum, which stabilises the direction and so transfers better between models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.access import Access, Evaluation, WhiteBox
from advbench.attacks.attack import check_norm, check_positive
from advbench.attacks.capabilities import ASCENT, Passes, cut
from advbench.attacks.iterates import Search, Stop, look, settle
from advbench.attacks.losses import loss_named
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, ThreatModel


@dataclass(frozen=True, slots=True, kw_only=True)
class MIFGSM:
    """Momentum iterative fast gradient method (Dong et al. 2018, arXiv:1710.06081).

    From the clean image, g <- decay g + gradient / |gradient|_1 and x_adv <- x_adv + step_size epsilon d(g), where d is the
    sign for linf and g / |g|_2 for l2 (algorithm 1 and its extension to l2). A zero gradient adds nothing to g.

    steps: gradient steps. step_size: as a fraction of epsilon, the paper's 1 / steps by default. decay: of the momentum; 0
    is the basic iterative method. loss: `cross-entropy` or `margin`. stop: whether an example is left alone after its first
    success; inputs that are already misclassified are returned unchanged. With ``never`` the clean image is not returned, so
    that every craft is a perturbed image.

    It costs steps backwards and steps + 1 forwards.
    """

    steps: int = 10
    step_size: float = 0.1
    decay: float = 1.0
    loss: str = "cross-entropy"
    stop: Stop = "success"

    norms: ClassVar[frozenset[str]] = frozenset({"linf", "l2"})
    minimal_norm: ClassVar[bool] = False
    knowledge: ClassVar[type[Access]] = WhiteBox
    targeted: ClassVar[bool] = True
    family: ClassVar[str] = ASCENT

    def __post_init__(self) -> None:
        check_positive(self, "steps", "step_size")
        if not self.decay >= 0:
            raise ValueError(f"Expected `decay` >= 0, got {self.decay}")
        loss_named(self.loss)

    def passes(self, threat: ThreatModel, classes: int) -> Passes:  # noqa: ARG002
        """steps + 1 forwards and steps backwards."""
        return Passes(self.steps + 1, self.steps)

    def short(self) -> Self:
        """A cheap setting, for tests."""
        return cut(self, steps=6)

    def __call__(self, access: WhiteBox, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Return the best iterate of each image, shape (n, c, h, w), inside the ball around `x` and the box."""
        check_norm(self, threat)
        search = Search(access, x, goal, rng, self.stop)
        x_adv, momentum = search.x, torch.zeros_like(x)
        for step in range(self.steps):
            if not search:
                break
            evaluation = self._evaluate(search, x_adv, step)
            if step or self.stop == "success":
                search.record(x_adv, evaluation.logits, evaluation.loss)
            x_adv, momentum, gradient = search.keep(x_adv, momentum, evaluation.gradient)
            momentum = self.decay * momentum + of_unit_sum(gradient)
            length = self.step_size * threat.epsilon_or_inf
            x_adv = balls.project(x_adv + length * balls.steepest(momentum, threat), search.x, threat)
        look(search, x_adv, loss_named(self.loss))
        return settle(search, loss_named(self.loss))

    def _evaluate(self, search: Search[WhiteBox], x_adv: Tensor, step: int) -> Evaluation:  # noqa: ARG002
        """Loss and logits of the live iterates, and the gradient to follow; `step` counts from 0."""
        return search.access.loss_gradient(x_adv, search.goal, loss_named(self.loss))


def of_unit_sum(gradient: Tensor) -> Tensor:
    """Each gradient over its l1 norm, shape (n, ...); zero stays zero, any magnitude is safe (`balls.finite`)."""
    gradient = balls.finite(gradient)
    size = balls.distance(gradient, "linf")
    scaled = gradient / balls.per_example(size.where(size > 0, 1), gradient)
    return scaled / balls.per_example(balls.distance(scaled, "l1").clamp(min=1), gradient)
