"""Auto-PGD: gradient ascent that sets its own step size, from the budget of steps alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple, Self, TypeAlias

import torch
from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.access import Access, WhiteBox
from advbench.attacks.aims import Aim, likeliest_targets
from advbench.attacks.apgd_l1 import climb_sparsely, sparse_phase
from advbench.attacks.attack import check_norm, check_positive
from advbench.attacks.capabilities import ASCENT, LOOK, Passes, cut
from advbench.attacks.iterates import Search, Stop, look, settle
from advbench.attacks.losses import loss_named, margin
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, Targeted, ThreatModel

Projection: TypeAlias = Literal["published", "box-aware"]
"""Where a run starts and how it projects in l2: on the ball and then the box, or on both at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class APGD:
    """Auto-PGD on the cross-entropy (Croce & Hein 2020, arXiv:2003.01690).

    steps: gradient steps of each run. restarts: runs from independent random starts. loss: `cross-entropy`, `dlr` or
    `margin`; `dlr` needs three classes, four towards a target, and is the cross-entropy with fewer. targets: 0 ascends the
    loss of the goal itself; else one run after the other goes towards each of so many wrong classes, the likeliest of the
    clean image first, at most all of them, and any error counts. momentum: the weight of the new step, the rest repeats the
    last one. rho: the share of a period's steps that must raise the loss, or the step size halves. stop: whether an example
    is left alone after its first success; inputs that are already misclassified are
    returned unchanged.

    form: ``published`` starts on the surface of the ball, and in l2 projects on the ball and clips to the box afterwards, as
    the authors' code does; ``box-aware`` starts inside the ball, and projects on ball and box at once. In l1 a run is that
    of `climb_sparsely`. A run costs steps
    backwards and steps + 1 forwards; stopping at success or targets cost one forward more, of the clean images. A stochastic
    model's strongest iterates are settled on fresh draws (`iterates.settle`).
    """

    steps: int = 100
    restarts: int = 1
    loss: str = "cross-entropy"
    targets: int = 0
    momentum: float = 0.75
    rho: float = 0.75
    form: Projection = "published"
    stop: Stop = "success"

    norms: ClassVar[frozenset[str]] = frozenset({"linf", "l2", "l1"})
    minimal_norm: ClassVar[bool] = False
    knowledge: ClassVar[type[Access]] = WhiteBox
    targeted: ClassVar[bool] = True
    family: ClassVar[str] = ASCENT

    def __post_init__(self) -> None:
        check_positive(self, "steps", "restarts", "momentum", "rho")
        loss_named(self.loss)
        if self.targets < 0:
            raise ValueError(f"Expected `targets` >= 0, got {self.targets}")
        if self.form not in ("published", "box-aware"):
            raise ValueError(f"Expected `form` to be published or box-aware, got {self.form!r}")

    def passes(self, threat: ThreatModel, classes: int) -> Passes:
        """The runs towards all targets from all restarts, and the look at the clean images."""
        observed = self.steps + 3 if threat.norm == "l1" else self.steps  # in l1 each of three phases looks at its start
        run = Passes(observed + (threat.norm != "l1"), observed)
        looks = LOOK if self.targets or self.stop == "success" else Passes(0)
        return looks + run * self.restarts * max(1, min(self.targets, classes - 1))

    def short(self) -> Self:
        """A cheap setting, for tests."""
        return cut(self, steps=6, restarts=2, targets=3)

    def __call__(self, access: WhiteBox, x: Tensor, goal: Goal, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """Return the best iterate of each image, shape (n, c, h, w), inside the ball around `x` and the box."""
        check_norm(self, threat)
        search = Search(access, x, goal, rng, self.stop)
        for number, aim in enumerate(self._aims(search)):
            for restart in range(self.restarts):
                if search:
                    self.climb(search, aim, threat, search.rng.fork(number, restart))
        return settle(search, margin)

    def _aims(self, search: Search[WhiteBox]) -> list[Aim]:
        """What the runs ascend, after a look at the clean images where that tells something."""
        loss, goal = loss_named(self.loss), search.goal
        several = self.targets > 0 and not isinstance(goal, Targeted)
        if not search or not (several or self.stop == "success"):
            return [Aim(loss)]
        logits = search.access.logits(search.x)
        search.record(search.x, logits, margin(logits, goal))
        return [Aim(loss, target) for target in likeliest_targets(logits, goal.y, self.targets)] if several else [Aim(loss)]

    def climb(self, search: Search[WhiteBox], aim: Aim, threat: ThreatModel, rng: ExampleRNG) -> None:
        """One run of the live examples from a random start, which records its iterates; `aim` replaces the loss."""
        if threat.norm == "l1":
            climb_sparsely(search, aim, threat, rng, self.steps)
        else:
            start = (balls.surface_start if self.form == "published" else balls.random_start)(search.x, threat, rng)
            climb(search, aim, threat, start, self.steps, self._settings())

    def refine(self, search: Search[WhiteBox], aim: Aim, threat: ThreatModel, start: Tensor) -> None:
        """One run from the live examples' points `start`, shape (m, c, h, w), that are good already: a small first step."""
        if threat.norm == "l1":
            sparse_phase(search, aim, threat, start, self.steps)
        else:
            climb(search, aim, threat, start, self.steps, replace(self._settings(), step_size=0.25))

    def _settings(self) -> Settings:
        return Settings(self.momentum, self.rho, balls.ball_then_box if self.form == "published" else balls.project)


@dataclass(frozen=True, slots=True, kw_only=True)
class APGDDLR(APGD):
    """Auto-PGD on the difference of logits ratio (Croce & Hein 2020, arXiv:2003.01690).

    The parameters are those of `APGD`.
    """

    loss: str = "dlr"


@dataclass(frozen=True, slots=True, kw_only=True)
class APGDT(APGD):
    """Auto-PGD on the difference of logits ratio towards nine targets (Croce & Hein 2020, arXiv:2003.01690).

    The parameters are those of `APGD`.
    """

    loss: str = "dlr"
    targets: int = 9


class Climb(NamedTuple):
    """Where a run stands, for the live examples.

    x_adv, previous: the last two iterates; gradient, loss: at the last one; best, best_gradient, best_loss: at the iterate
    of the highest loss. step: the step size. rises: steps of this period that raised the loss. settled: the highest loss at
    the last checkpoint. halved: whether the step size halved there. Images (m, c, h, w), the others (m,).
    """

    x_adv: Tensor
    previous: Tensor
    gradient: Tensor
    loss: Tensor
    best: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    step: Tensor
    rises: Tensor
    settled: Tensor
    halved: Tensor


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run in linf or l2 is told: `momentum` and `rho` as `APGD` has them.

    project: of points (m, c, h, w) around the images, on ball and box. step_size: the first, in units of epsilon.
    """

    momentum: float
    rho: float
    project: Callable[[Tensor, Tensor, ThreatModel], Tensor]
    step_size: float = 2.0


def climb(search: Search[WhiteBox], aim: Aim, threat: ThreatModel, start: Tensor, steps: int, settings: Settings) -> None:
    """One run in linf or l2 from the live examples' `start`: algorithm 1 of Croce & Hein 2020 (arXiv:2003.01690).

    At each checkpoint an example's step size halves, and the example goes back to its best iterate, where fewer than a share
    `rho` of the steps raised the loss, or where neither the step size nor the highest loss has changed since the last
    checkpoint. After it went back a rise is one above the iterate that was asked last, as in the authors' code, which halves
    later than the paper's text, where it would be one above the highest loss.
    """
    climb = _observe(search, aim, start, _start(start, settings.step_size * threat.epsilon_or_inf))
    period_start, ends = 0, set(checkpoints(steps))
    for step in range(1, steps):
        if not search:
            return
        climb = _observe(search, aim, _move(climb, search.x, threat, settings, first=step == 1), climb)
        if step in ends:
            climb = _check(climb, settings.rho * (step - period_start))
            period_start = step
    if search:
        look(search, _move(climb, search.x, threat, settings, first=steps == 1), margin)


def checkpoints(steps: int) -> Iterator[int]:
    """The steps after which step sizes are judged: periods of 22% of all steps, each 3% shorter, at the least 6%.

    Shares are rounded down, to one step at the least, as in the authors' implementation.
    """
    period, shrinkage, shortest = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    end = period
    while end <= steps:
        yield end
        period = max(period - shrinkage, shortest)
        end += period


def _start(start: Tensor, step: float) -> Climb:
    """Before the first look: losses such that the start is the best iterate and no rise."""
    nothing, low = torch.zeros_like(start), start.new_full((len(start),), -torch.inf)
    return Climb(
        x_adv=start,
        previous=start,
        gradient=nothing,
        loss=-low,
        best=start,
        best_gradient=nothing,
        best_loss=low,
        step=torch.full_like(low, step),
        rises=torch.zeros_like(low),
        settled=low,
        halved=torch.ones_like(low, dtype=torch.bool),
    )


def _move(climb: Climb, x: Tensor, threat: ThreatModel, settings: Settings, *, first: bool) -> Tensor:
    """The next iterates: a projected gradient step, of which `momentum` is taken, and the rest of the last step."""
    ahead = climb.x_adv + balls.per_example(climb.step, x) * balls.steepest(climb.gradient, threat)
    step, weight = settings.project(ahead, x, threat) - climb.x_adv, 1.0 if first else settings.momentum
    return settings.project(climb.x_adv + weight * step + (1 - weight) * (climb.x_adv - climb.previous), x, threat)


def _observe(search: Search[WhiteBox], aim: Aim, x_adv: Tensor, climb: Climb) -> Climb:
    """Look at the next iterates, and carry on with the examples that stay."""
    evaluation = aim.observe(search, x_adv)
    search.record(x_adv, evaluation.logits, margin(evaluation.logits, search.goal))
    loss = evaluation.loss.to(x_adv.dtype)
    better = loss > climb.best_loss
    climb = climb._replace(
        x_adv=x_adv,
        previous=climb.x_adv,
        gradient=evaluation.gradient,
        loss=loss,
        best=x_adv.where(balls.per_example(better, x_adv), climb.best),
        best_gradient=evaluation.gradient.where(balls.per_example(better, x_adv), climb.best_gradient),
        best_loss=loss.where(better, climb.best_loss),
        rises=climb.rises + (loss > climb.loss),
    )
    return Climb(*search.keep(*climb))


def _check(climb: Climb, enough: float) -> Climb:
    """The two conditions of a checkpoint; the next period starts from the best iterate where the step size halves."""
    # After a halving the example restarts from its best iterate with a step that has not been tried yet, so that an
    # unchanged best loss is no evidence against it: the second condition waits for one more period. Losses start at minus
    # infinity and `halved` at True, so that it says nothing at the first checkpoint either.
    stuck = ~climb.halved & (climb.best_loss <= climb.settled)
    halve = (climb.rises <= enough) | stuck
    back = balls.per_example(halve, climb.x_adv)
    return climb._replace(
        x_adv=climb.best.where(back, climb.x_adv),
        gradient=climb.best_gradient.where(back, climb.gradient),
        step=(climb.step / 2).where(halve, climb.step),
        rises=torch.zeros_like(climb.rises),
        settled=climb.best_loss,
        halved=halve,
    )
