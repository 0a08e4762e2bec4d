"""Attacks whose images are meant for another model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.access import Access, ScoreBased, WhiteBox
from advbench.attacks.attack import Attack
from advbench.attacks.capabilities import LOOK, Passes, family_of, passes_of, with_stop
from advbench.attacks.iterates import Search, look
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, ThreatModel, cross_entropy


def for_transfer(attack: Attack) -> Attack:
    """The attack as it must run where its images are handed to another model.

    A marginal success on the source rarely fools the target: an attack that stops at its first success, leaves alone what
    the source already gets wrong, or returns the smallest perturbation would look weak for reasons that say nothing about
    the target. So an attack with a field `stop` gets ``never``, and a minimal-norm attack is `Stretched`.
    """
    endless = with_stop(attack, "never")
    return Stretched(endless) if attack.minimal_norm else endless


@dataclass(frozen=True, slots=True)
class Stretched:
    """A minimal-norm attack that spends the whole budget.

    The perturbation that `attack` finds is stretched (or shrunk) along its direction to the surface of the threat's ball, as
    far as the box lets it. Where the attack left the image as it was, the direction is the steepest one of the loss, or
    random without gradients. Of the found image, if it is within the budget, and the stretched one, the better for (goal
    achieved, loss) is returned; with labels alone, or without an epsilon, there is no such choice: the stretched one, or the
    found one.
    """

    attack: Attack

    @property
    def norms(self) -> frozenset[str]:
        """The norms of the attack."""
        return self.attack.norms

    @property
    def minimal_norm(self) -> bool:
        """False: the budget is spent."""
        return False

    @property
    def knowledge(self) -> type[Access]:
        """The access of the attack."""
        return self.attack.knowledge

    @property
    def targeted(self) -> bool:
        """Whether the attack takes targets."""
        return self.attack.targeted

    @property
    def family(self) -> str:
        """The family of the attack."""
        return family_of(self.attack)

    def passes(self, threat: ThreatModel, classes: int) -> Passes:
        """Those of the attack, two looks, and at most one gradient where the attack left an image as it was."""
        own = LOOK * 2 + Passes(1, 1, at_most=True)
        return passes_of(self.attack, threat, classes) + (Passes(0) if threat.epsilon is None else own)

    def __call__(self, access: Access, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Return adversarial images, shape (n, c, h, w), inside the ball around `x` and the box."""
        found = self.attack(access, x, goal, threat, rng)
        if threat.epsilon is None or not len(x):
            return found
        unmoved = balls.distance(found - x, "linf") == 0
        if unmoved.any():
            found = torch.where(balls.per_example(unmoved, x), self._other_way(access, x, goal, threat, rng), found)
        if threat.norm not in balls.DUAL:
            return balls.project(found, x, threat)
        stretched = balls.stretch(found, x, threat)
        if not isinstance(access, WhiteBox | ScoreBased):
            return stretched
        inside = ~unmoved & (balls.distance(found - x, threat.norm) <= threat.epsilon)
        search = Search(access, x, goal, rng, "never")
        look(search, stretched, cross_entropy)
        look(search, found.where(balls.per_example(inside, x), stretched), cross_entropy)
        return search.best.x_adv

    def _other_way(self, access: Access, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Images to stretch towards where the attack gave none; those of the l2 ball for l0, which has no direction."""
        threat = threat if threat.norm in balls.DUAL else dataclasses.replace(threat, norm="l2")
        anywhere = balls.random_start(x, threat, rng.fork("stretched"))
        if not isinstance(access, WhiteBox):
            return anywhere
        direction = balls.steepest(access.loss_gradient(x, goal, cross_entropy).gradient, threat)
        ahead = balls.project(x + threat.epsilon_or_inf * direction, x, threat)
        return anywhere.where(balls.per_example(balls.distance(ahead - x, "linf") == 0, x), ahead)
