"""The L2 penalty: which weights, how much, and when."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from advbench.defenses.training.weight_decay import WeightDecay, squared_weights
from advbench.zoo.training import Step


def network() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    with torch.no_grad():
        for value, parameter in enumerate(model.parameters(), start=1):
            parameter.fill_(value)
    return model


def test_penalises_dense_layers_and_convolutions_only_where_asked():
    model = network()  # parameters hold 1 (kernel, 18 of them), 2 (bias), 3, 4 (norm), 5 (matrix, 24 of them), 6 (bias)
    assert squared_weights(model, convolutions=False) == 24 * 25
    assert squared_weights(model, convolutions=True) == 24 * 25 + 18


def test_adds_the_penalty_to_the_training_loss_alone():
    model, x, y = network(), torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    index = torch.arange(4)
    terms = WeightDecay(coefficient=0.01).objective(model, x, y, Step(0, 0, 0, index))
    assert terms["weight_decay"].item() == pytest.approx(0.01 * 600)
    torch.testing.assert_close(terms["cross_entropy"], nn.functional.cross_entropy(model(x), y))
    assert list(WeightDecay().objective(model, x, y, Step(0, 0, 0, index, training=False))) == ["cross_entropy"]


def test_shrinks_the_weights(lab):
    plain, decayed = (
        squared_weights(lab.fit(spec).model, convolutions=False) for spec in ("none", "weight-decay(coefficient=1.0)")
    )
    assert decayed < 0.95 * plain


def test_rejects_what_makes_no_sense():
    with pytest.raises(ValueError, match="Expected `coefficient` >= 0, got -1"):
        WeightDecay(coefficient=-1)
    with pytest.raises(ValueError, match="Expected a model with dense layers to penalise"):
        squared_weights(nn.Conv2d(1, 1, 3), convolutions=False)
