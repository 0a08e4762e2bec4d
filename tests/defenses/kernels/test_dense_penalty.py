"""The penalty of dense layers in one node against autograd through the whole Jacobians, in float64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from advbench.defenses.kernels.dense_penalty import dense_penalty
from advbench.defenses.kernels.layers import contraction, layer_jacobians, layers_of
from advbench.defenses.training.weight_decay import dense_decay
from advbench.zoo.training import Step

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(widths, *, softmax, seed=0):
    """A stack of dense layers, each with a ReLU but for the last one under a softmax."""
    layers = []
    for place, (width, out) in enumerate(pairwise(widths)):
        linear = nn.Linear(width, out).double()
        linear.weight.data = normal(out, width, seed=seed + place)
        linear.bias.data = normal(out, seed=seed + place + 50)
        last = place == len(widths) - 2
        layers += [linear] if last and softmax else [linear, nn.ReLU()]
    return nn.Sequential(*layers)


def mean_squared(layer, h, softmax):
    """The mean squared norm of a layer's Jacobian, one row of which is one gradient."""
    norms = []
    for example in h:
        example = example.detach().requires_grad_()
        z = layer(example)
        z = z.softmax(dim=0) if softmax else z
        rows = [torch.autograd.grad(value, example, create_graph=True)[0] for value in z]
        norms.append(torch.stack(rows).square().sum())
    return torch.stack(norms).mean()


def expected(net, x, coefficients, softmax):
    """The penalty and the squared weights, layer by layer, on inputs that are held fixed."""
    cut, total, h = layers_of(net), x.new_zeros(()), x
    for layer, coefficient in zip(cut.layers, coefficients, strict=True):
        total = total + coefficient * mean_squared(layer, h, softmax and layer is cut.layers[-1])
        h = layer(h)
    return total, sum(module.weight.square().sum() for module in net if isinstance(module, nn.Linear))


@given(
    widths=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    softmax=st.booleans(),
    alike=st.booleans(),
    n=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_the_penalty_and_the_squared_weights_are_those_of_the_whole_jacobians(widths, softmax, alike, n, seed):
    net, x = network(widths, softmax=softmax, seed=seed), normal(n, widths[0], seed=seed + 7)
    coefficients = [0.3] * (len(widths) - 1) if alike else [0.3 + place for place in range(len(widths) - 1)]
    found = contraction(net, x, coefficients, output="softmax" if softmax else "logits")
    penalty, squares = expected(net, x, coefficients, softmax)
    torch.testing.assert_close(found.penalty, penalty, **CLOSE)
    torch.testing.assert_close(found.squares, squares, **CLOSE)
    assert torch.equal(found.logits, net(x))


@pytest.mark.parametrize("widths", [(4, 3), (4, 5, 3), (3, 4, 4, 5)])
@pytest.mark.parametrize("softmax", [False, True])
def test_the_gradients_are_those_of_the_norms_one_by_one(widths, softmax):
    """Both outputs are weighted, so that a gradient of one in the place of the other would show."""
    net, x = network(widths, softmax=softmax), normal(6, widths[0], seed=7)
    output, coefficients = "softmax" if softmax else "logits", [0.5 + place for place in range(len(widths) - 1)]
    found = contraction(net, x, coefficients, output=output)
    norms = layer_jacobians(net, x, output=output)[1].values()
    by_layer = sum(coefficient * norm.mean() for coefficient, norm in zip(coefficients, norms, strict=True))
    squares = sum(module.weight.square().sum() for module in net if isinstance(module, nn.Linear))
    ours = torch.autograd.grad(2 * found.penalty + 3 * found.squares, list(net.parameters()), allow_unused=True)
    theirs = torch.autograd.grad(2 * by_layer + 3 * squares, list(net.parameters()), allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, **CLOSE)


def test_the_derivatives_under_a_softmax_are_right():
    hidden = normal(5, 4, seed=3).relu()

    def terms(first, last, logits):
        return dense_penalty([first, last], [hidden, logits], [0.7, 1.3], softmax=True)

    leaves = [normal(4, 6), normal(3, 4, seed=1), normal(5, 3, seed=2)]
    assert torch.autograd.gradcheck(terms, [leaf.requires_grad_() for leaf in leaves])


def test_a_second_derivative_is_refused_and_not_wrong():
    weight, scale = normal(3, 4).requires_grad_(), normal(1).requires_grad_()
    penalty, _ = dense_penalty([weight], [normal(5, 3).requires_grad_()], [1.0], softmax=True)
    (gradient,) = torch.autograd.grad(scale * penalty, weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("coefficients", [(0.3,), (0.1, 0.0, 2.0, 0.5)])
def test_layers_with_other_closed_forms_and_without_any_join_the_sum(coefficients):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3), nn.BatchNorm1d(3),
    ).double().eval()  # fmt: skip
    x = normal(6, 1, 4, 4)

    def drawn():
        return {"generator": torch.Generator().manual_seed(0)}

    with pytest.warns(UserWarning, match="No closed form"):
        found = contraction(net, x, coefficients, **drawn())
    with pytest.warns(UserWarning, match="No closed form"):
        logits, norms = layer_jacobians(net, x, **drawn())
    weights = coefficients if len(coefficients) > 1 else coefficients * 4
    torch.testing.assert_close(found.penalty, sum(c * norm.mean() for c, norm in zip(weights, norms.values(), strict=True)))
    assert torch.equal(found.logits, logits)


def test_as_many_coefficients_as_layers_are_expected():
    with pytest.raises(ValueError, match="Expected a `coefficient` for each of the 2 layers, got 3"):
        contraction(network((4, 5, 3), softmax=True), normal(2, 4), [0.1, 0.2, 0.3])


def decay(net, x, output):
    """The term of weight decay with what the contraction has at hand, and without."""
    found, step = contraction(net, x, [1.0], output=output), Step(0, 0, 0, torch.arange(len(x)))
    return [dense_decay(net, 0.5, step, *known)["weight_decay"] for known in ((found.weights, found.squares), ())]


def shared():
    linear = nn.Linear(4, 4).double()
    return nn.Sequential(linear, nn.ReLU(), linear, nn.ReLU(), nn.Linear(4, 3).double())


def normalised():
    return nn.Sequential(*network((4, 5, 3), softmax=True), nn.BatchNorm1d(3).double()).eval()


@pytest.mark.parametrize(
    ("net", "output"),
    [
        (network((4, 5, 3), softmax=True), "softmax"),
        (network((4, 5, 3), softmax=True), "logits"),  # the last layer's weights are not at hand
        (shared(), "softmax"),  # one weight in two layers counts once
        (normalised(), "softmax"),  # what is at hand is the weight times batch normalisation's scale
    ],
)
def test_weight_decay_counts_each_dense_weight_once(net, output):
    if isinstance(net[-1], nn.BatchNorm1d):
        net[-1].weight.data.fill_(3.0)
    with_known, without = decay(net, normal(6, 4), output)
    weights = {id(module.weight): module.weight for module in net.modules() if isinstance(module, nn.Linear)}
    torch.testing.assert_close(with_known, 0.5 * sum(weight.square().sum() for weight in weights.values()))
    torch.testing.assert_close(without, with_known)
