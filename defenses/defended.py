"""What a defense is, and what it leaves behind: a model to score and the surrogates that an adaptive attacker uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import nn

from advbench.zoo.data import DataSet
from advbench.zoo.training import Budget, History, Progress

Architecture: TypeAlias = Callable[[], nn.Module]
"""Makes a fresh, untrained network: images (n, c, h, w) in [0, 1] -> logits (n, classes)."""


@dataclass(frozen=True, slots=True, eq=False)
class Detector:
    """What rejects images: a detected adversarial is a failed attack, a detected clean image is a lost one.

    model: images (n, c, h, w) in [0, 1] -> scores (n,), above zero where an image is rejected. The threshold, calibrated on
    clean validation images at a stated rate of false alarms, lies inside as a buffer. Differentiable, for the white-box
    attacker has its margin in the loss. stochastic: called as ``model(x, rng)`` with the same rng that the classifier gets,
    so that both can see one purified image; what it draws on its own it draws from a fork.
    """

    model: nn.Module
    stochastic: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Surrogate:
    """What an adaptive attacker differentiates in place of the scored model.

    model: images in [0, 1] -> logits; called as ``model(x, rng)`` where `stochastic`. evading: whether the attacker evades a
    detector too. detector: which, by default that of the defended model. exact: whether its answers are those of the scored
    model. Where they are not, success on it says little about success on that, and an attack does not stop there.
    """

    model: nn.Module
    stochastic: bool = False
    detector: Detector | None = None
    evading: bool = True
    exact: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Defended:
    """A defended model.

    model: what is scored, images (n, c, h, w) in [0, 1] -> logits (n, classes), normalisation inside; a stochastic one is
    called as ``model(x, rng)`` with an `ExampleRNG` of n examples and draws every random number from it.
    surrogates: what the white-box attacker differentiates, by name, the faithful one first; by default the model itself. The
    one named ``base``, where there is one, is the model without its test-time parts, for the attacker who ignores them.
    stochastic: whether the model takes an rng. detector: what rejects images, if anything does. history: what happened while
    it was trained; None where it was loaded, or if the whole was not trained in one training. facts: numbers that the
    training found and that its checkpoint keeps, such as the decay length of a covariance, by name.

    Raises ValueError for a stochastic detector beside a model that takes no rng.
    """

    model: nn.Module
    stochastic: bool = False
    surrogates: Mapping[str, Surrogate] = field(default_factory=dict)
    history: History | None = None
    facts: Mapping[str, float] = field(default_factory=dict)
    detector: Detector | None = None

    def __post_init__(self) -> None:
        if self.detector is not None and self.detector.stochastic and not self.stochastic:
            raise ValueError("Expected a stochastic model beside a stochastic detector, got one that takes no rng")
        given = self.surrogates or {"faithful": Surrogate(self.model, self.stochastic)}
        object.__setattr__(self, "surrogates", {name: self._with_detector(surrogate) for name, surrogate in given.items()})

    def _with_detector(self, surrogate: Surrogate) -> Surrogate:
        """The surrogate with the detector that its attacker evades."""
        own = surrogate.detector is not None or not surrogate.evading or self.detector is None
        return surrogate if own else replace(surrogate, detector=self.detector)

    def modules(self) -> nn.ModuleDict:
        """Everything that has state, as one module whose state dict is the checkpoint."""
        parts = {"model": self.model}
        parts |= {f"surrogate-{name}": surrogate.model for name, surrogate in self.surrogates.items()}
        if self.detector is not None:
            parts["detector"] = self.detector.model
        for name, surrogate in self.surrogates.items():
            if surrogate.detector is not None and surrogate.detector is not self.detector:
                parts[f"detector-{name}"] = surrogate.detector.model
        return nn.ModuleDict(parts)


@dataclass(frozen=True, slots=True)
class Input:
    """A model that a defense is built on: a defense's or a part's spec, and an architecture other than the defense's own."""

    spec: str
    architecture: str | None = None


@runtime_checkable
class Defense(Protocol):
    """A frozen dataclass of hyper-parameters that turns an architecture and a data set into a `Defended`.

    A field named `epsilon` whose value is None means that of the run's threat (or the data set's usual one for
    the defense's `norm` where the run's threat has another norm); the plan fills it in before `fit` is called.

    A *part* (`advbench.defenses.PARTS`), such as a denoising autoencoder or a generator, is the same protocol with a
    `Defended` whose model is not a classifier. One whose class has ``any_architecture = True`` does not see the classifier's
    architecture: it is trained once for all of them, and its `architecture` raises when called.
    """

    @property
    def inputs(self) -> Mapping[str, str | Input]:
        """Other models that this one is built on: name -> spec of a defense or a part, such as ``none`` or ``pgd-linf``."""
        ...

    def build(self, architecture: Architecture, data: DataSet, inputs: Mapping[str, Defended]) -> Defended:
        """The untrained structure, into which a checkpoint is loaded. `data` gives shapes and class counts only."""
        ...

    def fit(
        self,
        architecture: Architecture,
        data: DataSet,
        *,
        inputs: Mapping[str, Defended],
        seed: int,
        device: torch.device,
        budget: Budget,
        progress: Progress | None = None,
    ) -> Defended:
        """The trained defense, on `device`. Only `data.train` and `data.validation` may be used."""
        ...
