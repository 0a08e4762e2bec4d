"""Networks whose hidden layers are pre-trained as the encoder of an autoencoder."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advbench.defenses.defended import Architecture, Defended
from advbench.defenses.kernels.layers import layer_jacobians, layers_of
from advbench.defenses.training.gaussian_noise import generator_of
from advbench.defenses.training.trained import Trained, fresh, stream
from advbench.defenses.training.weight_decay import dense_decay
from advbench.modes import evaluating
from advbench.zoo.data import DataSet
from advbench.zoo.training import Budget, Progress, Step, cross_entropy, derive_seed, seeded, train


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretrained(Trained):
    """Two trainings, each with the run's budget: the hidden layers as an encoder without labels, then the classifier.

    The decoder is one dense layer with sigmoid output, untied, and is thrown away; the reconstruction error is the squared
    error of an image. frozen: whether the encoder stays as it is while the classifier is trained; it is fine-tuned
    otherwise. weight_decay: coefficient of the squared weights of dense layers while the classifier is trained.
    """

    frozen: bool = False
    weight_decay: float = 0.0

    @abstractmethod
    def regularised(self, encoder: nn.Module, x: Tensor, step: Step) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The code of the images `x`, and what is added to the reconstruction error."""

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
        """Cross-entropy of the clean batch and, while training, the penalty: the second training."""
        return {**cross_entropy(model, x, y, step), **dense_decay(model, self.weight_decay, step)}

    def reconstruction(self, model: nn.Module, x: Tensor, _: Tensor, step: Step) -> Mapping[str, Tensor]:
        """Mean squared error of the images, summed over pixels, with the regularisers: the first training."""
        assert isinstance(model, nn.Sequential)
        encoder, decoder = model
        code, terms = self.regularised(encoder, x, step)
        return {"reconstruction": (decoder(code) - x).square().flatten(1).sum(dim=1).mean(), **terms}

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
        """The network trained twice, on `device`. ValueError for a network without a hidden layer that can be reached."""
        first, second = progress, progress
        if progress is not None:
            report = progress
            first, second = lambda done, steps: report(done, 2 * steps), lambda done, steps: report(steps + done, 2 * steps)
        model = fresh(architecture, seed)
        autoencoder = autoencoder_around(model, data.shape, seed)
        train(
            autoencoder, self.reconstruction, data, budget=budget, seed=seed, device=device, progress=first, streams=stream
        )
        autoencoder[0].requires_grad_(not self.frozen)
        train(model, self.objective, data, budget=budget, seed=seed, device=device, progress=second, streams=stream)
        model.requires_grad_(True)
        return Defended(model)


def check_coefficients(defense: Pretrained, *names: str) -> None:
    """ValueError unless these fields are no less than zero."""
    for name in names:
        if not getattr(defense, name) >= 0:
            raise ValueError(f"Expected `{name}` >= 0, got {getattr(defense, name)}")


def autoencoder_around(model: nn.Module, shape: tuple[int, int, int], seed: int) -> nn.Sequential:
    """Encoder and decoder: the network up to its last layer, modules shared, and a dense layer back to images of `shape`.

    Raises ValueError for a network without a hidden layer (one that is no `nn.Sequential` hides its layers).
    """
    cut = layers_of(model)
    if len(cut.layers) < 2:
        raise ValueError(
            f"Expected an nn.Sequential with a hidden layer to pre-train, got {type(model).__name__} of one layer"
        )
    encoder = nn.Sequential(*cut.prepare.modules, *(module for layer in cut.layers[:-1] for module in layer.modules))
    with evaluating(encoder), torch.no_grad():
        features = encoder(torch.zeros(1, *shape)).numel()
    with seeded(derive_seed(seed, "decoder")):
        out = nn.Linear(features, math.prod(shape))
    return nn.Sequential(encoder, nn.Sequential(nn.Flatten(), out, nn.Sigmoid(), nn.Unflatten(1, shape)))


@dataclass(frozen=True, slots=True, kw_only=True)
class SparsePretraining(Pretrained):
    """Hidden layers from a sparse autoencoder, the training of AE400-10, Gu and Rigazio 2014, arXiv:1412.5068.

    The paper takes the network over from Szegedy et al. 2014 (arXiv:1312.6199); neither gives the penalty or its weight.
    Its section 2.2 puts a weight decay of 1e-3 on all dense layers, which undoes much of the pre-training: none by default.
    sparsity: coefficient of the code's l1 norm, averaged over images.
    """

    sparsity: float = 0.01

    def __post_init__(self) -> None:
        check_coefficients(self, "sparsity", "weight_decay")

    def regularised(self, encoder: nn.Module, x: Tensor, step: Step) -> tuple[Tensor, Mapping[str, Tensor]]:  # noqa: ARG002
        """The code and its l1 norm."""
        code = encoder(x)
        return code, {"sparsity": self.sparsity * code.abs().flatten(1).sum(dim=1).mean()}


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractivePretraining(Pretrained):
    """Hidden layers from a contractive autoencoder, Rifai et al. 2011, arXiv:1104.4153.

    The penalty is the squared Frobenius norm of the code's Jacobian, averaged over images; of each layer's Jacobian where
    the encoder has several. Rifai et al. tie the decoder's weights and, on binary images, take the cross-entropy.
    contraction: coefficient of the penalty.
    """

    contraction: float = 0.1

    def __post_init__(self) -> None:
        check_coefficients(self, "contraction", "weight_decay")

    def regularised(self, encoder: nn.Module, x: Tensor, step: Step) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The code and the norms of its layers' Jacobians."""
        code, norms = layer_jacobians(encoder, x, output="logits", generator=generator_of(step, x.device))
        return code, {"contraction": self.contraction * torch.stack([norm.mean() for norm in norms.values()]).sum()}
