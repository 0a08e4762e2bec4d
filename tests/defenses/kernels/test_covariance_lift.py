"""Lifting to positive semi-definite covariances, against dense eigendecompositions by NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advbench.defenses.kernels import covariance_lift, covariance_operator
from advbench.defenses.kernels.covariance import autocorrelation, exponential, matrix_of, radial
from advbench.defenses.kernels.covariance_lift import lift_function, lift_matrix
from advbench.defenses.kernels.covariance_operator import DenseCovariance, SpectralCovariance, operator_of, quadratic_form

shapes = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))
seeds = st.integers(0, 99)


def uneven(n, shape, seed=0):
    """Images whose variance differs from pixel to pixel, so that the average along displacements is often indefinite."""
    images = torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return images * (torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 1)) > 0.5)


def by_numpy(matrix):
    """The matrix without its negative eigenvalues, and their share of all magnitudes."""
    values, vectors = np.linalg.eigh(matrix.numpy())
    share = -values.clip(max=0).sum() / max(np.abs(values).sum(), 1e-300)
    return (vectors * values.clip(min=0)) @ vectors.T, share


@given(shape=shapes, seed=seeds, isotropic=st.booleans())
def test_the_operator_is_the_cropped_matrix_without_its_negative_eigenvalues(shape, seed, isotropic):
    function = autocorrelation(uneven(3, shape, seed))
    function = radial(function) if isotropic else function
    operator, (expected, share) = operator_of(function), by_numpy(matrix_of(function))
    d = shape[0] * shape[1] * shape[2]
    products = operator.times(torch.eye(d, dtype=torch.float64).view(d, *shape)).flatten(1)
    np.testing.assert_allclose(products.numpy(), expected, rtol=1e-9, atol=1e-9)
    assert operator.clipped == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize("decay_length", [1.0, 8.0, 16.0])
def test_a_positive_definite_decay_is_left_alone_though_its_torus_is_indefinite(decay_length):
    function = exponential((1, 28, 28), decay_length, 0.5).float()
    own = matrix_of(function)
    assert np.linalg.eigvalsh(own.double().numpy())[0] > 0
    operator = operator_of(function)
    assert operator.clipped == 0
    assert isinstance(operator, DenseCovariance)
    assert torch.equal(operator.matrix, own)


def test_an_indefinite_matrix_is_changed_in_its_negative_directions_alone():
    """Eigenvalues 3, 1 and -2 in a rotated basis: a third of the magnitudes is lifted."""
    basis = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    lifted, share = lift_matrix((basis * torch.tensor([3.0, 1.0, -2.0], dtype=torch.float64)) @ basis.T)
    torch.testing.assert_close(lifted, (basis * torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)) @ basis.T)
    assert share == pytest.approx(1 / 3)


def test_a_singular_matrix_is_no_indefinite_one():
    matrix = torch.ones(5, 5)
    lifted, share = lift_matrix(matrix)
    assert lifted is matrix
    assert share == 0
    assert lift_matrix(torch.zeros(2, 2))[1] == 0


@pytest.mark.parametrize("shape", [(1, 7, 6), (2, 5, 4)])
def test_a_projected_function_has_a_positive_semi_definite_matrix(shape):
    function = autocorrelation(uneven(4, shape, 3))
    assert np.linalg.eigvalsh(matrix_of(function).numpy())[0] < -1e-3
    lifted, share = lift_function(function)
    assert np.linalg.eigvalsh(matrix_of(lifted).numpy())[0] > -1e-9
    assert 0 < share < lift_function(function, rounds=1)[1]


def test_more_rounds_bring_a_projected_decay_back_to_what_it_was():
    function = exponential((2, 12, 12), 8.0, 0.5)
    once, often = lift_function(function, rounds=1)[0], lift_function(function)[0]
    assert float((once - function).norm() / function.norm()) > 0.01
    assert float((often - function).norm() / function.norm()) < 1e-3
    assert np.linalg.eigvalsh(matrix_of(often).numpy())[0] > -1e-9


def test_a_large_image_is_projected_and_never_given_a_matrix(monkeypatch):
    monkeypatch.setattr(covariance_operator, "LARGEST_TESTED", 0)
    monkeypatch.setattr(covariance_operator, "matrix_of", lambda _: pytest.fail("the matrix was formed"))
    function = autocorrelation(uneven(4, (2, 5, 4), 3))
    operator, (expected, share) = operator_of(function), lift_function(function)
    assert isinstance(operator, SpectralCovariance)
    assert operator.clipped == share > 0
    g = torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    forms = torch.einsum("ni,ij,nj->n", g.flatten(1), matrix_of(expected), g.flatten(1))
    torch.testing.assert_close(quadratic_form(operator, g), forms)


def test_a_function_that_is_positive_on_the_torus_takes_one_round(monkeypatch):
    calls = []
    real = covariance_lift.lift_spectrum
    monkeypatch.setattr(covariance_lift, "lift_spectrum", lambda spectrum: calls.append(1) or real(spectrum))
    function = exponential((3, 12, 12), 1.0, 0.5)
    lifted, share = lift_function(function)
    assert (len(calls), share) == (1, 0.0)
    torch.testing.assert_close(lifted, function)
