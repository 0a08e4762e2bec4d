"""What a user's model returns: logits, or probabilities, which attacks follow through their logarithm.

A softmax that is sure of itself has lost its gradient, and differences of probabilities, which margins are made of, say
little about what is near. Its logarithm differs from the logits by a number for each image, so that every attack does on it
what it does on the logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from advbench.config import Outputs

_ROUNDING: Mapping[torch.dtype, float] = {torch.float16: 1e-2, torch.bfloat16: 3e-2}
_USUAL_ROUNDING = 1e-4
"""By how much a row of probabilities may miss the sum 1."""

_SOFTMAX: frozenset[Callable[..., object]] = frozenset(
    {torch.softmax, Tensor.softmax, torch.special.softmax, nn.functional.softmax}
)


def are_probabilities(answers: Tensor) -> bool:
    """Whether all rows of answers (n, classes) are non-negative and sum to 1, up to rounding."""
    off = (answers.double().sum(dim=1) - 1).abs()
    return bool((answers >= 0).all() and (off <= _ROUNDING.get(answers.dtype, _USUAL_ROUNDING)).all())


def check_outputs(answers: Tensor, outputs: Outputs) -> None:
    """Raise ValueError, in one line, unless answers (n, classes) are what `outputs` says; logits may be anything."""
    if outputs == "logits":
        return
    shares = answers if outputs == "probabilities" else answers.exp()
    if not are_probabilities(shares):
        sums = shares.double().sum(dim=1)
        what = "rows that are >= 0" if outputs == "probabilities" else "rows whose exponentials are >= 0"
        raise ValueError(
            f"Expected {outputs} as declared, {what} and sum to 1, got values from {float(answers.min()):.4g} to "
            f"{float(answers.max()):.4g} and sums from {float(sums.min()):.4g} to {float(sums.max()):.4g}"
        )


def tensor_in(answer: object, n: int) -> tuple[object, str]:
    """The one tensor (n, k) of floats in an answer for n images, and how it was found: empty if the answer is a tensor.

    Looked for in `logits`, then among the values of a mapping, a tuple, a list or a dataclass. An answer in which none or
    several fit comes back as it is.
    """
    if isinstance(answer, Tensor):
        return answer, ""
    logits = answer.get("logits") if isinstance(answer, Mapping) else getattr(answer, "logits", None)
    if _fits(logits, n):
        return logits, f"The model returns {type(answer).__name__}: its `logits` are taken"
    if isinstance(answer, Mapping):
        named = {repr(key): value for key, value in answer.items()}
    elif isinstance(answer, tuple | list):
        named = {f"number {place}": value for place, value in enumerate(answer)}
    else:
        named = dict(vars(answer)) if hasattr(answer, "__dict__") else {}
    fitting = [(name, value) for name, value in named.items() if _fits(value, n)]
    if len(fitting) != 1:
        return answer, ""
    ((name, value),) = fitting
    return value, f"The model returns {type(answer).__name__}: {name}, its one tensor (n, classes), is taken"


def _fits(value: object, n: int) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2 and len(value) == n and value.dtype.is_floating_point


def log_probabilities(model: Callable[[Tensor], Tensor], x: Tensor, outputs: Outputs) -> Tensor:
    """The logarithms of a model's probabilities, (n, classes), finite and with a gradient where it has one.

    x: images (n, c, h, w). Where the answers are those of the last softmax that torch computed, or the logarithm of these,
    log-softmax stands in their place: a softmax that is sure of itself is 1 and 0 exactly, and the way back is lost. Else
    probabilities below the smallest normal number count as that.
    """
    seen = _Softmaxes()
    with seen:
        answers: Tensor = model(x)
    exact = seen.logarithm(answers)
    if exact is not None:
        return exact
    least = torch.finfo(answers.dtype).tiny
    if outputs == "probabilities":
        answers = answers.clamp_min(least).log()
    return answers.clamp_min(math.log(least))


class _Softmaxes(TorchFunctionMode):
    """Remembers what the last softmax inside was computed of."""

    def __init__(self) -> None:
        super().__init__()
        self._last: tuple[Tensor, int] | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        if func in _SOFTMAX and isinstance(result, Tensor):
            given: dict[str, Any] = dict(zip(("input", "dim"), args, strict=False)) | dict(kwargs or {})
            dim = given.get("dim")
            self._last = given["input"].to(result.dtype), 1 if dim is None else dim
        return result

    def logarithm(self, answers: Tensor) -> Tensor | None:
        """The log-softmax of which `answers`, (n, classes), are the exponential or the value; None for any other answers.

        Their numbers are compared: what came after the softmax may have changed them.
        """
        if self._last is None:
            return None
        given, dim = self._last
        with torch.no_grad():
            softmax = given.softmax(dim)
            same = any(
                each.dtype == answers.dtype and each.shape == answers.shape and torch.equal(each, answers)
                for each in (softmax, softmax.log())
            )
        if not same or (torch.is_grad_enabled() and given.requires_grad and not answers.requires_grad):
            return None
        return given.log_softmax(dim)
