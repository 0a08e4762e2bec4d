"""The part that Defense-GAN is built on: a generator of images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from advbench.defenses.defended import Architecture, Defended
from advbench.defenses.training.wgan_gp import Rule, train_wgan_gp
from advbench.zoo.architectures import defense_gan
from advbench.zoo.data import DataSet
from advbench.zoo.training import Budget, Progress, derive_seed, seeded


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageGenerator:
    """A generator trained as a Wasserstein GAN with gradient penalty, Gulrajani et al. 2017, arXiv:1704.00028.

    Its model maps latent vectors (n, latent), standard normal, to images (n, c, h, w) in [0, 1]. It sees no labels and no
    classifier, so one serves them all.

    network: `convolutional`, as in the code of Samangouei et al. 2018 (arXiv:1805.06605), or `dense`, whose steps cost a
    tenth on a CPU. width: channels at the widest resolution, 64 there; a dense network has 4 times as many hidden units.
    latent: length of the latent vectors. iterations: updates of the generator, 200000 in that code; None makes them so many
    that the critic sees the training images `lengthening` times as often as a classifier would in the run's epochs.
    critic_steps, penalty, learning_rate, batch_size: as in `Rule`. The run's number of training images counts; the rest of
    its budget (optimizer, learning rate, schedule, augmentation) does not.
    """

    network: str = "convolutional"
    width: int = 64
    latent: int = 128
    iterations: int | None = None
    lengthening: float = 1.0
    critic_steps: int = 5
    penalty: float = 10.0
    learning_rate: float = 1e-4
    batch_size: int = 50

    any_architecture: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.network not in defense_gan.GENERATORS:
            raise ValueError(f"Expected `network` among {', '.join(defense_gan.GENERATORS)}, got {self.network!r}")
        for name in ("width", "latent", "critic_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"Expected `{name}` >= 1, got {getattr(self, name)}")
        if self.iterations is not None and self.iterations < 1:
            raise ValueError(f"Expected `iterations` >= 1, got {self.iterations}")
        for name in ("lengthening", "learning_rate"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"Expected `{name}` > 0, got {getattr(self, name)}")
        if not self.penalty >= 0:
            raise ValueError(f"Expected `penalty` >= 0, got {self.penalty}")

    @property
    def inputs(self) -> Mapping[str, str]:
        """None: it starts from scratch."""
        return {}

    def iterations_of(self, budget: Budget, images: int) -> int:
        """Updates of the generator for so many training images."""
        if self.iterations is not None:
            return self.iterations
        shown = self.lengthening * budget.epochs * images
        return max(1, round(shown / (self.critic_steps * min(self.batch_size, images))))

    def build(self, architecture: Architecture, data: DataSet, inputs: Mapping[str, Defended]) -> Defended:  # noqa: ARG002
        """The untrained generator."""
        return Defended(self._generator(data, seed=0))

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
        """The trained generator, on `device`; its facts are the `iterations`. Raises FloatingPointError if it diverges."""
        training = data.train.first(budget.train_examples)
        iterations = self.iterations_of(budget, len(training))
        generator = self._generator(data, seed)
        with seeded(derive_seed(seed, "critic weights")):
            critic = defense_gan.CRITICS[self.network](data.shape, width=self.width)
        rule = Rule(
            critic_steps=self.critic_steps,
            penalty=self.penalty,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
        )
        train_wgan_gp(
            generator,
            critic,
            training,
            latent=self.latent,
            iterations=iterations,
            rule=rule,
            seed=seed,
            device=device,
            progress=progress,
        )
        return Defended(generator, facts={"iterations": float(iterations)})

    def _generator(self, data: DataSet, seed: int) -> nn.Module:
        if data.box != (0.0, 1.0):
            raise ValueError(f"Expected images in [0, 1] to generate, got those of {data.name}: take them not whitened")
        with seeded(derive_seed(seed, "weights")):
            return defense_gan.GENERATORS[self.network](data.shape, latent=self.latent, width=self.width)
