"""Augmentations: exact maps where they are exact, the obvious loop for the rest, and streams that belong to examples."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from advbench.attacks.rng import ExampleRNG
from advbench.zoo.augmentation import AUGMENTATIONS, Augmentation, affine, elastic_field, resample
from advbench.zoo.data import DataSet
from advbench.zoo.training import Budget, Step, cross_entropy, train

NAMED = [name for name, augmentation in AUGMENTATIONS.items() if augmentation is not None]


def images(n: int = 4, size: tuple[int, int] = (9, 7), channels: int = 2) -> Tensor:
    return torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def stream(n: int, seed: int = 0) -> ExampleRNG:
    return ExampleRNG.make(seed, "train", torch.arange(n)).at(3)


def warp(x: Tensor, *, angle: float = 0.0, scale: float = 1.0, offset: tuple[int, int] = (0, 0), mirror: int = 1) -> Tensor:
    n = len(x)
    points = affine(
        *x.shape[2:],
        angle=torch.full((n,), angle, dtype=x.dtype),
        scale=torch.full((n,), scale, dtype=x.dtype),
        offset=torch.tensor([offset] * n, dtype=x.dtype),
        mirror=torch.full((n,), float(mirror), dtype=x.dtype),
    )
    return resample(x, points, "zeros")


def test_flips_shifts_and_quarter_turns_are_exact() -> None:
    x, square = images(), images(size=(8, 8))
    torch.testing.assert_close(warp(x), x)
    torch.testing.assert_close(warp(x, mirror=-1), x.flip(3))
    shifted = torch.zeros_like(x)
    shifted[:, :, :-1, 2:] = x[:, :, 1:, :-2]
    torch.testing.assert_close(warp(x, offset=(2, -1)), shifted, atol=1e-12, rtol=0)
    torch.testing.assert_close(warp(square, angle=math.pi / 2), square.rot90(1, (2, 3)), atol=1e-12, rtol=0)


def test_a_zoom_enlarges_about_the_centre() -> None:
    """On a linear ramp bilinear reading is exact: the slope falls by the factor of the zoom."""
    ramp = torch.arange(9.0, dtype=torch.float64).expand(1, 1, 9, 9)
    torch.testing.assert_close(warp(ramp, scale=2.0), 4 + (ramp - 4) / 2)
    torch.testing.assert_close(warp(ramp, scale=0.5)[..., 2:7], (4 + (ramp - 4) * 2)[..., 2:7].where(
        (torch.arange(9).view(9, 1) >= 2) & (torch.arange(9).view(9, 1) <= 6), 0
    ))  # fmt: skip


def test_points_outside_are_black_or_the_border_pixel() -> None:
    x = images(n=1, size=(5, 5), channels=1)
    points = torch.full((1, 2, 5, 5), 40.0, dtype=x.dtype)
    assert torch.equal(resample(x, points, "zeros"), torch.zeros_like(x))
    torch.testing.assert_close(resample(x, points, "border"), x[:, :, -1:, -1:].expand_as(x))


def test_the_elastic_field_is_the_obvious_double_loop() -> None:
    noise = 2 * torch.rand(1, 2, 6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1
    alpha, sigma = 3.0, 1.2
    radius = math.ceil(3 * sigma)
    window = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-radius, radius + 1)]
    total = sum(window) ** 2
    expected = torch.zeros_like(noise)
    for i in range(6):
        for j in range(5):
            for a in range(max(0, i - radius), min(6, i + radius + 1)):
                for b in range(max(0, j - radius), min(5, j + radius + 1)):
                    expected[..., i, j] += window[a - i + radius] * window[b - j + radius] / total * noise[..., a, b]
    torch.testing.assert_close(elastic_field(noise, alpha, sigma), alpha * expected)


@pytest.mark.parametrize("name", NAMED)
def test_an_augmentation_is_linear_and_moves_images(name: str) -> None:
    augmentation = AUGMENTATIONS[name]
    assert augmentation is not None
    x, y = images(size=(12, 12)), images(size=(12, 12)).flip(0)
    transform = augmentation.draw((2, 12, 12), stream(4), torch.float64)
    torch.testing.assert_close(transform(2 * x - 3 * y), 2 * transform(x) - 3 * transform(y))
    assert (transform(x) - x).abs().amax() > 0.05
    assert torch.equal(transform(x), transform(x))


@pytest.mark.parametrize("name", NAMED)
def test_an_examples_augmentation_is_its_own(name: str) -> None:
    """Not that of its batch, its place or the images beside it; another draw is another one."""
    augmentation = AUGMENTATIONS[name]
    assert augmentation is not None
    x, rng = images(n=8, size=(12, 12)), stream(8)
    together = augmentation.draw((2, 12, 12), rng, torch.float64)(x)
    rows = torch.tensor([6, 1, 3])
    torch.testing.assert_close(augmentation.draw((2, 12, 12), rng.select(rows), torch.float64)(x[rows]), together[rows])
    assert not torch.allclose(augmentation.draw((2, 12, 12), rng.at(4), torch.float64)(x), together)


@given(seed=st.integers(0, 1000))
def test_the_numbers_stay_in_their_ranges_and_reach_them(seed: int) -> None:
    """A single bright pixel in the middle is found again where the ranges allow."""
    x = torch.zeros(64, 1, 15, 15, dtype=torch.float64)
    x[:, 0, 7, 7] = 1
    moved = Augmentation(shift=2).draw((1, 15, 15), stream(64, seed), torch.float64)(x)
    place = moved.flatten(1).argmax(dim=1)
    rows, columns = place // 15 - 7, place % 15 - 7
    assert torch.stack((rows, columns)).abs().max() == 2
    assert len(set(zip(rows.tolist(), columns.tolist(), strict=True))) > 12  # of the 25 places
    torch.testing.assert_close(moved.flatten(1).amax(dim=1), torch.ones(64, dtype=torch.float64))


def test_half_of_the_images_are_mirrored() -> None:
    x = torch.zeros(4000, 1, 3, 3)
    x[:, 0, 1, 0] = 1
    left = Augmentation(flip=True).draw((1, 3, 3), stream(4000))(x)[:, 0, 1, 0] > 0.5
    assert 0.46 < left.float().mean() < 0.54


def test_a_rotation_keeps_to_its_angle() -> None:
    """A pixel at distance r from the centre moves along the arc, by at most r times the angle."""
    x = torch.zeros(500, 1, 41, 41)
    x[:, 0, 20, 38] = 1
    turned = Augmentation(rotation=30.0).draw((1, 41, 41), stream(500))(x)[:, 0]
    weight = turned.flatten(1).sum(dim=1)
    y = (turned.sum(dim=2) * (torch.arange(41.0) - 20)).sum(dim=1) / weight
    angle = torch.asin((y / 18).clamp(-1, 1)).rad2deg()
    assert angle.abs().max() < 31
    assert angle.min() < -27
    assert angle.max() > 27


def test_the_loop_shows_augmented_images_and_hands_the_transform_on(blobs: DataSet) -> None:
    seen: list[tuple[int, Tensor, Tensor]] = []

    def spy(model: nn.Module, x: Tensor, y: Tensor, step: Step) -> dict[str, Tensor]:
        if step.training:
            torch.testing.assert_close(step.transform(blobs.train.x[step.index]), x)
            seen.append((step.epoch, step.index, x))
        else:
            assert torch.equal(x, blobs.validation.x[step.index])
        return dict(cross_entropy(model, x, y, step))

    def streams(step: Step) -> ExampleRNG:
        return ExampleRNG.make(step.seed, "train", step.index).at(step.epoch)

    budget = Budget(epochs=2, batch_size=20, augmentation="crop-flip", patience=5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    train(model, spy, blobs, budget=budget, seed=0, device="cpu", streams=streams)
    first, second = (torch.zeros_like(blobs.train.x) for _ in range(2))
    for epoch, index, x in seen:
        (first, second)[epoch][index] = x
    assert not torch.allclose(first, blobs.train.x)
    assert not torch.allclose(first, second)


def test_an_augmentation_without_random_numbers_is_an_error(blobs: DataSet) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(ValueError, match="Expected `streams` to draw the augmentation 'crop-flip' from, got None"):
        train(model, cross_entropy, blobs, budget=Budget(augmentation="crop-flip"), seed=0, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rotation": 200.0}, r"Expected `rotation` in \[0, 180\] degrees, got 200.0"),
        ({"zoom": 1.0}, r"Expected `zoom` in \[0, 1\), got 1.0"),
        ({"shift": -1}, "Expected `shift` >= 0 pixels, got -1"),
        ({"elastic": (1.0, 0.0)}, r"Expected `elastic` as \(alpha >= 0, sigma > 0\), got \(1.0, 0.0\)"),
    ],
)
def test_ranges_are_checked(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**arguments)  # type: ignore[arg-type]
