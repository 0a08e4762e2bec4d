from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from advbench.zoo import training
from advbench.zoo.checkpoints import fingerprint
from advbench.zoo.data import DataSet, Split
from advbench.zoo.training import SCHEDULES, Budget, Step, accuracy, cross_entropy, seeded, train

Maker = Callable[[], nn.Sequential]


def _train(model: nn.Module, data: DataSet, budget: Budget, seed: int = 0) -> training.History:
    return train(model, cross_entropy, data, budget=budget, seed=seed, device="cpu")


def _linear(data: DataSet) -> nn.Sequential:
    with seeded(0):
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(data.shape), data.n_classes))


def test_a_network_learns_separable_classes(blobs: DataSet, small_net: Maker) -> None:
    model = small_net()
    history = _train(model, blobs, Budget(epochs=30, batch_size=10, learning_rate=1e-2))
    assert accuracy(model, blobs.test) == 1.0
    assert history.validation_accuracy[-1] == 1.0
    assert history.terms[-1]["cross_entropy"] < 0.5 * history.terms[0]["cross_entropy"]
    assert len(history.terms) == len(history.seconds) == 30
    assert history.kept_epoch == 29
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "wame"])
def test_the_same_seed_gives_the_same_bits_whatever_ran_before(blobs: DataSet, small_net: Maker, optimizer: str) -> None:
    budget = Budget(epochs=3, batch_size=16, optimizer=optimizer, learning_rate=1e-2)
    prints = []
    for unrelated, seed in ((1, 5), (2, 5), (1, 6)):
        torch.manual_seed(unrelated)
        model = small_net()
        _train(model, blobs, budget, seed)
        prints.append(fingerprint(model))
    assert prints[0] == prints[1]
    assert prints[0] != prints[2]


def test_training_leaves_the_global_generator_as_it_was(blobs: DataSet, small_net: Maker) -> None:
    before = torch.get_rng_state()
    _train(small_net(), blobs, Budget(epochs=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_one_step_of_sgd_is_the_closed_form_with_decay_on_matrices_only(blobs: DataSet) -> None:
    model = _linear(blobs)
    weight, bias = (parameter.detach().clone() for parameter in model.parameters())
    x, y = blobs.train.x.flatten(1), blobs.train.y
    residual = ((x @ weight.T + bias).softmax(1) - nn.functional.one_hot(y, 3)) / len(y)
    budget = Budget(
        epochs=1,
        batch_size=len(y),
        optimizer="sgd",
        momentum=0.0,
        learning_rate=0.5,
        weight_decay=0.1,
        schedule="constant",
    )
    _train(model, blobs, budget)
    torch.testing.assert_close(model[1].weight, weight - 0.5 * (residual.T @ x + 0.1 * weight))
    torch.testing.assert_close(model[1].bias, bias - 0.5 * residual.sum(0))


def test_norm_parameters_are_not_decayed(blobs: DataSet) -> None:
    class Untouched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(16)
            self.output = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.output(self.norm(x.flatten(1)))

    def nothing(model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
        return {"nothing": sum((parameter.sum() for parameter in model.parameters()), torch.zeros(())) * 0}

    model = Untouched()
    weight = model.output.weight.detach().clone()
    budget = Budget(epochs=1, batch_size=60, optimizer="sgd", learning_rate=0.5, weight_decay=0.1, schedule="constant")
    train(model, nothing, blobs, budget=budget, seed=0, device="cpu")
    assert torch.equal(model.norm.weight, torch.ones(16))
    assert not torch.equal(model.output.weight, weight)


def test_the_terms_are_summed_and_reported_one_by_one(blobs: DataSet) -> None:
    def split_terms(model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
        loss = nn.functional.cross_entropy(model(x), y)
        return {"third": loss / 3, "rest": 2 * loss / 3}

    budget = Budget(epochs=2, batch_size=16, optimizer="sgd", learning_rate=0.1)
    whole, parts = _linear(blobs), _linear(blobs)
    reference = _train(whole, blobs, budget)
    history = train(parts, split_terms, blobs, budget=budget, seed=0, device="cpu")
    torch.testing.assert_close(parts[1].weight, whole[1].weight)
    assert history.terms[1]["third"] == pytest.approx(reference.terms[1]["cross_entropy"] / 3)
    assert history.terms[1]["rest"] == pytest.approx(2 * history.terms[1]["third"])


def test_every_epoch_visits_every_image_once_in_even_batches_and_another_order(blobs: DataSet) -> None:
    seen: dict[int, list[Tensor]] = {}
    iterations = []

    def spy(model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
        assert torch.equal(blobs.train.x[step.index], x)
        assert torch.equal(blobs.train.y[step.index], y)
        assert step.training
        assert step.seed == 4
        seen.setdefault(step.epoch, []).append(step.index)
        iterations.append(step.iteration)
        return cross_entropy(model, x, y, step)

    train(_linear(blobs), spy, blobs, budget=Budget(epochs=2, batch_size=59), seed=4, device="cpu")
    assert iterations == [0, 1, 2, 3]
    assert [len(index) for index in seen[0]] == [30, 30]
    orders = [torch.cat(seen[epoch]) for epoch in (0, 1)]
    assert all(torch.equal(order.sort().values, torch.arange(60)) for order in orders)
    assert not torch.equal(*orders)


def test_train_examples_takes_the_first_images_and_statistics_see_only_those(blobs: DataSet) -> None:
    class Spy(nn.Module):
        def fit_statistics(self, x: Tensor) -> None:
            self.seen = x

        def forward(self, x: Tensor) -> Tensor:
            return x

    spy, indices = Spy(), set()

    def watch(model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
        indices.update(step.index.tolist())
        return cross_entropy(model, x, y, step)

    model = nn.Sequential(spy, _linear(blobs))
    train(model, watch, blobs, budget=Budget(epochs=1, batch_size=8, train_examples=20), seed=0, device="cpu")
    assert torch.equal(spy.seen, blobs.train.x[:20])
    assert indices == set(range(20))


def _scripted(losses: list[float], prints: list[str]) -> training.Objective:
    def objective(model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
        if step.training:
            return cross_entropy(model, x, y, step)
        assert not model.training
        prints.append(fingerprint(model))
        return {"scripted": torch.tensor(losses[step.epoch])}

    return objective


def test_patience_stops_and_brings_the_best_weights_back(blobs: DataSet, small_net: Maker) -> None:
    model, prints = small_net(), list[str]()
    objective = _scripted([3.0, 1.0, 2.0, 1.5, 0.0], prints)
    history = train(model, objective, blobs, budget=Budget(epochs=5, patience=2), seed=0, device="cpu")
    assert history.validation_loss == (3.0, 1.0, 2.0, 1.5)
    assert history.kept_epoch == 1
    assert fingerprint(model) == prints[1] != prints[3]


def test_patience_that_never_runs_out_still_keeps_the_best(blobs: DataSet, small_net: Maker) -> None:
    model, prints = small_net(), list[str]()
    objective = _scripted([3.0, 1.0, 2.0], prints)
    history = train(model, objective, blobs, budget=Budget(epochs=3, patience=9), seed=0, device="cpu")
    assert len(history.terms) == 3
    assert fingerprint(model) == prints[1]


def test_the_validation_loss_is_the_mean_over_images(blobs: DataSet) -> None:
    def mean_label(model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
        return {"loss": cross_entropy(model, x, y, step)["cross_entropy"]} if step.training else {"mean": y.float().mean()}

    budget = Budget(epochs=1, batch_size=4, patience=1)
    history = train(_linear(blobs), mean_label, blobs, budget=budget, seed=0, device="cpu")
    assert history.validation_loss[0] == pytest.approx(blobs.validation.y.float().mean().item())


def test_a_diverging_training_is_an_error_that_names_the_epoch(blobs: DataSet) -> None:
    def nan_later(model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
        return {"energy": model(x).sum() * (math.nan if step.epoch == 1 else 0)}

    with pytest.raises(FloatingPointError, match="diverged at epoch 2: loss term 'energy' is nan"):
        train(_linear(blobs), nan_later, blobs, budget=Budget(epochs=3), seed=0, device="cpu")


def test_progress_counts_every_step(blobs: DataSet) -> None:
    calls: list[tuple[int, int]] = []
    train(
        _linear(blobs),
        cross_entropy,
        blobs,
        budget=Budget(epochs=2, batch_size=20),
        seed=0,
        device="cpu",
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(done, 6) for done in range(1, 7)]


def test_frozen_parameters_stay(blobs: DataSet, small_net: Maker) -> None:
    model = small_net()
    model[1].requires_grad_(False)
    before = model[1].weight.clone()
    _train(model, blobs, Budget(epochs=1, weight_decay=0.1))
    assert torch.equal(model[1].weight, before)


def test_a_denoiser_has_no_accuracy(blobs: DataSet) -> None:
    def reconstruction(model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
        return {"error": (model(x) - x).square().mean()}

    model = nn.Conv2d(1, 1, 3, padding=1)
    history = train(model, reconstruction, blobs, budget=Budget(epochs=1), seed=0, device="cpu")
    assert math.isnan(history.validation_accuracy[0])


def test_an_objective_without_terms_and_a_model_without_parameters_are_errors(blobs: DataSet) -> None:
    with pytest.raises(ValueError, match="at least one loss term"):
        train(_linear(blobs), lambda *_: {}, blobs, budget=Budget(epochs=1), seed=0, device="cpu")
    with pytest.raises(ValueError, match="trainable parameters"):
        _train(nn.Flatten(), blobs, Budget(epochs=1))


def test_accuracy_is_a_count_and_leaves_modes_alone() -> None:
    class Echo(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert not self.training
            return x.flatten(1)

    labels = torch.tensor([0, 1, 2, 1, 0])
    x = nn.functional.one_hot(torch.tensor([0, 1, 2, 2, 2]), 3).float().view(5, 1, 1, 3)
    model = Echo().train()
    assert accuracy(model, Split.of(x, labels), batch=2) == 3 / 5
    assert model.training
    with pytest.raises(ValueError, match="at least one image"):
        accuracy(model, Split.of(x, labels).first(0))


def test_seeded_gives_the_same_numbers_and_puts_the_state_back() -> None:
    before = torch.get_rng_state()
    draws = []
    for _ in range(2):
        with seeded(7):
            draws.append(torch.rand(3))
    with pytest.raises(KeyError), seeded(7):
        raise KeyError
    assert torch.equal(*draws)
    assert torch.equal(torch.get_rng_state(), before)


@given(st.floats(0, 1))
def test_schedules_stay_between_zero_and_the_highest_rate(done: float) -> None:
    for schedule in SCHEDULES.values():
        assert 0 <= schedule(done) <= 1


def test_schedules_follow_their_formulas() -> None:
    shares = [0.0, 0.25, 0.625, 1.0]
    assert [SCHEDULES["one-cycle"](share) for share in shares] == [0, 1, 0.5, 0]
    assert [SCHEDULES["constant"](share) for share in shares] == [1, 1, 1, 1]
    assert [SCHEDULES["cosine"](share) for share in (0.0, 1 / 3, 1.0)] == pytest.approx([1, 0.75, 0])


def test_stepped_schedules_fall_where_the_papers_did():
    """Epochs 10 and 20 of 50; 30 and 60 of 100; every 25 of 300."""
    epochs = {"tenths": (0, 9, 10, 19, 20, 49), "half-tenth": (0, 29, 30, 59, 60, 99), "halving": (0, 24, 25, 49, 50, 299)}
    totals = {"tenths": 50, "half-tenth": 100, "halving": 300}
    expected = {
        "tenths": (1, 1, 0.1, 0.1, 0.01, 0.01),
        "half-tenth": (1, 1, 0.5, 0.5, 0.1, 0.1),
        "halving": (1, 1, 0.5, 0.5, 0.25, 0.5**11),
    }
    for name, numbers in epochs.items():
        found = [SCHEDULES[name]((epoch + 0.5) / totals[name]) for epoch in numbers]
        assert found == pytest.approx(expected[name])


def test_the_learning_rate_follows_the_schedule(blobs: DataSet) -> None:
    """Each step subtracts the rate itself: the loss is the weights' sum, whose gradient is one."""
    weights = []

    def total(model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
        weights.append(model[1].bias[0].item())
        return {"sum": sum((parameter.sum() for parameter in model.parameters()), torch.zeros(()))}

    budget = Budget(epochs=2, batch_size=30, optimizer="sgd", momentum=0.0, learning_rate=0.8, schedule="one-cycle")
    model = _linear(blobs)
    train(model, total, blobs, budget=budget, seed=0, device="cpu")
    weights.append(model[1].bias[0].item())
    rates = [before - after for before, after in pairwise(weights)]
    assert rates == pytest.approx([0.8 * factor for factor in (0.5, 0.625 / 0.75, 0.5, 0.125 / 0.75)], abs=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("train_examples", 0),
        ("batch_size", 0),
        ("patience", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("momentum", 1.0),
        ("weight_decay", -1.0),
        ("optimizer", "adagrad"),
        ("augmentation", "mixup"),
        ("schedule", "linear"),
    ],
)
def test_a_budget_out_of_range_names_the_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"Expected `{field}`.* got {value!r}") as caught:
        Budget(**{field: value})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_training_raises_no_warnings(blobs: DataSet, small_net: Maker) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _train(small_net(), blobs, Budget(epochs=1, patience=1))


@pytest.mark.parametrize(("nesterov", "moves"), [(False, [1.0, 1.9, 2.71]), (True, [1.9, 2.71, 3.439])])
def test_momentum_is_nesterovs_or_plain(nesterov: bool, moves: list[float]) -> None:
    """Of a gradient that is always 1: v <- 0.9 v + 1, and the step is v, or 1 + 0.9 v as Nesterov's form has it."""
    weight = torch.nn.Parameter(torch.zeros(()))
    budget = Budget(optimizer="sgd", learning_rate=1.0, nesterov=nesterov)
    optimizer = training.OPTIMIZERS["sgd"]([{"params": [weight]}], budget)
    places = [0.0]
    for _ in moves:
        weight.grad = torch.ones(())
        optimizer.step()
        places.append(weight.item())
    assert [before - after for before, after in pairwise(places)] == pytest.approx(moves)


def test_a_thousand_validation_images_are_classified_after_an_epoch() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [
        Split(torch.rand(n, 1, 2, 2, generator=generator), torch.randint(0, 2, (n,), generator=generator), torch.arange(n))
        for n in (20, 1300, 20)
    ]
    data = DataSet("made", *parts, n_classes=2, radii={})
    seen = list[int]()

    class Watched(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                seen.append(len(x))
            return super().forward(x)

    model = Watched(nn.Flatten(), nn.Linear(4, 2))
    history = _train(model, data, Budget(epochs=1, batch_size=10))
    assert sum(seen) == 1_000 + 1  # one more asks for the shape
    assert history.validation_accuracy[0] == accuracy(model, parts[1].first(1_000))
