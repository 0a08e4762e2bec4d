"""Deep contractive networks: train with a penalty on the Jacobian of every layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from advbench.defenses.defended import Architecture, Defended
from advbench.defenses.kernels.layers import contraction
from advbench.defenses.kernels.projection import check_output, network_jacobian
from advbench.defenses.training.gaussian_noise import add_noise, check_sigma, generator_of
from advbench.defenses.training.trained import Trained, fresh, train_fresh
from advbench.defenses.training.weight_decay import dense_decay
from advbench.zoo.data import DataSet
from advbench.zoo.training import Budget, Progress, Step, accuracy

GRID = tuple(10.0 ** (exponent / 4) for exponent in range(-24, 7))
"""The coefficients that the search chooses among: quarter decades from 1e-6 to 32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepContractive(Trained):
    """Deep contractive network, a penalty on each layer's Jacobian, Gu and Rigazio 2014, arXiv:1412.5068.

    Equation 6: the cross-entropy plus ``sum over layers of coefficient * ||dh_j/dh_(j-1)||_F^2``, averaged over images. The
    paper prints the norm both squared and not; it is squared here, as in the contractive autoencoder that the paper builds
    on. The norms are exact where the kernels have a closed form (`advbench.defenses.kernels.layers`).

    coefficient: one for all layers or one per layer. None searches `GRID` for the largest whose clean validation error is
    within `tolerance` of the same training without the penalty: a bisection of five trainings beside that one. The paper
    trains "until the error is nearly that of the original model" and gives no number. The network keeps the coefficients
    that it was trained with in its buffer `contraction`. tolerance: 0.005 is half a point. jacobian: `layers`, or
    `network` for the whole network's Jacobian dy/dx (equation 5, which the paper calls ideal and does not run): exact for
    few classes, else one random projection. output: whether the last layer ends in its `softmax` or its `logits`. noise:
    standard deviation of Gaussian noise on the training images (DCN+GN,L1 has 0.1). weight_decay: coefficient of the squared
    weights of dense layers, 1e-3 in the paper.
    """

    coefficient: float | tuple[float, ...] | None = None
    tolerance: float = 0.005
    jacobian: str = "layers"
    output: str = "softmax"
    noise: float = 0.0
    weight_decay: float = 1e-3

    def __post_init__(self) -> None:
        for value in self._coefficients():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"Expected `coefficient` >= 0, got {value}")
        if self.coefficient == ():
            raise ValueError("Expected `coefficient` to have a number per layer, got none")
        for name in ("tolerance", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"Expected `{name}` >= 0, got {getattr(self, name)}")
        if self.jacobian not in ("layers", "network"):
            raise ValueError(f"Expected `jacobian` layers or network, got {self.jacobian!r}")
        if self.jacobian == "network" and isinstance(self.coefficient, tuple):
            raise ValueError("Expected one `coefficient` for the Jacobian of the network, got one per layer")
        check_output(self.output)
        check_sigma("noise", self.noise)

    def _coefficients(self) -> tuple[float, ...]:
        """The coefficients as given: one, or one per layer; none where they are searched for."""
        if self.coefficient is None:
            return ()
        return self.coefficient if isinstance(self.coefficient, tuple) else (self.coefficient,)

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
        """Cross-entropy and penalty of one forward pass, on the validation split too (there with one fixed noise)."""
        generator = generator_of(step, x.device)
        if self.noise:
            x = add_noise(x, self.noise, generator)
        if not any(self._coefficients()):
            return {"cross_entropy": nn.functional.cross_entropy(model(x), y)} | dense_decay(model, self.weight_decay, step)
        if self.jacobian == "network":
            logits, norms = network_jacobian(model, x, output=self.output, generator=generator)
            terms = {
                "cross_entropy": nn.functional.cross_entropy(logits, y),
                "contraction": self._coefficients()[0] * norms.mean(),
            }
            return terms | dense_decay(model, self.weight_decay, step)
        found = contraction(model, x, self._coefficients(), output=self.output, generator=generator)
        terms = {"cross_entropy": nn.functional.cross_entropy(found.logits, y), "contraction": found.penalty}
        return terms | dense_decay(model, self.weight_decay, step, found.weights, found.squares)

    def build(self, architecture: Architecture, data: DataSet, inputs: Mapping[str, Defended]) -> Defended:  # noqa: ARG002
        """The untrained network, with room for the coefficients that it will have been trained with."""
        return Defended(_marked(fresh(architecture, seed=0), self._coefficients() or (0.0,)))

    def fit(
        self,
        architecture: Architecture,
        data: DataSet,
        *,
        inputs: Mapping[str, Defended],  # noqa: ARG002
        seed: int,
        device: torch.device,
        budget: Budget,
        progress: Progress | None = None,
    ) -> Defended:
        """The network trained with the penalty, on `device`: by the coefficient that was given, or that a search found."""

        def trained(coefficient: float | tuple[float, ...], watch: Progress | None) -> nn.Module:
            defense = replace(self, coefficient=coefficient)
            found = train_fresh(architecture, data, defense.start, seed=seed, device=device, budget=budget, progress=watch)
            return _marked(found.model, defense._coefficients())

        if self.coefficient is not None:
            return Defended(trained(self.coefficient, progress))
        validation = data.validation.to(device)
        return Defended(largest(trained, lambda model: 1 - accuracy(model, validation), self.tolerance, progress))


def largest(
    trained: Callable[[float, Progress | None], nn.Module],
    error: Callable[[nn.Module], float],
    tolerance: float,
    progress: Progress | None = None,
) -> nn.Module:
    """The model of the largest coefficient of `GRID` that costs at most `tolerance` of clean error, by bisection.

    trained: (coefficient, progress) -> the trained model; a diverged training (FloatingPointError) counts as too large.
    error: a model's error on validation images, in [0, 1]. Where no coefficient of the grid is small enough, the model
    trained with 0 comes back.
    """
    trainings = 1 + math.ceil(math.log2(len(GRID) + 1))
    best = trained(0.0, _part(progress, 0, trainings))
    allowed = error(best) + tolerance
    low, high = -1, len(GRID)
    for number in range(1, trainings):
        if high - low < 2:
            break
        middle = (low + high) // 2
        try:
            model = trained(GRID[middle], _part(progress, number, trainings))
        except FloatingPointError:
            high = middle
            continue
        if error(model) <= allowed:
            low, best = middle, model
        else:
            high = middle
    return best


def _part(progress: Progress | None, number: int, trainings: int) -> Progress | None:
    """The progress of one training of several."""
    if progress is None:
        return None
    report = progress
    return lambda done, steps: report(done + number * steps, trainings * steps)


def _marked(model: nn.Module, coefficients: tuple[float, ...]) -> nn.Module:
    """The model with its coefficients as a buffer, so that a checkpoint says what it was trained with."""
    device = next(model.parameters()).device
    model.register_buffer("contraction", torch.tensor(coefficients, device=device))
    return model
