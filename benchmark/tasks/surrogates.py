"""The model that a craft or a calibration attacks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from advbench.defenses.defended import Defended, Surrogate
from advbench.modes import evaluate
from advbench.tasks.artefacts import artefact
from advbench.tasks.compiling import compiled
from advbench.tasks.components import architecture_of
from advbench.tasks.context import Context, data_of, defended_of
from advbench.tasks.precision import Precision, in_precision
from advbench.zoo import checkpoints, training


@dataclass(frozen=True, slots=True)
class Attacked:
    """The model that is attacked, and how it is asked.

    model: key of the task that trained it or, as a substitute, learned its labels. surrogate: which of a defended model's
    surrogates is differentiated, the model itself if None. draws: passes averaged per question; None if a calibration, the
    `preparation`, finds how many on held-out images. compile: whether its forward is compiled. preparation: key of the
    calibration that says what every attack on this surrogate must know; None if nothing is open. precision: in which its
    products are taken (`advbench.tasks.precision`).
    """

    model: str
    surrogate: str | None
    draws: int | None
    compile: bool
    preparation: str | None = None
    precision: Precision = "float32"

    @property
    def needs(self) -> tuple[str, ...]:
        """The tasks whose results an attack on it reads."""
        return (self.model,) if self.preparation is None else (self.model, self.preparation)


def attacked_model(attacked: Attacked, context: Context, device: torch.device) -> Surrogate:
    """What is differentiated: a surrogate of a defended model, or a black-box substitute."""
    found = in_precision(_plain_model(attacked, context, device), attacked.precision)
    return compiled(found) if attacked.compile else found


def surrogate_of(defended: Defended, name: str | None) -> Surrogate:
    """A surrogate of a defended model by its name; the model itself, and its detector, if None."""
    if name is None:
        return Surrogate(defended.model, defended.stochastic, defended.detector)
    return defended.surrogates[name]


def _plain_model(attacked: Attacked, context: Context, device: torch.device) -> Surrogate:
    substitute = context.substitutes.get(attacked.model)
    if substitute is None:
        return surrogate_of(defended_of(attacked.model, context, device), attacked.surrogate)
    with training.seeded(0):
        model = architecture_of(substitute.architecture, data_of(context))
    checkpoints.load(artefact("substitute", attacked.model, context.out), model)
    model.to(device)
    evaluate(model)
    return Surrogate(model)
