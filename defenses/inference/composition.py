"""How a test-time defense stands in front of another defended model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
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


def purified(
    base: Defended,
    purifier: nn.Module,
    *,
    stochastic: bool,
    differentiable: bool = True,
    substitutes: Mapping[str, nn.Module] | None = None,
) -> Defended:
    """A purifier in front of a defended model, with the surrogates of an adaptive attacker (Athalye et al. 2018).

    purifier: images (n, c, h, w) -> images of that shape; called as ``purifier(x, rng)`` where `stochastic`. differentiable:
    whether its own gradient is worth anything; where not, as for a rounding, there is no faithful surrogate.
    substitutes: differentiable images -> images, by name, whose Jacobian stands in for the purifier's.

    The surrogates: ``faithful``, the purifier differentiated as it is, in front of the first surrogate of `base`;
    ``faithful-NAME``, in front of each further one; ``bpda``, its output with the identity for its Jacobian; ``bpda-NAME``,
    its output with the Jacobian of a substitute; ``base``, the first surrogate of `base` as if there were no purifier.
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
            surrogates["faithful" if position == 0 else f"faithful-{name}"] = Surrogate(outer, stochastic or each.stochastic)
    for label, substitute in {"bpda": nn.Identity(), **{f"bpda-{k}": v for k, v in (substitutes or {}).items()}}.items():
        approximate = Approximated(purifier, substitute, stochastic=stochastic)
        surrogates[label] = Surrogate(
            Purified(approximate, inner.model, stochastic=stochastic, base_stochastic=inner.stochastic),
            stochastic or inner.stochastic,
        )
    surrogates["base"] = inner
    return Defended(model, stochastic or base.stochastic, surrogates)


class Purified(nn.Module):
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
        """Logits of the purified images. ValueError where something is stochastic and no rng is given."""
        pure = call(self.purifier, x, None if rng is None else rng.fork("purifier"), self.stochastic)
        return call(self.base, pure, None if rng is None else rng.fork("base"), self.base_stochastic)


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
        shadow = self.substitute(x)
        return pure + (shadow - shadow.detach())
