"""Robust optimisation and PGD training: closed forms on logistic regression, and whether training helps."""

from __future__ import annotations

import dataclasses
import inspect
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from advbench.attacks import balls
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel
from advbench.defenses.training.ascent import ascend
from advbench.defenses.training.pgd import PGDL1, PGDL2, PGDLinf
from advbench.defenses.training.robust_optimisation import RobustL1, RobustL2, RobustLinf
from advbench.defenses.training.trained import stream
from advbench.zoo.data import DataSet, Split
from advbench.zoo.training import Budget, Step

ROBUST = {"linf": RobustLinf, "l2": RobustL2, "l1": RobustL1}
PGD = {"linf": PGDLinf, "l2": PGDL2, "l1": PGDL1}
DUAL = {"linf": 1, "l2": 2, "l1": math.inf}


def step(n: int, *, training: bool = True, iteration: int = 0) -> Step:
    return Step(0, 0, iteration, torch.arange(n), training)


def logistic() -> tuple[nn.Linear, nn.Module]:
    generator = torch.Generator().manual_seed(1)
    layer = nn.Linear(12, 2).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(2, 12, generator=generator))
        layer.bias.copy_(torch.randn(2, generator=generator))
    return layer, nn.Sequential(nn.Flatten(), layer)


@pytest.mark.parametrize("make", [ROBUST, PGD])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_logistic_regression_becomes_a_margin_penalised_by_the_dual_norm(norm, make):
    """For two classes max over the ball of softplus(-margin) is softplus(-margin + epsilon * ||w_1 - w_0||_dual)."""
    layer, model = logistic()
    generator = torch.Generator().manual_seed(2)
    x, y = torch.rand(9, 1, 3, 4, generator=generator, dtype=torch.float64), torch.arange(9) % 2
    defense = make[norm](epsilon=0.2, clip=False, steps=1 if make is ROBUST else 60)
    (loss,) = defense.objective(model, x, y, step(9)).values()
    difference, offset = layer.weight[1] - layer.weight[0], layer.bias[1] - layer.bias[0]
    margin = (2 * y - 1) * (x.flatten(1) @ difference + offset)
    expected = softplus(-margin + 0.2 * torch.linalg.vector_norm(difference, DUAL[norm])).mean()
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if make is ROBUST else {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(loss, expected, **tolerance)
    if make is ROBUST:  # by Danskin's theorem the gradients agree too
        parameters = (layer.weight, layer.bias)
        for ours, closed in zip(
            torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
        ):
            torch.testing.assert_close(ours, closed)


def test_trains_on_the_perturbed_images_alone():
    layer, model = logistic()
    x, y = torch.full((4, 1, 3, 4), 0.5, dtype=torch.float64), torch.tensor([0, 1, 0, 1])
    seen = []
    layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    RobustLinf(epsilon=0.1).objective(model, x, y, step(4))
    assert len(seen) == 2  # one ascent and one descent: twice the work of plain training
    difference = (layer.weight[1] - layer.weight[0]).detach()
    expected = 0.5 + 0.1 * (1 - 2 * y).unsqueeze(1) * difference.sign()
    torch.testing.assert_close(seen[1], expected)


def test_clips_to_the_pixel_range_unless_told_not_to():
    _, model = logistic()
    x, y = torch.ones(2, 1, 3, 4, dtype=torch.float64), torch.tensor([0, 1])
    seen = []
    model.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    RobustLinf(epsilon=0.1).objective(model, x, y, step(2))
    RobustLinf(epsilon=0.1, clip=False).objective(model, x, y, step(2))
    assert seen[1].max() == 1.0
    assert seen[3].max() == pytest.approx(1.1)


def test_a_random_start_is_fresh_in_every_step_and_fixed_in_validation():
    start = stream(step(3)).uniform((4,))
    assert not torch.equal(start, stream(step(3, iteration=1)).uniform((4,)))
    validation = stream(step(3, training=False)).uniform((4,))
    assert not torch.equal(start, validation)
    assert torch.equal(validation, stream(step(3, training=False, iteration=7)).uniform((4,)))


@pytest.mark.parametrize("make", [*ROBUST.values(), *PGD.values()])
def test_the_plan_must_fill_in_the_radius(make):
    x, y = torch.zeros(1, 1, 3, 4, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"Expected `epsilon` > 0, got None: give {make.__name__} one in {make.norm}"):
        make().objective(logistic()[1], x, y, step(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": -0.1}, "Expected `epsilon` > 0, got -0.1"),
        ({"steps": 0}, "Expected `steps` >= 1, got 0"),
        ({"step_size": 0.0}, "Expected `step_size` > 0, got 0.0"),
        ({"step_size": math.nan}, "Expected `step_size` > 0, got nan"),
    ],
)
def test_rejects_what_makes_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        PGDLinf(**arguments)


def test_the_defaults_are_those_of_the_papers():
    fields = [field.name for field in dataclasses.fields(PGDLinf)]
    assert fields == ["epsilon", "steps", "step_size", "random_start", "clip", "warm_up", "alpha"]
    assert list(inspect.signature(RobustL1).parameters) == fields
    assert (RobustLinf().steps, RobustLinf().step_size, RobustLinf().random_start) == (1, 1.0, False)
    assert (PGDLinf().steps, PGDLinf().step_size, PGDLinf().random_start) == (7, 2 / 8, True)
    assert not PGDL1().random_start
    assert (RobustLinf().warm_up, PGDLinf().warm_up) == (0.0, 0.5)


@pytest.mark.parametrize(
    ("progress", "training", "radius"),
    [(0.0, True, 0.0), (0.2, True, 0.1), (0.4, True, 0.2), (0.9, True, 0.2), (0.1, False, 0.2)],
)
def test_the_radius_grows_over_the_warm_up_of_the_training(progress, training, radius):
    """On a linear model the adversarial loss at radius r is that of a margin that is smaller by r times the l1 norm."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)).double()
    x, y = torch.full((3, 1, 2, 2), 0.5, dtype=torch.float64), torch.tensor([0, 1, 0])
    weight = model[1].weight.detach()
    sign = 1.0 - 2.0 * y
    margin = sign * (x.flatten(1) @ (weight[0] - weight[1])) - radius * (weight[0] - weight[1]).abs().sum()
    defense = RobustLinf(epsilon=0.2, warm_up=0.4)
    loss = defense.objective(model, x, y, Step(0, 0, 0, torch.arange(3), training, progress))["adversarial"]
    expected = nn.functional.softplus(-margin).mean()
    torch.testing.assert_close(loss.detach(), expected, atol=1e-5, rtol=0)


def strong_and_weak_features(n: int, seed: int) -> Split:
    """One pixel that decides with a wide margin, and 63 that agree with the label by a margin below epsilon."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    sign = (2.0 * y - 1).view(-1, 1)
    strong = 0.5 + sign * (0.2 + 0.2 * torch.rand(n, 1, generator=generator))
    strong = torch.where(torch.rand(n, 1, generator=generator) < 0.05, 1 - strong, strong)  # and is wrong now and then
    weak = 0.5 + 0.05 * sign + 0.01 * torch.randn(n, 63, generator=generator)
    return Split.of(torch.cat((strong, weak), dim=1).clamp(0, 1).view(n, 1, 8, 8), y)


class Centred(nn.Module):
    """A linear model of pixels around 1/2."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.flatten(1) - 0.5)


def robust_accuracy(model: nn.Module, split: Split, threat: ThreatModel) -> float:
    rng = ExampleRNG.make(0, "attack", split.index)
    x_adv = ascend(model, split.x, split.y, threat, steps=20, step_size=0.2, random_start=True, rng=rng)
    assert not balls.violations(x_adv, split.x, threat).any()
    return float((model(x_adv).argmax(dim=1) == split.y).double().mean())


def test_adversarial_training_defends_where_plain_training_does_not(lab):
    """Tsipras et al. 2019 (arXiv:1805.12152): weak features give clean accuracy and break under attack."""
    train, validation, test = (strong_and_weak_features(n, seed) for seed, n in enumerate((256, 64, 64)))
    data = DataSet("features", train, validation, test, 2, {"linf": 0.1})
    budget = Budget(epochs=15, batch_size=32, learning_rate=0.05)
    threat = ThreatModel("linf", 0.1)
    accuracy = {}
    for name in ("none", "robust-linf", "pgd-linf", "fast-at", "mixed-linf", "trades"):
        defense, device = lab.resolve(name, data), torch.device("cpu")
        defended = defense.fit(Centred, data, inputs={}, seed=0, device=device, budget=budget)
        accuracy[name] = robust_accuracy(defended.model, data.validation, threat)
    assert accuracy["none"] < 0.3
    assert min(accuracy[name] for name in accuracy if name != "none") > 0.8, accuracy
