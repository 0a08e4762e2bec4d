"""Total-variation minimisation against an independent solver, its optimality, its randomness and its gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from advbench.attacks.rng import ExampleRNG
from advbench.defenses.inference.total_variation import Smoothed, TotalVariation, adjoint, difference, smoothed


def images(n: int = 2, height: int = 7, width: int = 6) -> torch.Tensor:
    return torch.rand(n, 1, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def objective(z: np.ndarray, x: np.ndarray, kept: np.ndarray, weight: float, smoothing: float = 0.0) -> float:
    """1/2 sum kept (z - x)^2 + weight * TV(z) of one image (h, w), the lengths of differences smoothed at zero."""
    down, right = np.zeros_like(z), np.zeros_like(z)
    down[:-1], right[:, :-1] = z[1:] - z[:-1], z[:, 1:] - z[:, :-1]
    lengths = np.sqrt(down**2 + right**2 + smoothing**2)
    return 0.5 * float((kept * (z - x) ** 2).sum()) + weight * float(lengths.sum())


def reference(x: np.ndarray, kept: np.ndarray, weight: float) -> np.ndarray:
    """The minimiser by L-BFGS on a slightly smoothed objective."""
    found = np.full_like(x, x.mean())
    for smoothing in (1e-1, 1e-2, 1e-3, 1e-4):
        found = minimize(
            lambda z, s=smoothing: objective(z.reshape(x.shape), x, kept, weight, s),
            found.ravel(),
            method="L-BFGS-B",
            options={"maxfun": 100_000, "maxiter": 2_000},
        ).x
    return found.reshape(x.shape)


@pytest.mark.parametrize("weight", [0.03, 0.2])
@pytest.mark.parametrize("dropped", [False, True])
def test_finds_what_an_independent_solver_finds(weight, dropped):
    x = images(n=1, height=5, width=4)
    kept = torch.ones_like(x)
    if dropped:
        kept[0, 0, ::2, 1::2] = 0
    found = smoothed(x, weight, 2_000, kept)[0, 0].numpy()
    picture, mask = x[0, 0].numpy(), kept[0, 0].numpy()
    expected = reference(picture, mask, weight)
    best, ours = objective(expected, picture, mask, weight), objective(found, picture, mask, weight)
    assert ours <= best + 1e-5
    if not dropped:  # strictly convex: the minimiser is one
        np.testing.assert_allclose(found, expected, atol=5e-3)


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_the_default_number_of_steps_is_enough(drop):
    x = images(n=20, height=28, width=28)
    kept = (torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(1)) >= drop).double()
    few, many = smoothed(x, 0.03, TotalVariation().steps, kept), smoothed(x, 0.03, 3_000, kept)
    values = [
        np.mean([objective(z.numpy(), a.numpy(), k.numpy(), 0.03) for z, a, k in zip(each[:, 0], x[:, 0], kept[:, 0])])  # noqa: B905
        for each in (few, many, x)
    ]
    assert (values[0] - values[1]) / (values[2] - values[1]) < 0.03


def test_the_minimiser_keeps_the_mean_and_reduces_the_variation_to_none():
    x = images()
    found = smoothed(x, 0.1, 1_000)
    torch.testing.assert_close(found.mean(dim=(1, 2, 3)), x.mean(dim=(1, 2, 3)))
    flat = smoothed(x, 50.0, 3_000)
    torch.testing.assert_close(flat, x.mean(dim=(1, 2, 3), keepdim=True).expand_as(x), atol=1e-3, rtol=0)


def test_differences_have_their_adjoint():
    z, p = images(), images().flip(0)
    for dim in (2, 3):
        torch.testing.assert_close((difference(z, dim=dim) * p).sum(), (z * adjoint(p, dim=dim)).sum())


def test_a_dropped_pixel_has_no_influence():
    x, rng = images(n=4, height=8, width=8), ExampleRNG.make(0, "oracle", torch.arange(4))
    model = Smoothed(weight=0.03, drop=0.5, steps=20)
    kept = rng.fork("drop").uniform((1, 8, 8)) >= 0.5
    changed = torch.where(kept, x, 1 - x)
    torch.testing.assert_close(model(changed, rng), model(x, rng))
    assert 0.4 < float(kept.double().mean()) < 0.6
    images_ = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(images_, rng).square().sum(), images_)
    assert not gradient[~kept].any()
    assert gradient[kept].any()


def test_all_channels_lose_the_same_pixels():
    x = images(n=2, height=8, width=8).expand(2, 3, 8, 8)
    found = Smoothed(weight=0.03, drop=0.5, steps=10)(x, ExampleRNG.make(0, "oracle", torch.arange(2)))
    torch.testing.assert_close(found[:, :1].expand_as(found), found)


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_the_unrolled_gradient_is_that_of_the_steps(drop):
    x = images(n=1, height=4, width=3).requires_grad_()
    rng = ExampleRNG.make(0, "oracle", torch.arange(1))
    model = Smoothed(weight=0.05, drop=drop, steps=9)
    assert torch.autograd.gradcheck(lambda z: model(z, rng), x)


def test_a_flat_image_has_a_finite_gradient():
    x = torch.zeros(1, 1, 5, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(smoothed(x, 0.1, 20).sum(), x)
    assert gradient.isfinite().all()


def test_surrogates_and_what_the_model_sees(lab):
    base, split = lab.fitted("none"), lab.data.validation
    still, random = lab.fitted("total-variation(drop=0.0)"), lab.fitted("total-variation")
    assert (still.stochastic, random.stochastic) == (False, True)
    torch.testing.assert_close(still.model(split.x), base.model(smoothed(split.x, 0.03, 50)))
    for defended in (still, random):
        assert list(defended.surrogates) == ["faithful", "bpda", "base"]
        assert defended.surrogates["faithful"].model is defended.model
    with pytest.raises(ValueError, match="Expected `rng`"):
        random.model(split.x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": 0.0}, "Expected `weight` > 0, got 0.0"),
        ({"drop": 1.0}, r"Expected `drop` in \[0, 1\), got 1.0"),
        ({"steps": 0}, "Expected `steps` >= 1, got 0"),
    ],
)
def test_rejects_what_makes_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        TotalVariation(**arguments)
