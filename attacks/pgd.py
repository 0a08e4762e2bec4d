"""Projected gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.access import Access, WhiteBox
from advbench.attacks.attack import check_norm, check_positive
from advbench.attacks.capabilities import ASCENT, LOOK, Passes, cut
from advbench.attacks.iterates import Search, Stop, look, settle
from advbench.attacks.losses import loss_named
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, ThreatModel
from advbench.attacks.waiting import on_host


@dataclass(frozen=True, slots=True, kw_only=True)
class PGD:
    """Projected gradient descent from random starts (Madry et al. 2018, arXiv:1706.06083).

    steps: gradient steps of each restart. step_size: as a fraction of epsilon. random_start: uniform in the ball. restarts:
    independent starts. loss: `cross-entropy` or `margin`. sparsity: the share of the values that a step in l1 is spread
    over (`balls.sparse_step`); other norms do not use it. stop: whether an example is left alone after its first success;
    inputs that are already misclassified are returned unchanged.

    In linf steps of constant size lead an example that withstands to an iterate it has visited before. From there on the
    iterates repeat, so the restart ends for this example (Doldo et al. 2025, arXiv:2503.19347): the verdict and the best
    iterate are those of all steps. Stochastic models, whose gradients do not repeat, take all steps.

    A restart costs at most steps backwards and steps + 1 forwards; stopping at success with a random start costs one forward
    more, of the clean images. A stochastic model's strongest iterates are settled on fresh draws (`iterates.settle`).
    """

    steps: int = 40
    step_size: float = 0.1
    random_start: bool = True
    restarts: int = 1
    loss: str = "cross-entropy"
    sparsity: float = 0.01
    stop: Stop = "success"

    norms: ClassVar[frozenset[str]] = frozenset({"linf", "l2", "l1"})
    minimal_norm: ClassVar[bool] = False
    knowledge: ClassVar[type[Access]] = WhiteBox
    targeted: ClassVar[bool] = True
    family: ClassVar[str] = ASCENT

    def __post_init__(self) -> None:
        check_positive(self, "steps", "step_size", "restarts", "sparsity")
        loss_named(self.loss)

    def passes(self, threat: ThreatModel, classes: int) -> Passes:  # noqa: ARG002
        """steps + 1 forwards for each restart, fewer if it cycles; one more of the clean images if they are looked at."""
        looks = LOOK if self.random_start and self.stop == "success" else Passes(0)
        return looks + Passes(self.steps + 1, self.steps, at_most=threat.norm == "linf") * self.restarts

    def short(self) -> Self:
        """A cheap setting, for tests."""
        return cut(self, steps=6, restarts=2)

    def __call__(self, access: WhiteBox, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Return the best iterate of each image, shape (n, c, h, w), inside the ball around `x` and the box."""
        check_norm(self, threat)
        search = Search(access, x, goal, rng, self.stop)
        if self.random_start and self.stop == "success":
            look(search, x, loss_named(self.loss))
        for restart in range(self.restarts):
            start = balls.random_start(search.x, threat, search.rng.at(restart)) if self.random_start else search.x
            with search.run() as run:
                self._climb(run, start, threat)
        return settle(search, loss_named(self.loss))

    def _climb(self, search: Search[WhiteBox], x_adv: Tensor, threat: ThreatModel) -> None:
        """One restart from the points `x_adv`, (m, c, h, w)."""
        landmark: Landmark | None = None
        may_cycle = threat.norm == "linf" and not search.access.stochastic
        for step in range(self.steps):
            if not search:
                return
            evaluation = search.access.loss_gradient(x_adv, search.goal, loss_named(self.loss))
            here = Landmark(x_adv, evaluation.loss)
            again = None if landmark is None else here.repeats(landmark)
            search.record(x_adv, evaluation.logits, evaluation.loss, leaving=again)
            x_adv, gradient = search.keep(x_adv, evaluation.gradient)
            if may_cycle and step.bit_count() == 1:  # Brent's algorithm: a new landmark at steps 1, 2, 4, 8, ...
                landmark = here
            landmark = None if landmark is None else Landmark(*search.keep(*landmark))
            x_adv = balls.project(x_adv + self._step(gradient, x_adv, threat), search.x, threat)
        look(search, x_adv, loss_named(self.loss))

    def _step(self, gradient: Tensor, x_adv: Tensor, threat: ThreatModel) -> Tensor:
        length = self.step_size * threat.epsilon_or_inf
        if threat.norm == "l1":
            return balls.sparse_step(gradient, x_adv, threat, length, self.sparsity)
        return length * balls.steepest(gradient, threat)


class Landmark(NamedTuple):
    """Iterates to be recognised: x_adv, shape (m, c, h, w), and their losses, (m,)."""

    x_adv: Tensor
    loss: Tensor

    def repeats(self, earlier: Landmark) -> Tensor:
        """Which iterates equal those of `earlier` bit for bit, shape (m,), bool; images are compared where losses agree."""
        same = self.loss == earlier.loss
        if not on_host(same):
            return same & (self.x_adv == earlier.x_adv).flatten(1).all(dim=1)
        rows = same.nonzero().squeeze(1)
        if len(rows):
            equal = (self.x_adv[rows] == earlier.x_adv[rows]).flatten(1).all(dim=1)
            same = same.index_copy(0, rows, equal)
        return same
