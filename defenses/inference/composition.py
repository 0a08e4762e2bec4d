"""How a test-time defense stands in front of another defended model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from advbench.attacks.access import ask
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.stages import Staged
from advbench.defenses.defended import Defended, Detector, Surrogate

State = TypeVar("State", Tensor, tuple[Tensor, ...])


def call(model: nn.Module, x: Tensor, rng: ExampleRNG | None, stochastic: bool) -> Tensor:
    """What a model that takes an rng only if it is `stochastic` answers on a copy of images (n, c, h, w)."""
    if stochastic and rng is None:
        raise ValueError("Expected `rng`, an ExampleRNG of the images, got None: the model is stochastic")
    return ask(model, x, rng if stochastic else None)


def checkpointed(step: Callable[[State, int], State], state: State, steps: int) -> State:
    """The last of `steps` states, state = step(state, t) for t = 0, 1, ..., and its gradient in bounded memory.

    Where a gradient is wanted, only about sqrt(steps) states are kept on the way, and each stretch between two of them runs
    a second time when the gradient comes back (Chen et al. 2016, arXiv:1604.06174): memory for sqrt(steps) steps instead of
    `steps`, for one more forward each. `step` gives the same twice: its random numbers come from an `ExampleRNG` at t. It
    may take gradients itself (with ``create_graph``), but each of those runs its stretch again: better to write them out.

    step: (a tensor or a tuple of tensors, t) -> the same. Returns the state after the last step.
    """

    def stretch(state: State, first: int, last: int) -> State:
        for t in range(first, last):
            state = step(state, t)
        return state

    given: object = state
    tensors = given if isinstance(given, tuple) else (given,)
    if not (torch.is_grad_enabled() and any(one.requires_grad for one in tensors if isinstance(one, Tensor))):
        return stretch(state, 0, steps)
    length = max(1, math.isqrt(steps))
    for first in range(0, steps, length):
        last = min(first + length, steps)
        state = checkpoint(stretch, state, first, last, use_reentrant=False, preserve_rng_state=False)
    return state


def in_front_of(base: Defended, wrap: Callable[[nn.Module, bool], nn.Module], *, stochastic: bool) -> Defended:
    """A defense that wraps the model of `base`, and what an adaptive attacker may differentiate.

    wrap: (model, whether it is stochastic) -> the wrapped model. stochastic: whether the wrapper itself draws.

    The surrogates: ``faithful``, the wrapper around the first surrogate of `base`; ``faithful-NAME``, the wrapper around
    each further one; ``base``, the first surrogate of `base` alone, as if the wrapper were not there; it evades no
    detector that is set beside the result.
    Raises ValueError for a base with a detector, whose scores are not logits.
    """
    if base.detector is not None:
        raise ValueError("Expected a base without a detector, got one: put the defense that detects in front of this one")
    model = wrap(base.model, base.stochastic)
    surrogates = {}
    for position, (name, inner) in enumerate(base.surrogates.items()):
        outer = model if inner.model is base.model else wrap(inner.model, inner.stochastic)
        label = "faithful" if position == 0 else f"faithful-{name}"
        surrogates[label] = Surrogate(outer, stochastic or inner.stochastic, exact=inner.exact)
    surrogates["base"] = replace(next(iter(base.surrogates.values())), evading=False, exact=False)
    return Defended(model, stochastic or base.stochastic, surrogates)


def purified(
    base: Defended,
    purifier: nn.Module,
    *,
    stochastic: bool,
    differentiable: bool = True,
    substitutes: Mapping[str, nn.Module] | None = None,
    detector: Detector | None = None,
    followed: Detector | None = None,
) -> Defended:
    """A purifier in front of a defended model, with the surrogates of an adaptive attacker (Athalye et al. 2018).

    purifier: images (n, c, h, w) -> images of that shape; called as ``purifier(x, rng)`` where `stochastic`. differentiable:
    whether its own gradient is informative; if not, as for a rounding, there is no faithful surrogate.
    substitutes: differentiable images -> images, by name, whose Jacobian stands in for the purifier's.
    detector: rejects images, which it sees before they are purified; a detector of `base` looks at the purified ones. An
    image is rejected if either rejects it. followed: the same detector as an attacker differentiates it, where its own
    gradient is uninformative, as that of one that asks a base with a rounding in it; `detector` itself if None.

    The surrogates: ``faithful``, the purifier differentiated as it is, in front of the first surrogate of `base`;
    ``faithful-NAME``, in front of each further one; ``bpda``, its output with the identity for its Jacobian; ``bpda-NAME``,
    its output with the Jacobian of a substitute; ``base``, the first surrogate of `base` as if there were no purifier. All
    but the last evade the detectors; that of `base` through the purifier as it is, or with the identity's Jacobian where the
    purifier is not differentiable.
    """
    inner = next(iter(base.surrogates.values()))
    model = Purified(purifier, base.model, stochastic=stochastic, base_stochastic=base.stochastic)
    surrogates: dict[str, Surrogate] = {}
    if differentiable:
        for position, (name, each) in enumerate(base.surrogates.items()):
            outer = (
                model
                if each.model is base.model
                else Purified(purifier, each.model, stochastic=stochastic, base_stochastic=each.stochastic)
            )
            label = "faithful" if position == 0 else f"faithful-{name}"
            surrogates[label] = Surrogate(outer, stochastic or each.stochastic, exact=each.exact)
    for label, substitute in {"bpda": nn.Identity(), **{f"bpda-{k}": v for k, v in (substitutes or {}).items()}}.items():
        approximate = Approximated(purifier, substitute, stochastic=stochastic)
        surrogates[label] = Surrogate(
            Purified(approximate, inner.model, stochastic=stochastic, base_stochastic=inner.stochastic),
            stochastic or inner.stochastic,
            exact=inner.exact,
        )
    seen = purifier if differentiable else Approximated(purifier, nn.Identity(), stochastic=stochastic)
    behind = _behind(seen, base.detector, stochastic)
    if followed is not None:
        met = _either(followed, behind)
        surrogates = {name: replace(surrogate, detector=met) for name, surrogate in surrogates.items()}
    surrogates["base"] = replace(inner, evading=False, exact=False)
    return Defended(model, stochastic or base.stochastic, surrogates, detector=_either(detector, behind))


def _behind(purifier: nn.Module, detector: Detector | None, stochastic: bool) -> Detector | None:
    """The detector of a base that sees purified images."""
    if detector is None:
        return None
    model = Purified(purifier, detector.model, stochastic=stochastic, base_stochastic=detector.stochastic)
    return Detector(model, stochastic or detector.stochastic)


def _either(one: Detector | None, other: Detector | None) -> Detector | None:
    """What rejects where one of two detectors does, of those that there are."""
    if one is None or other is None:
        return one or other
    return any_rejects(one, other)


def any_rejects(one: Detector, other: Detector) -> Detector:
    """What rejects where one of two detectors does."""
    return Detector(AnyRejects(one, other), one.stochastic or other.stochastic)


class AnyRejects(nn.Module):
    """The larger of two detectors' scores, images (n, c, h, w) -> (n,): above zero where either rejects."""

    def __init__(self, one: Detector, other: Detector) -> None:
        super().__init__()
        self.one, self.other = one.model, other.model
        self.stochastic = (one.stochastic, other.stochastic)

    def forward(self, x: Tensor, rng: ExampleRNG | None = None) -> Tensor:
        """Scores, shape (n,)."""
        scores = [call(each, x, rng, random) for each, random in zip((self.one, self.other), self.stochastic, strict=True)]
        return torch.maximum(*scores)


class Purified(Staged):
    """A model behind a purifier, images (n, c, h, w) -> logits (n, classes).

    stochastic, base_stochastic: whether the purifier and the model behind it take an rng, each a fork of its own.
    """

    def __init__(self, purifier: nn.Module, base: nn.Module, *, stochastic: bool, base_stochastic: bool) -> None:
        super().__init__()
        self.purifier = purifier
        self.base = base
        self.stochastic = stochastic
        self.base_stochastic = base_stochastic

    def forward(self, x: Tensor, rng: ExampleRNG | None = None) -> Tensor:
        """Logits of the purified images. ValueError if something is stochastic and no rng is given."""
        pure = call(self.purifier, x, None if rng is None else rng.fork("purifier"), self.stochastic)
        return self.classified(pure, rng)

    @property
    def substituted(self) -> bool:
        """Whether something stands in for the purifier's gradient."""
        return isinstance(self.purifier, Approximated)

    def states(self, x: Tensor, rng: ExampleRNG | None) -> Tensor:
        """The images before and after every step of the purifier; one that tells no steps has one."""
        inner = None if rng is None else rng.fork("purifier")
        if isinstance(self.purifier, WithSteps):
            return self.purifier.states(x, inner)
        return torch.stack([x, call(self.purifier, x, inner, self.stochastic)])

    def classified(self, x: Tensor, rng: ExampleRNG | None) -> Tensor:
        """What the model behind says of images as they are, (n, classes)."""
        return call(self.base, x, None if rng is None else rng.fork("base"), self.base_stochastic)


@runtime_checkable
class WithSteps(Protocol):
    """A purifier that tells its steps."""

    def states(self, x: Tensor, rng: ExampleRNG | None) -> Tensor:
        """The images before the first and after every step, (steps + 1, n, c, h, w), differentiable in bounded memory."""
        ...


class Approximated(nn.Module):
    """The output of a purifier with the Jacobian of a substitute: backward pass differentiable approximation (BPDA).

    Athalye et al. 2018, arXiv:1802.00420, section 4. The identity serves where purified images are near the given.
    """

    def __init__(self, purifier: nn.Module, substitute: nn.Module, *, stochastic: bool) -> None:
        super().__init__()
        self.purifier = purifier
        self.substitute = substitute
        self.stochastic = stochastic

    def forward(self, x: Tensor, rng: ExampleRNG | None = None) -> Tensor:
        """Images (n, c, h, w), exactly the purifier's."""
        with torch.no_grad():
            pure = call(self.purifier, x.detach(), rng, self.stochastic)
        shadow: Tensor = self.substitute(x)
        return pure + (shadow - shadow.detach())
