"""The smooth gradient method against its recursion worked by hand, with and without augmentation."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from advbench.defenses.training.plain import Plain
from advbench.defenses.training.smooth_gradient import SmoothGradient, follow
from advbench.defenses.training.trained import fresh, places, stream
from advbench.zoo.augmentation import AUGMENTATIONS
from advbench.zoo.data import DataSet, Split
from advbench.zoo.training import Budget, Step

CPU = torch.device("cpu")
RATE = 0.3
SGD = Budget(epochs=4, batch_size=100, optimizer="sgd", momentum=0.0, learning_rate=RATE, schedule="constant")


def linear(classes: int = 3, pixels: int = 12) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes)).double()


def problem(n: int = 9) -> DataSet:
    generator = torch.Generator().manual_seed(0)

    def split(n: int) -> Split:
        return Split.of(torch.rand(n, 1, 3, 4, generator=generator, dtype=torch.float64), torch.arange(n) % 3)

    return DataSet("tiny", split(n), split(3), split(3), 3, {"linf": 0.1}, fingerprint="none")


def by_hand(data: DataSet, *, input_lr: float, scale: float, persistent: bool, epochs: int) -> tuple[Tensor, Tensor]:
    """Softmax regression under full-batch descent, its inputs under ascent: the weights and the updates afterwards."""
    model = fresh(linear, seed=0)
    weight, bias = (parameter.detach().clone() for parameter in model.parameters())
    x, labels = data.train.x.flatten(1), one_hot(data.train.y, 3).double()
    u = torch.zeros_like(x)
    for _ in range(epochs):
        residual = ((x + u) @ weight.T + bias).softmax(dim=1) - labels
        move = input_lr * scale * residual @ weight
        weight, bias = weight - RATE * residual.T @ (x + u) / len(x), bias - RATE * residual.mean(dim=0)
        u = u + move if persistent else move
    return weight, u.view(data.train.x.shape)


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("gradient", ["per-example", "batch-mean"])
@pytest.mark.parametrize("input_lr", [0.2, -0.5])
def test_weights_and_updates_follow_the_recursion(input_lr, gradient, persistent):
    data = problem()
    defense = SmoothGradient(input_lr=input_lr, gradient=gradient, persistent=persistent)
    found = follow(defense, linear, data, torch.arange(9), seed=0, device=CPU, budget=SGD)
    for epoch in range(SGD.epochs):
        scale = 1 if gradient == "per-example" else 1 / 9
        weight, expected = by_hand(data, input_lr=input_lr, scale=scale, persistent=persistent, epochs=epoch + 1)
        torch.testing.assert_close(found.updates[epoch], expected)
        assert found.rms[epoch] == pytest.approx(float(expected.square().mean().sqrt()))
    torch.testing.assert_close(found.defended.model[1].weight.detach(), weight)


def test_the_updates_pull_the_gradient_back_through_the_augmentation():
    """With the transform as a dense matrix T, one epoch adds T^T dE/dx, in the frame of the image before augmentation."""
    data = problem()
    budget = dataclasses.replace(SGD, epochs=1, augmentation="rotate-zoom-flip")
    found = follow(SmoothGradient(), linear, data, torch.arange(9), seed=0, device=CPU, budget=budget)
    model = fresh(linear, seed=0)
    index = data.train.index
    transform = AUGMENTATIONS["rotate-zoom-flip"].draw(
        (1, 3, 4), stream(Step(0, 0, 0, index)).fork("augmentation"), torch.float64
    )
    basis = torch.eye(12, dtype=torch.float64).view(12, 1, 3, 4)
    columns = [transform(image.expand(9, 1, 3, 4)).flatten(1) for image in basis]
    matrix = torch.stack(columns, dim=2)  # (n, pixels after, pixels before)
    shown = (matrix @ data.train.x.flatten(1).unsqueeze(2)).squeeze(2)
    weight, bias = (parameter.detach() for parameter in model.parameters())
    residual = (shown @ weight.T + bias).softmax(dim=1) - one_hot(data.train.y, 3)
    expected = 0.2 * (matrix.mT @ (residual @ weight).unsqueeze(2)).view_as(data.train.x)
    torch.testing.assert_close(found.updates[0], expected)
    assert not torch.allclose(matrix[0], matrix[1])


def test_the_network_sees_the_augmented_sum():
    data = problem()
    seen: list[Tensor] = []

    class Watching(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                seen.append(x.detach())
            return super().forward(x)

    def watching() -> nn.Module:
        return Watching(nn.Flatten(), nn.Linear(12, 3)).double()

    budget = dataclasses.replace(SGD, epochs=2, augmentation="crop-flip")
    found = follow(SmoothGradient(), watching, data, torch.arange(9), seed=0, device=CPU, budget=budget)
    for iteration, images in enumerate(seen):
        before = found.updates[iteration - 1] if iteration else torch.zeros_like(data.train.x)
        drawn = AUGMENTATIONS["crop-flip"].draw(
            (1, 3, 4), stream(Step(0, iteration, iteration, data.train.index)).fork("augmentation"), torch.float64
        )
        expected = drawn(data.train.x + before)
        pairs = torch.cdist(images.flatten(1), expected.flatten(1))  # the loop shuffles the batch
        assert pairs.min(dim=1).values.max() < 1e-9


def test_without_an_input_rate_it_is_plain_training_bit_for_bit(lab):
    plain = lab.fit("none").model.state_dict()
    still = lab.fit("smooth-gradient(input_lr=0)").model.state_dict()
    assert all(torch.equal(plain[name], still[name]) for name in plain)
    moved = lab.fit("smooth-gradient").model.state_dict()
    assert not all(torch.equal(plain[name], moved[name]) for name in plain)


def test_following_changes_nothing_and_ends_with_the_whole_buffer(lab):
    defense = SmoothGradient()
    rows = torch.tensor([3, 1])
    found = follow(defense, lab.small_net, lab.data, rows, seed=0, device=CPU, budget=lab.budget)
    fitted = lab.fit("smooth-gradient")
    ours, theirs = found.defended.model.state_dict(), fitted.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert found.updates.shape == (2, 2, 1, 8, 8)
    assert found.rms[1] > found.rms[0] > 0


def test_a_fit_has_its_curves(lab):
    """One number per epoch; of any split that is handed over as the validation split."""
    data = dataclasses.replace(lab.data, validation=lab.data.train)
    for defense in (Plain(), SmoothGradient()):
        fits = [
            defense.fit(lab.small_net, each, inputs={}, seed=0, device=CPU, budget=lab.budget) for each in (lab.data, data)
        ]
        assert [len(fit.history.validation_accuracy) for fit in fits] == [2, 2]
        assert torch.equal(*(fit.model[0].weight for fit in fits))
        found = float((fits[1].model(data.train.x).argmax(dim=1) == data.train.y).double().mean())
        assert fits[1].history.validation_accuracy[-1] == pytest.approx(found)


def test_updates_find_their_images_where_a_split_starts_elsewhere():
    split = Split(torch.zeros(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64), torch.tensor([7, 2, 5]))
    assert places(split).tolist() == [-1, -1, 1, -1, -1, 2, -1, 0]


def test_validation_is_of_images_as_they_are():
    data = problem()
    objective = SmoothGradient().start(data.train)
    objective.updates.fill_(9.0)
    model = linear()
    loss = objective(model, data.train.x, data.train.y, Step(0, 0, 0, data.train.index, training=False))["cross_entropy"]
    torch.testing.assert_close(loss, nn.functional.cross_entropy(model(data.train.x), data.train.y))
    assert (objective.updates == 9).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_lr": 1.5}, r"Expected `input_lr` in \[-1, 1\], got 1.5"),
        ({"gradient": "sum"}, "Expected `gradient` to be per-example or batch-mean, got 'sum'"),
    ],
)
def test_rejects_what_makes_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        SmoothGradient(**arguments)
