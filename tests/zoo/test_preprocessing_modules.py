from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from advbench.zoo.preprocessing import LumaContrast, Standardise, StandardisePerImage, Whiten, fit_statistics


@pytest.fixture
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.2, 0.5, 0.9]).view(1, 3, 1, 1)
    return torch.rand(40, 3, 6, 5, generator=generator, dtype=torch.float64) * scale


def test_standardise_is_the_identity_until_it_is_fitted(images: Tensor) -> None:
    for module in (Standardise(3), Standardise(None), Whiten((3, 6, 5))):
        assert torch.equal(module.double()(images), images)


def test_standardise_gives_each_channel_mean_zero_and_variance_one(images: Tensor) -> None:
    module = Standardise(3).double()
    module.fit_statistics(images)
    variance, mean = torch.var_mean(module(images), dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(variance, torch.ones(3, dtype=torch.float64))


def test_global_standardise_is_one_affine_map_for_all_channels(images: Tensor) -> None:
    module = Standardise(None).double()
    module.fit_statistics(images)
    torch.testing.assert_close(module(images), (images - images.mean()) / images.std(correction=0))


def test_a_constant_channel_is_not_divided_by_zero() -> None:
    module = Standardise(1)
    module.fit_statistics(torch.full((4, 1, 2, 2), 0.5))
    assert torch.equal(module(torch.full((1, 1, 2, 2), 0.5)), torch.zeros(1, 1, 2, 2))


@given(st.floats(0.2, 1.0), st.floats(-0.5, 0.5))
def test_standardise_per_image_undoes_brightness_and_contrast(contrast: float, brightness: float) -> None:
    x = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 4
    module = StandardisePerImage()
    torch.testing.assert_close(module(contrast * x + brightness), module(x))


def test_standardise_per_image_gives_every_image_mean_zero_and_variance_one(images: Tensor) -> None:
    variance, mean = torch.var_mean(StandardisePerImage()(images), dim=(1, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(40, dtype=torch.float64))
    torch.testing.assert_close(variance, torch.ones(40, dtype=torch.float64))


def test_whitened_training_images_have_the_closed_form_spectrum(images: Tensor) -> None:
    """Eigenvalues e of the covariance become e / (e + epsilon)."""
    module = Whiten((3, 6, 5), epsilon=0.02).double()
    module.fit_statistics(images)
    before, after = (torch.linalg.eigvalsh(torch.cov(x.flatten(1).T, correction=0)) for x in (images, module(images)))
    torch.testing.assert_close(after, before.clamp_min(0) / (before.clamp_min(0) + 0.02))
    torch.testing.assert_close(module.matrix, module.matrix.T)


def test_whitening_over_several_chunks_equals_one_product() -> None:
    x = torch.rand(9000, 1, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    module = Whiten((1, 2, 2)).double()
    module.fit_statistics(x)
    covariance = torch.cov(x.flatten(1).T, correction=0)
    identity = torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(module.matrix @ module.matrix @ (covariance + 0.1 * identity), identity)


def _obvious_contrast(luma: Tensor) -> Tensor:
    """Local contrast normalisation of one image (h, w), pixel by pixel."""

    def mean_around(values: Tensor, row: int, column: int) -> float:
        total, weights = 0.0, 0.0
        for i in range(max(row - 3, 0), min(row + 4, values.shape[0])):
            for j in range(max(column - 3, 0), min(column + 4, values.shape[1])):
                weight = math.exp(-((i - row) ** 2 + (j - column) ** 2) / (2 * 1.75**2))
                total, weights = total + weight * float(values[i, j]), weights + weight
        return total / weights

    def over_image(values: Tensor) -> Tensor:
        rows, columns = values.shape
        return torch.tensor([[mean_around(values, i, j) for j in range(columns)] for i in range(rows)], dtype=values.dtype)

    centred = luma - over_image(luma)
    return centred / over_image(centred**2).sqrt().clamp_min(1e-4)


def test_luma_contrast_equals_the_obvious_loop(images: Tensor) -> None:
    module = LumaContrast(1).double()
    torch.testing.assert_close(module(images[:2, :1])[1, 0], _obvious_contrast(images[1, 0]), rtol=1e-6, atol=1e-6)


def test_colour_images_have_normalised_luma_and_standardised_chroma(images: Tensor) -> None:
    module = LumaContrast(3).double()
    module.fit_statistics(images)
    output = module(images)
    luma = 0.299 * images[3, 0] + 0.587 * images[3, 1] + 0.114 * images[3, 2]
    torch.testing.assert_close(output[3, 0], _obvious_contrast(luma), rtol=1e-5, atol=1e-5)
    variance, mean = torch.var_mean(output[:, 1:], dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(variance, torch.ones(2, dtype=torch.float64))


def test_luma_contrast_takes_grey_and_colour_images_only() -> None:
    with pytest.raises(ValueError, match="1 or 3 channels, got 4"):
        LumaContrast(4)


def test_fit_statistics_reaches_nested_modules_once(images: Tensor) -> None:
    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Standardise(3)
            self.calls = 0

        def fit_statistics(self, x: Tensor) -> None:
            self.calls += 1

    owner, plain = Owner(), Standardise(3)
    fit_statistics(nn.Sequential(nn.Sequential(plain), owner), images.float())
    assert owner.calls == 1
    assert torch.equal(owner.inner.mean, torch.zeros(1, 3, 1, 1))
    torch.testing.assert_close(plain.mean.flatten(), images.float().mean(dim=(0, 2, 3)))
