"""A first look at a model of the user's: is it one that can be attacked and scored as it was declared?"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from advbench.attacks.access import ask, frozen
from advbench.attacks.rng import ExampleRNG
from advbench.process_state import ChangedStateError, checked
from advbench.user_models.blockwise import Blockwise

LOOKS = 16
"""How many images a model is looked at with."""
_PASSES = 4
_ROUNDING = 1e-3
"""The change of a logit, as a share of the largest one, that rounding may make."""


def check_model(model: nn.Module, x: Tensor, n_classes: int, *, stochastic: bool) -> bool:
    """Look at a model through a few images, and say whether gradients flow from its logits to them.

    x: images (n, c, h, w) in [0, 1], on the model's device, of which `LOOKS` are used. n_classes: labels that occur.
    Raises ValueError, in one line, if it takes no such images, gives no logits for all classes, or NaN, where its answer
    for an image depends on the others in the batch, where it answers differently on the same images and is not declared
    stochastic, where it is declared so and draws from no generator that can be seeded, or where it changes global state of
    the process such as the default dtype.
    """
    few = x[:LOOKS]
    try:
        with checked(), frozen(model), torch.no_grad():
            _check_logits(_answer(model, few), few, n_classes)
            if stochastic:
                _check_seeds(model, few)
            else:
                _check_repeats(model, few)
            return _gives_gradients(model, few)
    except ChangedStateError as error:
        raise ValueError(f"The model's forward: {error}") from None


def _answer(model: nn.Module, x: Tensor) -> Tensor:
    try:
        logits = ask(model, x)
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"Expected a model that takes images {tuple(x.shape)} {x.dtype}, got {type(error).__name__}: {reason}"
        ) from error
    if not isinstance(logits, Tensor):
        raise ValueError(f"Expected logits, a tensor (n, classes), from the model, got {type(logits).__name__}")
    return logits


def _check_logits(logits: Tensor, x: Tensor, n_classes: int) -> None:
    if logits.ndim != 2 or len(logits) != len(x) or not logits.dtype.is_floating_point:
        raise ValueError(
            f"Expected logits ({len(x)}, classes) for {len(x)} images, got {tuple(logits.shape)} {logits.dtype}: "
            "return logits, not labels, for a batch of any size"
        )
    if logits.shape[1] < max(2, n_classes):
        raise ValueError(f"Expected logits for {max(2, n_classes)} classes, got {logits.shape[1]}")
    if not torch.isfinite(logits).all():
        bad = int((~torch.isfinite(logits)).any(dim=1).sum())
        raise ValueError(f"Expected finite logits, got NaN or infinity on {bad} of {len(x)} clean images")


def _check_repeats(model: nn.Module, x: Tensor) -> None:
    first = ask(model, x)
    if any(_differ(ask(model, x), first) for _ in range(_PASSES)):
        raise ValueError(
            "The model is not deterministic: two passes over the same images differ. "
            "Pass --stochastic. (from Python stochastic=True)"
        )
    if len(x) > 1 and _differ(ask(model, x[:1]), first[:1]):
        raise ValueError(
            "Expected logits that do not depend on the other images in the batch, got different ones for a single image"
        )


def _check_seeds(model: nn.Module, x: Tensor) -> None:
    """That a declared stochastic model answers alike where the global generators are seeded alike."""
    blockwise = Blockwise(model, block=len(x))
    rng = ExampleRNG.make(0, "preflight", torch.arange(len(x), device=x.device))
    first = blockwise(x, rng)
    if any(_differ(blockwise(x, rng), first) for _ in range(_PASSES)):
        raise ValueError(
            "Expected a stochastic model to repeat under the same seed, got different logits: "
            "draw from torch's global generators (torch.rand and the like), not from a generator of its own"
        )


def _differ(one: Tensor, other: Tensor) -> bool:
    scale = other.abs().max().clamp(min=1e-6)
    return bool((one - other).abs().max() > _ROUNDING * scale)


def _gives_gradients(model: nn.Module, x: Tensor) -> bool:
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        return bool(ask(model, x).requires_grad)
