"""What is found out before an attack: draws by the convergence of the gradient's direction, the worth of a score."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.access import DetectorView, NoGradientError
from advbench.attacks.calibration import HeldOut, score_scale
from advbench.attacks.draws import CAP, converged_draws
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel

SIDE = 10


class NoisyLinear(nn.Module):
    """Logits ((w + s u).x / 1000, 0), u normal: the gradient's direction is w plus noise of `ratio` = s^2 d / |w|^2."""

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        direction = 1 + math.sqrt(self.ratio) * rng.normal((SIDE * SIDE,), x.dtype)
        score = (direction * x.flatten(1)).sum(dim=1) / 1000
        return torch.stack((score, torch.zeros_like(score)), dim=1)


def held_out(model, n=24, **changes):
    x = torch.rand(n, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(n) % 2
    how = {"threat": ThreatModel("linf", 0.1), "model": model, "stochastic": True, "batch": 16} | changes
    return HeldOut(x=x, y=y, index=torch.arange(n), **how)


@pytest.mark.parametrize(("ratio", "expected"), [(0.01, 1), (0.4, 4), (3.0, 32), (1.5, 16)])
def test_the_draws_are_those_at_which_two_halves_agree(ratio, expected):
    # The cosine of two means over K draws is 1 / (1 + ratio / K) for large images: 0.9 needs K >= 9 ratio.
    found = converged_draws(held_out(NoisyLinear(ratio)))
    assert found.draws == expected
    assert len(found.cosines) == 2
    assert all(cosine >= 0.9 for cosine in found.cosines)
    assert not found.capped


def test_the_cap_is_said_where_it_binds():
    found = converged_draws(held_out(NoisyLinear(100.0)))
    assert found.draws == CAP
    assert found.capped
    assert all(abs(cosine - 1 / (1 + 100 / CAP)) < 0.1 for cosine in found.cosines)


def test_a_higher_level_takes_more_draws():
    few, many = (converged_draws(held_out(NoisyLinear(0.4)), level=level).draws for level in (0.5, 0.95))
    assert few < many


def test_the_answer_repeats_and_depends_on_no_batch():
    found = [converged_draws(held_out(NoisyLinear(0.4), batch=batch)) for batch in (16, 16, 5)]
    assert found[0] == found[1]
    assert found[2].draws == found[0].draws
    assert found[2].cosines == pytest.approx(found[0].cosines)
    assert found[0] != converged_draws(held_out(NoisyLinear(0.4), seed=1))


def test_a_threat_without_a_radius_is_looked_at_where_the_images_are():
    assert len(converged_draws(held_out(NoisyLinear(0.1), threat=ThreatModel("linf", None))).cosines) == 1


class Flat(nn.Module):
    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        return 0 * x.flatten(1)[:, :2]


class Detached(nn.Module):
    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        return x.detach().flatten(1)[:, :2]


def test_no_direction_at_all_needs_one_draw_and_says_nothing():
    found = converged_draws(held_out(Flat()))
    assert (found.draws, found.capped) == (1, False)
    assert all(math.isnan(cosine) for cosine in found.cosines)


class Gamma(NoisyLinear):
    """An infinite slope at black pixels."""

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        return super().forward(x ** (1 / 2.2), rng)


def test_infinite_gradients_are_compared_by_what_an_attack_reads_in_them():
    given = held_out(Gamma(100.0))
    given.x[:, 0, 0, :4] = 0
    found = converged_draws(given)
    assert found.draws > 1, "the signs at the four pixels differ from draw to draw"
    assert all(math.isfinite(cosine) for cosine in found.cosines)


def test_no_gradient_is_an_error():
    with pytest.raises(NoGradientError):
        converged_draws(held_out(Detached()))


class Halves(nn.Module):
    """Logits (4, 0) and a score of 0.5 for every image."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([4.0, 0.0]).expand(len(x), 2)


class Score(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x),), self.value)


@pytest.mark.parametrize(("value", "scale"), [(0.5, 8.0), (-0.5, 8.0), (0.0, 1.0)])
def test_a_score_is_worth_the_classifiers_margin(value, scale):
    detector = DetectorView(Score(value), torch.arange(24) % 2)
    assert score_scale(held_out(Halves(), stochastic=False, detector=detector)) == scale


@pytest.mark.parametrize(("changes", "message"), [({"level": 1.0}, "`level` in"), ({"cap": 0}, "`cap` >= 1")])
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        converged_draws(held_out(Flat()), **changes)
