"""WAME against a scalar reimplementation, weight by weight, in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from advbench.zoo.data import DataSet
from advbench.zoo.optimizers import WAME
from advbench.zoo.training import Budget, accuracy, cross_entropy, train


def scalar_wame(weight: float, gradients: list[float], lr: float, decay: float = 0.0) -> float:
    """One weight, the equations of the paper with the constants of the authors' code."""
    previous, zeta, mean, square = 0.0, 1.0, 1.0, 0.0
    for t, given_gradient in enumerate(gradients, start=1):
        g = given_gradient + decay * weight
        if g * previous > 0:
            zeta *= 1.2
        elif g * previous < 0:
            zeta *= 0.1
        zeta = min(max(zeta, 0.01), 100.0)
        mean = 0.9 * mean + 0.1 * zeta
        square = 0.999 * square + 0.001 * g * g
        rate = lr * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        weight -= rate * (zeta / mean) * g / (math.sqrt(square) + 1e-11)
        previous = g
    return weight


def run(weights: list[float], gradients: list[list[float]], **options: float) -> list[float]:
    parameter = nn.Parameter(torch.tensor(weights, dtype=torch.float64))
    optimizer = WAME([parameter], **options)
    for row in gradients:
        parameter.grad = torch.tensor(row, dtype=torch.float64)
        optimizer.step()
    return parameter.tolist()


@given(
    rows=st.lists(st.lists(st.sampled_from([-2.0, -0.3, 0.0, 1e-3, 0.7]), min_size=3, max_size=3), min_size=1, max_size=30),
    lr=st.sampled_from([1e-3, 0.1]),
    decay=st.sampled_from([0.0, 0.05]),
)
def test_every_weight_follows_the_scalar_equations(rows: list[list[float]], lr: float, decay: float) -> None:
    found = run([0.5, -1.0, 0.0], rows, lr=lr, weight_decay=decay)
    expected = [
        scalar_wame(w, list(column), lr, decay) for w, column in zip([0.5, -1.0, 0.0], zip(*rows, strict=True), strict=True)
    ]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_acceleration_stops_at_its_bounds() -> None:
    """After many equal gradients zeta and its mean are both 100, and the step is Adam's without momentum: lr."""
    steps = 400
    steady = run([0.0], [[1.0]] * steps, lr=1e-3)[0] - run([0.0], [[1.0]] * (steps - 1), lr=1e-3)[0]
    assert steady == pytest.approx(-1e-3, rel=1e-6)
    flipping = [[(-1.0) ** t] for t in range(steps)]
    last = run([0.0], flipping, lr=1e-3)[0] - run([0.0], flipping[:-1], lr=1e-3)[0]
    assert last == pytest.approx(1e-3, rel=1e-6)  # zeta and its mean are both 0.01


def test_the_first_step_is_ten_rates_long() -> None:
    """lr_t = lr sqrt(1 - beta_2) / (1 - beta_1), over sqrt(v) = sqrt(1 - beta_2) |g|."""
    assert run([0.0, 0.0], [[3.0, -1e-4]], lr=1e-3) == pytest.approx([-1e-2, 1e-2], rel=1e-3)


def test_parameters_without_a_gradient_stay_and_a_closure_gives_the_loss() -> None:
    moving, resting = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = WAME([moving, resting])

    def closure() -> float:
        optimizer.zero_grad()
        loss = moving.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    assert optimizer.step(closure) == 2.0
    assert torch.equal(resting, torch.ones(2))
    assert (moving < 1).all()


def test_a_budget_trains_with_it(blobs: DataSet) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    budget = Budget(epochs=15, batch_size=20, optimizer="wame", learning_rate=1e-2)
    train(model, cross_entropy, blobs, budget=budget, seed=0, device="cpu")
    assert accuracy(model, blobs.test) == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "Expected `lr` > 0, got 0.0"),
        ({"alpha": 1.0}, r"Expected `alpha` in \[0, 1\), got 1.0"),
        ({"betas": (0.9, -0.1)}, r"Expected `betas\[1\]` in \[0, 1\), got -0.1"),
        ({"eta_plus": 0.9}, "Expected 0 < `eta_minus` <= 1 <= `eta_plus`, got 0.1 and 0.9"),
        ({"zeta_range": (0.0, 2.0)}, "Expected `zeta_range` around 1"),
    ],
)
def test_options_out_of_range_are_one_clear_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WAME([nn.Parameter(torch.zeros(1))], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_large_tensor_moves_as_its_parts_do(decay: float) -> None:
    """Weights beyond one piece, and some that do not lie in a row, follow the steps that each alone would take."""
    generator = torch.Generator().manual_seed(0)
    whole = nn.Parameter(torch.randn(3, 2**16, generator=generator))
    apart = nn.Parameter(whole.detach().t().contiguous().t())
    rows = [nn.Parameter(row.clone()) for row in whole.detach().flatten().split(2**15)]
    assert not apart.is_contiguous()
    optimizers = [WAME([whole], weight_decay=decay), WAME([apart], weight_decay=decay), WAME(rows, weight_decay=decay)]
    for _ in range(5):
        gradient = torch.randn(whole.shape, generator=generator)
        whole.grad, apart.grad = gradient, gradient.t().contiguous().t()
        for row, its in zip(rows, gradient.flatten().split(2**15), strict=True):
            row.grad = its
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(whole, apart)
    assert torch.equal(whole.flatten(), torch.cat(list(rows)))
