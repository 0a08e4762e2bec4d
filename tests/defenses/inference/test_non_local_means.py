"""Non-local means against OpenCV and a loop over pixels, its limits, and its gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from advbench.defenses.inference.non_local_means import NonLocal, NonLocalMeans, lab, non_local_means, rgb

# What opencv-python-headless 5.0.0 makes of `grey` and `coloured`: fastNlMeansDenoising(x, None, 10, 3, 7), and
# fastNlMeansDenoisingColored(x, None, 10, 10, 3, 7) with the channels as it wants them, blue first.
GREY = (
    "4141409a9a9a9a9a41413f9a9a9a9a9a4141409a9a9b9a9a3f3e3e99999998999c9c98423f3e3e3f9b9b9a4041404040"
    "9c9b9941414040409c9c9b3f41404041"
)
COLOURED = (
    "4034a74034a74434a28c377e985e7d9e607b9b617b9b617b4034a74034a74434a28c377e985e7d9b617b9b617b9b617b"
    "4235a24135a54937a58e3e83975c7e995e7a995e7a995e7a4a5aa14a5aa1545b9f89598d8d40858b397f8d387f8d387f"
    "96607e96607e956081575a9f4b37a24234a44234a44234a49a617d9a617d96607e4b5ca34234a43f33a54034a73f34aa"
    "9b617b9b617b9a617d485ca34034a73f33a53e33a84032a89b617b9b617b98607c4b5ca34034a73e33a83e33a83e33a8"
)


def grey() -> np.ndarray:
    """A chessboard of noisy fields, (8, 8), in 0..255."""
    i, j = np.mgrid[:8, :8]
    return 60 + 90 * ((i >= 4) ^ (j >= 3)) + (7 * i * i + 5 * j * j + 3 * i * j) % 11


def coloured() -> np.ndarray:
    """The same in colours, (8, 8, 3)."""
    g = grey()
    return np.stack((g, g.T // 2 + 20, 200 - g // 2), axis=-1)


def images(channels: int, height: int = 7, width: int = 8) -> torch.Tensor:
    return torch.rand(2, channels, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def obvious(x: np.ndarray, search: int, patch: int, strength: float) -> np.ndarray:
    """One image (c, h, w), pixel by pixel."""
    reach, half = search // 2, patch // 2
    wide = np.pad(x, ((0, 0), *[(reach + half,) * 2] * 2), mode="reflect")

    def around(i, j):
        return wide[:, i + reach : i + reach + patch, j + reach : j + reach + patch]

    out = np.zeros_like(x)
    for i, j in np.ndindex(x.shape[1:]):
        total, weights = 0.0, 0.0
        for k, m in np.ndindex(search, search):
            other = around(i + k - reach, j + m - reach)
            weight = math.exp(-((around(i, j) - other) ** 2).mean() / strength**2)
            total, weights = total + weight * other[:, half, half], weights + weight
        out[:, i, j] = total / weights
    return out


@pytest.mark.parametrize(
    ("channels", "search", "patch", "strength"), [(1, 5, 3, 0.2), (2, 7, 3, 0.5), (1, 3, 5, 0.1), (3, 5, 1, 0.3)]
)
def test_equals_the_loop_over_pixels(channels, search, patch, strength):
    x = images(channels)
    expected = np.stack([obvious(one, search, patch, strength) for one in x.numpy()])
    torch.testing.assert_close(non_local_means(x, search, patch, strength), torch.from_numpy(expected))


def test_equals_opencv_but_for_the_rounding():
    x = torch.from_numpy(grey() / 255)[None, None]
    expected = np.frombuffer(bytes.fromhex(GREY), dtype=np.uint8).reshape(8, 8)
    found = 255 * NonLocal(7, 3, 10)(x)[0, 0].numpy()
    assert np.abs(expected - grey()).max() == 6
    assert np.abs(found - expected).max() <= 0.5


def test_equals_opencv_in_colours_but_for_the_eight_bits_of_its_lab():
    x = torch.from_numpy(coloured() / 255).permute(2, 0, 1)[None]
    expected = np.frombuffer(bytes.fromhex(COLOURED), dtype=np.uint8).reshape(8, 8, 3)
    found = 255 * NonLocal(7, 3, 10)(x)[0].permute(1, 2, 0).numpy()
    assert np.abs(expected - coloured()).max() == 22
    assert np.abs(found - expected).max() < 4  # one step of a or b, of 256, is up to 4 of 255 in RGB
    assert np.abs(found - expected).mean() < 0.8


def test_lab_knows_white_black_and_primaries():
    x = torch.tensor([[1.0, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 1]], dtype=torch.float64)[None, :, None]
    found = lab(x)[0, :, 0].T / torch.tensor([2.55, 1, 1])
    expected = torch.tensor([[100.0, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)  # as in colour tables
    x = images(3) * torch.logspace(-4, 0, 8, dtype=torch.float64)  # on both sides of the knee
    torch.testing.assert_close(rgb(lab(x)), x)


def test_no_strength_changes_nothing_and_much_of_it_is_the_mean_of_the_window():
    x = images(2)
    torch.testing.assert_close(non_local_means(x, 5, 3, 1e-3), x)
    window = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(x, (2,) * 4, mode="reflect"), 5, stride=1)
    torch.testing.assert_close(non_local_means(x, 5, 3, 1e6), window)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_gradient_is_that_of_finite_differences(channels):
    x = images(channels, height=5, width=5).requires_grad_()
    assert torch.autograd.gradcheck(NonLocal(3, 3, 60.0), x)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_flat_images_stay_and_keep_their_gradient(value):
    x = torch.full((1, 3, 8, 8), value).requires_grad_()
    filtered = NonLocal(5, 3, 4.0)(x)
    torch.testing.assert_close(filtered, x)
    (gradient,) = torch.autograd.grad(filtered.sum(), x)
    assert gradient.sum() == pytest.approx(x.numel(), rel=1e-3)  # brighter by t everywhere is brighter by t


def test_colours_out_of_range_are_clipped():
    x = torch.zeros(1, 3, 8, 8)
    x[:, 2, :, ::2], x[:, 0, :, 1::2] = 1, 1  # blue and red stripes
    filtered = NonLocal(5, 3, 1e6)(x)
    assert filtered.amin() >= 0
    assert filtered.amax() <= 1


def test_the_model_sees_the_filtered_image_and_the_attacker_differentiates_it(lab):
    base, filtered, x = lab.fitted("none"), lab.fitted("non-local-means(search=5,strength=30)"), lab.data.validation.x
    torch.testing.assert_close(filtered.model(x), base.model(NonLocal(5, 3, 30.0)(x)))
    assert (NonLocal(5, 3, 30.0)(x) - x).abs().amax() > 0.01
    assert list(filtered.surrogates) == ["faithful", "bpda", "base"]
    assert filtered.surrogates["faithful"].model is filtered.model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"search": 10}, "Expected `search` odd and >= 3, got 10"),
        ({"patch": 2}, "Expected `patch` odd and >= 1, got 2"),
        ({"strength": 0.0}, "Expected `strength` > 0, got 0.0"),
    ],
)
def test_rejects_what_makes_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        NonLocalMeans(**arguments)


def test_rejects_images_smaller_than_its_windows(lab):
    with pytest.raises(ValueError, match="Expected windows that reach less than 8 pixels, got 8: take a smaller `search`"):
        lab.build("non-local-means(search=15)")
    with pytest.raises(ValueError, match="Expected windows that reach less than 7 pixels, got 7"):
        non_local_means(images(1), 13, 3, 1.0)
