"""Jacobian norms of whole networks: exact against autograd, the estimator without bias, the fallback with a warning."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from advbench.defenses.kernels.layers import layer_jacobians
from advbench.defenses.kernels.projection import exact_norms, network_jacobian


def network(*, seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 4)
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return model


def images(n=3):
    return torch.randn(n, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def jacobians(function, x):
    return torch.stack([torch.func.jacrev(lambda e: function(e.unsqueeze(0)).squeeze(0))(each) for each in x])


def assert_unbiased(draws, expected, spread):
    """The mean of independent draws, shape (draws, n), within five standard errors of `expected`; spread: their variance."""
    error = (spread / len(draws)).sqrt()
    assert ((draws.mean(dim=0) - expected).abs() <= 5 * error).all()


@pytest.mark.parametrize("output", ["softmax", "logits"])
def test_the_exact_norm_of_a_network(output):
    model, x = network(), images()
    logits, norms = network_jacobian(model, x, output=output)
    y = jacobians(lambda h: model(h).softmax(dim=1) if output == "softmax" else model(h), x)
    assert torch.equal(logits, model(x))
    torch.testing.assert_close(norms, y.flatten(1).square().sum(dim=1), rtol=1e-10, atol=1e-10)


def test_the_norm_of_a_network_is_differentiable_in_the_weights():
    model, x = network(), images(2)
    names = [name for name, _ in model.named_parameters()]

    def norms(*parameters):
        inputs = x.clone().requires_grad_()
        y = torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (inputs,))
        return exact_norms(y, inputs)

    assert torch.autograd.gradcheck(norms, tuple(p.detach().requires_grad_() for p in model.parameters()))


def test_projections_are_unbiased():
    """The variance of ``||v^T J||^2`` over random signs is 2 (||G||_F^2 - sum of G_kk^2), G = J J^T."""
    model, x = network(), images()
    J = jacobians(model, x).flatten(2)
    gram = J @ J.transpose(1, 2)
    spread = 2 * (gram.square().sum(dim=(1, 2)) - gram.diagonal(dim1=1, dim2=2).square().sum(dim=1))
    generator = torch.Generator().manual_seed(2)
    draws = [network_jacobian(model, x, output="logits", projections=1, generator=generator)[1] for _ in range(400)]
    draws = torch.stack(draws).detach()
    assert_unbiased(draws, J.flatten(1).square().sum(dim=1), spread)
    ratio = draws.var(dim=0) / spread
    assert ((ratio > 0.6) & (ratio < 1.6)).all()


def test_more_projections_are_their_mean():
    model, x = network(), images()
    one, three = (torch.Generator().manual_seed(5) for _ in range(2))
    singles = [network_jacobian(model, x, projections=1, generator=one)[1] for _ in range(3)]
    torch.testing.assert_close(
        network_jacobian(model, x, projections=3, generator=three)[1], torch.stack(singles).mean(dim=0)
    )


@pytest.mark.parametrize(
    "block",
    [
        nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)),
        nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, padding_mode="reflect"), nn.Tanh()),
        nn.ModuleList([nn.Conv2d(1, 2, 3), nn.GELU()]),
    ],
)
def test_a_layer_without_a_closed_form_is_estimated_and_says_so(block):
    model = nn.Sequential(*block).double()
    x = images()
    expected = jacobians(model, x).flatten(1).square().sum(dim=1)
    generator = torch.Generator().manual_seed(3)
    with pytest.warns(UserWarning, match=r"No closed form for the Jacobian of layer 0 \(Conv2d, .*1 random projection$"):
        logits, norms = layer_jacobians(model, x, output="logits", generator=generator)
    assert list(norms) == ["0"]
    assert torch.equal(logits, model(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        draws = [layer_jacobians(model, x, output="logits", projections=20, generator=generator)[1]["0"] for _ in range(60)]
    draws = torch.stack(draws).detach()
    assert_unbiased(draws, expected, draws.var(dim=0))


def test_the_estimate_of_a_layer_is_differentiable_in_the_weights():
    model, x = network(), images()
    with pytest.warns(UserWarning, match="No closed form"):
        _, norms = layer_jacobians(model, x, generator=torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad(norms["0"].sum(), tuple(model[0].parameters()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_works_without_grad_mode_and_hands_back_no_graph():
    model, x = network(), images()
    expected = network_jacobian(model, x)[1]
    with torch.no_grad():
        with pytest.warns(UserWarning, match="No closed form"):
            logits, norms = layer_jacobians(model, x, generator=torch.Generator().manual_seed(0))
        whole = network_jacobian(model, x)
    assert not any(each.requires_grad for each in (logits, *norms.values(), *whole))
    torch.testing.assert_close(whole[1], expected.detach())


def test_the_generator_fixes_the_estimate_and_the_global_one_stays():
    model, x = network(), images()
    before = torch.get_rng_state()
    first, second = (
        network_jacobian(model, x, projections=2, generator=torch.Generator().manual_seed(7))[1] for _ in range(2)
    )
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


def test_rejects_what_makes_no_sense():
    model, x = network(), images()
    with pytest.raises(ValueError, match="Expected `projections` >= 1, got 0"):
        network_jacobian(model, x, projections=0)
    with pytest.raises(ValueError, match="Expected `output` softmax or logits, got 'y'"):
        network_jacobian(model, x, output="y")
