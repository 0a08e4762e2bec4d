"""A first look at a model of the user's: is it one that can be attacked and scored as it was declared?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from advbench.attacks.access import WhiteBox, ask, frozen
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Untargeted, cross_entropy
from advbench.config import Outputs
from advbench.errors import reason
from advbench.process_state import ChangedStateError, checked
from advbench.user_models.blockwise import Blockwise
from advbench.user_models.outputs import are_probabilities, check_outputs

LOOKS = 16
"""How many images a model is looked at with."""
_PASSES = 4
_UPHILL = 4 / 255
"""How far uphill slopes are looked at."""
_ROUNDING = 1e-3
"""The change of a logit, as a share of the largest one, that rounding may make."""


def outputs_of(model: nn.Module, x: Tensor, declared: Outputs | None = None) -> Outputs:
    """What a model returns for images x, (n, c, h, w), and for noise, black and white ones: what was declared, if it was.

    Else probabilities where all rows are non-negative and sum to 1, log-probabilities where these are the logarithms of such
    with zeros among them, and logits otherwise. Raises ValueError, in one line, for a model that takes no such images, and
    if the answers are not what was declared.
    """
    noise = torch.rand(_PASSES, *x.shape[1:], generator=torch.Generator().manual_seed(0)).to(x)
    extremes = torch.stack((torch.zeros_like(x[0]), torch.ones_like(x[0])))
    with _left_alone(), frozen(model), torch.no_grad():
        answers = _answer(model, x[:LOOKS])
        _check_logits(answers, x[:LOOKS], 2, finite=False)
        with suppress(ValueError, RuntimeError):  # which a model may refuse, that is asked for no such images later
            answers = torch.cat((answers, _answer(model, torch.cat((noise, extremes)))))
    if declared is not None:
        check_outputs(answers, declared)
        return declared
    if are_probabilities(answers):
        return "probabilities"
    return "log-probabilities" if answers.isneginf().any() and are_probabilities(answers.exp()) else "logits"


def check_model(model: nn.Module, x: Tensor, n_classes: int, *, stochastic: bool) -> bool:
    """Look at a model through a few images, and say whether gradients flow from its logits to them.

    x: images (n, c, h, w) in [0, 1], on the model's device, of which `LOOKS` are used. n_classes: labels that occur.
    Raises ValueError, in one line, if it takes no such images, gives no logits for all classes, or NaN, where its answer
    for an image depends on the others in the batch, where it answers differently on the same images and is not declared
    stochastic, where it is declared so and draws from no generator that can be seeded, or where it changes global state of
    the process such as the default dtype.
    """
    few = x[:LOOKS]
    with _left_alone(), frozen(model), torch.no_grad():
        _check_logits(_answer(model, few), few, n_classes)
        if stochastic:
            _check_seeds(model, few)
        else:
            _check_repeats(model, few)
        return _gives_gradients(model, few)


def expects_bytes(model: nn.Module, x: Tensor, y: Tensor) -> str:
    """A line if a model gets images x, (n, c, h, w), right far more often with pixels in 0..255; else an empty text."""
    few, labels = x[:LOOKS], y[:LOOKS].to(x.device)
    try:
        with _left_alone(), frozen(model), torch.no_grad():
            right = [int((_answer(model, scale * few).argmax(dim=1) == labels).sum()) for scale in (1, 255)]
    except ValueError:  # it refuses them
        return ""
    if right[1] - right[0] <= len(few) / 2:
        return ""
    return (
        f"The model gets {right[0]} of {len(few)} images right, and {right[1]} with pixels in 0..255: images come in "
        "[0, 1], multiply by 255 inside the model"
    )


def slopes_are_finite(model: nn.Module, x: Tensor, *, stochastic: bool) -> bool:
    """Whether no gradient of a model that gives gradients has a NaN or infinite component at images x, (n, c, h, w).

    It is asked at up to `LOOKS` images and a few grey levels uphill from them, where pixels may have become black or white.
    Of a model that fails there nothing is known; what an attack then meets, its cell says.
    """
    few = x[:LOOKS]
    rng = ExampleRNG.make(0, "preflight", torch.arange(len(few), device=few.device))
    asked = Blockwise(model, block=len(few)) if stochastic else model
    with _left_alone(), WhiteBox(asked, rng, stochastic=stochastic) as access, suppress(Exception, SystemExit):
        goal = Untargeted(access.logits(few).argmax(dim=1))
        gradient = access.loss_gradient(few, goal, cross_entropy).gradient
        uphill = (few + _UPHILL * gradient.nan_to_num().sign()).clamp(0, 1)
        access.loss_gradient(uphill, goal, cross_entropy)
    return not bool(access.ledger.nonfinite.any())


@contextmanager
def _left_alone() -> Iterator[None]:
    """Raise ValueError, in one line, if the model changes global state of the process; it is put back."""
    try:
        with checked():
            yield
    except ChangedStateError as error:
        raise ValueError(f"The model's forward: {error}") from None


def _answer(model: nn.Module, x: Tensor) -> Tensor:
    try:
        logits = ask(model, x)
    except (Exception, SystemExit) as error:
        raise ValueError(f"Expected a model that takes images {tuple(x.shape)} {x.dtype}, got {reason(error)}") from error
    if not isinstance(logits, Tensor):
        raise ValueError(f"Expected logits, a tensor (n, classes), from the model, got {type(logits).__name__}")
    return logits


def _check_logits(logits: Tensor, x: Tensor, n_classes: int, *, finite: bool = True) -> None:
    if logits.ndim != 2 or len(logits) != len(x) or not logits.dtype.is_floating_point:
        raise ValueError(
            f"Expected logits ({len(x)}, classes) for {len(x)} images, got {tuple(logits.shape)} {logits.dtype}: "
            "return logits, not labels, for a batch of any size"
        )
    if logits.shape[1] < max(2, n_classes):
        raise ValueError(f"Expected logits for {max(2, n_classes)} classes, got {logits.shape[1]}")
    if finite and not torch.isfinite(logits).all():
        bad = int((~torch.isfinite(logits)).any(dim=1).sum())
        raise ValueError(f"Expected finite logits, got NaN or infinity on {bad} of {len(x)} clean images")


def _check_repeats(model: nn.Module, x: Tensor) -> None:
    first = _answer(model, x)
    if any(_differ(_answer(model, x), first) for _ in range(_PASSES)):
        raise ValueError(
            "The model is not deterministic: two passes over the same images differ. "
            "Pass --stochastic. (from Python stochastic=True)"
        )
    if len(x) > 1 and _differ(_answer(model, x[:1]), first[:1]):
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
        return _answer(model, x).requires_grad
