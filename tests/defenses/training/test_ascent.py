"""The inner maximisation: closed forms on linear models, the ball, and a network that comes back untouched."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel, Untargeted, cross_entropy
from advbench.defenses.training.ascent import ascend, input_gradient

NORMS = ("linf", "l2", "l1")
SHAPE = (2, 3, 3)


def linear(n_classes: int = 2, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(18, n_classes)).double()


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(12, 3))


def batch(n: int = 6, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, ExampleRNG]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, *SHAPE, generator=generator, dtype=dtype)
    return x, torch.arange(n) % 2, ExampleRNG.make(seed, "train", torch.arange(n))


def size(delta: torch.Tensor, norm: str) -> torch.Tensor:
    return torch.linalg.vector_norm(delta.flatten(1), {"linf": torch.inf, "l2": 2, "l1": 1}[norm], dim=1)


@pytest.fixture(autouse=True)
def _seeded():
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


@pytest.mark.parametrize("norm", NORMS)
def test_one_step_on_a_linear_model_is_the_closed_form(norm):
    model = linear()
    x, y, rng = batch(dtype=torch.float64)
    weight = model[1].weight.detach()
    outward = (weight[1 - y] - weight[y]).view(-1, *SHAPE)  # the direction that raises the loss of label y
    flat = outward.flatten(1)
    if norm == "linf":
        direction = flat.sign()
    elif norm == "l2":
        direction = flat / flat.norm(dim=1, keepdim=True)
    else:
        pixel = flat.abs().argmax(dim=1, keepdim=True)
        direction = torch.zeros_like(flat).scatter(1, pixel, flat.gather(1, pixel).sign())
    threat = ThreatModel(norm, 0.3, None)
    x_adv = ascend(model, x, y, threat, steps=1, step_size=1.0, random_start=False, rng=rng)
    torch.testing.assert_close(x_adv, x + 0.3 * direction.view_as(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_cannot_leave_the_ball(norm):
    model = linear()
    x, y, rng = batch(dtype=torch.float64)
    threat = ThreatModel(norm, 0.3, None)
    once = ascend(model, x, y, threat, steps=1, step_size=1.0, random_start=False, rng=rng)
    many = ascend(model, x, y, threat, steps=5, step_size=3.0, random_start=False, rng=rng)
    torch.testing.assert_close(many, once, rtol=0, atol=1e-12)  # the gradient's direction is constant


@settings(max_examples=40, deadline=None)
@given(
    norm=st.sampled_from(NORMS),
    epsilon=st.floats(0.01, 3.0),
    steps=st.integers(1, 5),
    step_size=st.floats(0.05, 2.0),
    random_start=st.booleans(),
    clip=st.booleans(),
    seed=st.integers(0, 50),
)
def test_stays_in_ball_and_box(norm, epsilon, steps, step_size, random_start, clip, seed):
    x, y, rng = batch(seed=seed)
    x = torch.where(x < 0.3, 0.0, torch.where(x > 0.7, 1.0, x))  # as images are: many pixels at the end of their range
    threat = ThreatModel(norm, epsilon, (0.0, 1.0) if clip else None)
    model = convolutional().eval()
    x_adv = ascend(model, x, y, threat, steps=steps, step_size=step_size, random_start=random_start, rng=rng)
    assert size(x_adv - x, norm).max() <= epsilon * (1 + 1e-5) + 1e-6
    if clip:
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_raises_the_loss_of_every_example(norm, random_start):
    model = convolutional().eval()
    x, y, rng = batch(n=32)
    threat = ThreatModel(norm, {"linf": 0.1, "l2": 0.5, "l1": 1.5}[norm])
    x_adv = ascend(model, x, y, threat, steps=20, step_size=0.15, random_start=random_start, rng=rng)
    with torch.no_grad():
        clean, adversarial = (cross_entropy(model(images), Untargeted(y)) for images in (x, x_adv))
    assert (adversarial > clean).all()


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_a_step_is_not_spent_on_saturated_pixels(norm):
    model = linear()
    x, y, rng = batch(dtype=torch.float64)
    weight = model[1].weight.detach()
    outward = (weight[1 - y] - weight[y]).view_as(x)
    rows, best = torch.arange(len(x)), outward.flatten(1).abs().argmax(dim=1)
    x = 0.2 + 0.6 * x
    x.flatten(1)[rows, best] = (outward.flatten(1)[rows, best] > 0).double()  # the best pixel can move no further
    x_adv = ascend(model, x, y, ThreatModel(norm, 0.1), steps=1, step_size=1.0, random_start=False, rng=rng)
    outward.flatten(1)[rows, best] = 0
    most = 0.1 * torch.linalg.vector_norm(outward.flatten(1), {"l1": torch.inf, "l2": 2}[norm], dim=1)  # the dual norm
    torch.testing.assert_close(((x_adv - x) * outward).flatten(1).sum(dim=1), most)


def test_a_random_start_belongs_to_the_example():
    model = convolutional().eval()
    x, y, rng = batch(n=8)
    threat = ThreatModel("l2", 0.5)
    options = {"steps": 2, "step_size": 0.25, "random_start": True}
    together = ascend(model, x, y, threat, rng=rng, **options)
    rows = torch.tensor([5, 2])
    torch.testing.assert_close(ascend(model, x[rows], y[rows], threat, rng=rng.select(rows), **options), together[rows])
    assert not torch.allclose(ascend(model, x, y, threat, rng=rng.at(1), **options), together)


def test_uses_batch_statistics_while_the_network_trains():
    model = convolutional()
    model[4].p = 0.0
    x, y, _ = batch()
    x = x + torch.linspace(0, 2, len(x)).view(-1, 1, 1, 1)
    images = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(nn.functional.cross_entropy(model.train()(images), y, reduction="sum"), images)

    def loss(logits):
        return cross_entropy(logits, Untargeted(y))

    torch.testing.assert_close(input_gradient(model, x, loss), expected)
    assert not torch.allclose(input_gradient(model.eval(), x, loss), expected)


class Failing(nn.Module):
    def forward(self, x):
        raise RuntimeError("out of order")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_leaves_the_network_as_it_was(training, fails):
    model = convolutional().train(training)
    model[0].eval()  # a layer in a mode of its own
    model[0].bias.requires_grad_(False)  # and a parameter that is frozen already
    model[5].weight.grad = torch.ones_like(model[5].weight)
    if fails:
        model.append(Failing())
    x, y, rng = batch()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    try:
        ascend(model, x, y, ThreatModel("linf", 0.1), steps=3, step_size=0.5, random_start=True, rng=rng)
    except RuntimeError:
        assert fails
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert [p.grad is None for p in model.parameters()] == [p is not model[5].weight for p in model.parameters()]
    assert torch.equal(model[5].weight.grad, torch.ones_like(model[5].weight))


def test_a_step_is_one_forward_and_its_result_has_no_graph():
    calls = 0

    def count(*_):
        nonlocal calls
        calls += 1

    model = convolutional()
    model.register_forward_hook(count)
    x, y, rng = batch()
    with torch.no_grad():  # as on the validation split
        x_adv = ascend(model, x, y, ThreatModel("l2", 0.5), steps=4, step_size=0.5, random_start=True, rng=rng)
    assert calls == 4
    assert not x_adv.requires_grad


def test_needs_a_radius():
    x, y, rng = batch()
    with pytest.raises(ValueError, match="Expected a threat with an epsilon, got None"):
        ascend(linear(), x, y, ThreatModel("l2", None), steps=1, step_size=1.0, random_start=False, rng=rng)
