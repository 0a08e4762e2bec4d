"""S g and g^T S g by FFT against the dense matrix, and never a negative form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advbench.defenses.kernels import covariance_operator
from advbench.defenses.kernels.covariance import autocorrelation, exponential, matrix_of, radial
from advbench.defenses.kernels.covariance_operator import (
    LARGEST_DENSE,
    DenseCovariance,
    SpectralCovariance,
    operator_of,
    quadratic_form,
    torus_spectrum,
    unit_diagonal,
)

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
shapes = st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7))
seeds = st.integers(0, 99)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uneven(n, shape, seed=0):
    """Images whose variance differs from pixel to pixel, so that the average along displacements is often indefinite."""
    return normal(n, *shape, seed=seed) * (normal(*shape, seed=seed + 1) > 0.5)


def spectral(function):
    """The operator by FFT of a function that is projected, whatever the size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(covariance_operator, "LARGEST_TESTED", 0)
        found = operator_of(function)
    assert isinstance(found, SpectralCovariance)
    return found


def dense_form(matrix, g):
    flat = g.flatten(1)
    return torch.einsum("ni,ij,nj->n", flat, matrix, flat)


@given(shape=shapes, seed=seeds)
def test_products_and_forms_without_lifting_are_those_of_the_dense_matrix(shape, seed):
    function = autocorrelation(normal(4, *shape, seed=seed))
    operator, matrix = SpectralCovariance(torus_spectrum(function), shape), matrix_of(function)
    g = normal(3, *shape, seed=seed + 1)
    torch.testing.assert_close(operator.times(g).flatten(1), g.flatten(1) @ matrix, **CLOSE)
    torch.testing.assert_close(operator.form(g), dense_form(matrix, g).clamp_min(0), **CLOSE)
    torch.testing.assert_close(operator.function(), function, **CLOSE)


@given(shape=shapes, seed=seeds, isotropic=st.booleans())
def test_the_regulariser_never_rewards_a_gradient(shape, seed, isotropic):
    function = autocorrelation(uneven(3, shape, seed))
    operator = spectral(radial(function) if isotropic else function)
    matrix = matrix_of(operator.function())
    values, vectors = torch.linalg.eigh(matrix)
    assert values[0] >= -1e-12 * max(1.0, float(values[-1]))
    # The directions that the unlifted average rewards the most, and random ones.
    worst = torch.linalg.eigh(matrix_of(function))[1].T.view(-1, *shape)
    for g in (worst, vectors.T.reshape(-1, *shape), normal(5, *shape, seed=seed)):
        assert (quadratic_form(operator, g) >= 0).all()
        torch.testing.assert_close(quadratic_form(operator, g), dense_form(matrix, g), **CLOSE)


def test_the_average_of_a_positive_matrix_can_be_indefinite_and_is_lifted():
    """S = v v^T with v = (1, 0, 1): along displacements the diagonals are 2/3, 0 and 1, with an eigenvalue of -1/3."""
    function = autocorrelation(torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64).view(1, 1, 1, 3))
    values, vectors = torch.linalg.eigh(matrix_of(function))
    assert values[0] == pytest.approx(-1 / 3)
    operator = operator_of(function)
    assert operator.clipped > 0.1
    assert quadratic_form(operator, vectors[:, 0].view(1, 1, 1, 3)) >= 0


def test_a_positive_function_is_left_as_it_is():
    function = exponential((3, 12, 12), 1.0, 0.5)
    operator = spectral(function)
    assert operator.clipped == 0
    torch.testing.assert_close(operator.function(), function, **CLOSE)
    assert operator.mean_diagonal == pytest.approx(1)


@given(shape=st.tuples(st.integers(1, 3), st.integers(1, 11), st.integers(1, 11)))
def test_the_dense_path_and_the_one_by_fft_are_one_operator(shape):
    function, g = exponential(shape, 2.0, 0.5), normal(3, *shape, seed=1)
    fast, chosen = SpectralCovariance(torus_spectrum(function), shape), operator_of(function)
    assert isinstance(chosen, DenseCovariance)
    torch.testing.assert_close(quadratic_form(chosen, g), quadratic_form(fast, g), **CLOSE)
    torch.testing.assert_close(chosen.times(g), fast.times(g), **CLOSE)


def test_the_path_is_chosen_by_the_size_and_the_kind_of_device_alone(monkeypatch):
    small, large = exponential((1, 4, 5), 1.0, 0.0), exponential((1, 4, 6), 1.0, 0.0)
    for table, device in (({"cpu": 20}, "cpu"), ({"cpu": 20, "meta": 0}, "cpu"), ({"cpu": 0, "meta": 20}, "meta")):
        monkeypatch.setattr(covariance_operator, "LARGEST_DENSE", table)
        pays = [covariance_operator.dense_pays((1, 4, width), torch.device(device)) for width in (5, 6)]
        assert pays == [True, False]
    # A kind that is not listed has the CPU's.
    monkeypatch.setattr(covariance_operator, "LARGEST_DENSE", {"cpu": 20})
    assert covariance_operator.dense_pays((1, 4, 5), torch.device("meta"))
    assert isinstance(operator_of(small), DenseCovariance)
    assert isinstance(operator_of(large), SpectralCovariance)


def test_the_crossover_of_a_cpu_keeps_mnist_dense_and_cifar_by_fft():
    assert 1 * 28 * 28 <= LARGEST_DENSE["cpu"] < 3 * 32 * 32


@given(sides=st.sampled_from([(11, 13), (13, 1), (1, 17), (19, 2)]), seed=seeds)
def test_sides_with_large_factors_are_padded_further_and_change_nothing(sides, seed):
    shape = (2, *sides)
    function, g = autocorrelation(normal(4, *shape, seed=seed)), normal(3, *shape, seed=seed + 1)
    operator, matrix = SpectralCovariance(torus_spectrum(function), shape), matrix_of(function)
    torch.testing.assert_close(operator.times(g).flatten(1), g.flatten(1) @ matrix, **CLOSE)
    torch.testing.assert_close(operator.form(g), dense_form(matrix, g), **CLOSE)
    torch.testing.assert_close(operator.function(), function, **CLOSE)
    assert operator.mean_diagonal == pytest.approx(float(matrix.diagonal().mean()))


@pytest.mark.parametrize("shape", [(1, 3, 4), (2, 4, 3), (3, 5, 5)])
@pytest.mark.parametrize("path", [operator_of, spectral])
def test_the_gradient_is_right(shape, path):
    operator = path(autocorrelation(uneven(4, shape)))
    g = normal(2, *shape, seed=5).requires_grad_()
    assert torch.autograd.gradcheck(lambda g: quadratic_form(operator, g), g)
    (gradient,) = torch.autograd.grad(quadratic_form(operator, g).sum(), g)
    torch.testing.assert_close(gradient, 2 * operator.times(g.detach()), **CLOSE)


def test_the_form_is_the_same_whether_a_gradient_is_wanted():
    operator, g = spectral(autocorrelation(uneven(4, (3, 6, 5)))), normal(4, 3, 6, 5, seed=5)
    without, wanted = quadratic_form(operator, g), quadratic_form(operator, g.clone().requires_grad_())
    torch.testing.assert_close(wanted.detach(), without, **CLOSE)


def test_single_precision_agrees_with_double():
    function, g = autocorrelation(uneven(4, (3, 8, 8))), normal(4, 3, 8, 8, seed=5)
    double, single = quadratic_form(operator_of(function), g), quadratic_form(operator_of(function.float()), g.float())
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", [operator_of, spectral])
def test_scaling_to_a_unit_diagonal(path):
    operator = unit_diagonal(path(7 * autocorrelation(uneven(4, (2, 5, 5)))))
    assert operator.mean_diagonal == pytest.approx(1)
    nothing = unit_diagonal(path(torch.zeros(1, 1, 5, 5)))
    assert quadratic_form(nothing, torch.ones(1, 1, 3, 3)) == 0


def test_images_of_another_shape_are_refused():
    operator = operator_of(exponential((1, 4, 4), 1.0, 0.5))
    with pytest.raises(ValueError, match=r"Expected images of shape \(1, 4, 4\), got \(1, 4, 5\)"):
        quadratic_form(operator, torch.zeros(2, 1, 4, 5))


def test_no_images_have_no_forms():
    assert quadratic_form(spectral(exponential((1, 4, 4), 1.0, 0.5).float()), torch.zeros(0, 1, 4, 4)).shape == (0,)
