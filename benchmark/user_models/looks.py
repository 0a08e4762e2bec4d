"""A model of the user's, built and looked at through a few images, before anything is planned for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from advbench.config import Outputs
from advbench.defenses.defended import Architecture
from advbench.errors import reason
from advbench.user_models.arrays import shape_of
from advbench.user_models.handed import Handed, as_logits
from advbench.user_models.preflight import LOOKS, check_model, expects_bytes, outputs_of, slopes_are_finite
from advbench.user_models.weights import Own, loaded
from advbench.zoo import checkpoints
from advbench.zoo.data import Split

_NOT_FINITE = (
    "Gradients are NaN or infinite in places: attacks follow the slopes beside these, and square, or auto's part of it, "
    "attacks without gradients in addition"
)
RECOGNISED: Mapping[Outputs, str] = {
    "probabilities": "The model returns probabilities (no number is negative, and each row sums to 1): they are attacked "
    "through their logarithm. Declare it: --outputs probabilities, or --outputs logits to attack them as they are "
    "(from Python outputs=)",
    "log-probabilities": "The model returns log-probabilities, some of them minus infinity, which count as the logarithm of "
    "the smallest number. Declare it: --outputs log-probabilities (from Python outputs=)",
}
"""What is said of outputs that were recognised, not declared."""


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """A model as it is evaluated, and what a look at it found.

    network: the user's own part of it. model: the whole, as it is asked, images in [0, 1] -> logits or log-probabilities.
    returned: what the user's part returns if not logits. weights_sha256: of the whole. differentiable: whether gradients
    reach the images. finite: whether these are numbers in all components. said: lines that the user should know.
    """

    network: nn.Module
    model: Handed
    returned: Outputs | None
    weights_sha256: str
    differentiable: bool
    finite: bool
    said: tuple[str, ...]


def look_at(
    architecture: Architecture, own: Own, test: Split, n_classes: int, declared: Outputs | None, device: torch.device
) -> Look:
    """Build a model and look at it through a few images. ValueError, in one line, for one that cannot be evaluated."""
    try:
        return _looked_at(architecture, own, test, n_classes, declared, device)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"Expected a model that can be built, moved and asked, got {reason(error)}") from error


def _looked_at(
    architecture: Architecture, own: Own, test: Split, n_classes: int, declared: Outputs | None, device: torch.device
) -> Look:
    shown = test.first(LOOKS).to(device)
    found = loaded(architecture, own.weights, own.mean, own.std, shape_of(test))
    model, said = found.model.to(device), found.said
    outputs = outputs_of(model, shown.x, declared)
    if outputs != "logits":
        network = as_logits(found.network, outputs)
        model = loaded(lambda: network, "", own.mean, own.std, shape_of(test)).model.to(device)
        if declared is None:
            said = (*said, RECOGNISED[outputs])
    differentiable = check_model(model, shown.x, n_classes, stochastic=own.stochastic)
    finite = not differentiable or slopes_are_finite(model, shown.x, stochastic=own.stochastic)
    more = (found.model.taken, expects_bytes(model, shown.x, shown.y), "" if finite else _NOT_FINITE)
    said = tuple(filter(None, (*said, *more)))
    returned = None if outputs == "logits" else outputs
    return Look(found.network, model, returned, checkpoints.fingerprint(model), differentiable, finite, said)
