"""Training on clean images and on perturbed copies of them, the baselines of structured gradient regularisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from advbench.attacks.correlated_noise import correlated
from advbench.attacks.covariance import Covariance, of_function
from advbench.attacks.rng import ExampleRNG
from advbench.defenses.kernels.covariance import exponential
from advbench.defenses.training.ascent import unchanged
from advbench.defenses.training.robust_optimisation import RobustLinf
from advbench.defenses.training.trained import Trained, stream
from advbench.zoo.training import Step

_MOST_FACTORED = 4096
"""The most pixels (h w) of an image whose correlated noise comes from a factored covariance; larger ones take the FFT."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FGSMAugmented(RobustLinf):
    """FGSM-augmented training with predicted labels, Roth et al. 2018, arXiv:1805.08736.

    The loss is ``alpha J(x) + (1 - alpha) J(x_adv)``, both with the true label; x_adv ascends the loss of the label that the
    network predicts, so that the perturbation does not tell which label is true (label leaking, Kurakin et al. 2017,
    arXiv:1611.01236). The fields are those of `RobustOptimisation`; the paper prints neither the share nor epsilon.
    """

    alpha: float = 0.5

    def _perturbed(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Tensor:  # noqa: ARG002
        return RobustLinf._perturbed(self, model, x, predicted(model, x), step)


@dataclass(frozen=True, slots=True, kw_only=True)
class PGDAugmented(FGSMAugmented):
    """PGD-augmented training with predicted labels, Roth et al. 2018, arXiv:1805.08736.

    As `FGSMAugmented`, with an ascent of several steps from a random start; the paper does not print its steps, which are
    10 of 2.5 / 10 of epsilon here.
    """

    steps: int = 10
    step_size: float = 0.25
    random_start: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrelatedAugmented(Trained):
    """Training augmented by long-range correlated noise, Roth et al. 2018, arXiv:1805.08736.

    The loss is ``alpha J(x) + (1 - alpha) J(x + sigma z)``, the noise fresh in every step and the sum clipped to [0, 1].
    z is Gaussian, of unit variance, its covariance exp(-r / decay_length) with the distance r in pixels, times
    `channel_correlation` between two channels (`attacks.correlated_noise`).

    alpha: share of the clean images' loss, in [0, 1]. sigma: standard deviation of the noise. decay_length: in pixels; 8 is
    the paper's when it sets the strength of its defenses. channel_correlation: in [0, 1].
    """

    alpha: float = 0.5
    sigma: float = 0.3
    decay_length: float = 8.0
    channel_correlation: float = 0.5

    def __post_init__(self) -> None:
        for name in ("alpha", "channel_correlation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Expected `{name}` in [0, 1], got {getattr(self, name)}")
        for name in ("sigma", "decay_length"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Expected `{name}` > 0, got {getattr(self, name)}")

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
        """Cross-entropy of the noisy batch and of the clean one, each times its share; one fixed noise in validation."""
        noisy = (x + self.sigma * self._noise(x, stream(step))).clamp(0, 1)
        return {
            "noisy": (1 - self.alpha) * cross_entropy(model(noisy), y),
            "clean": self.alpha * cross_entropy(model(x), y),
        }

    def _noise(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        c, h, w = x.shape[1:]
        if h * w <= _MOST_FACTORED:
            return correlated(x, rng, self.decay_length, self.channel_correlation)
        return _covariance((c, h, w), self.decay_length, self.channel_correlation).sample(x, rng)


@lru_cache(maxsize=2)
def _covariance(shape: tuple[int, int, int], decay_length: float, channel_correlation: float) -> Covariance:
    return of_function(exponential(shape, decay_length, channel_correlation))


def predicted(model: nn.Module, x: Tensor) -> Tensor:
    """The labels that the network gives in the mode that it is in, shape (n,); its buffers stay as they were."""
    with torch.no_grad(), unchanged(model):
        labels: Tensor = model(x).argmax(dim=1)
    return labels
