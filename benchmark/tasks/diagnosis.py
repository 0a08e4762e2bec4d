"""A check of a model's gradients: whether they exist, are finite and raise the loss, and whether its answers repeat.

What no scored cell can tell and `advbench.results.flags` asks for. It costs a dozen gradients on a few dozen images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.access import NoGradientError, WhiteBox
from advbench.attacks.losses import margin
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel, Untargeted, cross_entropy
from advbench.defenses.defended import Defended, Surrogate
from advbench.zoo.data import Split

IMAGES = 64
"""How many images are looked at: the first scored ones that the model gets right."""
_LOOKED_AT = 4 * IMAGES
_STEPS = 10
_STEP = 0.25
_UNSTABLE = 1e-3
"""The change of a logit, as a share of the largest one, beyond what rounding explains."""
_SUM = 1e-4
"""By how much rows of probabilities may miss the sum 1."""
_SHARED = ("zero_gradient", "zero_margin_gradient", "flat")
"""The symptoms that count where all surrogates show them."""


def diagnose(
    defended: Defended, split: Split, threat: ThreatModel, *, seed: int, draws: int, device: torch.device
) -> dict[str, int]:
    """Look at the gradients of a model's surrogates; a symptom counts where all of them show it.

    threat: where the steps go; its radius must be finite. draws: passes averaged per gradient of a stochastic model.
    Returns counts over `images` clean-correct images: zero_gradient (of the cross-entropy, exactly zero),
    zero_margin_gradient (of the best wrong logit minus the true one), flat (ten gradient steps of a quarter of epsilon do
    not raise the loss), nonfinite_gradient (NaN or infinite in some component, of either loss at the clean image or of the
    cross-entropy on those ten steps, which read NaN as zero, unlike attacks), and, for a model that is
    declared deterministic, unstable (a second pass answers differently); probabilities, where the outputs on all images are
    non-negative and sum to 1, and only there. A non-finite gradient counts unless another surrogate has
    one that is finite and not zero.
    """
    part = split.select(slice(_LOOKED_AT)).to(device)
    with _access(Surrogate(defended.model, defended.stochastic), part, seed, draws) as access:
        logits = access.logits(part.x)
        rows = (logits.argmax(dim=1) == part.y).nonzero().flatten()[:IMAGES]
        again = None if defended.stochastic else access.logits(part.x)
    if not len(rows):  # nothing to look at; the clean accuracy says why
        names = (*_SHARED, "nonfinite_gradient", *(() if again is None else ("unstable",)))
        return {"images": 0, **dict.fromkeys(names, 0)}
    part = part.select(rows)
    looks = [_look(surrogate, part, threat, seed, draws) for surrogate in defended.surrogates.values()]
    found = {name: int(torch.stack([look[name] for look in looks]).all(dim=0).sum()) for name in _SHARED}
    found["nonfinite_gradient"] = int(_without_finite(looks).sum())
    if _are_probabilities(logits):
        found["probabilities"] = len(rows)
    if again is not None:
        scale = _UNSTABLE * logits[rows].abs().amax(dim=1).clamp(min=1e-12)
        found["unstable"] = int(((again - logits)[rows].abs().amax(dim=1) > scale).sum())
    return {"images": len(rows), **found}


def _are_probabilities(logits: Tensor) -> bool:
    """Whether all rows (n, classes) are non-negative and sum to 1, as those of a softmax are."""
    return bool((logits >= 0).all() and ((logits.double().sum(dim=1) - 1).abs() <= _SUM).all())


class _AsItComes(WhiteBox):
    """Access whose gradients hide no component that is no number."""

    def _mended(self, gradients: Tensor, x: Tensor, beside: object) -> Tensor:  # noqa: ARG002
        return gradients


def _access(surrogate: Surrogate, part: Split, seed: int, draws: int) -> WhiteBox:
    rng = ExampleRNG.make(seed, "diagnosis", part.index)
    return _AsItComes(surrogate.model, rng, stochastic=surrogate.stochastic, draws=draws)


def _look(surrogate: Surrogate, part: Split, threat: ThreatModel, seed: int, draws: int) -> dict[str, Tensor]:
    """Which images show each symptom under one surrogate, (n,) bool; all of them where it has no gradient at all."""
    goal = Untargeted(part.y)
    with _access(surrogate, part, seed, draws) as access:
        try:
            start = access.loss_gradient(part.x, goal, cross_entropy)
            of_margin = access.loss_gradient(part.x, goal, margin).gradient
            highest, broken = _climb(access, part, threat, start.gradient)
        except NoGradientError:
            nothing = torch.ones(len(part), dtype=torch.bool, device=part.x.device)
            return {**dict.fromkeys(_SHARED, nothing), "nonfinite_gradient": ~nothing}
    return {
        "zero_gradient": _zero(start.gradient),
        "zero_margin_gradient": _zero(of_margin),
        "flat": highest <= start.loss,
        "nonfinite_gradient": _nonfinite(start.gradient) | _nonfinite(of_margin) | broken,
    }


def _climb(access: WhiteBox, part: Split, threat: ThreatModel, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The highest loss of each image on the way up, and where a gradient there is not finite, both of shape (n,)."""
    x_adv, losses, broken = part.x, [], []
    for _ in range(_STEPS):
        x_adv = balls.project(x_adv + _STEP * threat.epsilon_or_inf * balls.steepest(gradient, threat), part.x, threat)
        found = access.loss_gradient(x_adv, Untargeted(part.y), cross_entropy)
        gradient = found.gradient
        losses.append(found.loss)
        broken.append(_nonfinite(gradient))
    return torch.stack(losses).amax(dim=0), torch.stack(broken).any(dim=0)


def _without_finite(looks: list[dict[str, Tensor]]) -> Tensor:
    """Where a surrogate's gradient is not finite and no other's is of use instead, shape (n,), bool."""
    broken = torch.stack([look["nonfinite_gradient"] for look in looks])
    zero = torch.stack([look["zero_margin_gradient"] for look in looks])
    return broken.any(dim=0) & (broken | zero).all(dim=0)


def _zero(gradient: Tensor) -> Tensor:
    return (gradient == 0).flatten(1).all(dim=1)


def _nonfinite(gradient: Tensor) -> Tensor:
    return ~gradient.isfinite().flatten(1).all(dim=1)
