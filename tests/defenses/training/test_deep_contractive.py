"""The penalty on layer Jacobians: what is minimised, how its weight is found, and what the training leaves behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from advbench.defenses.kernels.layers import layer_jacobians
from advbench.defenses.kernels.projection import network_jacobian
from advbench.defenses.training.deep_contractive import GRID, DeepContractive, largest
from advbench.defenses.training.weight_decay import squared_weights
from advbench.zoo.architectures import gu2014
from advbench.zoo.training import Budget, Step, accuracy


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)
    ).double()


@pytest.fixture(autouse=True)
def _generator():
    with torch.random.fork_rng(devices=[]):
        yield


def batch(n=6):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 4, 4, dtype=torch.float64, generator=generator), torch.arange(n) % 3


def step(*, training=True, iteration=0, n=6):
    return Step(0, 0, iteration, torch.arange(n), training)


def test_the_terms_are_the_papers():
    model, (x, y) = network(), batch()
    terms = DeepContractive(coefficient=0.3).objective(model, x, y, step())
    logits, norms = layer_jacobians(model, x)
    assert list(terms) == ["cross_entropy", "contraction", "weight_decay"]
    torch.testing.assert_close(terms["cross_entropy"], nn.functional.cross_entropy(logits, y))
    torch.testing.assert_close(terms["contraction"], 0.3 * sum(norm.mean() for norm in norms.values()))
    torch.testing.assert_close(terms["weight_decay"], 1e-3 * squared_weights(model, convolutions=False))
    assert "weight_decay" not in DeepContractive(coefficient=0.3).objective(model, x, y, step(training=False))


def test_one_coefficient_per_layer():
    model, (x, y) = network(), batch()
    terms = DeepContractive(coefficient=(0.1, 0.0, 2.0), output="logits").objective(model, x, y, step())
    first, _, last = layer_jacobians(model, x, output="logits")[1].values()
    torch.testing.assert_close(terms["contraction"], 0.1 * first.mean() + 2 * last.mean())
    with pytest.raises(ValueError, match="Expected a `coefficient` for each of the 3 layers, got 2"):
        DeepContractive(coefficient=(0.1, 0.2)).objective(model, x, y, step())


def test_the_jacobian_of_the_whole_network():
    model, (x, y) = network(), batch()
    terms = DeepContractive(coefficient=0.3, jacobian="network").objective(model, x, y, step())
    torch.testing.assert_close(terms["contraction"], 0.3 * network_jacobian(model, x)[1].mean())
    model[-1] = nn.Linear(5, 30).double()
    defense = DeepContractive(coefficient=1.0, jacobian="network", output="logits")
    draws = [defense.objective(model, x, y, step(iteration=i))["contraction"].item() for i in range(200)]
    assert len(set(draws)) == 200
    jacobians = torch.stack([torch.func.jacrev(lambda e: model(e[None])[0])(each) for each in x])
    exact = jacobians.flatten(1).square().sum(dim=1).mean().item()
    spread = torch.tensor(draws).std().item() / 200**0.5
    assert sum(draws) / 200 == pytest.approx(exact, abs=5 * spread)


def test_noise_is_fresh_in_every_step_and_fixed_in_validation():
    model, (x, y) = network(), batch()
    defense = DeepContractive(coefficient=0.0, noise=0.5)

    def loss(**at):
        return defense.objective(model, x, y, step(**at))["cross_entropy"].item()

    assert loss(iteration=0) == loss(iteration=0)
    assert loss(iteration=0) != loss(iteration=1)
    assert loss(training=False, iteration=0) == loss(training=False, iteration=1)
    assert loss() != DeepContractive(coefficient=0.0).objective(model, x, y, step())["cross_entropy"].item()


def fit(lab, defense):
    budget = Budget(epochs=15, batch_size=16, learning_rate=3e-2)
    arguments = {"inputs": {}, "seed": 0, "device": torch.device("cpu"), "budget": budget}
    return defense.fit(lambda: gu2014.n100_100_10((1, 8, 8), 3), lab.data, **arguments).model


def test_training_contracts_the_layers(lab):
    means = []
    for coefficient in (0.0, 0.1):
        model = fit(lab, DeepContractive(coefficient=coefficient))
        means.append([norm.mean().item() for norm in layer_jacobians(model, lab.data.validation.x)[1].values()])
        assert model.contraction.tolist() == pytest.approx([coefficient])
    assert sum(means[1]) < 0.5 * sum(means[0])


def test_the_search_keeps_the_largest_that_is_accurate_enough(lab):
    found = fit(lab, DeepContractive(tolerance=0.25)).contraction.item()
    error = {
        value: 1 - accuracy(fit(lab, DeepContractive(coefficient=value)), lab.data.validation)
        for value in (0.0, found, GRID[-1])
    }
    assert error[found] <= error[0.0] + 0.25
    assert error[GRID[-1]] > error[0.0] + 0.25  # so that a search which always took the largest would be seen
    assert 0 < found < GRID[-1]


class TestSearch:
    """The bisection alone, on made-up error curves."""

    @staticmethod
    def search(error, tolerance=0.005, diverges_from=float("inf")):
        tried = []

        def trained(value, watch):
            tried.append(value)
            if watch is not None:
                watch(10, 10)
            if value >= diverges_from:
                raise FloatingPointError("diverged")
            model = nn.Linear(1, 1)
            model.value = value
            return model

        reports = []
        found = largest(trained, lambda m: error(m.value), tolerance, lambda done, steps: reports.append((done, steps)))
        return found.value, tried, reports

    @pytest.mark.parametrize("threshold", [0.0, 1e-6, 1e-3, 0.2, 10.0, 100.0])
    def test_finds_the_threshold_of_a_rising_error(self, threshold):
        found, tried, reports = self.search(lambda value: 0.02 + 0.1 * (value > threshold * 1.001))
        assert found == max((value for value in GRID if value <= threshold * 1.001), default=0.0)
        assert len(tried) == 6
        assert reports == [(10 + 10 * k, 60) for k in range(6)]

    def test_the_tolerance_is_inclusive_and_counts_from_the_unpenalised_training(self):
        assert self.search(lambda value: 0.5 + (0.25 if value else 0.0), tolerance=0.25)[0] == GRID[-1]
        assert self.search(lambda value: 0.5 + (0.25 if value else 0.0), tolerance=0.24)[0] == 0.0

    def test_a_training_that_diverges_is_too_large(self):
        found, *_ = self.search(lambda value: 0.0, diverges_from=0.01)
        assert found == max(value for value in GRID if value < 0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coefficient": -1.0}, "Expected `coefficient` >= 0, got -1.0"),
        ({"coefficient": (0.1, float("nan"))}, "Expected `coefficient` >= 0, got nan"),
        ({"coefficient": ()}, "Expected `coefficient` to have a number per layer, got none"),
        ({"tolerance": -0.1}, "Expected `tolerance` >= 0, got -0.1"),
        ({"weight_decay": -0.1}, "Expected `weight_decay` >= 0, got -0.1"),
        ({"jacobian": "full"}, "Expected `jacobian` layers or network, got 'full'"),
        ({"jacobian": "network", "coefficient": (0.1,)}, "Expected one `coefficient`"),
        ({"output": "y"}, "Expected `output` softmax or logits, got 'y'"),
        ({"noise": -0.1}, "Expected `noise` >= 0, got -0.1"),
    ],
)
def test_rejects_what_makes_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        DeepContractive(**arguments)
