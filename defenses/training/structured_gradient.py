"""Structured gradient regularisation: small input gradients along the directions in which images are perturbed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

from advbench.attacks.threat import Norm, ThreatModel
from advbench.defenses.defended import Architecture, Defended
from advbench.defenses.kernels.covariance import decay_length, exponential
from advbench.defenses.kernels.covariance_operator import Covariance, operator_of, quadratic_form, unit_diagonal
from advbench.defenses.kernels.covariance_running import RunningFunction, RunningMatrix, RunningMoments
from advbench.defenses.training.ascent import ascend
from advbench.defenses.training.augmented import predicted
from advbench.defenses.training.gradient_norm import check_coefficient
from advbench.defenses.training.linearised import linearise
from advbench.defenses.training.trained import FromScratch, stream, train_fresh
from advbench.zoo.data import DataSet, Split
from advbench.zoo.training import Budget, Progress, Step

Form: TypeAlias = Literal["radial", "displacement", "matrix"]
FORMS: tuple[Form, ...] = ("radial", "displacement", "matrix")


@dataclass(frozen=True, slots=True, kw_only=True)
class Structured(FromScratch):
    """What all forms of structured gradient regularisation share (Roth et al. 2018, arXiv:1805.08736).

    The loss is ``cross-entropy + coefficient / 2 * mean of g^T S g``, g the gradient of an image's cross-entropy in its
    pixels and S the second moments of perturbations, scaled to a mean diagonal of one, so that the gradient norm is the case
    S = I of the same coefficient. The weights' gradient goes through a double backward pass.

    coefficient: lambda of the paper, which does not print its value.
    """

    coefficient: float = 0.1

    def __post_init__(self) -> None:
        check_coefficient(self.coefficient)

    @abstractmethod
    def start(self, training: Split) -> Penalised:
        """The objective of one training, with a covariance of its own."""

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
        """The trained network; its facts say how strong the penalty was and what the covariance looked like in the end."""
        objectives: list[Penalised] = []

        def start(training: Split) -> Penalised:
            objectives.append(self.start(training))
            return objectives[0]

        defended = train_fresh(architecture, data, start, seed=seed, device=device, budget=budget, progress=progress)
        return replace(defended, facts=objectives[0].facts())


class Penalised:
    """The objective of one training: cross-entropy and the penalty under a covariance that subclasses may change."""

    def __init__(self, coefficient: float) -> None:
        self.coefficient = coefficient
        self.covariance: Covariance | None = None
        self.mean_diagonal = 0.0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
        """Cross-entropy of the clean batch, and the penalty; on the validation split too, where the covariance stays."""
        loss, gradient = linearise(model, x, y, differentiable=step.training)
        form = quadratic_form(self.covariance_for(gradient.detach(), step), gradient)
        return {"cross_entropy": loss, "structured_gradient": self.coefficient / 2 * form.mean()}

    def covariance_for(self, gradient: Tensor, step: Step) -> Covariance:  # noqa: ARG002
        """The covariance of this step, of unit mean diagonal; gradient: of the batch, (n, c, h, w)."""
        if self.covariance is None:
            raise ValueError("Expected a covariance, got none: a training step comes before validation")
        return self.covariance

    def keep(self, covariance: Covariance) -> None:
        """Take a covariance, scaled to a unit mean diagonal."""
        self.mean_diagonal = covariance.mean_diagonal
        self.covariance = unit_diagonal(covariance)

    def facts(self) -> Mapping[str, float]:
        """coefficient; clipped_mass, the lifted share of the spectrum; mean_diagonal, of S before it was scaled."""
        clipped = 0.0 if self.covariance is None else self.covariance.clipped
        return {"coefficient": self.coefficient, "clipped_mass": clipped, "mean_diagonal": self.mean_diagonal}


class Given(Penalised):
    """The objective under a covariance function that is known before the training."""

    def __init__(self, coefficient: float, function: Tensor, covariance: Covariance) -> None:
        super().__init__(coefficient)
        self.function = function
        self.keep(covariance)

    def facts(self) -> Mapping[str, float]:
        """Those of every penalty, and the covariance's decay length in pixels."""
        return {**super().facts(), "decay_length": decay_length(self.function)}


class Running(Penalised):
    """The objective under the running covariance of the training's own perturbations."""

    def __init__(self, defense: StructuredRunning, shape: tuple[int, int, int]) -> None:
        super().__init__(defense.coefficient)
        self.centred, self.period, self.taken = defense.centred, defense.update_period, 0
        self.running = defense.moments(shape, defense.beta)

    def take(self, xi: Tensor) -> None:
        """Take in the perturbations of a batch, (n, c, h, w); every `update_period` batches the penalty takes them over."""
        self.running.update(xi)
        if self.taken % self.period == 0:
            self.keep(self.running.covariance(centred=self.centred))
        self.taken += 1

    def facts(self) -> Mapping[str, float]:
        """Those of every penalty, and the covariance's decay length in pixels."""
        return {**super().facts(), "decay_length": decay_length(self.running.function(centred=self.centred))}


class OfGradients(Running):
    """The objective whose perturbations are the gradients that the penalty takes anyway, or their signs."""

    def __init__(self, defense: SGR, shape: tuple[int, int, int]) -> None:
        super().__init__(defense, shape)
        self.signs = defense.perturbation == "sign"

    def covariance_for(self, gradient: Tensor, step: Step) -> Covariance:
        """The covariance with this batch's gradients taken in, while training."""
        if step.training:
            self.take(gradient.sign() if self.signs else gradient)
        return super().covariance_for(gradient, step)


class OfAscents(Running):
    """The objective whose perturbations are found by an ascent of their own, before the penalty's forward pass."""

    def __init__(self, defense: SGRFGSM, shape: tuple[int, int, int]) -> None:
        super().__init__(defense, shape)
        self.defense = defense

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
        """Cross-entropy of the clean batch, and the penalty, this batch's perturbations taken in while training."""
        if step.training:
            self.take(self.defense.perturbations(model, x, step))
        return super().__call__(model, x, y, step)


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredMoments(Structured):
    """Structured gradient regularisation under the second moments of images.

    form: of S. `radial` is a function of the rounded distance of two pixels for each pair of channels, the paper's
    covariance function; `displacement` one of the displacement; `matrix` the full matrix, for images of at most 4096 values.
    Where a function's matrix is indefinite its negative eigenvalues are lifted to zero, because they would reward gradients
    (`advbench.defenses.kernels.covariance_lift`); the share that was lifted is a fact of the training. centred: moments
    about the mean image; raw ones otherwise.
    """

    form: Form = "radial"
    centred: bool = False

    def __post_init__(self) -> None:
        Structured.__post_init__(self)
        if self.form not in FORMS:
            raise ValueError(f"Expected `form` among {', '.join(FORMS)}, got {self.form!r}")

    def moments(self, shape: tuple[int, int, int], beta: float) -> RunningMoments:
        """Empty moments in the form asked for."""
        if self.form == "matrix":
            return RunningMatrix(shape, beta)
        return RunningFunction(shape, beta, isotropic=self.form == "radial")


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredRunning(StructuredMoments):
    """Structured gradient regularisation under running moments: S <- (1 - beta) S + beta E[xi xi^T].

    beta: the weight of a new batch, in (0, 1], 0.1 in the public version of the paper. The paper's moments are raw.
    update_period: after how many batches the penalty takes over the moments, >= 1, and its matrix is tested and lifted; the
    moments take in every batch, of which those of 10 weigh most at a beta of 0.1.
    """

    beta: float = 0.1
    update_period: int = 10

    def __post_init__(self) -> None:
        StructuredMoments.__post_init__(self)
        if not 0 < self.beta <= 1:
            raise ValueError(f"Expected `beta` in (0, 1], got {self.beta}")
        if self.update_period < 1:
            raise ValueError(f"Expected `update_period` >= 1, got {self.update_period}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SGR(StructuredRunning):
    """Structured gradient regularisation by the loss gradients' own moments, Roth et al. 2018, arXiv:1805.08736.

    perturbation: `sign`, the loss gradient's signs (the paper's main form), or `gradient`. Both come from the gradient that
    the penalty takes anyway, of the true label, so that no further pass is needed. The other fields are those of
    `StructuredMoments` and `StructuredRunning`.
    """

    perturbation: Literal["sign", "gradient"] = "sign"

    def __post_init__(self) -> None:
        StructuredRunning.__post_init__(self)
        if self.perturbation not in ("sign", "gradient"):
            raise ValueError(f"Expected `perturbation` to be sign or gradient, got {self.perturbation!r}")

    def start(self, training: Split) -> Penalised:
        """The objective, its covariance empty."""
        c, h, w = training.x.shape[1:]
        return OfGradients(self, (c, h, w))


@dataclass(frozen=True, slots=True, kw_only=True)
class SGRFGSM(StructuredRunning):
    """Structured gradient regularisation by the moments of FGSM perturbations, Roth et al. 2018, arXiv:1805.08736.

    The perturbations ascend the loss of the predicted label, inside [0, 1]. epsilon: in linf, in pixel units; None is that
    of the run's threat. steps, step_size (as a fraction of epsilon), random_start: of the ascent. The other
    fields are those of `StructuredMoments` and `StructuredRunning`.
    """

    norm: ClassVar[Norm] = "linf"
    epsilon: float | None = None
    steps: int = 1
    step_size: float = 1.0
    random_start: bool = False

    def __post_init__(self) -> None:
        StructuredRunning.__post_init__(self)
        if self.epsilon is not None:
            ThreatModel(self.norm, self.epsilon)
        if self.steps < 1:
            raise ValueError(f"Expected `steps` >= 1, got {self.steps}")
        if not self.step_size > 0:
            raise ValueError(f"Expected `step_size` > 0, got {self.step_size}")

    def start(self, training: Split) -> Penalised:
        """The objective, its covariance empty."""
        c, h, w = training.x.shape[1:]
        return OfAscents(self, (c, h, w))

    def perturbations(self, model: nn.Module, x: Tensor, step: Step) -> Tensor:
        """What the ascent adds to each image of a batch, (n, c, h, w)."""
        if self.epsilon is None:
            raise ValueError(f"Expected `epsilon` > 0, got None: give {type(self).__name__} one in {self.norm}")
        x_adv = ascend(
            model,
            x,
            predicted(model, x),
            ThreatModel(self.norm, self.epsilon),
            steps=self.steps,
            step_size=self.step_size,
            random_start=self.random_start,
            rng=stream(step),
        )
        return x_adv - x


@dataclass(frozen=True, slots=True, kw_only=True)
class SGRPGD(SGRFGSM):
    """Structured gradient regularisation by the moments of PGD perturbations, Roth et al. 2018, arXiv:1805.08736.

    The fields are those of `SGRFGSM`; the paper does not print its steps, which are 10 of 2.5 / 10 of epsilon here.
    """

    steps: int = 10
    step_size: float = 0.25
    random_start: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SGRCorrelated(Structured):
    """Structured gradient regularisation by long-range correlated noise, Roth et al. 2018, arXiv:1805.08736.

    S is that of the noise: exp(-r / decay_length) with the distance r within a channel, times `channel_correlation` between
    channels. decay_length: in pixels. channel_correlation: in [0, 1]. coefficient: as in `Structured`.
    """

    decay_length: float = 8.0
    channel_correlation: float = 0.5

    def __post_init__(self) -> None:
        Structured.__post_init__(self)
        if not self.decay_length > 0:
            raise ValueError(f"Expected `decay_length` > 0, got {self.decay_length}")
        if not 0 <= self.channel_correlation <= 1:
            raise ValueError(f"Expected `channel_correlation` in [0, 1], got {self.channel_correlation}")

    def start(self, training: Split) -> Penalised:
        """The objective, under the noise's covariance."""
        c, h, w = training.x.shape[1:]
        function = exponential((c, h, w), self.decay_length, self.channel_correlation).to(training.x)
        return Given(self.coefficient, function, operator_of(function))


@dataclass(frozen=True, slots=True, kw_only=True)
class SGRData(StructuredMoments):
    """Structured gradient regularisation by the training images' covariance, Roth et al. 2018, arXiv:1805.08736.

    S is that of the training images about their mean. The fields are those of `StructuredMoments`.
    """

    centred: bool = True

    def start(self, training: Split) -> Penalised:
        """The objective, under the images' covariance."""
        c, h, w = training.x.shape[1:]
        moments = self.moments((c, h, w), 1.0)
        moments.update(training.x)
        covariance = moments.covariance(centred=self.centred)
        return Given(self.coefficient, moments.function(centred=self.centred), covariance)
