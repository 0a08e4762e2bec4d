"""Gaussian noise at the input, averaged over several passes."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advbench.attacks.rng import ExampleRNG
from advbench.defenses.defended import Defended
from advbench.defenses.inference.at_test_time import TestTimeDefense
from advbench.defenses.inference.composition import call, in_front_of


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragedNoise(TestTimeDefense):
    """A model behind Gaussian noise, whose predictions are averaged over passes; `noisy` says where the noise goes.

    sigma: standard deviation. passes: forward passes averaged. base: the spec of the defense that trained the model.
    """

    sigma: float = 0.1
    passes: int = 20
    base: str = "none"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma >= 0):
            raise ValueError(f"Expected `sigma` >= 0, got {self.sigma}")
        if self.passes < 1:
            raise ValueError(f"Expected `passes` >= 1, got {self.passes}")

    @abstractmethod
    def noisy(self, model: nn.Module, stochastic: bool) -> nn.Module:
        """`model` with the noise; `stochastic` says whether it takes an rng. ValueError if noise cannot reach it."""

    def wrap(self, inputs: Mapping[str, Defended]) -> Defended:
        """The noise in ``inputs["base"]``."""
        return in_front_of(inputs["base"], self.noisy, stochastic=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputNoise(AveragedNoise):
    """Gaussian noise at the input at test time, predictions averaged, Gu and Rigazio 2014, arXiv:1412.5068.

    Section 3, noise at the first layer only (L1): ``p(x) = mean over passes of f(x + n)``, n normal with deviation `sigma`.
    No training; noisy images are not clipped.

    sigma: standard deviation in pixel units of [0, 1]; the paper sweeps it and names 0.1. passes: forward passes averaged,
    20 in the paper. base: the spec of the defense that trained the model behind the noise.
    """

    def noisy(self, model: nn.Module, stochastic: bool) -> nn.Module:
        """Noise in front of `model`."""
        return Noisy(model, sigma=self.sigma, passes=self.passes, stochastic=stochastic)


class Noisy(nn.Module):
    """A model that averages its predictions over noisy copies of the image.

    base: images (n, c, h, w) -> logits (n, classes). stochastic: whether `base` takes an rng. The answer is the logarithm
    of the mean probabilities, so that its softmax is the mean prediction and its cross-entropy the mean prediction's
    negative log-likelihood. Averaged logits would be another predictor: one confident pass could outvote all others.
    """

    def __init__(self, base: nn.Module, *, sigma: float, passes: int, stochastic: bool) -> None:
        super().__init__()
        self.base = base
        self.sigma = sigma
        self.passes = passes
        self.stochastic = stochastic

    def extra_repr(self) -> str:
        """What the structure is, beside its parts."""
        return f"sigma={self.sigma}, passes={self.passes}"

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        """Log mean probabilities (n, classes) of images (n, c, h, w); all passes run in one forward of n * passes images."""
        rng = tiled(rng.fork("input-noise"), self.passes)
        noise = rng.fork("noise").normal(tuple(x.shape[1:]), x.dtype)
        logits = call(self.base, x.repeat(self.passes, 1, 1, 1) + self.sigma * noise, rng.fork("base"), self.stochastic)
        return mean_prediction(logits.view(self.passes, len(x), -1))


def tiled(rng: ExampleRNG, times: int) -> ExampleRNG:
    """The streams of `times` copies of the batch, one copy after the other, each copy with draws of its own."""
    copy = torch.arange(times, device=rng.index.device).repeat_interleave(len(rng.index))
    return rng.select(torch.arange(len(rng.index), device=rng.index.device).repeat(times)).at(
        rng.draw.repeat(times) * times + copy
    )


def mean_prediction(logits: Tensor) -> Tensor:
    """Log of the mean probabilities, shape (n, classes), of the passes' logits, shape (passes, n, classes)."""
    return logits.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(logits))
