"""Training on noise: Gaussian noise at the input, or at the input and behind every hidden layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advbench.defenses.kernels.layers import layers_of
from advbench.defenses.training.trained import Trained
from advbench.defenses.training.weight_decay import dense_decay
from advbench.zoo.training import Step, derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianNoise(Trained):
    """Gaussian noise while training, at the input or at every layer, Gu and Rigazio 2014, arXiv:1412.5068.

    The baselines of section 4: GN,L1 and GN,L*. Noise is drawn anew in every step and absent from the trained model; noisy
    images are not clipped. Hidden layers get theirs behind the nonlinearity (and pooling); a network that is no
    `nn.Sequential` hides its layers, so that only `input` works for it.

    sigma: standard deviation, in pixel units of [0, 1] at the input and in units of the hidden values behind it, 0.1 in the
    paper. layers: `input` (L1) or `all` (L*). weight_decay: coefficient of the squared weights of dense layers, 1e-3 in the
    paper for all of its models.
    """

    sigma: float = 0.1
    layers: str = "input"
    weight_decay: float = 1e-3

    def __post_init__(self) -> None:
        check_sigma("sigma", self.sigma)
        if self.layers not in ("input", "all"):
            raise ValueError(f"Expected `layers` input or all, got {self.layers!r}")
        if not self.weight_decay >= 0:
            raise ValueError(f"Expected `weight_decay` >= 0, got {self.weight_decay}")

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
        """Cross-entropy of the noisy pass; on the validation split too, with one fixed noise."""
        generator = generator_of(step, x.device)
        noisy = add_noise(x, self.sigma, generator)
        logits = self._through(model, noisy, generator) if self.layers == "all" else model(noisy)
        return {"cross_entropy": nn.functional.cross_entropy(logits, y)} | dense_decay(model, self.weight_decay, step)

    def _through(self, model: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
        """Logits of a pass with noise behind every hidden layer."""
        if not isinstance(model, nn.Sequential):
            raise ValueError(
                f"Expected an nn.Sequential, whose hidden layers noise can reach, got {type(model).__name__}: "
                "`layers='input'` works for any network"
            )
        cut = layers_of(model)
        h = cut.prepare(x)
        for layer in cut.layers[:-1]:
            h = add_noise(layer(h), self.sigma, generator)
        return cut.layers[-1](h)


def add_noise(x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """`x` plus independent normal noise of standard deviation `sigma`, of the same shape."""
    return x + sigma * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def generator_of(step: Step, device: torch.device) -> torch.Generator:
    """The random numbers of a training step as a whole: fresh in every step, the same for a batch in every validation."""
    place = str(step.iteration) if step.training else f"validation/{int(step.index[0])}"
    return torch.Generator(device).manual_seed(derive_seed(step.seed, f"noise/{place}"))


def check_sigma(name: str, sigma: float) -> None:
    """ValueError unless `sigma` is a standard deviation."""
    if not (math.isfinite(sigma) and sigma >= 0):
        raise ValueError(f"Expected `{name}` >= 0, got {sigma}")
