"""Known noise: a random model attacked at the draws that it is scored under, against closed forms."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import advbench
from advbench.attacks.fgm import FGM
from advbench.attacks.pgd import PGD
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.square import Square
from advbench.attacks.threat import ThreatModel
from advbench.defenses.defended import Defended
from advbench.tasks import known_noise
from advbench.tasks.images import Images
from advbench.tasks.known_noise import KnownDraw, withstood
from advbench.zoo.data import Split

N, EPSILON, NOISE, DRAWS = 40, 0.05, 0.15, 6
INDEX = torch.arange(N) * 3 + 1


class Wavering(nn.Module):
    """Two classes: the sign of a linear score plus a normal number, so that one draw is a shifted half-space."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.9, -0.4, 0.7, -1.0]))

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        score = (x.flatten(1) - 0.5) @ self.weight + NOISE * rng.normal((1,), x.dtype).flatten()
        return torch.stack([-score, score], dim=1)


@pytest.fixture
def images():
    """Images away from the limits of pixels, and the labels that the model gives without noise."""
    x = 0.2 + 0.6 * torch.rand(N, 1, 2, 2, generator=torch.Generator().manual_seed(3))
    return x, ((x.flatten(1) - 0.5) @ Wavering().weight > 0).long().detach()


def by_hand(x, y, seed, reach):
    """The draws of each image in which the true side's lead is above what a perturbation in linf can take from it."""
    weight, found = Wavering().weight.detach(), torch.zeros(N, dtype=torch.int64)
    for draw in range(DRAWS):
        noise = NOISE * ExampleRNG.make(seed, "report", INDEX).at(draw).normal((1,)).flatten()
        lead = (2 * y - 1) * ((x.flatten(1) - 0.5) @ weight + noise)
        found += lead > reach * weight.abs().sum()
    return found


@pytest.mark.parametrize("attack", [FGM(), PGD(steps=20), None])
@pytest.mark.parametrize("seed", [0, 7])
def test_every_draw_is_attacked_as_the_half_space_that_it_is(images, attack, seed):
    x, y = images
    defended = Defended(Wavering(), stochastic=True)
    [surrogate] = defended.surrogates.values()
    scored = Images(seed, "data", "test", N, 16, "cpu")
    found = withstood(
        defended, surrogate, attack, Split(x, y, INDEX), ThreatModel("linf", EPSILON),
        draws=DRAWS, images=scored, device=torch.device("cpu"),
    )  # fmt: skip
    assert torch.equal(found, by_hand(x, y, seed, 0.0 if attack is None else EPSILON))
    assert 0 < int(found.sum()) < N * DRAWS


def test_a_known_draw_is_a_deterministic_model_whatever_it_is_asked_with():
    model, x = KnownDraw(Wavering(), 3, 4), torch.rand(5, 1, 2, 2)
    index = torch.tensor([9, 2, 30, 4, 1])
    plain = Wavering()(x, ExampleRNG.make(3, "report", index).at(4))
    for purpose, draw in (("attack", 0), ("report", 1), ("select", 4)):
        assert torch.equal(model(x, ExampleRNG.make(8, purpose, index).at(draw)), plain)
    rows = torch.tensor([3, 0])
    assert torch.equal(model(x[rows], ExampleRNG.make(1, "attack", index[rows])), plain[rows])


class Noisy(nn.Module):
    """A model with random numbers of torch's own."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + 0.1 * torch.randn_like(x))


def test_an_evaluation_tells_it_beside_what_is_ranked():
    x = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    y = Noisy().inner(x).argmax(dim=1)
    given = {"epsilon": 0.06, "attack": "pgd(steps=10),fmn(steps=10)", "batch": 6, "stochastic": True, "draws": 2}
    plain, known = (advbench.evaluate(Noisy(), x, y, known_noise=wanted, **given) for wanted in (False, True))
    assert plain.known_noise is None
    assert plain.robust == known.robust
    [record] = [record for record, _ in known.cells if record.attack["name"] == "pgd"]
    told = record.details["known_noise"]
    assert told["draws"] == 10
    assert len(told["correct"]) == 12
    assert known.known_noise.value == pytest.approx(np.mean(told["correct"]) / 10)
    assert known.known_noise.value < known.robust.value
    assert "known_noise" not in next(record for record, _ in known.cells if record.attack["name"] == "fmn").details
    assert "under an attacker who knows the draws: robust accuracy" in str(known)
    assert "who knows the draws" not in str(plain)
    assert json.loads(known.to_json())["known_noise"]["value"] == pytest.approx(known.known_noise.value)
    still = advbench.evaluate(Noisy().inner, x, y, epsilon=0.06, attack="pgd(steps=5)", batch=6, known_noise=True)
    assert still.known_noise is None


def test_an_attack_that_fails_costs_the_diagnostic_alone(monkeypatch):
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    y = Noisy().inner(x).argmax(dim=1)

    def fails(*_, **__):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(known_noise, "withstood", fails)
    given = {"epsilon": 0.06, "attack": "pgd(steps=3)", "batch": 6, "stochastic": True, "draws": 2, "known_noise": True}
    found = advbench.evaluate(Noisy(), x, y, **given)
    assert found.robust is not None
    assert found.known_noise is None
    assert "known noise of pgd(steps=3), left out: RuntimeError: no such luck" in str(found)


def test_queries_alone_are_no_gradients_but_know_the_draw_too(images):
    x, y = images
    defended = Defended(Wavering(), stochastic=True)
    [surrogate] = defended.surrogates.values()
    found = withstood(
        defended, surrogate, Square(queries=300), Split(x, y, INDEX), ThreatModel("linf", EPSILON),
        draws=DRAWS, images=Images(0, "data", "test", N, 16, "cpu"), device=torch.device("cpu"),
    )  # fmt: skip
    assert (found >= by_hand(x, y, 0, EPSILON)).all()
    assert int(found.sum()) < int(by_hand(x, y, 0, 0.0).sum())
