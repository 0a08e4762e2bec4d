"""What momentum, diverse inputs and smoothed gradients are for: more errors of models that the attack has not seen.

Digits of 16 x 16 pixels; sources and targets are trained on different images, and 300 images that none of them saw are
attacked. Each mechanism meets the flaw of a source that it is made for, with the same budget and steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from advbench.attacks.access import WhiteBox
from advbench.attacks.diverse import DIFGSM
from advbench.attacks.momentum import MIFGSM
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel, Untargeted
from advbench.attacks.translation import TIFGSM


@cache
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    return nn.functional.interpolate(x, size=(16, 16), mode="bilinear", align_corners=False), torch.tensor(data.target)


class Ripple(nn.Module):
    """A network that sees every pixel plus a small sine of it, so that its gradient changes sign every few hundredths."""

    def __init__(self) -> None:
        super().__init__()
        self.net = dense()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x if self.training else x + 0.02 * torch.sin(60 * x))


class EveryOther(nn.Module):
    """A network that sees every other pixel of every other row: its gradient is zero on the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x[:, :, ::2, ::2])


def dense() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 48), nn.ReLU(), nn.Linear(48, 10))


def convolutional() -> nn.Module:
    layers = (nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(6, 12, 3, stride=2, padding=1), nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(192, 10))


def trained(make: Callable[[], nn.Module], seed: int, rows: slice) -> nn.Module:
    torch.set_num_threads(1)
    x, y = (each[rows] for each in digits())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().train()
        optimizer = torch.optim.Adam(model.parameters(), 5e-3)
        for _ in range(120):
            some = torch.randint(len(x), (128,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[some]), y[some]).backward()
            optimizer.step()
    return model.requires_grad_(False).eval()


@cache
def source(make: Callable[[], nn.Module]) -> nn.Module:
    return trained(make, 0, slice(0, 600))


@cache
def targets() -> tuple[nn.Module, ...]:
    return trained(dense, 10, slice(600, 1200)), trained(convolutional, 11, slice(600, 1200))


def transferred(attack: Any, model: nn.Module, epsilon: float, seed: int) -> list[float]:
    """The share of the images that each target gets wrong."""
    x, y = (each[1200:1500] for each in digits())
    rng = ExampleRNG.make(seed, "attack", torch.arange(len(x)))
    with WhiteBox(model, rng) as access:
        x_adv = replace(attack, stop="never")(access, x, Untargeted(y), ThreatModel("linf", epsilon), rng)
    return [float((target(x_adv).argmax(dim=1) != y).double().mean()) for target in targets()]


def test_the_targets_get_clean_images_right():
    x, y = (each[1200:1500] for each in digits())
    for model in (*targets(), source(Ripple), source(EveryOther)):
        assert (model(x).argmax(dim=1) == y).double().mean() > 0.8


CASES = [
    ("momentum", MIFGSM(), MIFGSM(decay=0), Ripple, 0.2, 0.5),
    ("diverse inputs", DIFGSM(), DIFGSM(probability=0), EveryOther, 0.25, 0.1),
    ("smoothed gradients", TIFGSM(kernel_size=3), TIFGSM(kernel_size=1), EveryOther, 0.1, 0.25),
    ("smoothed gradients", TIFGSM(), MIFGSM(), EveryOther, 0.2, 0.5),
]
"""Mechanism, attack with it, without it, source, epsilon, and by how much more of the images each target gets wrong."""


@pytest.mark.parametrize(("with_it", "without", "make", "epsilon", "gain"), [case[1:] for case in CASES])
def test_each_mechanism_makes_held_out_models_err_more(with_it, without, make, epsilon, gain):
    for seed in (0, 1):
        more = transferred(with_it, source(make), epsilon, seed)
        fewer = transferred(without, source(make), epsilon, seed)
        assert all(one >= other + gain for one, other in zip(more, fewer, strict=True)), (more, fewer)
