"""The model that a craft or a calibration attacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from advbench.defenses.defended import Surrogate
from advbench.tasks.compiling import compiled
from advbench.tasks.context import GENERATORS, Context, data_of, defended_of
from advbench.tasks.models import architecture_of
from advbench.tasks.task import artefact
from advbench.zoo import checkpoints, training


def attacked_model(content: Mapping[str, Any], context: Context, device: torch.device) -> Surrogate:
    """What a craft differentiates: a surrogate of a defended model, or a black-box substitute."""
    found = _plain_source(content, context, device)
    return compiled(found) if content["compile"] else found


def _plain_source(content: Mapping[str, Any], context: Context, device: torch.device) -> Surrogate:
    source = context.contents[content["source"]]
    if source["task"] == "train":
        defended = defended_of(content["source"], context, device)
        if content["surrogate"] is None:
            return Surrogate(defended.model, defended.stochastic, defended.detector)
        return defended.surrogates[content["surrogate"]]
    with GENERATORS, training.seeded(0):
        model = architecture_of(source["architecture"]["name"], source["architecture"]["arguments"], data_of(context))
    checkpoints.load(artefact("substitute", content["source"], context.out), model)
    return Surrogate(model.to(device).eval())
