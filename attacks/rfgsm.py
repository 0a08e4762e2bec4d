"""The fast gradient sign method after a random step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.access import Access, WhiteBox
from advbench.attacks.attack import check_norm
from advbench.attacks.capabilities import ONE_STEP, Passes
from advbench.attacks.losses import loss_named
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, ThreatModel


@dataclass(frozen=True, slots=True, kw_only=True)
class RFGSM:
    """R+FGSM, a random sign step and then the fast gradient sign (Tramer et al. 2018, arXiv:1705.07204).

    x' = x + alpha s with random signs s, then x' + (epsilon - alpha) sign(gradient at x'), clipped to the box after both
    steps, as in the authors' code. The random step leaves the place where a model's gradient is masked.

    alpha: the random step, as a fraction of epsilon, in [0, 1); the paper's is 1/2, that of Srinivasan et al. 2018
    (arXiv:1805.12017) 1/6 (0.05 of 0.3). Every example is attacked, one forward and one backward.
    """

    alpha: float = 0.5
    loss: str = "cross-entropy"

    norms: ClassVar[frozenset[str]] = frozenset({"linf"})
    minimal_norm: ClassVar[bool] = False
    knowledge: ClassVar[type[Access]] = WhiteBox
    targeted: ClassVar[bool] = True
    family: ClassVar[str] = ONE_STEP

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < 1:
            raise ValueError(f"Expected `alpha`, a fraction of epsilon, in [0, 1), got {self.alpha}")
        loss_named(self.loss)

    def passes(self, threat: ThreatModel, classes: int) -> Passes:  # noqa: ARG002
        """One forward and one backward."""
        return Passes(1, 1)

    def short(self) -> Self:
        """The attack itself: nothing is cheaper."""
        return self

    def __call__(self, access: WhiteBox, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Return the image after both steps, shape (n, c, h, w), inside the ball around `x` and the box."""
        check_norm(self, threat)
        if not len(x):
            return x.clone()
        signs = (1 - 2 * rng.integers(2, tuple(x.shape[1:]))).to(x.dtype)
        aside = balls.project(x + self.alpha * threat.epsilon_or_inf * signs, x, threat)
        gradient = access.loss_gradient(aside, goal, loss_named(self.loss)).gradient
        return balls.project(aside + (1 - self.alpha) * threat.epsilon_or_inf * balls.steepest(gradient, threat), x, threat)
