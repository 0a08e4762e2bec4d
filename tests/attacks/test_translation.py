from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import torch
from torch import Tensor, nn

from advbench.attacks.momentum import MIFGSM
from advbench.attacks.threat import ThreatModel, Untargeted
from advbench.attacks.translation import TIFGSM, smoothed

SHAPE = (2, 9, 7)


def kernel(size: int) -> np.ndarray:
    """A normal density on a square that ends at three standard deviations, sum 1."""
    side = scipy.stats.norm.pdf(np.linspace(-3, 3, size))
    return np.outer(side, side) / np.outer(side, side).sum()


def images(n: int = 6) -> Tensor:
    return torch.rand(n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("size", [3, 5, 15])
def test_gradients_are_convolved_as_scipy_does_it(size):
    gradient = images() - 0.5
    expected = [[scipy.signal.convolve2d(plane, kernel(size), mode="full") for plane in image] for image in gradient.numpy()]
    half = size // 2
    expected = np.array(expected)[:, :, half : half + 9, half : half + 7]
    np.testing.assert_allclose(smoothed(gradient, size).numpy(), expected, rtol=0, atol=1e-14)


def test_infinite_values_are_smoothed_as_signs():
    gradient = torch.full((1, 1, 9, 9), 2.0)
    gradient[0, 0, 4] = torch.inf
    gradient[0, 0, 4, ::2] = -torch.inf
    signs = gradient.sign().where(gradient.isinf(), 0)
    torch.testing.assert_close(smoothed(gradient, 5), smoothed(signs, 5), rtol=0, atol=1e-6)


def test_a_value_that_is_not_a_number_does_not_spread():
    gradient = torch.zeros(1, 1, 5, 5)
    gradient[0, 0, 0, 0] = float("nan")
    assert not smoothed(gradient, 3).any()


def test_one_whole_step_follows_the_smoothed_gradient_of_a_linear_model(white_box, linear):
    weight = torch.randn(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model, x = linear(weight, torch.zeros(2, dtype=torch.float64)), images()
    goal = Untargeted(torch.zeros(len(x), dtype=torch.int64))
    ahead = (weight[1] - weight[0]).numpy()
    smooth = torch.from_numpy(np.stack([scipy.signal.convolve2d(plane, kernel(5), mode="same") for plane in ahead]))
    for norm, direction in {"linf": smooth.sign(), "l2": smooth / smooth.norm()}.items():
        attack = TIFGSM(steps=1, step_size=1, kernel_size=5, stop="never")
        with white_box(model, len(x)) as access:
            found = attack(access, x, goal, ThreatModel(norm, 0.1, box=None), access.rng)
        torch.testing.assert_close(found - x, 0.1 * direction.expand_as(x))
    assert not torch.equal(smooth.sign(), torch.from_numpy(ahead).sign())


def test_a_kernel_of_one_value_changes_nothing(white_box):
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(126, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    for parameter in model.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    x = images()
    goal, threat = Untargeted(model(x).argmax(dim=1)), ThreatModel("linf", 0.1)
    with white_box(model, len(x)) as access:
        one, other, plain = (
            attack(access, x, goal, threat, access.rng)
            for attack in (TIFGSM(kernel_size=1), TIFGSM(kernel_size=3), MIFGSM())
        )
    torch.testing.assert_close(one, plain, rtol=0, atol=1e-12)
    assert not torch.allclose(other, plain)


@pytest.mark.parametrize("size", [0, 4, -1])
def test_a_kernel_without_a_middle_is_refused(size):
    with pytest.raises(ValueError, match="Expected `kernel_size` to be odd"):
        TIFGSM(kernel_size=size)
    with pytest.raises(ValueError, match="Expected `decay`"):
        TIFGSM(decay=-1)
