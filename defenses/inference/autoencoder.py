"""Dense autoencoders in front of a classifier: trained on the adversarials of one model, or on Gaussian noise alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from advbench.attacks.access import frozen
from advbench.attacks.attack import Attack
from advbench.attacks.calibration import HeldOut, calibrate
from advbench.attacks.deepfool import DeepFool
from advbench.attacks.lbfgs import LBFGS
from advbench.attacks.threat import ThreatModel
from advbench.defenses.defended import Architecture, Defended, Input, Surrogate
from advbench.defenses.inference.at_test_time import TestTimeDefense
from advbench.defenses.inference.bit_depth import check_range
from advbench.defenses.inference.composition import purified
from advbench.defenses.training.gaussian_noise import add_noise, check_sigma, generator_of
from advbench.defenses.training.trained import fresh, stream
from advbench.zoo.architectures.gu2014 import autoencoder
from advbench.zoo.data import DataSet, Split
from advbench.zoo.training import Budget, Objective, Progress, Step, train

SOURCES: Mapping[str, Attack] = {"lbfgs": LBFGS(), "deepfool": DeepFool()}
"""The attacks whose images an autoencoder can be trained on: the paper's, and one that has no constant to
calibrate."""

_CALIBRATION = 100
_DRAWS = 4
_BATCH = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseDAE:
    """Dense denoising autoencoder, Gu and Rigazio 2014, arXiv:1412.5068, one for all classifiers.

    The autoencoder 784-256-128-256-784 minimises the squared error ``||A(x + n) - x||^2``, n normal and fresh in every step,
    noisy images not clipped. The paper prints neither its shape (that of its other autoencoder stands in) nor its loss.

    sigma: standard deviation, in pixel units of [0, 1]; 0.1 and 0.5 in the paper. batch_size: in place of the budget's, None
    for the budget's: autoencoders take more steps than classifiers do (after 1,500 on 12,000 images of MNIST, a net of 2%
    error had 3% behind an autoencoder of adversarials).
    """

    any_architecture: ClassVar[bool] = True

    sigma: float = 0.1
    batch_size: int | None = 64

    def __post_init__(self) -> None:
        check_sigma("sigma", self.sigma)
        _own(Budget(), self.batch_size)

    @property
    def inputs(self) -> Mapping[str, str]:
        """None: images are all that it learns from."""
        return {}

    def build(self, architecture: Architecture, data: DataSet, inputs: Mapping[str, Defended]) -> Defended:  # noqa: ARG002
        """The untrained autoencoder. ValueError for images without a range of pixels."""
        return Defended(untrained(data, seed=0))

    def fit(
        self,
        architecture: Architecture,  # noqa: ARG002
        data: DataSet,
        *,
        inputs: Mapping[str, Defended],  # noqa: ARG002
        seed: int,
        device: torch.device,
        budget: Budget,
        progress: Progress | None = None,
    ) -> Defended:
        """The trained autoencoder, on `device`; `seed` fixes weights, order and noise."""
        model, own = untrained(data, seed), _own(budget, self.batch_size)

        def objective(network: nn.Module, x: Tensor, _: Tensor, step: Step) -> Mapping[str, Tensor]:
            noisy = add_noise(x, self.sigma, generator_of(step, x.device))
            return {"reconstruction": squared_error(network(noisy), x)}

        history = train(model, objective, data, budget=own, seed=seed, device=device, progress=progress, streams=stream)
        return Defended(model, history=history)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdversarialAutoencoder:
    """Autoencoder trained on one model's adversarial images, Gu and Rigazio 2014, arXiv:1412.5068.

    The autoencoder 784-256-128-256-784 minimises the squared errors of clean images and of adversarial ones, one to one:
    ``||A(x) - x||^2 + ||A(x + r) - x||^2``. The adversarial images are minimal-norm ones (l2) of the source model around
    training images, crafted before the training; the constant of ``lbfgs`` is calibrated on validation images. Every step
    has as many of them as clean images, drawn with replacement. The paper leaves open the loss and the mixture.

    source: the spec of the defense whose model, of the architecture that the part is made for, is attacked. attack: `lbfgs`
    as in the paper, or `deepfool`, many times as fast and without a constant. images: how many training images are attacked,
    all if None. batch_size: as `DenseDAE` has it.
    """

    source: str = "none"
    attack: str = "deepfool"
    images: int | None = 2000
    batch_size: int | None = 64

    def __post_init__(self) -> None:
        check_crafting(self.attack, self.images)
        _own(Budget(), self.batch_size)

    @property
    def inputs(self) -> Mapping[str, str]:
        """The model that is attacked."""
        return {"source": self.source}

    def build(self, architecture: Architecture, data: DataSet, inputs: Mapping[str, Defended]) -> Defended:  # noqa: ARG002
        """The untrained autoencoder. ValueError for images without a range of pixels."""
        return Defended(untrained(data, seed=0))

    def fit(
        self,
        architecture: Architecture,  # noqa: ARG002
        data: DataSet,
        *,
        inputs: Mapping[str, Defended],
        seed: int,
        device: torch.device,
        budget: Budget,
        progress: Progress | None = None,
    ) -> Defended:
        """The trained autoencoder, on `device`; `seed` fixes adversarial images, weights and order."""
        model, own = untrained(data, seed), _own(budget, self.batch_size)
        source = next(iter(inputs["source"].surrogates.values()))
        wanted = data.train.first(budget.train_examples).first(self.images)
        x_adv = adversarials(SOURCES[self.attack], source, wanted, data, seed=seed, device=device)
        objective = restoring(wanted.x.to(device), x_adv)
        history = train(model, objective, data, budget=own, seed=seed, device=device, progress=progress, streams=stream)
        return Defended(model, history=history)


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoencoder(TestTimeDefense):
    """Autoencoder trained on one model's adversarials in front of any model, Gu and Rigazio 2014, arXiv:1412.5068.

    The cross-model defense of their table 3: ``f(A(x))``, A the part ``adversarial-autoencoder``. The attack on the whole
    stack is the faithful surrogate.

    source, source_architecture: the model whose adversarial images A learns to restore: the spec of its defense, and an
    architecture, this defense's own if None. attack, images: how they are crafted, as `AdversarialAutoencoder` has it.
    base: the spec of the defense that trained the model behind A.
    """

    source: str = "none"
    source_architecture: str | None = None
    attack: str = "deepfool"
    images: int | None = 2000
    base: str = "none"

    def __post_init__(self) -> None:
        check_crafting(self.attack, self.images)

    @property
    def models(self) -> Mapping[str, str | Input]:
        """The autoencoder."""
        part = f"adversarial-autoencoder(attack={self.attack!r}, images={self.images!r}, source={self.source!r})"
        return {"autoencoder": Input(part, self.source_architecture)}

    def wrap(self, inputs: Mapping[str, Defended]) -> Defended:
        """``inputs["autoencoder"]`` in front of ``inputs["base"]``."""
        return purified(inputs["base"], inputs["autoencoder"].model, stochastic=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoisingAutoencoder(TestTimeDefense):
    """Denoising autoencoder of Gaussian noise in front of any model, Gu and Rigazio 2014, arXiv:1412.5068.

    Their table 4: ``f(A(x))``, A the part ``dense-dae``, which never saw an adversarial image.

    sigma: of the noise that A was trained on, in pixel units of [0, 1]; 0.1 and 0.5 in the paper. base: the spec of the
    defense that trained the model behind A.
    """

    sigma: float = 0.1
    base: str = "none"

    def __post_init__(self) -> None:
        check_sigma("sigma", self.sigma)

    @property
    def models(self) -> Mapping[str, str | Input]:
        """The autoencoder."""
        return {"autoencoder": f"dense-dae(sigma={self.sigma!r})"}

    def wrap(self, inputs: Mapping[str, Defended]) -> Defended:
        """``inputs["autoencoder"]`` in front of ``inputs["base"]``."""
        return purified(inputs["base"], inputs["autoencoder"].model, stochastic=False)


def untrained(data: DataSet, seed: int) -> nn.Module:
    """A fresh autoencoder for the images of `data`; ValueError if these have no range of pixels."""
    check_range(data)
    return fresh(lambda: autoencoder(data.shape), seed)


def squared_error(found: Tensor, x: Tensor) -> Tensor:
    """The squared error summed over pixels, averaged over images (n, c, h, w): a scalar."""
    return (found - x).square().flatten(1).sum(dim=1).mean()


def restoring(x: Tensor, x_adv: Tensor) -> Objective:
    """The squared errors of a clean batch and, while training, of as many pairs of (x, x_adv), both (m, c, h, w)."""

    def objective(model: nn.Module, clean: Tensor, _: Tensor, step: Step) -> Mapping[str, Tensor]:
        terms = {"clean": squared_error(model(clean), clean)}
        if not step.training:
            return terms
        rows = stream(step).fork("adversarial").integers(len(x))
        given, wanted = step.transform(x_adv[rows]), step.transform(x[rows])
        return {**terms, "adversarial": squared_error(model(given), wanted)}

    return objective


def adversarials(
    attack: Attack, source: Surrogate, split: Split, data: DataSet, *, seed: int, device: torch.device
) -> Tensor:
    """Minimal-norm (l2) adversarial images of `source` around the images of `split`, (n, c, h, w), on `device`.

    What `attack` leaves open is found on validation images of `data`.
    """
    source.model.to(device)

    def held_out(images: Split) -> HeldOut:
        near = images.to(device)
        return HeldOut(
            x=near.x,
            y=near.y,
            index=near.index,
            threat=ThreatModel("l2", None, data.box),
            model=source.model,
            stochastic=source.stochastic,
            draws=_DRAWS,
            seed=seed,
            batch=_BATCH,
        )

    with frozen(source.model):
        ready = calibrate(attack, held_out(data.validation.first(_CALIBRATION)))
        return held_out(split).attacked(ready).x_adv


def _own(budget: Budget, batch_size: int | None) -> Budget:
    """The run's budget with batches of another size. ValueError for an empty one."""
    return budget if batch_size is None else dataclasses.replace(budget, batch_size=batch_size)


def check_crafting(attack: str, images: int | None) -> None:
    """ValueError for an unknown attack, or no images."""
    if attack not in SOURCES:
        raise ValueError(f"Expected `attack` among {', '.join(SOURCES)}, got {attack!r}")
    if images is not None and images < 1:
        raise ValueError(f"Expected `images` >= 1, got {images}")
