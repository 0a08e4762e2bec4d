"""Running moments against their closed form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advbench.defenses.kernels.covariance import autocorrelation, matrix_of, radial
from advbench.defenses.kernels.covariance_running import RunningFunction, RunningMatrix

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
SHAPE = (2, 3, 4)


def batches(sizes, shape=SHAPE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, *shape, generator=generator, dtype=torch.float64) + 0.3 for n in sizes]


def weights(t, beta):
    raw = torch.tensor([beta * (1 - beta) ** (t - i) for i in range(1, t + 1)], dtype=torch.float64)
    return raw / raw.sum()


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6), beta=st.sampled_from([0.1, 0.5, 1.0]), centred=st.booleans()
)
def test_running_moments_are_weighted_means(sizes, beta, centred):
    xis = batches(sizes)
    full, function = RunningMatrix(SHAPE, beta), RunningFunction(SHAPE, beta)
    for xi in xis:
        full.update(xi)
        function.update(xi)
    share = weights(len(xis), beta)
    second = sum(w * xi.flatten(1).T @ xi.flatten(1) / len(xi) for w, xi in zip(share, xis, strict=True))
    mean = sum(w * xi.mean(dim=0) for w, xi in zip(share, xis, strict=True))
    expected = second - torch.outer(mean.flatten(), mean.flatten()) if centred else second
    torch.testing.assert_close(full.matrix(centred=centred), expected, **CLOSE)
    lags = sum(w * autocorrelation(xi) for w, xi in zip(share, xis, strict=True))
    lags = lags - autocorrelation(mean.unsqueeze(0)) if centred else lags
    torch.testing.assert_close(function.function(centred=centred), lags, **CLOSE)


def test_the_full_matrix_averaged_along_displacements_is_the_function():
    full, function = RunningMatrix(SHAPE, 0.1), RunningFunction(SHAPE, 0.1)
    for xi in batches((3, 2, 4)):
        full.update(xi)
        function.update(xi)
    for centred in (False, True):
        torch.testing.assert_close(full.function(centred=centred), function.function(centred=centred), **CLOSE)


def test_the_isotropic_function_is_the_radial_one():
    plain, isotropic = RunningFunction(SHAPE, 0.1), RunningFunction(SHAPE, 0.1, isotropic=True)
    for xi in batches((3, 2)):
        plain.update(xi)
        isotropic.update(xi)
    torch.testing.assert_close(isotropic.function(), radial(plain.function()), **CLOSE)


def test_stationary_perturbations_have_the_function_s_matrix():
    """Noise on a torus is stationary, so that averaging along displacements loses nothing but sampling error."""
    n = 4000
    white = torch.randn(n, 1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    xi = white + white.roll(1, 3) + white.roll(1, 2)
    full, function = RunningMatrix((1, 6, 6), 1.0), RunningFunction((1, 6, 6), 1.0)
    full.update(xi)
    function.update(xi)
    tolerance = 5 * (2 / n) ** 0.5 * 3
    torch.testing.assert_close(matrix_of(function.function()), full.matrix(), rtol=0, atol=tolerance)


def test_an_update_keeps_no_graph_and_leaves_the_batch_alone():
    (xi,) = batches((3,))
    moments, before = RunningMatrix(SHAPE, 0.5), xi.clone()
    moments.update(xi.requires_grad_())
    moments.update(2 * xi)
    assert not moments.second.requires_grad
    assert torch.equal(xi, before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: RunningFunction(SHAPE, 0.0), r"Expected `beta` in \(0, 1\], got 0.0"),
        (lambda: RunningMatrix((3, 64, 64), 0.1), "Expected at most 4096 values for a full matrix, got 12288"),
        (lambda: RunningFunction(SHAPE, 0.1).update(torch.zeros(2, 1, 3, 4)), r"\(n, \*\(2, 3, 4\)\)"),
        (lambda: RunningFunction(SHAPE, 0.1).update(torch.zeros(0, 2, 3, 4)), "with n >= 1"),
        (lambda: RunningMatrix(SHAPE, 0.1).matrix(), "Expected at least one batch of perturbations, got none"),
    ],
)
def test_bad_input_is_refused_in_a_line(call, message):
    with pytest.raises(ValueError, match=message):
        call()
