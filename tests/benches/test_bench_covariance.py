"""The covariance kernels beside dense matrices: ``pytest tests/benches --benchmark-enable -k covariance``.

The ratios, with one thread and interleaved minima, are those of ``advbench bench covariance``.
"""

from __future__ import annotations

import pytest
import torch

from advbench.benches import covariance
from advbench.benches.bench import table
from advbench.clocks import single_thread
from advbench.defenses.kernels.covariance import matrix_of
from advbench.defenses.kernels.covariance_operator import DenseCovariance, quadratic_form

CPU = torch.device("cpu")


@pytest.fixture
def measured(request):
    if not request.config.getoption("benchmark_enable"):
        pytest.skip("a measurement: run with --benchmark-enable")
    with single_thread():
        yield request.getfixturevalue("benchmark")


@pytest.mark.parametrize("backward", [False, True], ids=covariance.PASSES)
@pytest.mark.parametrize(("n", "shape"), covariance.CASES, ids=str)
def test_form_by_fft(measured, n, shape, backward):
    case = covariance.CovarianceCase.make(n, shape, CPU)
    measured(lambda: _form(case.spectral, case.g, backward))


@pytest.mark.parametrize("backward", [False, True], ids=covariance.PASSES)
@pytest.mark.parametrize(("n", "shape"), covariance.CASES[:-1], ids=str)
def test_form_by_a_dense_matrix(measured, n, shape, backward):
    case = covariance.CovarianceCase.make(n, shape, CPU)
    dense = DenseCovariance(matrix_of(case.function), shape)
    measured(lambda: _form(dense, case.g, backward))


def _form(operator, g, backward):
    g = g.detach().requires_grad_(backward)
    form = quadratic_form(operator, g).mean()
    return torch.autograd.grad(form, g) if backward else form


@pytest.mark.parametrize(("n", "shape", "chosen"), [(2, (1, 8, 8), "dense"), (2, (3, 32, 32), "FFT")])
def test_the_chosen_form_stands_beside_the_transforms_and_the_dense_matrix(monkeypatch, n, shape, chosen):
    """Three seconds by FFT, two by the dense matrix, one for the transforms."""
    taken = {"FFT": 3.0, "dense": 2.0, "transforms": 1.0, "copy": 1.0}
    monkeypatch.setattr(covariance, "fastest", lambda calls, *_, **__: {name: taken[name] for name in calls})
    case = covariance.CovarianceCase.make(n, shape, CPU)
    rows = [row for row in covariance._forms(case, CPU) if row.measure == "forward + backward"]
    beside = {row.against: row for row in rows if row.case.endswith(chosen)}
    transforms = beside["the transforms there and back"]
    assert (transforms.ratio, transforms.bar) == (taken[chosen], 1.5)
    (dense,) = [row for against, row in beside.items() if against.startswith("dense matrix")]
    assert (dense.ratio, dense.bar) == (taken[chosen] / 2, 1.0)
    assert [row.ratio for row in rows if row.against == "the dense form, which is chosen"] == [1.5] * (chosen == "dense")


@pytest.mark.slow
def test_every_ratio_is_within_its_bar_but_for_the_double_backward_pass(measured):
    """A training step cannot keep its bar: its double backward pass alone costs twice plain training."""
    found = measured.pedantic(lambda: list(covariance.rows(CPU)), rounds=1)
    print(table(found))
    missed = [row for row in found if not row.holds and row.measure != "training step"]
    assert not missed
