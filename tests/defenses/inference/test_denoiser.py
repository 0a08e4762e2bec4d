"""Denoising autoencoders: what their residual is, and what the supervised one adds."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.rng import ExampleRNG
from advbench.defenses.defended import Defended, Surrogate
from advbench.defenses.inference.denoiser import DAE, SDAE, Denoiser, denoising, supervision
from advbench.zoo.data import DataSet, Split
from advbench.zoo.training import Budget, Step, train

CPU = torch.device("cpu")


def gaussian_data(n: int, covariance: Tensor, mean: Tensor) -> DataSet:
    """Images (n, 1, 1, pixels) of a normal distribution; one class label, for nothing here looks at it."""
    generator = torch.Generator().manual_seed(0)
    x = mean + torch.randn(n, len(mean), generator=generator) @ torch.linalg.cholesky(covariance).T
    split = Split.of(x.view(n, 1, 1, -1), torch.zeros(n, dtype=torch.int64))
    return DataSet("gaussian", split, split.first(2), split.first(2), 2, {"linf": 0.1})


def test_the_residual_of_a_denoiser_of_gaussian_data_is_the_smoothed_score():
    """A linear denoiser is optimal there: r(x) - x = -sigma^2 (S + sigma^2)^-1 (x - m)."""
    sigma, mean = 0.5, torch.tensor([0.2, -0.1, 0.5])
    covariance = torch.tensor([[1.0, 0.6, 0.0], [0.6, 0.8, 0.2], [0.0, 0.2, 0.3]])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3))
    budget = Budget(epochs=20, batch_size=200, learning_rate=0.05)
    train(model, denoising(sigma), gaussian_data(4_000, covariance, mean), budget=budget, seed=0, device=CPU)
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    score = -(x - mean) @ torch.linalg.inv(covariance + sigma**2 * torch.eye(3))
    torch.testing.assert_close((model(x.view(-1, 1, 1, 3)).view(-1, 3) - x).detach(), sigma**2 * score, atol=0.04, rtol=0)


class TwoClasses(nn.Module):
    """Logits (n, 2) of 1-pixel images for the classes N(-1, 1) and N(1, 1), times `sharpness`; 1 is the Bayes classifier."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.sharpness = sharpness

    def forward(self, x: Tensor) -> Tensor:
        z = self.sharpness * x.flatten(1)
        return torch.cat((-z, z), dim=1)


class Perturbed(nn.Module):
    """A given field of residuals plus a combination of test functions whose coefficients are the parameters."""

    def __init__(self, residual, fields: int) -> None:
        super().__init__()
        self.residual = residual
        self.coefficients = nn.Parameter(torch.zeros(fields, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        functions = torch.stack([torch.cos(k * x) if k % 2 else torch.sin((k + 1) * x) for k in range(4)])
        return x + self.residual(x) + torch.einsum("k,k...->...", self.coefficients, functions)


def smoothed_score(x: Tensor, variance: float) -> Tensor:
    """The gradient of log density of the even mixture of N(-1, variance) and N(1, variance)."""
    return (torch.tanh(x / variance) - x) / variance


@pytest.mark.parametrize("sharpness", [1.0, 3.0])
def test_the_residual_of_a_supervised_denoiser_is_the_mean_score_of_the_classes(sharpness):
    """Theorem 1: sigma^2 E_p(y|x)[grad log p(x) + grad log q(y|x)] makes the loss stationary, q being the classifier.

    With the Bayes classifier, of sharpness 1, that is E_p(y|x)[grad log p(x|y)]; the second term is then zero, with any
    other it is not, and the DAE's residual is not stationary.
    """
    sigma, n = 0.2, 200_000
    y = torch.arange(n) % 2
    step = Step(0, 0, 0, torch.arange(n))
    x = ExampleRNG.make(7, "attack", step.index).normal((1, 1, 1), torch.float64) + (2 * y - 1).view(-1, 1, 1, 1)
    loss = denoising(sigma, supervision(Surrogate(TwoClasses(sharpness)), 2 * sigma**2))

    def supervised(noisy: Tensor) -> Tensor:
        """Weighted by p(y|x) = sigmoid(+-2x): the classes' scores -(x - m_y), and of log q what its sharpness changes."""
        likely = torch.sigmoid(2 * noisy)
        bayes = likely * -(noisy - 1) + (1 - likely) * -(noisy + 1)
        one, other = (
            2 * sharpness * torch.sigmoid(-2 * sharpness * noisy),
            -2 * sharpness * torch.sigmoid(2 * sharpness * noisy),
        )
        return sigma**2 * (bayes + likely * one + (1 - likely) * other)

    def slope(residual) -> Tensor:
        model = Perturbed(residual, 4)
        sum(loss(model, x, y, step).values()).backward()
        return model.coefficients.grad.abs().max()

    assert slope(supervised) < 0.006
    if sharpness == 1.0:
        torch.testing.assert_close(supervised(x), sigma**2 * smoothed_score(x, 1.0))
    else:
        assert slope(lambda noisy: sigma**2 * smoothed_score(noisy, 1 + sigma**2)) > 0.02


def test_the_loss_is_the_squared_error_over_pixels_and_the_weighted_cross_entropy(lab):
    split, classifier = lab.data.validation, Surrogate(lab.small_net().eval())
    step = Step(3, 0, 5, split.index)
    terms = denoising(0.3, supervision(classifier, 0.7))(nn.Identity(), split.x, split.y, step)
    noise = ExampleRNG.make(3, "train", split.index).at(5).fork("denoising").normal((1, 8, 8))
    torch.testing.assert_close(terms["reconstruction"], 0.09 * noise.square().sum() / len(split))
    likely = classifier.model(split.x + 0.3 * noise).log_softmax(dim=1).gather(1, split.y.unsqueeze(1))
    torch.testing.assert_close(terms["supervision"], -0.7 * likely.mean())


def test_without_its_weight_the_supervised_denoiser_is_the_dae_bit_for_bit(lab):
    plain, unweighted, supervised = (
        lab.fitted(spec).model.state_dict() for spec in ("dae", "sdae(weight=0)", "sdae(base='pgd-linf(steps=1)')")
    )
    assert plain.keys() == unweighted.keys()
    assert all(torch.equal(plain[name], unweighted[name]) for name in plain)
    assert not all(torch.equal(plain[name], supervised[name]) for name in plain)


def test_the_weight_is_twice_the_variance_unless_it_is_given(lab):
    usual, given = lab.fitted("sdae(sigma=0.4)"), lab.fitted("sdae(sigma=0.4, weight=0.32)")
    state = usual.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in given.model.state_dict().items())


def test_the_classifier_of_a_supervised_denoiser_stays_as_it_was(lab):
    base = lab.fit("none")
    state = {name: value.clone() for name, value in base.model.state_dict().items()}
    base.model.zero_grad()
    base.model.train()
    SDAE().fit(lab.small_net, lab.data, inputs={"base": base}, seed=0, device=CPU, budget=lab.budget)
    assert base.model.training
    assert all(parameter.requires_grad for parameter in base.model.parameters())
    assert all(parameter.grad is None for parameter in base.model.parameters())
    assert all(torch.equal(state[name], value) for name, value in base.model.state_dict().items())


def test_a_supervised_denoiser_learns_from_a_classifier_that_draws(lab):
    one, again = (lab.fit("sdae(base='input-noise')").model.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], again[name]) for name in one)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 10, 7), (2, 3, 5)])
def test_denoises_images_of_any_size(shape):
    model = Denoiser(shape)
    x = torch.rand(3, *shape)
    denoised = model(x)
    assert denoised.shape == x.shape
    assert denoised.abs().amax() <= 1
    height, width = (-(-side // 4) * 4 for side in shape[1:])
    padded = torch.zeros(3, shape[0], height, width)
    padded[:, :, : shape[1], : shape[2]] = x
    assert torch.equal(denoised, model.network(padded)[:, :, : shape[1], : shape[2]])


def test_training_brings_noisy_images_nearer_to_clean_ones(lab):
    data = lab.data
    budget = Budget(epochs=20, batch_size=16)
    fitted = DAE().fit(lab.small_net, data, inputs={}, seed=0, device=CPU, budget=budget)
    x = data.validation.x
    noisy = x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert (fitted.model(noisy) - x).square().mean() < 0.5 * (noisy - x).square().mean()


@pytest.mark.parametrize("arguments", [{"sigma": 0.0}, {"lengthening": 0.0}, {"learning_rate": -1.0}, {"batch_size": 0}])
def test_refuses_numbers_out_of_range(arguments):
    with pytest.raises(ValueError, match="Expected"):
        DAE(**arguments)
    with pytest.raises(ValueError, match="Expected"):
        SDAE(**arguments)


def test_refuses_a_negative_weight_and_images_without_a_range(lab):
    with pytest.raises(ValueError, match="Expected `weight` >= 0, got -1"):
        SDAE(weight=-1.0)
    whitened = dataclasses.replace(lab.data, box=None)
    with pytest.raises(ValueError, match="Expected images in"):
        DAE().build(lab.small_net, whitened, dict[str, Defended]())
