"""TRADES, fast adversarial training and the mixed loss: what they reduce to, and closed forms on linear models."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence
from torch.nn.functional import cross_entropy

from advbench.attacks import balls
from advbench.attacks.threat import ThreatModel
from advbench.defenses.training.pgd import PGDLinf
from advbench.defenses.training.robust_optimisation import FastAT, MixedLinf, RobustL2, RobustLinf
from advbench.defenses.training.trades import TradesL2, TradesLinf, divergence
from advbench.defenses.training.trained import stream
from advbench.zoo.training import Step


def step(n: int, *, training: bool = True) -> Step:
    return Step(0, 0, 0, torch.arange(n), training)


def logistic(seed: int = 1) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def batch(n: int = 9) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, 1, 3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return 0.3 + 0.4 * x, torch.arange(n) % 2


def same_weights(lab, first: str, second: str) -> bool:
    one, two = (lab.fit(spec).model.state_dict() for spec in (first, second))
    return all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("spec", "special"),
    [
        ("trades(beta=0)", "none"),
        ("trades-l2(beta=0)", "none"),
        ("robust-linf(alpha=1)", "none"),
        ("pgd-l2(alpha=1)", "none"),
        ("mixed-linf(alpha=0)", "robust-linf"),
        ("fast-at(step_size=1, random_start=False)", "robust-linf"),
    ],
)
def test_special_cases_are_the_same_bits(lab, spec, special):
    assert same_weights(lab, spec, special)
    assert not same_weights(lab, spec.partition("(")[0] if special != "none" else "trades", special)


def test_the_mixture_weighs_both_losses():
    model, (x, y) = logistic(), batch()
    (clean,) = RobustLinf(epsilon=0.1, alpha=1).objective(model, x, y, step(9)).values()
    (adversarial,) = RobustLinf(epsilon=0.1).objective(model, x, y, step(9)).values()
    torch.testing.assert_close(clean, cross_entropy(model(x), y))
    mixed = RobustLinf(epsilon=0.1, alpha=0.3).objective(model, x, y, step(9))
    torch.testing.assert_close(mixed["clean"], 0.3 * clean)
    torch.testing.assert_close(mixed["adversarial"], 0.7 * adversarial)
    assert MixedLinf().alpha == 0.5
    with pytest.raises(ValueError, match=r"Expected `alpha` in \[0, 1\], got 1.5"):
        RobustL2(alpha=1.5)


def test_the_step_of_fast_training_is_one_and_a_quarter_radii_from_a_random_start_cut_to_the_ball():
    model, (x, y) = logistic(), batch()
    seen = []
    model.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    FastAT(epsilon=0.1).objective(model, x, y, step(9))
    start = balls.random_start(x, ThreatModel("linf", 0.1), stream(step(9)))
    difference = (model[1].weight[1] - model[1].weight[0]).detach().view(1, 3, 4)
    outward = (1 - 2 * y).view(-1, 1, 1, 1) * difference.sign()
    assert len(seen) == 2
    torch.testing.assert_close(seen[0], start)
    torch.testing.assert_close(seen[1], x + (start - x + 0.125 * outward).clamp(-0.1, 0.1))
    assert not torch.allclose(seen[1], x + 0.1 * outward)


def test_the_divergence_is_that_of_kullback_and_leibler():
    logits = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = kl_divergence(Categorical(logits=logits[0]), Categorical(logits=logits[1]))
    torch.testing.assert_close(divergence(*logits), expected)
    torch.testing.assert_close(divergence(logits[0], logits[0]), torch.zeros(7, dtype=torch.float64))


@pytest.mark.parametrize("make", [TradesLinf, TradesL2])
def test_trades_of_a_linear_model_finds_an_end_of_the_margins_range(make):
    """Two classes: the divergence depends on the margin alone, and grows from the clean one to either side.

    So the ascent ends at margin + epsilon * ||w||_dual or at margin - epsilon * ||w||_dual, as the noise decides.
    """
    model, (x, y) = logistic(), batch()
    seen = []
    handle = model.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    terms = make(epsilon=0.1, beta=3.0, steps=30).objective(model, x, y, step(9))
    handle.remove()
    torch.testing.assert_close(terms["clean"], cross_entropy(model(x), y))
    torch.testing.assert_close(terms["divergence"], 3.0 * divergence(model(x), model(seen[-1])).mean())
    weight = (model[1].weight[1] - model[1].weight[0]).detach()
    reach = 0.1 * torch.linalg.vector_norm(weight, 1 if make is TradesLinf else 2)
    with torch.no_grad():
        shift = (model(seen[-1]) - model(x)) @ torch.tensor([-1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(shift.abs(), reach.expand(9), rtol=1e-4, atol=0)
    assert 0 < (shift > 0).sum() < 9


def test_trades_ascends_in_evaluation_mode_and_descends_through_both_answers():
    """With x_adv held fixed, the gradient is that of the divergence with both answers as functions of the weights."""
    modes, seen = [], []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = logistic()

        def forward(self, x: Tensor) -> Tensor:
            modes.append(self.training)
            seen.append(x.detach())
            return self.inner(x)  # type: ignore[no-any-return]

    model, (x, y) = Watched().train(), batch()
    terms = TradesLinf(epsilon=0.1, steps=4, beta=2.0).objective(model, x, y, step(9))
    assert modes == [False] * 5 + [True] * 2
    weight = model.inner[1].weight
    (ours,) = torch.autograd.grad(terms["divergence"], weight)
    (both,) = torch.autograd.grad(2.0 * divergence(model.inner(x), model.inner(seen[-1])).mean(), weight)
    torch.testing.assert_close(ours, both)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": -1.0}, "Expected `beta` >= 0, got -1.0"),
        ({"beta": math.nan}, "Expected `beta` >= 0, got nan"),
        ({"steps": 0}, "Expected `steps` >= 1, got 0"),
        ({"step_size": -1.0}, "Expected `step_size` > 0, got -1.0"),
        ({"epsilon": 0.0}, "Expected `epsilon` > 0, got 0.0"),
    ],
)
def test_rejects_what_makes_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        TradesLinf(**arguments)


def test_the_plan_must_fill_in_the_radius():
    with pytest.raises(ValueError, match="Expected `epsilon` > 0, got None: give TradesL2 one in l2"):
        TradesL2().objective(logistic(), *batch(), step(9))


@pytest.mark.parametrize("defense", [PGDLinf(epsilon=0.1), TradesLinf(epsilon=0.1), FastAT(epsilon=0.1)])
def test_clipping_is_refused_where_images_have_no_range(lab, defense):
    data = dataclasses.replace(lab.data, box=None)
    options = {"inputs": {}, "seed": 0, "device": torch.device("cpu"), "budget": lab.budget}
    with pytest.raises(ValueError, match="Expected `clip=False`, for the images of blobs have no range of pixels"):
        defense.fit(lab.small_net, data, **options)
    fitted = dataclasses.replace(defense, clip=False).fit(lab.small_net, data, **options)
    assert fitted.model(data.validation.x).isfinite().all()
