"""Median smoothing against scipy, and its gradient."""

from __future__ import annotations

import pytest
import torch
from scipy import ndimage

from advbench.defenses.inference.median import MedianSmoothing, median_filter


def images(n: int = 3, height: int = 9, width: int = 12) -> torch.Tensor:
    return torch.rand(n, 2, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_equals_scipy(size):
    x = images()
    expected = ndimage.median_filter(x.numpy(), size=(1, 1, size, size), mode="reflect")
    assert torch.equal(median_filter(x, size), torch.from_numpy(expected))


def test_takes_away_single_pixels_and_keeps_edges():
    x = torch.zeros(1, 1, 9, 9)
    x[..., 4, 4] = 1
    assert not median_filter(x, 3).any()
    step = torch.zeros(1, 1, 9, 9)
    step[..., 5:] = 1
    assert torch.equal(median_filter(step, 3), step)


@pytest.mark.parametrize("size", [2, 3])
def test_the_gradient_goes_to_the_median_pixel(size):
    x = images(n=1, height=4, width=5).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: median_filter(z, size), x)


def test_the_model_sees_the_smoothed_image_and_the_attacker_differentiates_it(lab):
    base, smooth, x = lab.fitted("none"), lab.fitted("median-smoothing(size=3)"), lab.data.validation.x
    torch.testing.assert_close(smooth.model(x), base.model(median_filter(x, 3)))
    assert list(smooth.surrogates) == ["faithful", "bpda", "base"]
    assert smooth.surrogates["faithful"].model is smooth.model


def test_rejects_what_makes_no_sense(lab):
    with pytest.raises(ValueError, match="Expected `size` >= 2, got 1"):
        MedianSmoothing(size=1)
    with pytest.raises(ValueError, match="Expected a window within images of 8x8, got 9x9"):
        lab.build("median-smoothing(size=9)")
