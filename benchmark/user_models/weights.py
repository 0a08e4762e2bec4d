"""Weights of the user's own networks: the defense ``own``, which gives a network its weights and trains nothing.

No copy of the weights is kept: every task builds the model anew and compares its fingerprint with that of the plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from advbench.defenses.defended import Architecture, Defended
from advbench.tasks.images import scored_split
from advbench.user_models.blockwise import Blockwise
from advbench.user_models.files import file_hash
from advbench.user_models.handed import Handed, ordinary
from advbench.user_models.states import load_weights
from advbench.zoo import checkpoints
from advbench.zoo.data import DataSet
from advbench.zoo.preprocessing import Standardise
from advbench.zoo.training import Budget, Progress, seeded


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """A trained model of the user's; nothing is trained here.

    weights: a file of safetensors, or of a state dict that torch.load reads with ``weights_only``; empty where the factory
    of the network loads its own. weights_sha256: the fingerprint of the whole model (`zoo.checkpoints.fingerprint`), with
    which every build is compared; needed where `weights` is empty. mean, std: of the normalisation that the model expects,
    by channel, which becomes its first layer; none where empty. stochastic: whether it draws random numbers by torch's own
    generators, in blocks of `block` images (see `Blockwise`). n_examples: how many images are scored, all if None.
    """

    weights: str = ""
    weights_sha256: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    stochastic: bool = False
    block: int = 32
    n_examples: int | None = None

    inputs: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ValueError(f"Expected `mean` and `std` of the same length, got {len(self.mean)} and {len(self.std)}")
        if not all(math.isfinite(value) for value in self.mean) or not all(
            math.isfinite(value) and value > 0 for value in self.std
        ):
            raise ValueError(f"Expected a finite `mean` and a `std` above 0, got {self.mean} and {self.std}")

    @property
    def identity(self) -> str:
        """The hash of the file of weights, where there is one."""
        return file_hash(Path(self.weights)) if self.weights else ""

    def build(self, architecture: Architecture, data: DataSet, inputs: Mapping[str, Defended]) -> Defended:  # noqa: ARG002
        """The finished model. ValueError if it is not the one that the plan was made for."""
        if not (self.weights or self.weights_sha256):
            raise ValueError("Expected `weights`, a file, got none: own(weights='model.safetensors')")
        model = loaded(architecture, self.weights, self.mean, self.std, data.shape).model
        if self.weights_sha256 and checkpoints.fingerprint(model) != self.weights_sha256:
            raise ValueError(
                "Expected the model that the run was planned for, got other weights: do not change it meanwhile"
            )
        if not self.stochastic:
            return _Finished(model)
        index = scored_split(data, self.n_examples).index if self.n_examples is not None else None
        return _Finished(Blockwise(model, block=self.block, index=index), stochastic=True)

    def fit(
        self,
        architecture: Architecture,
        data: DataSet,
        *,
        inputs: Mapping[str, Defended],
        seed: int,  # noqa: ARG002
        device: torch.device,  # noqa: ARG002
        budget: Budget,  # noqa: ARG002
        progress: Progress | None = None,  # noqa: ARG002
    ) -> Defended:
        """The same as `build`: it is trained already."""
        return self.build(architecture, data, inputs)


@dataclass(frozen=True, slots=True, eq=False)
class _Finished(Defended):
    """A model whose weights lie elsewhere, so that a checkpoint of it is empty."""

    @property
    def network(self) -> nn.Module:
        """The model without the blocks that its random numbers are drawn in: images -> logits."""
        return self.model.model if isinstance(self.model, Blockwise) else self.model

    def modules(self) -> nn.ModuleDict:
        """The model, with nothing to keep."""
        return _Stateless({"model": self.model})


class _Stateless(nn.ModuleDict):
    """Modules of which no checkpoint keeps anything."""

    def state_dict(self, *arguments: Any, **keywords: Any) -> Any:  # noqa: ARG002
        """Nothing."""
        return {}

    def load_state_dict(self, *arguments: Any, **keywords: Any) -> Any:  # noqa: ARG002
        """Nothing to do."""
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A network with its weights and normalisation, in evaluation mode, and what was done to them, a line each."""

    model: Handed
    network: nn.Module
    said: tuple[str, ...]


def loaded(
    architecture: Architecture,
    weights: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    shape: tuple[int, int, int],
) -> Loaded:
    """A network with its weights and its normalisation; what the factory draws is the same every time.

    shape: of an image. Raises ValueError, in one line, for anything that does not fit.
    """
    if mean and len(mean) not in (1, shape[0]):
        raise ValueError(f"Expected a `mean` and a `std` for each of {shape[0]} channels, got {len(mean)}")
    with seeded(0), torch.inference_mode(False):
        network = architecture()
    said = load_weights(network, Path(weights)) if weights else ()
    model = Handed(_normalised(network, mean, std) if mean else network)
    ordinary(model)
    model.eval()
    return Loaded(model, network, said)


def _normalised(network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> nn.Module:
    first = Standardise(len(mean))
    first.mean.copy_(torch.tensor(mean).view(first.mean.shape))
    first.std.copy_(torch.tensor(std).view(first.std.shape))
    return nn.Sequential(first, network)
