from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from advbench.attacks.losses import dlr, loss_named, margin
from advbench.attacks.threat import Targeted, ThreatModel, Untargeted, cross_entropy


@pytest.mark.parametrize(
    "arguments",
    [
        ("l3", 1.0),
        ("linf", 0.0),
        ("linf", -0.1),
        ("linf", math.nan),
        ("linf", math.inf),
        ("linf", 0.1, (1.0, 0.0)),
        ("linf", 0.1, (0.0, math.nan)),
    ],
)
def test_impossible_threats_are_refused(arguments):
    with pytest.raises(ValueError, match="Expected `"):
        ThreatModel(*arguments)


def test_radius_of_a_minimal_norm_threat_is_infinite():
    assert ThreatModel("l2", None).epsilon_or_inf == math.inf
    assert ThreatModel("l2", 0.5).epsilon_or_inf == ThreatModel("l2", 0.5).radius == 0.5


def test_goals_are_achieved_by_errors_or_by_the_target():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 3.0, 2.0]])
    y, target = torch.tensor([0, 0, 1]), torch.tensor([1, 1, 2])
    assert Untargeted(y).achieved(logits).tolist() == [False, True, False]
    assert Targeted(y, target).achieved(logits).tolist() == [False, False, False]
    assert Targeted(y, torch.tensor([0, 2, 0])).achieved(logits).tolist() == [True, True, False]


def test_goals_select_and_tile():
    goal = Targeted(torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5]))
    rows = torch.tensor([True, False, True])
    assert goal.select(rows).y.tolist() == [0, 2]
    assert goal.select(rows).target.tolist() == [3, 5]
    assert goal.tile(2).target.tolist() == [3, 4, 5, 3, 4, 5]
    assert Untargeted(goal.y).tile(2).y.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("classes", [2, 3, 100])
def test_cross_entropy_and_its_gradient_agree_with_torch(classes):
    logits = (4 * torch.randn(20, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).requires_grad_()
    label = torch.arange(20) % classes
    expected = torch.nn.functional.cross_entropy(logits, label, reduction="none")
    found = cross_entropy(logits, Untargeted(label))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found.sum(), logits)[0], torch.autograd.grad(expected.sum(), logits)[0], rtol=1e-9, atol=1e-12
    )
    targeted = cross_entropy(logits, Targeted((label + 1) % classes, label))
    torch.testing.assert_close(targeted, -expected)


@pytest.mark.parametrize("gap", [20.0, 50.0, 80.0])
def test_cross_entropy_keeps_its_gradient_in_float32_where_the_model_is_confident(gap):
    """The gradient is p_wrong (1, -1) for two classes; a plain softmax loses the true class's part at a gap of 17."""
    logits = torch.tensor([[gap, 0.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(cross_entropy(logits, Untargeted(torch.tensor([0]))).sum(), logits)
    expected = math.exp(-gap) / (1 + math.exp(-gap))
    torch.testing.assert_close(gradient, torch.tensor([[-expected, expected]]), rtol=1e-4, atol=0)


def achieved_by_margin(logits: Tensor, goal) -> list[bool]:
    return (margin(logits, goal) > 0).tolist()


@pytest.mark.parametrize("offset", [0.0, -1000.0, 1e6])
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_margin_is_positive_exactly_where_the_goal_is_achieved(offset, scale):
    logits = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * scale + offset
    y = torch.arange(50) % 4
    for goal in (Untargeted(y), Targeted(y, (y + 1) % 4)):
        assert achieved_by_margin(logits, goal) == goal.achieved(logits).tolist()


def test_margin_is_the_difference_of_logits():
    logits = torch.tensor([[3.0, 1.0, 2.5], [3.0, 1.0, 2.5]])
    y, target = torch.tensor([0, 2]), torch.tensor([1, 1])
    assert margin(logits, Untargeted(y)).tolist() == [-0.5, 0.5]
    assert margin(logits, Targeted(y, target)).tolist() == [-2.0, -2.0]


def test_unknown_losses_are_refused():
    with pytest.raises(ValueError, match="Expected `loss` to be one of cross-entropy, margin"):
        loss_named("hinge")


def test_the_difference_of_logits_ratio_by_hand():
    logits = torch.tensor([[5.0, 2.0, 1.0, -3.0, 0.0], [1.0, 4.0, 3.5, 0.5, -2.0]], dtype=torch.float64)
    y, target = torch.tensor([0, 0]), torch.tensor([2, 4])
    # Untargeted: (2 - 5) / (5 - 1) and (4 - 1) / (4 - 1); towards a target the third and fourth largest have a mean.
    torch.testing.assert_close(dlr(logits, Untargeted(y)), torch.tensor([-0.75, 1.0], dtype=torch.float64))
    expected = torch.tensor([(1 - 5) / (5 - (1 + 0) / 2), (-2 - 1) / (4 - (1 + 0.5) / 2)], dtype=torch.float64)
    torch.testing.assert_close(dlr(logits, Targeted(y, target)), expected)
