"""Denoising autoencoders: the score of the data, and with a classifier's cross-entropy the score of its classes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from advbench.attacks.access import frozen
from advbench.defenses.defended import Architecture, Defended, Surrogate
from advbench.defenses.inference.composition import call
from advbench.defenses.training.trained import fresh, stream
from advbench.zoo.architectures import malade2018
from advbench.zoo.data import DataSet
from advbench.zoo.training import Budget, Objective, Progress, Step, train

Guide = Callable[[Tensor, Tensor, Step], Mapping[str, Tensor]]
"""(denoised images (n, c, h, w), labels (n,), step) -> loss terms beside the reconstruction."""


class Denoiser(nn.Module):
    """The denoising autoencoder of Srinivasan et al. 2018 (arXiv:1805.12017) for images of any size.

    Images (n, c, h, w) -> images in (-1, 1) of that shape. If height or width is not a multiple of 4, zeros are added at the
    bottom and on the right before the network, and cut off again after it.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = shape
        self.missing = (-height % 4, -width % 4)
        self.network = malade2018.denoiser((channels, height + self.missing[0], width + self.missing[1]))

    def forward(self, x: Tensor) -> Tensor:
        """r(x), the denoised images."""
        rows, columns = self.missing
        if not rows and not columns:
            return self.network(x)  # type: ignore[no-any-return]
        return self.network(pad(x, (0, columns, 0, rows)))[..., : x.shape[2], : x.shape[3]]  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True, kw_only=True)
class DAE:
    """Denoising autoencoder, one for all classifiers (Alain and Bengio 2014, arXiv:1211.4246).

    Minimises the mean of ``||r(x + v) - x||^2``, v normal with deviation `sigma`, the sum taken over pixels. Its residual is
    then a score: ``r(x) - x = sigma^2 * grad log p_sigma(x)``, p_sigma the density of noisy images. Noisy images are not
    clipped, for that identity holds without clipping only.

    sigma: in pixel units of [0, 1], 0.3 in Srinivasan et al. 2018 (arXiv:1805.12017), which gives nothing else of its
    training. lengthening: training epochs as a multiple of the budget's, at least one epoch. learning_rate, batch_size: in
    place of the budget's, None for the budget's. 16,000 images of MNIST leave an error of 4.7 on noisy validation images
    with these, of 15.5 with a rate of 2e-3 and batches of 128; the noise itself has 70.6.
    """

    any_architecture: ClassVar[bool] = True

    sigma: float = 0.3
    lengthening: float = 1.0
    learning_rate: float | None = 1e-2
    batch_size: int | None = 32

    def __post_init__(self) -> None:
        for name in ("sigma", "lengthening"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"Expected `{name}` > 0, got {value}")
        self._budget(Budget())

    @property
    def inputs(self) -> Mapping[str, str]:
        """None: images are all that it learns from."""
        return {}

    def build(self, architecture: Architecture, data: DataSet, inputs: Mapping[str, Defended]) -> Defended:  # noqa: ARG002
        """The untrained autoencoder. ValueError for images without a range of pixels, which tanh cannot cover."""
        return Defended(fresh(lambda: untrained(data), seed=0))

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
        return self.trained(data, None, seed=seed, device=device, budget=budget, progress=progress)

    def trained(
        self,
        data: DataSet,
        guide: Guide | None,
        *,
        seed: int,
        device: torch.device,
        budget: Budget,
        progress: Progress | None,
    ) -> Defended:
        """An autoencoder trained from scratch to denoise and to please `guide`."""
        model, objective, own = fresh(lambda: untrained(data), seed), denoising(self.sigma, guide), self._budget(budget)
        history = train(model, objective, data, budget=own, seed=seed, device=device, progress=progress, streams=stream)
        return Defended(model, history=history)

    def _budget(self, budget: Budget) -> Budget:
        """The run's budget with this training's own values in their places."""
        return dataclasses.replace(
            budget,
            epochs=max(1, round(self.lengthening * budget.epochs)),
            learning_rate=budget.learning_rate if self.learning_rate is None else self.learning_rate,
            batch_size=budget.batch_size if self.batch_size is None else self.batch_size,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SDAE(DAE):
    """Supervised denoising autoencoder (sDAE), one per frozen classifier (Srinivasan et al. 2018, arXiv:1805.12017).

    Minimises the mean of ``||r(x + v) - x||^2 - weight * log p(y | r(x + v))`` with the training label y. By theorem 1 of
    the paper the residual is then, to first order, ``sigma^2`` times the mean over p(y|x) of ``grad log p(x, y)``.

    weight: None is ``2 sigma^2``, which makes the theorem hold (the paper's own formula is lost). 0 is the DAE, bit for bit.
    base: the spec of the defense that trained the classifier; one that draws is asked with fresh noise in every step.
    """

    any_architecture: ClassVar[bool] = False

    base: str = "none"
    weight: float | None = None

    def __post_init__(self) -> None:
        DAE.__post_init__(self)
        if self.weight is not None and not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"Expected `weight` >= 0, got {self.weight}")

    @property
    def inputs(self) -> Mapping[str, str]:
        """The classifier."""
        return {"base": self.base}

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
        """The trained autoencoder, on `device`; the classifier comes back as it was."""
        classifier = next(iter(inputs["base"].surrogates.values()))
        weight = 2 * self.sigma**2 if self.weight is None else self.weight
        classifier.model.to(device)
        with frozen(classifier.model):
            guide = supervision(classifier, weight) if weight else None
            return self.trained(data, guide, seed=seed, device=device, budget=budget, progress=progress)


def untrained(data: DataSet) -> Denoiser:
    """A fresh autoencoder for the images of `data`; ValueError if these have no range of pixels."""
    if data.box is None:
        raise ValueError(
            f"Expected images in [0, 1], got {data.name}, whose pixels have no range: the denoiser's tanh cannot reach them"
        )
    return Denoiser(data.shape)


def denoising(sigma: float, guide: Guide | None = None) -> Objective:
    """The mean of ``||r(x + v) - x||^2`` over images, v normal with deviation `sigma`, and the terms of `guide`."""

    def objective(model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
        noise = stream(step).fork("denoising").normal(tuple(x.shape[1:]), x.dtype)
        denoised = model(x + sigma * noise)
        terms = {"reconstruction": (denoised - x).square().flatten(1).sum(dim=1).mean()}
        return terms if guide is None else {**terms, **guide(denoised, y, step)}

    return objective


def supervision(classifier: Surrogate, weight: float) -> Guide:
    """``-weight * log p(y | r)`` of a frozen classifier."""

    def guide(denoised: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
        rng = stream(step).fork("classifier") if classifier.stochastic else None
        return {"supervision": weight * cross_entropy(call(classifier.model, denoised, rng, classifier.stochastic), y)}

    return guide
