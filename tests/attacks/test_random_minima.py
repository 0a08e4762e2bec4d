"""Minimal-norm attacks on random models: what they hand out holds on draws that they have not seen."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from advbench.attacks.access import WhiteBox
from advbench.attacks.carlini_wagner import CarliniWagner
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel, Untargeted

N = 40


class Noisy(nn.Module):
    """Two logits, 0 and w x - b plus normal noise: fooled with even odds exactly where w x = b."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        weight = torch.randn(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.weight = weight / weight.norm()

    def lead(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight - 0.6

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        lead = self.scale * (self.lead(x) + 0.05 * rng.fork("noise").normal((), x.dtype))
        return torch.stack([torch.zeros_like(lead), lead], dim=1)


def attacked(model: Noisy, attack: CarliniWagner) -> tuple[Tensor, Tensor, Tensor]:
    """The images that lie below the boundary, what the attack makes of them, and the share of new draws that it fools."""
    x = 0.1 * torch.rand(N, 1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y, rng = torch.zeros(N, dtype=torch.int64), ExampleRNG.make(0, "attack", torch.arange(N))
    with WhiteBox(model, rng.fork("model"), stochastic=True, draws=2) as access:
        x_adv = attack(access, x, Untargeted(y), ThreatModel("l2", None, box=None), rng)
    report = ExampleRNG.make(1, "report", torch.arange(N))
    with torch.no_grad():
        fooled = torch.stack([model(x_adv, report.at(draw))[:, 1] > 0 for draw in range(100)]).double().mean(dim=0)
    return x, x_adv, fooled


def test_the_nearest_image_of_a_random_model_is_not_the_luckiest():
    model = Noisy(1.0)
    x, x_adv, fooled = attacked(model, CarliniWagner(steps=60, search_steps=4, initial_constant=0.1))
    assert (fooled >= 0.5).double().mean() >= 0.9
    assert (fooled < 0.95).double().mean() >= 0.9  # and it is no farther than it must be
    boundary = -model.lead(x)
    assert ((x_adv - x).flatten(1).norm(dim=1) <= 1.3 * boundary).all()


def test_small_logits_of_a_random_model_are_reached_in_the_last_run():
    """The constant grows within the last run until the image is broken, as it does where nothing is random."""
    _, _, fooled = attacked(Noisy(1e-4), CarliniWagner(steps=100, search_steps=4, initial_constant=1e-3, learning_rate=0.1))
    assert (fooled >= 0.5).double().mean() >= 0.9
