"""What minimal-norm attacks share: the nearest adversarial image of every example, and a loss that never saturates."""

from __future__ import annotations

from typing import Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.access import Access
from advbench.attacks.iterates import Search
from advbench.attacks.losses import margin
from advbench.attacks.progress import tell
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, Targeted, ThreatModel

Form: TypeAlias = Literal["both", "published", "box-aware"]
"""Which form of a minimal-norm attack runs: its authors', ours that knows the box, or both, of which the nearer counts."""

AccessT = TypeVar("AccessT", bound=Access)


def forms_of(form: Form) -> tuple[Form, ...]:
    """The single forms of a `Form`, in the order in which they run. Raises ValueError for an unknown one."""
    single: tuple[Form, ...] = ("published", "box-aware")
    if form not in (*single, "both"):
        raise ValueError(f"Expected `form` to be both, published or box-aware, got {form!r}")
    return single if form == "both" else (form,)


def keep_nearest(search: Search[AccessT], x_adv: Tensor, logits: Tensor, threat: ThreatModel, enough: float = 0.0) -> Tensor:
    """Record the iterates of the live examples; returns which of them achieve the goal, shape (m,), bool.

    Adversarial iterates are ordered by their distance from the image, the others by their margin, so that an image that is
    never broken comes back as the iterate nearest to it. Only an adversarial within the distance `enough` ends the search of
    an example, by default the image itself: a search with ``stop="success"`` drops the examples that need no attack and goes
    on with the others. `Search.keep` shrinks the returned mask like everything else.
    """
    achieved = search.goal.achieved(logits)
    if not enough:
        tell(search.access.rows, achieved)
    distance = balls.distance(x_adv - search.x, threat.norm)
    search.best.update(x_adv, achieved, torch.where(achieved, -distance, margin(logits, search.goal)), search.rows)
    search.record(x_adv, logits, torch.full_like(distance, -torch.inf), within=distance <= enough)
    return achieved


def log_odds(logits: Tensor, goal: Goal) -> Tensor:
    """log(p / (1 - p)) of the probability p that the label is what the attacker wants; shape (n,), to be ascended.

    Untargeted: any wrong label. Targeted: the target. This is the difference of logits with a smooth maximum (logsumexp),
    and its gradient has the direction of the cross-entropy's, of which it keeps all digits however confident the model is.

    logits: (n, classes).

    >>> from advbench.attacks.threat import Untargeted
    >>> logits = torch.tensor([[0.9, 0.1]]).double().log()  # probability 0.1 of a wrong label
    >>> round(log_odds(logits, Untargeted(torch.tensor([0]))).item(), 4)  # log(0.1 / 0.9)
    -2.1972
    """
    column = (goal.target if isinstance(goal, Targeted) else goal.y).unsqueeze(1)
    odds = logits.gather(1, column).squeeze(1) - logits.scatter(1, column, -torch.inf).logsumexp(dim=1)
    return odds if isinstance(goal, Targeted) else -odds


def unit_gradient(gradient: Tensor, rng: ExampleRNG, sloped: bool | None = None) -> Tensor:
    """The gradient at l2 length 1, in a random direction where it is zero (as DDN's authors do); shape (n, c, h, w).

    sloped: whether it is known that none is zero, as `Evaluation.sloped` says; None if that is to be looked at.
    """
    direction = balls.steepest(gradient, _L2)
    if sloped:
        return direction
    lost = balls.distance(direction, "l2") == 0
    if lost.any():
        noise = rng.select(lost).normal(tuple(gradient.shape[1:]), gradient.dtype)
        direction = direction.index_put((lost,), balls.steepest(noise, _L2))
    return direction


_L2 = ThreatModel("l2", None)
