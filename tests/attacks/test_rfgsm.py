from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.fgm import FGSM
from advbench.attacks.rfgsm import RFGSM
from advbench.attacks.threat import ThreatModel, Untargeted, cross_entropy

SHAPE = (2, 5, 4)
EPSILON = 0.3
FREE = ThreatModel("linf", EPSILON, box=None)


@pytest.fixture
def setting(linear) -> tuple[nn.Module, Tensor, Untargeted, Tensor]:
    """A linear model of two classes, images, their labels 0, and the signs that lead to class 1."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(2, *SHAPE, dtype=torch.float64, generator=generator)
    x = torch.rand(50, *SHAPE, dtype=torch.float64, generator=generator)
    goal = Untargeted(torch.zeros(50, dtype=torch.int64))
    return linear(weight, torch.zeros(2, dtype=torch.float64)), x, goal, (weight[1] - weight[0]).sign()


def test_a_linear_model_sees_the_random_signs_and_the_rest_of_the_budget(white_box, setting):
    model, x, goal, towards = setting
    with white_box(model, len(x)) as access:
        delta = RFGSM(alpha=1 / 6)(access, x, goal, FREE, access.rng) - x
    assert (access.ledger.forwards == 1).all()
    assert (access.ledger.backwards == 1).all()
    signs = (delta - 0.25 * towards) / 0.05
    torch.testing.assert_close(signs, signs.sign())
    assert signs.mean().abs() < 4 / signs.numel() ** 0.5
    flat = signs.flatten(1)
    assert ((flat @ flat.T / flat.shape[1]).fill_diagonal_(0).abs() < 0.9).all()


def test_both_steps_are_clipped_to_the_box(white_box, setting):
    model, x, goal, towards = setting
    with white_box(model, len(x)) as access:
        free = RFGSM(alpha=0.4)(access, x, goal, FREE, access.rng)
        boxed = RFGSM(alpha=0.4)(access, x, goal, ThreatModel("linf", EPSILON), access.rng)
    step = 0.6 * EPSILON * towards
    torch.testing.assert_close(boxed, ((free - step).clamp(0, 1) + step).clamp(0, 1))


def test_without_a_random_step_it_is_the_fast_gradient_sign(white_box, setting):
    model, x, goal, _ = setting
    threat = ThreatModel("linf", EPSILON)
    with white_box(model, len(x)) as access:
        assert torch.equal(RFGSM(alpha=0)(access, x, goal, threat, access.rng), FGSM()(access, x, goal, threat, access.rng))


def test_the_random_step_leaves_the_place_where_the_gradient_is_masked(white_box):
    class Masked(nn.Module):
        """Class 0 by the mean, flat in a small cube around 1/2."""

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1) - 0.5
            score = torch.where(x.abs().amax(dim=1) < 0.01, 0.1, 0.1 + x.mean(dim=1))
            return torch.stack((score, torch.zeros_like(score)), dim=1)

    x = torch.full((6, *SHAPE), 0.5)
    goal = Untargeted(torch.zeros(6, dtype=torch.int64))
    with white_box(Masked(), 6) as access:
        attacks = (FGSM(), RFGSM(alpha=1 / 6))
        plain, random = (attack(access, x, goal, ThreatModel("linf", EPSILON), access.rng) for attack in attacks)
    assert not goal.achieved(Masked()(plain)).any()
    assert goal.achieved(Masked()(random)).all()


@pytest.mark.parametrize("alpha", [-0.1, 1.0, float("nan")])
def test_a_random_step_beyond_the_budget_is_refused(alpha):
    with pytest.raises(ValueError, match="Expected `alpha`"):
        RFGSM(alpha=alpha)


def test_fgsm_without_a_box_is_the_unclipped_fast_gradient_sign(white_box, setting):
    """x + epsilon sign(gradient) with the true label, the attack of Mosca & Magoulas 2018."""
    _, x, goal, _ = setting
    generator = torch.Generator().manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(40, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(leaf), goal.y, reduction="sum"), leaf)
    with white_box(model, len(x)) as access:
        found = FGSM()(access, x, goal, FREE, access.rng)
    assert torch.equal(found, x + EPSILON * gradient.sign())
    assert ((found < 0) | (found > 1)).any()
    assert (cross_entropy(model(found), goal) > cross_entropy(model(x), goal)).float().mean() > 0.9
