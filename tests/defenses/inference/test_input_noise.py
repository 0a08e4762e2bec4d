"""Noise at the input: whose numbers, their moments, what is averaged, and what an attacker differentiates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import Tensor, nn

from advbench.attacks.access import WhiteBox
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Untargeted, cross_entropy
from advbench.defenses.inference.noise import InputNoise, Noisy, mean_prediction, tiled


class Recorder(nn.Module):
    """Keeps what it sees; logits are the first two pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach())
        return x.flatten(1)[:, :2]


def stream(n: int, seed: int = 0) -> ExampleRNG:
    return ExampleRNG.make(seed, "oracle", torch.arange(n))


def noise_seen(x: Tensor, rng: ExampleRNG, sigma: float, passes: int) -> Tensor:
    """The noise of a call, shape (passes, n, c, h, w)."""
    recorder = Recorder()
    Noisy(recorder, sigma=sigma, passes=passes, stochastic=False)(x, rng)
    (seen,) = recorder.seen  # one forward for all passes
    return seen.view(passes, *x.shape) - x


def test_noise_belongs_to_the_example():
    x, rng = torch.rand(6, 1, 3, 3), stream(6)
    together = noise_seen(x, rng, 0.5, 4)
    rows = torch.tensor([4, 0, 5])
    torch.testing.assert_close(noise_seen(x[rows], rng.select(rows), 0.5, 4), together[:, rows], rtol=0, atol=1e-6)
    assert not torch.allclose(noise_seen(x, rng.at(1), 0.5, 4), together)
    assert not torch.allclose(noise_seen(x, stream(6, seed=1), 0.5, 4), together)


def test_passes_examples_and_draws_share_no_noise():
    x = torch.zeros(5, 1, 3, 3)
    calls = [noise_seen(x, stream(5).at(draw), 1.0, 3) for draw in range(3)]
    rows = torch.cat(calls).flatten(0, 1).flatten(1)
    assert len(torch.unique(rows, dim=0)) == 3 * 3 * 5


def test_noise_has_the_deviation_it_says():
    sigma, x = 0.3, torch.zeros(200, 1, 8, 8, dtype=torch.float64)
    noise = noise_seen(x, stream(200), sigma, 20)
    n = noise.numel()
    assert abs(noise.mean()) < 4 * sigma / math.sqrt(n)
    assert abs(noise.var() - sigma**2) < 4 * sigma**2 * math.sqrt(2 / n)
    between = (noise[0] * noise[1]).mean() / sigma**2  # the correlation of two passes
    assert abs(between) < 4 / math.sqrt(noise[0].numel())


def test_averages_probabilities():
    logits = torch.randn(7, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 30
    mean = mean_prediction(logits)
    torch.testing.assert_close(mean.softmax(dim=1), logits.softmax(dim=2).mean(dim=0))
    torch.testing.assert_close(mean.exp().sum(dim=1), torch.ones(4, dtype=torch.float64))
    assert mean_prediction(torch.tensor([[[-1e4, 1e4]]] * 3)).isfinite().all()


def test_one_pass_without_noise_is_the_base():
    x = torch.rand(3, 1, 2, 2)
    logits = Noisy(Recorder(), sigma=0.0, passes=1, stochastic=False)(x, stream(3))
    torch.testing.assert_close(logits, Recorder()(x).log_softmax(dim=1))


def logistic(weight: Tensor) -> nn.Module:
    """Two logits, 0 and w.x."""
    layer = nn.Linear(len(weight), 2, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.stack((torch.zeros_like(weight), weight)))
    return nn.Sequential(nn.Flatten(), layer)


def normal_mean(function, deviation: float) -> float:
    """E[function(z)] for z normal with mean 0, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    return float((weights * function(deviation * nodes)).sum() / math.sqrt(2 * math.pi))


def test_gradient_averaged_over_draws_is_the_mean_gradient():
    """One pass, many draws: E[grad softplus(-w.(x + n))] = -E[sigmoid(-w.x - s z)] w, s = sigma ||w||."""
    weight = torch.tensor([2.0, -1.0, 3.0, 0.5], dtype=torch.float64)
    x, sigma, draws = torch.tensor([0.2, 0.9, 0.4, 0.6], dtype=torch.float64).view(1, 1, 2, 2), 0.5, 20_000
    noisy = Noisy(logistic(weight), sigma=sigma, passes=1, stochastic=False)
    with WhiteBox(noisy, stream(1), stochastic=True, draws=draws) as access:
        gradient = access.loss_gradient(x, Untargeted(torch.tensor([1])), cross_entropy).gradient.flatten()
    z = float(weight @ x.flatten())
    mean = normal_mean(lambda s: expit(-z - s), sigma * float(weight.norm()))
    torch.testing.assert_close(gradient, -mean * weight, rtol=4 * 0.5 / math.sqrt(draws) / mean, atol=0)


def test_gradient_of_many_passes_is_that_of_the_mean_prediction():
    """One draw, many passes: grad of -log E[sigmoid(w.(x + n))] = -E[sigmoid'] / E[sigmoid] w."""
    weight = torch.tensor([2.0, -1.0, 3.0, 0.5], dtype=torch.float64)
    x, sigma, passes = torch.tensor([0.2, 0.9, 0.4, 0.6], dtype=torch.float64).view(1, 1, 2, 2), 0.5, 20_000
    noisy = Noisy(logistic(weight), sigma=sigma, passes=passes, stochastic=False)
    with WhiteBox(noisy, stream(1), stochastic=True) as access:
        gradient = access.loss_gradient(x, Untargeted(torch.tensor([1])), cross_entropy).gradient.flatten()
    z, deviation = float(weight @ x.flatten()), sigma * float(weight.norm())
    slope = normal_mean(lambda s: expit(z + s) * expit(-z - s), deviation)
    mean = normal_mean(lambda s: expit(z + s), deviation)
    torch.testing.assert_close(gradient, -slope / mean * weight, rtol=0.02, atol=0)


def test_tiled_streams_are_copies_with_draws_of_their_own():
    rng = stream(3).at(torch.tensor([0, 1, 2]))
    copies = tiled(rng, 2)
    assert copies.index.tolist() == [0, 1, 2, 0, 1, 2]
    assert copies.draw.tolist() == [0, 2, 4, 1, 3, 5]


def test_surrogates_are_the_averaged_model_and_the_bare_base(lab):
    base, noisy = lab.fitted("none"), lab.fitted("input-noise")
    assert list(noisy.surrogates) == ["faithful", "base"]
    assert noisy.surrogates["faithful"].model is noisy.model
    assert noisy.surrogates["faithful"].stochastic
    assert not noisy.surrogates["base"].stochastic
    x = lab.data.validation.x
    torch.testing.assert_close(noisy.surrogates["base"].model(x), base.model(x))


def test_trains_nothing():
    assert InputNoise().inputs == {"base": "none"}
    assert (InputNoise().sigma, InputNoise().passes) == (0.1, 20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"sigma": -1.0}, "Expected `sigma` >= 0, got -1.0"), ({"passes": 0}, "Expected `passes` >= 1, got 0")],
)
def test_rejects_what_makes_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        InputNoise(**arguments)
