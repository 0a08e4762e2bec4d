"""Gaussian noise at the input and behind every hidden layer, averaged over several passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from advbench.attacks.rng import ExampleRNG
from advbench.defenses.inference.composition import call
from advbench.defenses.inference.noise import AveragedNoise, mean_prediction, tiled
from advbench.defenses.kernels.layers import layers_of


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNoise(AveragedNoise):
    """Gaussian noise at every layer at test time, predictions averaged, Gu and Rigazio 2014, arXiv:1412.5068.

    Section 3, noise at all layers (L*): independent normal noise of one deviation is added to the image and to the output of
    every hidden layer, behind the nonlinearity (and pooling); the paper does not say on which side. No training; noisy
    images are not clipped. Where the base is itself a test-time defense, its classifier is what gets the noise in its hidden
    layers, and the image gets it ahead of everything.

    sigma: standard deviation, in pixel units of [0, 1] at the input and in units of the hidden values behind it; the paper
    sweeps it and names 0.1. passes: forward passes averaged, 20 in the paper. base: the spec of the defense that trained the
    model.
    """

    def noisy(self, model: nn.Module, stochastic: bool) -> nn.Module:
        """Noise in the layers of `model`. ValueError if its network hides them."""
        return NoisyLayers(model, sigma=self.sigma, passes=self.passes, stochastic=stochastic)


class NoisyLayers(nn.Module):
    """A model that averages its predictions over passes with noise at the image and behind each hidden layer.

    base: images (n, c, h, w) -> logits (n, classes). stochastic: whether `base` takes an rng. The answer is the logarithm of
    the mean probabilities, as that of `advbench.defenses.inference.noise.Noisy`.

    Raises ValueError if the network of `base` is not an `nn.Sequential`.
    """

    def __init__(self, base: nn.Module, *, sigma: float, passes: int, stochastic: bool) -> None:
        super().__init__()
        self.base = base
        self.sigma = sigma
        self.passes = passes
        self.stochastic = stochastic
        hidden_ends(base)

    def extra_repr(self) -> str:
        """What the structure is, beside its parts."""
        return f"sigma={self.sigma}, passes={self.passes}"

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        """Log mean probabilities (n, classes) of images (n, c, h, w); all passes run in one forward of n * passes images."""
        rng = tiled(rng.fork("layer-noise"), self.passes)
        asked = 0

        def noisy(h: Tensor) -> Tensor:
            nonlocal asked
            asked += 1
            copies = tiled(rng.fork("layer", asked), len(h) // len(rng.index))
            return h + self.sigma * copies.normal(tuple(h.shape[1:]), h.dtype)

        images = x.repeat(self.passes, 1, 1, 1)
        images = images + self.sigma * rng.fork("input").normal(tuple(x.shape[1:]), x.dtype)
        with _behind(hidden_ends(self.base), noisy):
            logits = call(self.base, images, rng.fork("base"), self.stochastic)
        return mean_prediction(logits.view(self.passes, len(x), -1))


def hidden_ends(model: nn.Module) -> tuple[nn.Module, ...]:
    """The last module of each hidden layer of the network that a defended model ends in, each module once.

    Test-time defenses keep the model behind them as ``base``; the network is the first that does not.
    Raises ValueError if it is not an `nn.Sequential`.
    """
    network = model
    while not isinstance(network, nn.Sequential) and isinstance(getattr(network, "base", None), nn.Module):
        network = network.base  # type: ignore[assignment]
    if not isinstance(network, nn.Sequential):
        raise ValueError(
            f"Expected an nn.Sequential, whose hidden layers noise can reach, got {type(network).__name__}: "
            "`input-noise` works for any network"
        )
    return tuple(dict.fromkeys(layer.modules[-1] for layer in layers_of(network).layers[:-1]))


@contextmanager
def _behind(modules: Sequence[nn.Module], change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let `change` have the output of every call of `modules`, and remove it, after an exception too."""

    def hook(_: nn.Module, __: tuple[Tensor, ...], h: Tensor) -> Tensor:
        return change(h)

    handles: list[RemovableHandle] = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
