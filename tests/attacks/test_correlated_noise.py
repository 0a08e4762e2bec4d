from __future__ import annotations

import math

import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from advbench.attacks import balls
from advbench.attacks.access import ScoreBased
from advbench.attacks.correlated_noise import CorrelatedNoise, correlated, exponential_factor
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel, Untargeted, cross_entropy

SHAPE = (3, 4, 5)
CORRUPTION = ThreatModel("none", None, box=None)


def streams(n: int, seed: int = 0) -> ExampleRNG:
    return ExampleRNG.make(seed, "attack", torch.arange(n))


def covariance(shape: tuple[int, int, int], decay_length: float, between: float) -> Tensor:
    """The analytic covariance of the flattened noise, entry by entry."""
    places = [(c, i, j) for c in range(shape[0]) for i in range(shape[1]) for j in range(shape[2])]
    rows = [
        [(1 if c == d else between) * math.exp(-math.hypot(i - k, j - m) / decay_length) for d, k, m in places]
        for c, i, j in places
    ]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(("decay_length", "between"), [(16.0, 0.5), (1.5, 0.5), (2.0, 0.0), (3.0, 1.0)])
def test_the_noise_has_the_covariance_of_the_paper(decay_length, between):
    n = 20_000
    noise = correlated(torch.zeros(n, *SHAPE), streams(n), decay_length, between).double().flatten(1)
    expected = covariance(SHAPE, decay_length, between)
    standard_error = ((1 + expected.square()) / n).sqrt()
    assert ((noise.T @ noise / n - expected).abs() < 5 * standard_error).all()
    assert (noise.mean(dim=0).abs() < 5 / n**0.5).all()
    assert scipy.stats.kstest(noise[:, 7].numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("decay_length", [0.1, 1.0, 16.0, 300.0])
def test_the_factor_is_exact(decay_length):
    factor = exponential_factor(6, 9, decay_length)
    assert torch.equal(factor, factor.tril())
    torch.testing.assert_close(factor @ factor.T, covariance((1, 6, 9), decay_length, 0.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("decay_length", [0.01, 16.0])
def test_noise_fools_a_smooth_model_as_often_as_its_covariance_says(linear, decay_length):
    """The mean pixel moves by a normal number of variance sigma^2 1^T C 1 / d^2; short-range noise averages out."""
    n, d, lead = 3000, 60, 0.1
    weight = torch.stack((torch.full(SHAPE, 1 / d), torch.zeros(SHAPE))).double()
    model = linear(weight, torch.tensor([lead - 0.5, 0.0], dtype=torch.float64))
    x, goal = torch.full((n, *SHAPE), 0.5, dtype=torch.float64), Untargeted(torch.zeros(n, dtype=torch.int64))
    with ScoreBased(model, streams(n)) as access:
        attack = CorrelatedNoise(points=1, decay_length=decay_length)
        found = attack(access, x, goal, CORRUPTION, access.rng)
    fooled = goal.achieved(model(found)).double().mean()
    deviation = 0.3 * covariance(SHAPE, decay_length, 0.5).sum().sqrt().item() / d
    expected = scipy.stats.norm.sf(lead / deviation)
    assert abs(fooled - expected) < 4 * math.sqrt(expected * (1 - expected) / n)


def net() -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(60, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    for parameter in model.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return model


@pytest.mark.parametrize("norm", ["none", "linf", "l2"])
@pytest.mark.parametrize("box", [None, (0.0, 1.0)])
def test_it_is_the_worst_of_its_draws_scaled_to_the_threat(norm, box):
    model, n = net(), 15
    x = torch.rand(n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    goal = Untargeted(model(x).argmax(dim=1))
    with ScoreBased(model, streams(n)) as access:
        threat = ThreatModel(norm, None if norm == "none" else 0.4, box)
        found = CorrelatedNoise(points=4, decay_length=2.0, sigma=0.2, stop="never")(access, x, goal, threat, access.rng)
        assert access.ledger.queries.tolist() == [4] * n
    noise = torch.stack([correlated(x, streams(n).at(draw), 2.0, 0.5) for draw in range(4)])
    scale = {"none": 0.2 * noise, "linf": 0.4 * noise.sign()}
    scale["l2"] = 0.4 * noise / noise.square().sum(dim=(2, 3, 4), keepdim=True).sqrt()
    candidates = x + scale[norm] if box is None else (x + scale[norm]).clamp(0, 1)
    order = torch.stack([cross_entropy(model(each), goal) + 1e3 * goal.achieved(model(each)) for each in candidates])
    torch.testing.assert_close(found, candidates[order.argmax(dim=0), torch.arange(n)])
    if box is None and norm != "none":
        torch.testing.assert_close(balls.distance(found - x, norm), torch.full((n,), 0.4, dtype=torch.float64))


def test_an_example_that_is_broken_is_asked_no_more():
    model = net()
    x = torch.rand(40, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    goal = Untargeted(model(x).argmax(dim=1))
    with ScoreBased(model, streams(40)) as access:
        CorrelatedNoise(points=5)(access, x, goal, CORRUPTION, access.rng)
    first = goal.achieved(model(x + 0.3 * correlated(x, streams(40).at(0), 16.0, 0.5)))
    assert first.any()
    assert (access.ledger.queries[first] == 1).all()
    assert (access.ledger.queries[~first] > 1).all()


def test_the_dtype_of_the_images_changes_the_noise_by_rounding_alone():
    x = torch.zeros(8, *SHAPE, dtype=torch.float64)
    exact, rounded = correlated(x, streams(8), 16.0, 0.5), correlated(x.float(), streams(8), 16.0, 0.5)
    assert rounded.dtype == torch.float32
    assert torch.equal(exact.float(), rounded)


def test_what_it_cannot_do_is_refused():
    for field in ("points", "decay_length", "sigma"):
        with pytest.raises(ValueError, match=f"Expected `{field}` > 0, got 0"):
            CorrelatedNoise(**{field: 0})
    with pytest.raises(ValueError, match="Expected `channel_correlation` in"):
        CorrelatedNoise(channel_correlation=-0.5)
    with pytest.raises(ValueError, match="at most 4096 pixels"):
        exponential_factor(65, 64, 16.0)
    x, goal = torch.zeros(2, *SHAPE, dtype=torch.float64), Untargeted(torch.zeros(2, dtype=torch.int64))
    with ScoreBased(net(), streams(2)) as access, pytest.raises(ValueError, match="Expected no epsilon"):
        CorrelatedNoise()(access, x, goal, ThreatModel("none", 0.3), access.rng)
