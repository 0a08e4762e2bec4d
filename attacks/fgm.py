"""The fast gradient method, one step of the size of the ball."""

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
class FGM:
    """Fast gradient method, one steepest step in any norm (Shaham et al. 2015, arXiv:1511.05432).

    x + epsilon d, where d is the unit direction in the threat's norm that the loss rises in fastest, clipped to the box (not
    clipped where the threat has none). In l1 it moves one pixel. Every example is attacked, one forward and one backward.
    """

    loss: str = "cross-entropy"

    norms: ClassVar[frozenset[str]] = frozenset({"linf", "l2", "l1"})
    minimal_norm: ClassVar[bool] = False
    knowledge: ClassVar[type[Access]] = WhiteBox
    targeted: ClassVar[bool] = True
    family: ClassVar[str] = ONE_STEP

    def __post_init__(self) -> None:
        loss_named(self.loss)

    def passes(self, threat: ThreatModel, classes: int) -> Passes:  # noqa: ARG002
        """One forward and one backward."""
        return Passes(1, 1)

    def short(self) -> Self:
        """The attack itself: nothing is cheaper."""
        return self

    def __call__(self, access: WhiteBox, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:  # noqa: ARG002
        """Return one step from each image, shape (n, c, h, w)."""
        check_norm(self, threat)
        if not len(x):
            return x.clone()
        gradient = access.loss_gradient(x, goal, loss_named(self.loss)).gradient
        x_adv = x + threat.epsilon_or_inf * balls.steepest(gradient, threat)
        return x_adv if threat.box is None else x_adv.clamp(*threat.box)


@dataclass(frozen=True, slots=True, kw_only=True)
class FGSM(FGM):
    """Fast gradient sign method, the linf form of the fast gradient method (Goodfellow et al. 2015, arXiv:1412.6572)."""

    norms: ClassVar[frozenset[str]] = frozenset({"linf"})
