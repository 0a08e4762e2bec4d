"""Gaussian noise of a given covariance function against the covariance that it was asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from advbench.attacks.covariance import of_function, stationary_matrix
from advbench.attacks.rng import ExampleRNG


def exponential(shape: tuple[int, int, int], decay_length: float) -> Tensor:
    """exp(-r / decay_length) of the distance within a channel, half of it between channels."""
    c, h, w = shape
    r = torch.hypot(torch.arange(1 - h, h).view(-1, 1).double(), torch.arange(1 - w, w).double())
    return (0.5 + 0.5 * torch.eye(c, dtype=torch.float64)).view(c, c, 1, 1) * torch.exp(-r / decay_length)


def shifted_channels() -> Tensor:
    """Channel 1 is channel 0 one column to the right, and noise: its covariance with it depends on the direction."""
    function = torch.zeros(2, 2, 7, 9, dtype=torch.float64)
    function[0, 0, 3, 4], function[1, 1, 3, 4] = 1, 1.5
    function[0, 1, 3, 5] = function[1, 0, 3, 3] = 1
    return function


INDEFINITE = torch.tensor([1.0, 0.0, 2 / 3, 0.0, 1.0], dtype=torch.float64).view(1, 1, 1, 5)
"""That of the row (1, 0, 1): an eigenvalue of its matrix is -1/3."""


def positive_part(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(0) @ vectors.T


@pytest.mark.parametrize(
    ("function", "embedded"),
    [
        (exponential((2, 4, 5), 0.7), True),
        (shifted_channels(), True),
        (exponential((2, 4, 5), 8.0), False),
        (INDEFINITE, False),
    ],
)
def test_noise_has_the_covariance_that_it_was_asked_for(function, embedded):
    covariance, n = of_function(function), 20000
    assert (covariance.factor is None) == embedded
    assert (covariance.clipped > 1e-3) == (function is INDEFINITE)
    x = torch.zeros(n, *covariance.shape, dtype=torch.float64)
    noise = covariance.sample(x, ExampleRNG.make(0, "attack", torch.arange(n))).flatten(1)
    expected = positive_part(stationary_matrix(function))
    # The standard error of a sampled covariance is at most sqrt(2 / n) times the largest variance; five of them are allowed.
    tolerance = 5 * (2 / n) ** 0.5 * float(expected.diagonal().max())
    torch.testing.assert_close(noise.T @ noise / n, expected, rtol=0, atol=tolerance)
    assert noise.mean(dim=0).abs().max() < tolerance


def test_an_example_s_noise_does_not_depend_on_its_batch():
    for length in (0.7, 8.0):
        covariance, x = of_function(exponential((1, 4, 5), length)), torch.zeros(5, 1, 4, 5)
        together = covariance.sample(x, ExampleRNG.make(0, "attack", torch.arange(5)))
        alone = covariance.sample(x[:1], ExampleRNG.make(0, "attack", torch.tensor([3])))
        torch.testing.assert_close(together[[3]], alone)


def test_an_image_too_large_to_factor_needs_a_positive_embedding():
    with pytest.raises(ValueError, match="or images of at most 4096 values, got 4225: shorten its range"):
        of_function(exponential((1, 65, 65), 200.0))
    assert of_function(exponential((1, 65, 65), 4.0)).root is not None
