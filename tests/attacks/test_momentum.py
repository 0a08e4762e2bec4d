from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.momentum import MIFGSM, of_unit_sum
from advbench.attacks.threat import ThreatModel, Untargeted, cross_entropy

SHAPE = (1, 4, 4)
RADII = {"linf": 0.2, "l2": 0.6}
norms = pytest.mark.parametrize("norm", list(RADII))


def net() -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 5)).double()
    for parameter in model.parameters():
        parameter.data = 0.7 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return model


def images(n: int = 12) -> Tensor:
    return torch.rand(n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def reference(model: nn.Module, x: Tensor, y: int, norm: str, decay: float, steps: int) -> Tensor:
    """The best iterate after the clean image, of one image (c, h, w), step by step as the paper writes it."""
    radius, x_adv, g, iterates = RADII[norm], x, torch.zeros_like(x), []
    for step in range(steps + 1):
        leaf = x_adv.clone().requires_grad_()
        logits = model(leaf.unsqueeze(0))
        loss = nn.functional.cross_entropy(logits, torch.tensor([y]))
        (gradient,) = torch.autograd.grad(loss, leaf)
        if step > 0:
            iterates.append((int(logits.argmax()) != y, loss.item(), step, x_adv))
        g = decay * g + gradient / gradient.abs().sum()
        if norm == "linf":
            x_adv = (x_adv + radius / steps * g.sign()).clamp(0, 1).clamp(x - radius, x + radius)
        else:
            x_adv = (x_adv + radius / steps * g / g.square().sum().sqrt()).clamp(0, 1)
    return max(iterates)[3]


@norms
@pytest.mark.parametrize("decay", [0.0, 1.0, 0.5])
def test_it_is_the_algorithm_of_the_paper(white_box, norm, decay):
    model, x = net(), images()
    y = model(x).argmax(dim=1)
    y[:3] = (y[:3] + 1) % 5
    attack = MIFGSM(steps=8, step_size=1 / 8, decay=decay, stop="never")
    with white_box(model, len(x)) as access:
        found = attack(access, x, Untargeted(y), ThreatModel(norm, RADII[norm]), access.rng)
    expected = [reference(model, image, int(label), norm, decay, 8) for image, label in zip(x, y, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-10)
    assert (access.ledger.forwards == 9).all()
    assert (access.ledger.backwards == 8).all()


@norms
def test_a_linear_model_is_left_straight_ahead_by_the_whole_budget(white_box, linear, norm):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(2, *SHAPE, dtype=torch.float64, generator=generator)
    model, x = linear(weight, torch.zeros(2, dtype=torch.float64)), images()
    goal = Untargeted(torch.zeros(len(x), dtype=torch.int64))
    with white_box(model, len(x)) as access:
        found = MIFGSM(stop="never")(access, x, goal, ThreatModel(norm, RADII[norm], box=None), access.rng)
    ahead = weight[1] - weight[0]
    direction = ahead.sign() if norm == "linf" else ahead / ahead.norm()
    torch.testing.assert_close(found - x, RADII[norm] * direction.expand_as(x))


def test_it_stops_at_success_and_leaves_alone_what_is_already_wrong(white_box):
    model, x = net(), images()
    y = model(x).argmax(dim=1)
    y[:3] = (y[:3] + 1) % 5
    goal, threat = Untargeted(y), ThreatModel("linf", 0.2)
    with white_box(model, len(x)) as access:
        early = MIFGSM()(access, x, goal, threat, access.rng)
    with white_box(model, len(x)) as whole:
        late = MIFGSM(stop="never")(whole, x, goal, threat, whole.rng)
    assert torch.equal(early[:3], x[:3])
    assert access.ledger.forwards[:3].tolist() == [1] * 3
    assert access.ledger.backwards.sum() < whole.ledger.backwards.sum()
    assert torch.equal(goal.achieved(model(early)), goal.achieved(model(late)))
    assert (late != x).flatten(1).any(dim=1).all()
    assert (cross_entropy(model(late), goal) >= cross_entropy(model(early), goal) - 1e-12).all()


def test_a_craft_that_never_stops_is_never_the_clean_image(white_box):
    class Peak(nn.Module):
        """The true class is least likely just beside the clean image, so that a step only makes it likelier."""

        def forward(self, x: Tensor) -> Tensor:
            score = 10 * (x.flatten(1).mean(dim=1) - 0.501) ** 2
            return torch.stack((score, torch.zeros_like(score)), dim=1)

    x, goal = torch.full((2, *SHAPE), 0.5), Untargeted(torch.zeros(2, dtype=torch.int64))
    threat = ThreatModel("linf", 0.1)
    with white_box(Peak(), 2) as access:
        craft, attack = (MIFGSM(steps=1, stop=stop)(access, x, goal, threat, access.rng) for stop in ("never", "success"))
    torch.testing.assert_close(craft, x + 0.01)
    assert torch.equal(attack, x)


def test_momentum_carries_over_a_flat_stretch(white_box):
    class Shelf(nn.Module):
        """Class 0 until the mean exceeds 0.58, with a flat stretch between 0.52 and 0.56."""

        def forward(self, x: Tensor) -> Tensor:
            s = x.flatten(1).mean(dim=1)
            score = 0.04 - (s.clamp(max=0.52) - 0.5) - (s - 0.56).clamp(min=0)
            return torch.stack((score, torch.zeros_like(score)), dim=1)

    x = torch.full((2, *SHAPE), 0.5, dtype=torch.float64)
    goal = Untargeted(torch.zeros(2, dtype=torch.int64))
    with white_box(Shelf(), 2) as access:
        threat = ThreatModel("linf", 0.1)
        with_it, without = (MIFGSM(decay=decay)(access, x, goal, threat, access.rng) for decay in (1.0, 0.0))
    assert goal.achieved(Shelf()(with_it)).all()
    assert not goal.achieved(Shelf()(without)).any()
    assert (without < 0.54).all()


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_gradients_of_any_size_are_normalised(size):
    gradient = size * torch.tensor([[1.0, -3.0], [0.0, 0.0], [float("nan"), 2.0]]).view(3, 1, 1, 2)
    expected = torch.tensor([[0.25, -0.75], [0.0, 0.0], [0.0, 1.0]]).view(3, 1, 1, 2)
    torch.testing.assert_close(of_unit_sum(gradient), expected)


def test_infinite_components_share_the_unit_sum():
    gradient = torch.tensor([torch.inf, -torch.inf, 3.0, torch.nan]).view(1, 1, 2, 2)
    found = of_unit_sum(gradient).flatten()
    torch.testing.assert_close(found, torch.tensor([0.5, -0.5, 0, 0]), rtol=1e-6, atol=1e-6)
    assert found.sign().tolist() == [1, -1, 1, 0]


def test_numbers_that_make_no_sense_are_refused():
    for field in ("steps", "step_size"):
        with pytest.raises(ValueError, match=f"Expected `{field}` > 0, got 0"):
            MIFGSM(**{field: 0})
    with pytest.raises(ValueError, match="Expected `decay` >= 0, got -1"):
        MIFGSM(decay=-1)
    with pytest.raises(ValueError, match="Expected `loss`"):
        MIFGSM(loss="none")
