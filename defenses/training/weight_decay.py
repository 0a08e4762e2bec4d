"""Weight decay: plain training with an L2 penalty on the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advbench.defenses.training.trained import Trained
from advbench.zoo.training import Step, cross_entropy


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightDecay(Trained):
    """Plain training with an L2 penalty on the weights, Gu and Rigazio 2014, arXiv:1412.5068.

    The loss is ``cross-entropy + coefficient * sum of W^2``, a term of the objective, so that an adaptive optimizer sees
    its gradient (it is not the decoupled decay of AdamW). The paper prints neither the factor 1/2 nor its absence; there is
    none here. Biases, norms and other one-dimensional parameters are never penalised. The validation loss leaves the
    penalty out.

    coefficient: of the penalty, 1e-3 in the paper. convolutions: whether convolutions are penalised too; the paper
    penalises all layers but those.
    """

    coefficient: float = 1e-3
    convolutions: bool = False

    def __post_init__(self) -> None:
        if not self.coefficient >= 0:
            raise ValueError(f"Expected `coefficient` >= 0, got {self.coefficient}")

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
        """Cross-entropy of the clean batch and, while training, the penalty."""
        terms = cross_entropy(model, x, y, step)
        if not step.training:
            return terms
        return {**terms, "weight_decay": self.coefficient * squared_weights(model, convolutions=self.convolutions)}


def squared_weights(model: nn.Module, *, convolutions: bool) -> Tensor:
    """The sum of squared weights, a scalar: of matrices (dense layers), and of convolutions' kernels where asked."""
    weights = [p for p in model.parameters() if p.ndim == 2 or (convolutions and p.ndim > 2)]
    if not weights:
        raise ValueError(
            "Expected a model with dense layers to penalise, got none; `convolutions=True` penalises convolutions"
        )
    return torch.stack([weight.square().sum() for weight in weights]).sum()


def dense_decay(
    model: nn.Module, coefficient: float, step: Step, known: Sequence[Tensor] = (), squares: Tensor | None = None
) -> dict[str, Tensor]:
    """The penalty on dense layers as a loss term; none on the validation split, or where the network has no such layer.

    known: weights the sum of whose squares is there already: `squares`, a scalar.
    """
    weights = {id(parameter): parameter for parameter in model.parameters() if parameter.ndim == 2}
    if not coefficient or not step.training or not weights:
        return {}
    # A weight that serves two layers would count twice, and one that normalisation has scaled is no parameter.
    if squares is None or len({id(weight) for weight in known} & weights.keys()) < len(known):
        return {"weight_decay": coefficient * squared_weights(model, convolutions=False)}
    rest = [weight.square().sum() for key, weight in weights.items() if key not in {id(each) for each in known}]
    return {"weight_decay": coefficient * (torch.stack([squares, *rest]).sum() if rest else squares)}
