"""What test-time defenses share: they stand in front of a trained model, and train nothing themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch

from advbench.defenses.defended import Architecture, Defended, Input
from advbench.zoo.data import DataSet
from advbench.zoo.training import Budget, Progress


class TestTimeDefense(ABC):
    """A frozen dataclass of hyper-parameters that wraps a trained model; `wrap` is all that a subclass must define.

    base: a field of every subclass, the spec of the defense that trained the model behind it. A subclass may name further
    models (`models`), refuse data sets (`check`), and find values on validation images (`fitted`).
    """

    __slots__ = ()
    base: str
    training_passes: ClassVar[float] = 0.0

    @abstractmethod
    def wrap(self, inputs: Mapping[str, Defended]) -> Defended:
        """The defense in front of ``inputs["base"]``, with the surrogates of an adaptive attacker."""

    @property
    def models(self) -> Mapping[str, str | Input]:
        """The models that it needs beside the base; none by default."""
        return {}

    def check(self, data: DataSet) -> None:  # noqa: B027 - most defenses take any images
        """Raise ValueError for images that the defense cannot take."""

    def fitted(self, data: DataSet, inputs: Mapping[str, Defended], *, seed: int, device: torch.device) -> Defended:  # noqa: ARG002
        """The defense on `device`, with what it finds on validation images; by default there is nothing to find."""
        defended = self.wrap(inputs)
        defended.modules().to(device)
        return defended

    @property
    def inputs(self) -> Mapping[str, str | Input]:
        """The model behind it, and further ones."""
        return {"base": self.base, **self.models}

    def build(self, architecture: Architecture, data: DataSet, inputs: Mapping[str, Defended]) -> Defended:  # noqa: ARG002
        """The structure into which a checkpoint is loaded. ValueError for images that the defense cannot take."""
        self.check(data)
        return self.wrap(inputs)

    def fit(
        self,
        architecture: Architecture,  # noqa: ARG002
        data: DataSet,
        *,
        inputs: Mapping[str, Defended],
        seed: int,
        device: torch.device,
        budget: Budget,  # noqa: ARG002
        progress: Progress | None = None,  # noqa: ARG002
    ) -> Defended:
        """The defense, ready, on `device`. ValueError for images that it cannot take."""
        self.check(data)
        return self.fitted(data, inputs, seed=seed, device=device)
