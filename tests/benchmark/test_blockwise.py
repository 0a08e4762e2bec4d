"""Foreign stochastic models: the same numbers for an example whatever the batch, and the right distribution."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.access import WhiteBox
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Untargeted, cross_entropy
from advbench.user_models.blockwise import Blockwise
from advbench.zoo.training import seeded


class Noisy(nn.Module):
    """Noise at the input, by a global generator, and a linear map."""

    def __init__(self, source: str = "torch") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 3 * 8, dtype=torch.float64).view(3, 8))
        self.source = source

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        if self.source == "torch":
            noise = torch.randn_like(flat)
        elif self.source == "numpy":
            noise = torch.from_numpy(np.random.standard_normal(flat.shape))  # noqa: NPY002
        else:
            noise = torch.tensor([[random.gauss(0, 1) for _ in row] for row in flat])
        return (flat + noise) @ self.weight.T


def images(n: int) -> Tensor:
    return torch.rand(n, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def stream(index: Tensor, seed: int = 0, purpose: str = "attack") -> ExampleRNG:
    return ExampleRNG.make(seed, purpose, index)


@pytest.mark.parametrize("source", ["torch", "numpy", "python"])
def test_an_example_draws_the_same_in_any_batch_and_order(source):
    model, x = Blockwise(Noisy(source), block=4), images(11)
    index = torch.arange(11)
    whole = model(x, stream(index).at(3))
    torch.manual_seed(99)
    for rows in (torch.tensor([10, 0, 5]), torch.tensor([7]), index.flip(0), torch.tensor([4, 5, 6, 7])):
        torch.testing.assert_close(model(x[rows], stream(index[rows]).at(3)), whole[rows], rtol=0, atol=1e-12)


def test_draws_seeds_and_purposes_differ_and_examples_do_not_share_noise():
    model, x, index = Blockwise(Noisy(), block=4), images(1).expand(8, -1, -1, -1), torch.arange(8)
    first = model(x, stream(index))
    others = [model(x, stream(index).at(1)), model(x, stream(index, 1)), model(x, stream(index, purpose="report"))]
    for other in others:
        assert ((first - other).abs() > 1e-6).all()
    assert len(first[:, 0].unique()) == 8


def test_every_example_may_stand_at_another_draw_and_twice_in_a_batch():
    model, x, index = Blockwise(Noisy(), block=4), images(6), torch.arange(6)
    by_draw = [model(x, stream(index).at(draw)) for draw in range(3)]
    rows, draws = torch.tensor([5, 0, 0, 3, 0, 5]), torch.tensor([2, 1, 1, 0, 2, 2])
    found = model(x[rows], stream(index[rows]).at(draws))
    expected = torch.stack([by_draw[draw][row] for row, draw in zip(rows.tolist(), draws.tolist(), strict=True)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_blocks_are_filled_by_the_scored_images_first():
    index = torch.tensor([3, 40, 1000, 5000])
    asked = []

    class Watched(Noisy):
        def forward(self, x: Tensor) -> Tensor:
            asked.append(len(x))
            return super().forward(x)

    model = Blockwise(Watched(), block=2, index=index)
    whole = model(images(4), stream(index))
    assert asked == [2, 2]
    beyond = model(images(1), stream(torch.tensor([7])))
    assert beyond.shape == (1, 3)
    torch.testing.assert_close(model(images(4)[2:3], stream(index[2:3])), whole[2:3], rtol=0, atol=1e-12)


def test_the_global_generators_stay_as_they_are():
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    Blockwise(Noisy(), block=4)(images(3), stream(torch.arange(3)))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert random.getstate() == before[2]


def test_the_noise_has_the_distribution_of_the_models_own():
    model, x = Blockwise(Noisy(), block=8), images(8)
    draws = torch.stack([model(x, stream(torch.arange(8)).at(draw)) for draw in range(600)])
    weight = model.model.weight.detach()
    torch.testing.assert_close(draws.mean(dim=0), x.flatten(1) @ weight.T, rtol=0, atol=6 * 2.2 / 600**0.5)
    torch.testing.assert_close(draws.var(dim=0).mean(dim=0), (weight**2).sum(dim=1), rtol=0.1, atol=0)


def test_eot_gradients_are_those_of_the_very_draws():
    """The attacker's gradient, averaged over draws, equals that of the mean loss worked out by hand."""
    model, x, index = Blockwise(Noisy(), block=4), images(5), torch.arange(5)
    goal = Untargeted(torch.tensor([0, 1, 2, 0, 1]))
    with WhiteBox(model, stream(index), stochastic=True, draws=3) as access:
        found = access.loss_gradient(x, goal, cross_entropy)
    twin = x.clone().requires_grad_()
    losses = torch.stack([cross_entropy(model(twin, stream(index).at(draw)), goal) for draw in range(3)]).mean(dim=0)
    (expected,) = torch.autograd.grad(losses.sum(), twin)
    torch.testing.assert_close(found.gradient, expected)
    torch.testing.assert_close(found.loss, losses.detach())


def test_a_block_of_nothing_is_refused():
    with pytest.raises(ValueError, match="`block` >= 1"):
        Blockwise(Noisy(), block=0)


def test_another_thread_that_seeds_meanwhile_bends_no_draw():
    """A model is built, which seeds the generators, while another thread asks a stochastic one."""
    model, x, index = Blockwise(Noisy(), block=4), images(4), torch.arange(4)
    expected = model(x, stream(index))
    entered, seeds = threading.Event(), []

    class Waiting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            builder.start()
            entered.wait(timeout=0.5)  # the other thread must not have come in
            seeds.append(entered.is_set())
            return model.model(x)

    def build() -> None:
        with seeded(5):
            entered.set()
            torch.rand(3)

    builder = threading.Thread(target=build)
    found = Blockwise(Waiting(), block=4)(x, stream(index))
    builder.join(timeout=60)
    assert seeds == [False]
    assert entered.is_set()
    assert torch.equal(found, expected)
