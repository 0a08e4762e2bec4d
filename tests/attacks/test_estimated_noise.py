"""Noise with an estimated covariance: the estimate against plain sums, the noise against the estimate."""

from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from advbench.attacks.access import ScoreBased
from advbench.attacks.calibration import HeldOut, calibrate
from advbench.attacks.capabilities import Need
from advbench.attacks.covariance import Covariance, covariance_function, covariance_matrix, estimate, stationary_matrix
from advbench.attacks.estimated_noise import EstimatedNoise, NoiseOf
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel, Untargeted

SHAPE = (2, 3, 4)
CORRUPTION = ThreatModel("none", None, box=None)


def images(n: int = 7, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    """Images whose neighbours and channels are alike."""
    generator = torch.Generator().manual_seed(n)
    white = torch.randn(n, shape[0] + 1, shape[1] + 1, shape[2] + 1, dtype=torch.float64, generator=generator)
    mixed = white[:, :-1] + 0.7 * white[:, 1:]
    return mixed[:, :, :-1, :-1] + mixed[:, :, 1:, 1:] + 0.5 * mixed[:, :, :-1, 1:]


def streams(n: int) -> ExampleRNG:
    return ExampleRNG.make(0, "attack", torch.arange(n))


def mean_by_hand(x: Tensor, a: int, b: int, down: int, right: int) -> float:
    """The mean of channel a at p + (down, right) times channel b at p, about the mean image, over all pairs and images."""
    centred = x - x.mean(dim=0)
    _, h, w = x.shape[1:]
    products = [
        (centred[:, a, i + down, j + right] * centred[:, b, i, j]).mean().item()
        for i in range(h)
        for j in range(w)
        if 0 <= i + down < h and 0 <= j + right < w
    ]
    return sum(products) / len(products)


def test_the_matrix_is_that_of_the_definition():
    x = images()
    torch.testing.assert_close(covariance_matrix(x), torch.cov(x.flatten(1).T, correction=0))
    many = x.repeat(300, 1, 1, 1)
    torch.testing.assert_close(covariance_matrix(many), covariance_matrix(x))
    torch.testing.assert_close(covariance_function(many), covariance_function(x))


def test_the_function_is_the_mean_over_all_pairs_of_a_displacement():
    x = images()
    function = covariance_function(x)
    _, h, w = SHAPE
    for a in range(2):
        for b in range(2):
            for down in range(1 - h, h):
                for right in range(1 - w, w):
                    expected = mean_by_hand(x, a, b, down, right)
                    assert function[a, b, down + h - 1, right + w - 1].item() == pytest.approx(expected, abs=1e-12)


def test_a_function_spreads_over_its_matrix_and_back():
    """Every entry of the matrix of a covariance function depends on displacement alone, and averages to the function."""
    function = covariance_function(images())
    matrix = stationary_matrix(function)
    torch.testing.assert_close(matrix, matrix.T)
    places = [(c, i, j) for c in range(2) for i in range(3) for j in range(4)]
    for row, (a, i, j) in enumerate(places):
        for column, (b, k, m) in enumerate(places):
            assert matrix[row, column] == function[a, b, i - k + 2, j - m + 3]


def expected_matrix(x: Tensor, form: str) -> Tensor:
    """The covariance in the given form with a mean variance of 1; by a plain loop over rounded distances for radial."""
    if form == "matrix":
        found = covariance_matrix(x)
        return found / found.diagonal().mean()
    function = covariance_function(x)
    if form == "radial":
        _, h, w = x.shape[1:]
        pooled = torch.zeros_like(function)
        radius = {(i, j): round(math.hypot(i, j)) for i in range(1 - h, h) for j in range(1 - w, w)}
        for (i, j), r in radius.items():
            ring = [place for place, other in radius.items() if other == r]
            weights = torch.tensor([float((h - abs(k)) * (w - abs(m))) for k, m in ring], dtype=torch.float64)
            values = torch.stack([function[..., k + h - 1, m + w - 1] for k, m in ring], dim=-1)
            pooled[..., i + h - 1, j + w - 1] = (values * weights).sum(dim=-1) / weights.sum()
        function = (pooled + pooled.transpose(0, 1)) / 2
    found = stationary_matrix(function)
    return found / found.diagonal().mean()


def positive_part(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    found = (vectors * values.clamp(min=0)) @ vectors.T
    return found / found.diagonal().mean()


@pytest.mark.parametrize("form", ["matrix", "displacement", "radial"])
def test_the_noise_has_the_estimated_covariance(form):
    n = 20_000
    covariance = estimate(images(400), form)
    expected = positive_part(expected_matrix(images(400), form))
    noise = covariance.sample(torch.zeros(n, *SHAPE), streams(n)).double().flatten(1)
    error = ((expected.diagonal().outer(expected.diagonal()) + expected.square()) / n).sqrt()
    assert ((noise.T @ noise / n - expected).abs() < 5 * error).all()
    assert (noise.mean(dim=0).abs() < 6 / n**0.5).all()
    assert scipy.stats.kstest((noise[:, 7] / expected[7, 7].sqrt()).numpy(), "norm").pvalue > 1e-3


def short_range(n: int = 500) -> Tensor:
    """Images of white noise with a common part of the channels, whose spectrum is flat and far from zero."""
    generator = torch.Generator().manual_seed(1)
    white = torch.randn(n, 3, 3, 4, dtype=torch.float64, generator=generator)
    return white[:, :2] + 0.5 * white[:, 2:]


def test_a_positive_spectrum_is_sampled_on_the_torus_and_any_other_by_its_positive_part():
    torus = estimate(short_range(), "displacement")
    assert torus.factor is None
    assert torus.clipped == 0
    function = covariance_function(short_range())
    function = function / function[..., 2, 3].diagonal().mean()
    spectrum = torch.fft.fft2(torch.fft.ifftshift(function, dim=(2, 3)))
    torch.testing.assert_close(torch.einsum("hwab,hwbc->achw", torus.root, torus.root), spectrum)
    # S = v v^T with v = (1, 0, 1), averaged by displacement, has an eigenvalue of -1/3: it must not be kept.
    row = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64).view(1, 1, 1, 3)
    two = torch.cat((row, -row))
    matrix = stationary_matrix(covariance_function(two))
    values = torch.linalg.eigvalsh(matrix)
    assert values.min().item() == pytest.approx(-1 / 3)
    clipped = estimate(two, "displacement")
    assert clipped.root is None
    assert clipped.clipped == pytest.approx((1 / 3) / values.abs().sum().item())
    torch.testing.assert_close(clipped.factor @ clipped.factor.T, positive_part(matrix))


def test_few_images_give_a_covariance_of_low_rank():
    covariance = estimate(images(4))
    assert covariance.factor.shape == (24, 3)
    torch.testing.assert_close(covariance.factor @ covariance.factor.T, expected_matrix(images(4), "matrix"))


@pytest.mark.parametrize("form", ["matrix", "displacement"])
def test_a_covariance_comes_back_from_its_values(form):
    one = estimate(short_range(), form)
    other = Covariance.of_values(one.values())
    x = torch.zeros(5, *SHAPE, dtype=torch.float64)
    assert torch.equal(one.sample(x, streams(5)), other.sample(x, streams(5)))
    alone = one.sample(x[3:4], streams(5).select(torch.tensor([3])))
    torch.testing.assert_close(one.sample(x, streams(5))[3:4], alone, rtol=0, atol=1e-12)
    assert all(not value.is_complex() for value in one.values().values())


def net() -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    for parameter in model.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return model


def held_out(model: nn.Module | None) -> HeldOut:
    x = images(30).sigmoid()
    y = torch.zeros(30, dtype=torch.int64) if model is None else model(x).argmax(dim=1)
    return HeldOut(x=x, y=y, index=torch.arange(30), threat=CORRUPTION, model=model, batch=8)


def test_it_is_the_worst_of_its_draws():
    model, x = net(), images(15).sigmoid()
    goal = Untargeted(model(x).argmax(dim=1))
    attack = calibrate(EstimatedNoise(points=6, sigma=0.4), held_out(None))
    assert isinstance(attack, NoiseOf)
    with ScoreBased(model, streams(15)) as access:
        found = attack(access, x, goal, CORRUPTION, access.rng)
    draws = [estimate(held_out(None).x).sample(x, streams(15).at(point)) for point in range(6)]
    fooled = torch.stack([goal.achieved(model(x + 0.4 * noise)) for noise in draws]).any(dim=0)
    assert torch.equal(goal.achieved(model(found)), fooled)
    assert 0 < fooled.sum() < 15
    assert any(torch.equal(found[0], (x + 0.4 * noise)[0]) for noise in draws)


def test_the_noise_of_an_attack_has_the_covariance_of_its_perturbations():
    """The fast gradient sign of a linear model is one vector up to its sign: the noise is that vector times N(0, 1)."""
    weights = torch.linspace(-1, 1, 24, dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(24, 2, bias=False)).double()
    model[1].weight.data = torch.stack((weights, -weights))
    attack = EstimatedNoise(of="fgsm", of_epsilon=0.01)
    assert attack.need == Need("validation", model=True)
    assert EstimatedNoise().need == Need("train", model=False)
    found = calibrate(attack, held_out(model))
    noise = found.covariance.sample(images(5), streams(5)).flatten(1)
    torch.testing.assert_close(noise.abs(), noise[:, :1].abs().expand_as(noise))
    torch.testing.assert_close((noise * weights.sign()).sign(), (noise[:, :1] * weights[0].sign()).sign().expand_as(noise))


def test_what_it_cannot_do_is_refused():
    x = images()
    for arguments, message in (
        ({"form": "square"}, "Expected `form` to be one of matrix, displacement, radial, got 'square'"),
        ({"of": "pdg"}, "one of advbench's attacks"),
        ({"of": "fgsm", "of_norm": "l2"}, "Expected `of_norm` to be one that 'fgsm' knows, got 'l2'"),
        ({"sigma": 0.0}, "Expected `sigma` > 0"),
    ):
        with pytest.raises(ValueError, match=message):
            EstimatedNoise(**arguments)
    with pytest.raises(ValueError, match="Expected `form`"):
        estimate(x, "square")
    for few in (x[:1], x[:1].repeat(4, 1, 1, 1)):
        with pytest.raises(ValueError, match="two images or more that differ"):
            estimate(few)
    with pytest.raises(ValueError, match="at most 4096 values"):
        covariance_matrix(torch.zeros(2, 1, 65, 64))
    with pytest.raises(ValueError, match=r"Expected images of shape \(2, 3, 4\)"):
        estimate(x).sample(torch.zeros(1, 2, 4, 3), streams(1))
    with ScoreBased(net(), streams(7)) as access, pytest.raises(ValueError, match="Expected a covariance"):
        EstimatedNoise()(access, x, Untargeted(torch.zeros(7, dtype=torch.int64)), CORRUPTION, access.rng)
