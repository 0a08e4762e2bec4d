"""Noise while training: where it enters, how strong it is, and that it is gone afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from advbench.defenses.training.gaussian_noise import GaussianNoise
from advbench.zoo.training import Step


def network():
    """A network that is the identity at every layer, with a record of what each module is given."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 400))
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(torch.eye(400))
                layer.bias.zero_()
    seen = []
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].detach(), output.detach())))
    return model, seen


def step(iteration=0, *, training=True, n=64):
    return Step(0, 0, iteration, torch.arange(n), training)


def run(defense, at=None, value=5.0):
    model, seen = network()
    x = torch.full((64, 1, 20, 20), value)
    terms = defense.objective(model, x, torch.zeros(64, dtype=torch.int64), at or step())
    return terms, seen


@pytest.mark.parametrize(("layers", "variances"), [("input", (1, 1, 1)), ("all", (1, 2, 3))])
def test_noise_enters_where_the_paper_says(layers, variances):
    _, seen = run(GaussianNoise(sigma=0.1, layers=layers))
    for (given, _), times in zip(seen, variances, strict=True):
        noise = given - 5.0
        assert noise.mean().item() == pytest.approx(0, abs=5 * 0.1 * (times / noise.numel()) ** 0.5)
        assert noise.var().item() == pytest.approx(0.01 * times, rel=5 * (2 / noise.numel()) ** 0.5)


def test_hidden_noise_is_added_behind_the_nonlinearity():
    """ReLU cuts what is negative, so that negative inputs of the next layer can only be noise."""
    _, seen = run(GaussianNoise(sigma=0.1, layers="all"), value=-5.0)
    assert (seen[1][0] < 0).float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_every_draw_is_its_own_and_validation_keeps_to_one():
    defense = GaussianNoise(layers="all")
    first, again, later = (run(defense, step(i))[1] for i in (0, 0, 1))
    assert torch.equal(first[2][0], again[2][0])
    assert not torch.equal(first[0][0], later[0][0])
    noises = [first[0][0] - 5.0, first[1][0] - first[0][1], first[2][0] - first[1][1]]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        correlation = torch.corrcoef(torch.stack([noises[a].flatten(), noises[b].flatten()]))[0, 1].item()
        assert abs(correlation) < 5 / noises[0].numel() ** 0.5
    one, two = (run(defense, step(i, training=False))[1] for i in (0, 7))
    assert torch.equal(one[2][0], two[2][0])


def test_without_noise_it_is_plain_training_with_weight_decay():
    terms, seen = run(GaussianNoise(sigma=0.0, layers="all"))
    assert torch.equal(seen[2][0], torch.full((64, 400), 5.0))
    assert terms["weight_decay"].item() == pytest.approx(1e-3 * 3 * 400)
    assert "weight_decay" not in run(GaussianNoise(weight_decay=0.0))[0]


def test_the_trained_model_is_deterministic(lab):
    defended = lab.fitted("gaussian-noise")
    assert not defended.stochastic
    assert type(defended.model) is nn.Sequential


def test_rejects_what_makes_no_sense():
    with pytest.raises(ValueError, match="Expected `sigma` >= 0, got -1"):
        GaussianNoise(sigma=-1)
    with pytest.raises(ValueError, match="Expected `layers` input or all, got 'hidden'"):
        GaussianNoise(layers="hidden")
    with pytest.raises(ValueError, match="Expected `weight_decay` >= 0, got -1"):
        GaussianNoise(weight_decay=-1)
    block = nn.Bilinear(2, 2, 2)
    with pytest.raises(ValueError, match=r"Expected an nn\.Sequential, .* got Bilinear"):
        GaussianNoise(layers="all").objective(block, torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), step(n=1))
