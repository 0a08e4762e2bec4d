"""The blur against scipy, its adjoint, and its edges."""

from __future__ import annotations

import pytest
import torch
from scipy.ndimage import convolve1d, gaussian_filter
from torch.nn.functional import pad

from advbench.defenses.inference.blur import GaussianBlur, blur, mirrored


def images(n: int = 3, height: int = 9, width: int = 12) -> torch.Tensor:
    return torch.rand(n, 2, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("kernel_size", "sigma"), [(5, 1.1), (11, 2.0), (5, 0.7), (1, 0.5)])
def test_equals_scipy(kernel_size, sigma):
    x = images()
    ours = blur(x, GaussianBlur(kernel_size=kernel_size, sigma=sigma).kernel())
    options = {"sigma": (0, 0, sigma, sigma), "mode": "mirror", "truncate": (kernel_size // 2) / sigma}
    torch.testing.assert_close(ours, torch.from_numpy(gaussian_filter(x.numpy(), **options)))


@pytest.mark.parametrize(("kernel_size", "sigma"), [(5, 1.1), (11, 2.0)])
def test_the_deviation_follows_the_rule_where_none_is_given(kernel_size, sigma):
    torch.testing.assert_close(
        GaussianBlur(kernel_size=kernel_size).kernel(), GaussianBlur(kernel_size=kernel_size, sigma=sigma).kernel()
    )


def test_rows_and_columns_are_not_mixed_up():
    x, kernel = images(), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    reference = x.numpy()
    for axis in (2, 3):
        reference = convolve1d(reference, kernel.flip(0).numpy(), axis=axis, mode="mirror")
    torch.testing.assert_close(blur(x, kernel), torch.from_numpy(reference))


@pytest.mark.parametrize("width", [0, 1, 4])
def test_borders_are_mirrored_as_torch_pads(width):
    x = images()
    ours = mirrored(mirrored(x, width, dim=2), width, dim=3)
    assert torch.equal(ours, pad(x, (width,) * 4, mode="reflect"))


def test_keeps_constant_images_and_the_pixel_range():
    kernel = GaussianBlur(kernel_size=11).kernel().float()
    torch.testing.assert_close(blur(torch.full((1, 3, 8, 8), 0.7), kernel), torch.full((1, 3, 8, 8), 0.7))
    blurred = blur(images().float().round(), kernel)
    assert blurred.min() >= -1e-6
    assert blurred.max() <= 1 + 1e-6


def test_gradient_is_the_adjoint():
    kernel = GaussianBlur().kernel()
    assert torch.autograd.gradcheck(lambda x: blur(x, kernel), images(n=1, height=4, width=5).requires_grad_())


def test_the_model_sees_the_blurred_image_and_the_attacker_may_look_past_it(lab):
    base, blurred = lab.fitted("none"), lab.fitted("gaussian-blur(kernel_size=11)")
    x = lab.data.validation.x
    expected = base.model(blur(x, GaussianBlur(kernel_size=11).kernel()))
    torch.testing.assert_close(blurred.model(x), expected)
    assert list(blurred.surrogates) == ["faithful", "base"]
    assert blurred.surrogates["faithful"].model is blurred.model
    torch.testing.assert_close(blurred.surrogates["base"].model(x), base.model(x))
    assert not any("kernel" in name for name in blurred.modules().state_dict())  # it follows from the hyper-parameters


def test_rejects_images_smaller_than_the_kernel(lab):
    assert lab.build("gaussian-blur(kernel_size=15)")
    with pytest.raises(ValueError, match="Expected `kernel_size` < 16 for images of 8x8, got 17"):
        lab.build("gaussian-blur(kernel_size=17)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 4}, "Expected `kernel_size` odd and >= 1, got 4"),
        ({"kernel_size": -1}, "Expected `kernel_size` odd and >= 1, got -1"),
        ({"sigma": 0.0}, "Expected `sigma` > 0, got 0.0"),
    ],
)
def test_rejects_what_makes_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianBlur(**arguments)
