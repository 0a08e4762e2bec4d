from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.access import DecisionBased
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.substitute import train_substitute

SHAPE = (1, 2, 2)


class Brightness(nn.Module):
    """Class 1 where the first pixel is above a half."""

    def forward(self, x: Tensor) -> Tensor:
        score = 4 * (x.flatten(1)[:, 0] - 0.5)
        return torch.stack((-score, score), dim=1)


class Coin(nn.Module):
    """Random labels, and a list of the draws that were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[tuple[int, int], int, int]] = []

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        self.asked += [(rng.key, *pair) for pair in zip(rng.index.tolist(), rng.draw.tolist(), strict=True)]
        return rng.uniform((2,), x.dtype)


class Fitted:
    """A `fit` that hands out a given model and notes what it was given."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.calls: list[tuple[Tensor, Tensor, int]] = []

    def __call__(self, x: Tensor, labels: Tensor, number: int) -> nn.Module:
        self.calls.append((x.clone(), labels.clone(), number))
        return self.model


def images(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def deterministic(rng: ExampleRNG) -> DecisionBased:
    return DecisionBased(Brightness(), rng)


def test_each_round_asks_for_the_new_images_and_doubles_the_set(linear):
    w = torch.tensor([[1.0, -1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]]).view(2, *SHAPE)
    fit, x = Fitted(linear(w, torch.zeros(2))), images(5)
    found = train_substitute(deterministic, x, fit=fit, rounds=3, step=0.1, seed=0, batch=4)
    assert found.sizes == (5, 10, 20)
    assert found.queries == 20
    assert found.model is fit.model
    assert math.isnan(found.fidelity)
    assert [number for _, _, number in fit.calls] == [0, 1, 2]
    for seen, labels, _ in fit.calls:
        assert torch.equal(labels, Brightness()(seen).argmax(dim=1))
    first, second = fit.calls[0], fit.calls[1]
    # Away from the boundary on the substitute: along the sign of the gradient of the label's own probability.
    sign = torch.where(first[1] == 0, 1.0, -1.0).view(-1, 1, 1, 1) * torch.tensor([1.0, -1.0, 0.0, 1.0]).view(1, *SHAPE)
    assert torch.equal(second[0][:5], x)
    torch.testing.assert_close(second[0][5:], (x + 0.1 * sign).clamp(0, 1))


def test_images_stay_in_the_box(linear):
    fit = Fitted(linear(torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.zeros(2)))
    train_substitute(deterministic, images(4), fit=fit, rounds=4, step=0.7, seed=0, box=(0.2, 0.9))
    added = fit.calls[-1][0][4:]
    assert added.min() >= 0.2
    assert added.max() <= 0.9


def test_a_cap_bounds_every_rounds_new_images_and_follows_the_seed(linear):
    model = linear(torch.ones(2, *SHAPE) * torch.tensor([1.0, -1.0]).view(2, 1, 1, 1), torch.zeros(2))
    runs = []
    for seed in (0, 0, 1):
        fit = Fitted(model)
        found = train_substitute(deterministic, images(10), fit=fit, rounds=4, step=0.1, seed=seed, cap=12)
        assert found.sizes == (10, 20, 32, 44)
        assert found.queries == 44
        runs.append(fit.calls[-1][0])
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_every_query_to_a_stochastic_oracle_is_a_fresh_draw(linear):
    coin, fit = Coin(), Fitted(linear(torch.zeros(2, *SHAPE), torch.zeros(2)))

    def oracle(rng: ExampleRNG) -> DecisionBased:
        return DecisionBased(coin, rng, stochastic=True)

    found = train_substitute(oracle, images(8), fit=fit, rounds=3, step=0.1, seed=0, held_out_x=images(6), batch=5)
    assert found.queries == 32
    assert len(coin.asked) == len(set(coin.asked)) == 32 + 6
    assert sorted(index for _, index, _ in coin.asked) == sorted([*range(32), *range(6)])
    labels = fit.calls[-1][1]
    again = Fitted(fit.model)
    train_substitute(oracle, images(8), fit=again, rounds=3, step=0.1, seed=0, batch=32)
    assert torch.equal(again.calls[-1][1], labels)


def test_fidelity_is_the_share_of_equal_labels(linear):
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = Brightness()(x)
            return torch.where((torch.arange(len(x)) < 3).unsqueeze(1), logits, -logits)

    x = images(4)
    found = train_substitute(deterministic, x, fit=Fitted(Half()), rounds=1, step=0.1, seed=0, held_out_x=images(12, 1))
    assert found.fidelity == 3 / 12
    assert found.queries == 4
    perfect = train_substitute(deterministic, x, fit=Fitted(Brightness()), rounds=1, step=0.1, seed=0, held_out_x=x)
    assert perfect.fidelity == 1
    nothing = train_substitute(deterministic, x, fit=Fitted(Brightness()), rounds=1, step=0.1, seed=0, held_out_x=x[:0])
    assert math.isnan(nothing.fidelity)


def test_a_trained_substitute_learns_the_oracle():
    def fit(x: Tensor, labels: Tensor, number: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(number)
            model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for _ in range(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), labels).backward()
            optimizer.step()
        return model.eval()

    found = train_substitute(deterministic, images(60), fit=fit, rounds=2, step=0.1, seed=0, held_out_x=images(300, 7))
    assert found.fidelity > 0.93


def test_the_substitutes_state_is_left_alone(linear):
    model = linear(torch.ones(2, *SHAPE), torch.zeros(2))
    model.train()
    train_substitute(deterministic, images(3), fit=Fitted(model), rounds=2, step=0.1, seed=0, held_out_x=images(2))
    assert model.training
    assert model.weight.requires_grad
    assert model.weight.grad is None


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"step": 0.0}, {"cap": 0}])
def test_impossible_arguments_are_refused(wrong):
    arguments = {"rounds": 1, "step": 0.1, "cap": None, **wrong}
    with pytest.raises(ValueError, match=f"Expected `{next(iter(wrong))}` > 0, got 0"):
        train_substitute(deterministic, images(2), fit=Fitted(Brightness()), seed=0, **arguments)
    with pytest.raises(ValueError, match="Expected images"):
        train_substitute(deterministic, images(0), fit=Fitted(Brightness()), rounds=1, step=0.1, seed=0)
