"""How a test-time defense stands in front of another defended model."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from advbench.attacks.rng import ExampleRNG
from advbench.defenses.defended import Defended, Surrogate


def call(model: nn.Module, x: Tensor, rng: ExampleRNG | None, stochastic: bool) -> Tensor:
    """The logits (n, classes) of a model that takes an rng only where it is `stochastic`."""
    if not stochastic:
        return model(x)  # type: ignore[no-any-return]
    if rng is None:
        raise ValueError("Expected `rng`, an ExampleRNG of the images, got None: the model is stochastic")
    return model(x, rng)  # type: ignore[no-any-return]


def in_front_of(base: Defended, wrap: Callable[[nn.Module, bool], nn.Module], *, stochastic: bool) -> Defended:
    """A defense that wraps the model of `base`, and what an adaptive attacker may differentiate.

    wrap: (model, whether it is stochastic) -> the wrapped model. stochastic: whether the wrapper itself draws.

    The surrogates: ``faithful``, the wrapper around the first surrogate of `base`; ``faithful-NAME``, the wrapper around
    each further one; ``base``, the first surrogate of `base` alone, as if the wrapper were not there.
    """
    model = wrap(base.model, base.stochastic)
    surrogates = {}
    for position, (name, inner) in enumerate(base.surrogates.items()):
        outer = model if inner.model is base.model else wrap(inner.model, inner.stochastic)
        surrogates["faithful" if position == 0 else f"faithful-{name}"] = Surrogate(outer, stochastic or inner.stochastic)
    surrogates["base"] = next(iter(base.surrogates.values()))
    return Defended(model, stochastic or base.stochastic, surrogates)
