"""Langevin steps against the stationary laws of Gaussian densities, where everything is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from advbench.attacks.rng import ExampleRNG
from advbench.defenses.inference.denoiser import Denoiser
from advbench.defenses.inference.langevin import Langevin, Noise, log_acceptance

SIGMA, SPREAD, MEAN = 0.5, 1.2, 0.4
PULL = SIGMA**2 / (SIGMA**2 + SPREAD**2)
"""The share of x - mean by which the optimal denoiser of N(MEAN, SPREAD^2) moves an image towards the mean."""


class OptimalDenoiser(nn.Module):
    """r(x) = x + SIGMA^2 grad log N(x; MEAN, SPREAD^2 + SIGMA^2), pixel by pixel; counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += 1
        return x - PULL * (x - MEAN)


def langevin(denoiser: nn.Module, step: float, noise: float, **settings) -> Langevin:
    usual = {"steps": 10, "decay": 1.0, "step_offset": 0.0, "noise_offset": 0.0, "metropolis": False, "clip": False}
    sampler = Langevin(denoiser, **(usual | settings), stochastic=noise > 0)
    sampler.double().strength.copy_(torch.tensor([step, noise], dtype=torch.float64))
    return sampler


def rng(n: int) -> ExampleRNG:
    return ExampleRNG.make(0, "oracle", torch.arange(n))


def relaxed(step: float, noise: float, metropolis: bool, n: int = 3_000, steps: int = 60) -> Tensor:
    sampler = langevin(OptimalDenoiser(), step, noise, steps=steps, metropolis=metropolis)
    with torch.no_grad():
        return sampler(torch.full((n, 1, 2, 2), 3.0, dtype=torch.float64), rng(n))


def test_small_steps_sample_the_smoothed_density():
    """With d = sigma sqrt(2 a) the variance is that of the noisy data, but for the step's own bias 1 / (1 - a pull / 2)."""
    step = 0.4
    x = relaxed(step, SIGMA * math.sqrt(2 * step), metropolis=False, steps=120)
    variance = (SPREAD**2 + SIGMA**2) / (1 - step * PULL / 2)
    assert x.mean() == pytest.approx(MEAN, abs=5 * math.sqrt(variance / x.numel()))
    assert x.var() == pytest.approx(variance, rel=0.06)


@pytest.mark.parametrize("noise", [0.3, 0.8])
def test_free_noise_samples_a_density_of_its_own_temperature(noise):
    step = 2.0
    x = relaxed(step, noise, metropolis=False)
    assert x.var() == pytest.approx(noise**2 / (1 - (1 - step * PULL) ** 2), rel=0.06)


@pytest.mark.parametrize("noise", [0.3, 0.8])
def test_the_metropolis_step_removes_the_bias_of_large_steps(noise):
    """The target is the smoothed density to the power 2 a sigma^2 / d^2, whatever the step: variance d^2 / (2 a pull)."""
    step = 5.0
    target, unadjusted = noise**2 / (2 * step * PULL), noise**2 / (1 - (1 - step * PULL) ** 2)
    assert unadjusted > 1.5 * target
    x = relaxed(step, noise, metropolis=True, steps=100)
    assert x.mean() == pytest.approx(MEAN, abs=0.03)
    assert x.var() == pytest.approx(target, rel=0.06)
    assert relaxed(step, noise, metropolis=False).var() == pytest.approx(unadjusted, rel=0.06)


def test_the_acceptance_is_the_ratio_of_densities_and_proposals():
    step, noise = 0.7, 0.4
    generator = torch.Generator().manual_seed(0)
    x, moved = torch.randn(2, 30, 1, 2, 3, generator=generator, dtype=torch.float64)
    denoiser = OptimalDenoiser()
    target = Normal(*torch.tensor([MEAN, math.sqrt(SPREAD**2 + SIGMA**2)], dtype=torch.float64))
    power = 2 * step * SIGMA**2 / noise**2

    def proposal(to: Tensor, start: Tensor) -> Tensor:
        return Normal(start + step * (denoiser(start) - start), torch.tensor(noise, dtype=torch.float64)).log_prob(to)

    ratio = power * (target.log_prob(moved) - target.log_prob(x)) + proposal(x, moved) - proposal(moved, x)
    found = log_acceptance(denoiser(x) - x, denoiser(moved) - moved, step, noise)
    torch.testing.assert_close(found, ratio.sum(dim=(1, 2, 3), keepdim=True))


def test_step_and_noise_are_annealed_towards_their_offsets():
    sampler = langevin(OptimalDenoiser(), 0.4, 0.1, steps=4, decay=0.5, step_offset=0.05, noise_offset=0.01)
    step_sizes, noises = sampler.annealed()
    assert step_sizes == pytest.approx([0.45, 0.25, 0.15, 0.1])
    assert noises == pytest.approx([0.11, 0.06, 0.035, 0.0225])
    x = torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64)
    still = langevin(OptimalDenoiser(), 0.4, 0.0, decay=0.5, step_offset=0.05, steps=3)
    kept = math.prod(1 - PULL * (0.4 * 0.5**t + 0.05) for t in range(3))
    assert float(still(x)) == pytest.approx(MEAN + (2.0 - MEAN) * kept)


@pytest.mark.parametrize("metropolis", [False, True])
def test_the_gradient_through_all_steps_is_that_of_plain_autograd(monkeypatch, metropolis):
    monkeypatch.setattr("advbench.defenses.inference.langevin._KEPT_WHOLE", 0)
    torch.manual_seed(0)
    n = 6
    sampler = langevin(Denoiser((1, 6, 8)), 0.5, 0.1, decay=0.9, noise_offset=0.02, metropolis=metropolis)
    x = torch.rand(n, 1, 6, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(n, 1, 6, 8, dtype=torch.float64)
    bounded, last = sampler(x, rng(n)), sampler.trajectory(x, rng(n))[-1]
    assert torch.equal(bounded, last)
    (thrifty,) = torch.autograd.grad((bounded * weight).sum(), x)
    (plain,) = torch.autograd.grad((last * weight).sum(), x)
    assert plain.abs().amax() > 0
    torch.testing.assert_close(thrifty, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("metropolis", "asked"), [(False, 7), (True, 8)])
def test_asks_the_denoiser_once_a_step(metropolis, asked):
    denoiser = OptimalDenoiser()
    sampler = langevin(denoiser, 0.5, 0.1, steps=7, metropolis=metropolis)
    sampler(torch.zeros(2, 1, 2, 2, dtype=torch.float64), rng(2))
    assert denoiser.asked == asked


def test_a_small_graph_is_kept_whole_and_a_large_one_runs_again_for_the_same_gradient(monkeypatch):
    calls, gradients, asked = [], [], []
    denoiser = nn.Tanh()
    denoiser.register_forward_hook(lambda *_: calls.append(1))
    sampler = langevin(denoiser, 0.5, 0.1, steps=7)
    for most in (2 * 4 * 7, 2 * 4 * 7 - 1):
        monkeypatch.setattr("advbench.defenses.inference.langevin._KEPT_WHOLE", most)
        x = torch.rand(2, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
        calls.clear()
        gradients.append(torch.autograd.grad(sampler(x, rng(2)).square().sum(), x)[0])
        asked.append(len(calls))
    assert asked[0] == 7
    assert asked[1] > 8  # what nothing asks for is not run again
    assert torch.equal(*gradients)


def test_the_gradient_needs_less_memory_than_the_steps(monkeypatch):
    """What autograd keeps of 36 steps is less than a third of what 36 plain steps keep."""

    def kept(output) -> int:
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        x = torch.rand(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output(x)
        return total

    monkeypatch.setattr("advbench.defenses.inference.langevin._KEPT_WHOLE", 0)
    sampler = langevin(Denoiser((1, 8, 8)), 0.5, 0.1, steps=36)
    assert kept(lambda x: sampler(x, rng(2))) < kept(lambda x: sampler.trajectory(x, rng(2))) / 3


def test_every_step_has_noise_of_its_own_and_an_image_its_own():
    sampler = langevin(nn.Identity(), 1.0, 1.0, steps=2)
    states = sampler.trajectory(torch.zeros(3, 1, 4, 4, dtype=torch.float64), rng(3))
    first, second = states[1] - states[0], states[2] - states[1]
    assert not torch.isclose(first, second).any()
    assert not torch.isclose(first[0], first[1]).any()


@pytest.mark.parametrize("at_once", [1, 3 * 16 * 2, 10**6])
def test_the_noise_is_the_same_however_many_steps_are_drawn_at_once(monkeypatch, at_once):
    x, steps = torch.zeros(3, 1, 4, 4, dtype=torch.float64), 5
    usual = Noise(rng(3).at(2), x, steps)
    wanted = [usual(t) for t in range(steps)]
    monkeypatch.setattr("advbench.defenses.inference.langevin._AT_ONCE", at_once)
    drawn = Noise(rng(3).at(2), x, steps)
    assert all(torch.equal(drawn(t), wanted[t]) for t in (3, 4, 0, 1, 2))
    alone = Noise(rng(3).at(2).select(torch.tensor([1])), x[:1], steps)
    assert torch.equal(alone(4), wanted[4][1:2])


def test_the_noise_of_a_step_is_the_stream_of_its_examples_at_a_draw_of_its_own():
    stream, x = rng(3).at(2), torch.zeros(3, 1, 5, 5)
    noise = Noise(stream, x, 4)
    for t in range(4):
        assert torch.equal(noise(t), stream.at(2 + t * 2**24).normal((1, 5, 5)))
        assert not noise(t).is_inference()


def test_the_noise_of_an_image_is_drawn_once_for_all_steps(monkeypatch):
    drawn, normal = [], ExampleRNG.normal

    def counted(self: ExampleRNG, *args) -> Tensor:
        drawn.append(len(self.index))
        return normal(self, *args)

    monkeypatch.setattr(ExampleRNG, "normal", counted)
    x = torch.zeros(1, 1, 28, 28)
    relaxed = langevin(nn.Identity(), 0.4, 0.1, steps=50).float()(x, rng(1))
    assert drawn == [50]
    assert torch.equal(x, torch.zeros_like(x))
    assert relaxed.std() > 0.1


def test_clips_the_last_image_alone_where_asked():
    x = torch.full((2, 1, 4, 4), 0.5, dtype=torch.float64)
    free, clipped = (langevin(nn.Identity(), 1.0, 2.0, clip=clip)(x, rng(2)) for clip in (False, True))
    assert free.amax() > 1
    assert free.amin() < 0
    assert torch.equal(clipped, free.clamp(0, 1))


def test_noisy_steps_want_an_rng():
    with pytest.raises(ValueError, match="Expected `rng`"):
        langevin(nn.Identity(), 1.0, 1.0)(torch.zeros(1, 1, 4, 4))
