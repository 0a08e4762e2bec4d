"""Wasserstein GANs with gradient penalty, against the obvious per-example implementation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from advbench.defenses.training.wgan_gp import Rule, critic_terms, gradient_penalty, train_wgan_gp
from advbench.zoo.architectures.defense_gan import convolutional_critic, dense_critic, dense_generator
from advbench.zoo.data import Split

CPU = torch.device("cpu")


def test_the_penalty_is_that_of_each_image_by_itself():
    torch.manual_seed(0)
    critic, x = convolutional_critic((1, 8, 8), width=2).double(), torch.rand(5, 1, 8, 8, dtype=torch.float64)
    total = 0.0
    for image in x:
        image = image.unsqueeze(0).requires_grad_()
        (gradient,) = torch.autograd.grad(critic(image).sum(), image)
        total += (math.sqrt(float(gradient.square().sum())) - 1) ** 2 / 5
    assert float(gradient_penalty(critic, x).detach()) == pytest.approx(total, rel=1e-12)


def test_the_penalty_of_a_linear_critic_and_its_gradient_are_closed_forms():
    layer = nn.Linear(4, 1, bias=False).double()
    critic = nn.Sequential(nn.Flatten(), layer, nn.Flatten(0))
    penalty = gradient_penalty(critic, torch.rand(3, 1, 2, 2, dtype=torch.float64))
    weight = layer.weight.detach()
    norm = weight.norm()
    torch.testing.assert_close(penalty.detach(), (norm - 1) ** 2)
    penalty.backward()
    torch.testing.assert_close(layer.weight.grad, 2 * (norm - 1) * weight / norm)


def test_the_critic_parts_real_from_fake():
    torch.manual_seed(0)
    critic = dense_critic((1, 2, 2), width=2)
    real, fake, mix = torch.rand(6, 1, 2, 2), torch.rand(6, 1, 2, 2), torch.rand(6, 1, 1, 1)
    gap, penalty = critic_terms(critic, real, fake, mix, 10.0)
    torch.testing.assert_close(gap, critic(fake).mean() - critic(real).mean())
    between = torch.stack([m * f + (1 - m) * r for m, f, r in zip(mix, fake, real, strict=True)])
    torch.testing.assert_close(penalty, 10 * gradient_penalty(critic, between))


def _train(*, rule: Rule | None = None, iterations: int = 3, seed: int = 0):
    torch.manual_seed(0)
    generator, critic = dense_generator((1, 4, 4), latent=3, width=2), dense_critic((1, 4, 4), width=2)
    training = Split.of(torch.rand(20, 1, 4, 4), torch.zeros(20, dtype=torch.int64))
    before = torch.get_rng_state()
    calls = []
    train_wgan_gp(
        generator,
        critic,
        training,
        latent=3,
        iterations=iterations,
        rule=rule or Rule(batch_size=8),
        seed=seed,
        device=CPU,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert torch.equal(before, torch.get_rng_state())
    return generator, critic, calls


def test_a_seed_fixes_the_weights():
    (first, critic, calls), (again, _, _), (other, _, _) = _train(), _train(), _train(seed=1)
    assert calls == [(0, 3), (1, 3), (2, 3)]
    assert not first.training
    assert all(parameter.requires_grad for parameter in critic.parameters())
    weights = [torch.nn.utils.parameters_to_vector(model.parameters()) for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_makes_so_many_updates_of_the_critic_for_each_of_the_generator(monkeypatch):
    counts = {"critic": 0, "generator": 0}
    step = torch.optim.Adam.step

    def counted(self, *args, **kwargs):
        size = len(self.param_groups[0]["params"][-1])
        counts["critic" if size == 1 else "generator"] += 1
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", counted)
    _train(rule=Rule(critic_steps=4, batch_size=8), iterations=2)
    assert counts == {"critic": 8, "generator": 2}


def test_says_when_it_diverges():
    with pytest.raises(FloatingPointError, match="diverged by iteration 64"):
        _train(rule=Rule(learning_rate=1e30, batch_size=8), iterations=64)
