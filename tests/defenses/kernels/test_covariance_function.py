"""Covariance functions against the dense matrix that they average, loop by loop, in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advbench.attacks.covariance import covariance_function
from advbench.defenses.kernels import covariance
from advbench.defenses.kernels.covariance import (
    autocorrelation,
    cropped_ifft,
    decay_length,
    exponential,
    matrix_of,
    padded_fft,
    pairs,
    power,
    radial,
    radial_profile,
    torus_size,
)
from advbench.devices import DeviceTraits

CLOSE = {"rtol": 0, "atol": 1e-10}
shapes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))


def images(n, shape, seed=0):
    """Images whose statistics differ from pixel to pixel and from channel to channel."""
    generator = torch.Generator().manual_seed(seed)
    scale, offset = torch.rand(2, *shape, generator=generator, dtype=torch.float64)
    return torch.randn(n, *shape, generator=generator, dtype=torch.float64) * scale + offset


def dense(x):
    flat = x.flatten(1)
    return flat.T @ flat / len(x)


def displacements(h, w):
    return itertools.product(range(1 - h, h), range(1 - w, w))


def along_displacements(matrix, shape):
    """The obvious form: for each displacement the mean of the matrix entries that have it."""
    c, h, w = shape
    entries = matrix.view(c, h, w, c, h, w)
    function = torch.zeros(c, c, 2 * h - 1, 2 * w - 1, dtype=matrix.dtype)
    for dy, dx in displacements(h, w):
        found = [
            entries[:, y, x, :, y + dy, x + dx]
            for y, x in itertools.product(range(h), range(w))
            if 0 <= y + dy < h and 0 <= x + dx < w
        ]
        function[:, :, h - 1 + dy, w - 1 + dx] = torch.stack(found).mean(dim=0)
    return function


@given(shape=shapes, n=st.integers(1, 5), seed=st.integers(0, 99))
def test_the_autocorrelation_averages_the_dense_matrix_along_displacements(shape, n, seed):
    x = images(n, shape, seed)
    torch.testing.assert_close(autocorrelation(x), along_displacements(dense(x), shape), **CLOSE)


@given(shape=shapes, seed=st.integers(0, 99))
def test_two_implementations_of_a_data_set_s_covariance_function_agree(shape, seed):
    """That of the attack, worked on a torus of another size and with the displacement the other way round."""
    x = images(4, shape, seed)
    ours = autocorrelation(x - x.mean(dim=0))
    torch.testing.assert_close(ours, covariance_function(x).transpose(0, 1), **CLOSE)


def test_the_autocorrelation_does_not_depend_on_how_many_images_are_transformed_at_once(monkeypatch):
    x = images(5, (2, 3, 4))
    together = autocorrelation(x)
    monkeypatch.setattr(covariance, "_SPECTRUM_BYTES", (1, 1))
    torch.testing.assert_close(autocorrelation(x), together, **CLOSE)


def test_an_accelerator_sums_the_images_at_once_to_the_same_power(monkeypatch):
    x = images(5, (3, 4, 5))
    one_by_one = power(x)
    monkeypatch.setattr(covariance, "traits", lambda _: DeviceTraits(host=False))
    torch.testing.assert_close(power(x), one_by_one, **CLOSE)
    monkeypatch.setattr(covariance, "_SPECTRUM_BYTES", (1, 1))
    torch.testing.assert_close(power(x), one_by_one, **CLOSE)


@given(shape=shapes, seed=st.integers(0, 99))
def test_reversing_the_displacement_exchanges_the_channels(shape, seed):
    function = autocorrelation(images(3, shape, seed))
    torch.testing.assert_close(function, function.flip(-2, -1).transpose(0, 1), **CLOSE)


@given(shape=shapes, seed=st.integers(0, 99))
def test_the_dense_matrix_of_a_function_has_that_function(shape, seed):
    function = autocorrelation(images(3, shape, seed))
    matrix = matrix_of(function)
    torch.testing.assert_close(along_displacements(matrix, shape), function, **CLOSE)
    torch.testing.assert_close(matrix, matrix.T, **CLOSE)


@given(shape=shapes, seed=st.integers(0, 99))
def test_the_dense_matrix_holds_the_function_at_each_displacement(shape, seed):
    """Of any function, also one that no images have and whose matrix is not symmetric."""
    c, h, w = shape
    generator = torch.Generator().manual_seed(seed)
    function = torch.randn(c, c, 2 * h - 1, 2 * w - 1, generator=generator, dtype=torch.float64)
    entries = matrix_of(function).view(c, h, w, c, h, w)
    for y, x, v, u in itertools.product(range(h), range(w), range(h), range(w)):
        assert torch.equal(entries[:, y, x, :, v, u], function[:, :, h - 1 + v - y, w - 1 + u - x])


@given(h=st.integers(1, 400), w=st.integers(1, 400))
def test_a_torus_is_the_smallest_even_one_without_wrapping_whose_sides_have_small_factors(h, w):
    powers = itertools.product(range(1, 10), range(6), range(5), range(4))
    smooth = sorted(2**a * 3**b * 5**c * 7**d for a, b, c, d in powers)
    assert torus_size(h, w) == tuple(next(size for size in smooth if size >= 2 * side - 1) for side in (h, w))


@pytest.mark.parametrize("shape", [(1, 13, 11), (2, 3, 17)])
def test_images_whose_doubled_side_has_large_factors_have_their_own_autocorrelation(shape):
    assert torus_size(*shape[1:]) != (2 * shape[1], 2 * shape[2])
    x = images(2, shape)
    torch.testing.assert_close(autocorrelation(x), along_displacements(dense(x), shape), **CLOSE)


@given(shape=shapes, seed=st.integers(0, 99))
def test_transforming_back_returns_the_images(shape, seed):
    x = images(3, shape, seed)
    torch.testing.assert_close(cropped_ifft(padded_fft(x), shape[1:]), x, **CLOSE)


@given(h=st.integers(1, 6), w=st.integers(1, 6))
def test_the_pairs_of_all_displacements_are_all_pairs_of_pixels(h, w):
    assert pairs(h, w).sum() == (h * w) ** 2
    assert pairs(h, w)[h - 1, w - 1] == h * w


@given(shape=shapes, seed=st.integers(0, 99))
def test_the_radial_function_averages_the_dense_matrix_by_rounded_distance(shape, seed):
    c, h, w = shape
    x = images(3, shape, seed)
    places = torch.cartesian_prod(torch.arange(h), torch.arange(w)).double().view(-1, 2)
    distance = torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist").round()
    entries = dense(x).view(c, h * w, c, h * w).permute(0, 2, 1, 3)
    profile = torch.stack([entries[:, :, distance == r].mean(dim=-1) for r in distance.unique()], dim=-1)
    function = autocorrelation(x)
    found = radial_profile(function)[..., distance.unique().long()]
    torch.testing.assert_close(found, profile, **CLOSE)
    torch.testing.assert_close(
        matrix_of(radial(function)).view(c, h * w, c, h * w)[0, 0, 0], profile[0, 0][_ranks(distance)]
    )


def _ranks(distance):
    return torch.searchsorted(distance.unique(), distance[0])


def test_a_radial_function_is_its_own_radial_function():
    function = radial(autocorrelation(images(3, (2, 4, 5))))
    torch.testing.assert_close(radial(function), function, **CLOSE)


def test_the_exponential_function_has_the_entries_of_its_formula():
    matrix = matrix_of(exponential((2, 3, 4), 2.5, 0.5)).view(2, 3, 4, 2, 3, 4)
    assert matrix[0, 0, 0, 0, 2, 3] == pytest.approx(math.exp(-math.hypot(2, 3) / 2.5))
    assert matrix[0, 0, 3, 1, 2, 0] == pytest.approx(0.5 * math.exp(-math.hypot(2, 3) / 2.5))
    assert matrix[1, 1, 1, 1, 1, 1] == 1


@pytest.mark.parametrize("length", [1.0, 2.0, 4.0, 8.0])
def test_the_decay_length_of_an_exponential_function_is_its_own(length):
    assert decay_length(exponential((2, 32, 32), length, 0.5)) == pytest.approx(length, rel=0.1)  # rings of a pixel's width


def test_the_decay_length_says_where_there_is_none():
    assert decay_length(torch.ones(1, 1, 5, 5)) == math.inf
    assert math.isnan(decay_length(torch.zeros(1, 1, 5, 5)))


def test_white_noise_decays_within_a_pixel():
    white = torch.zeros(1, 1, 7, 7)
    white[0, 0, 3, 3] = 2.0
    assert decay_length(white) == pytest.approx(1 - 1 / math.e)
