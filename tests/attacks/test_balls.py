from __future__ import annotations

import contextlib
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel
from advbench.attacks.waiting import sparing

BALLS = ("linf", "l2", "l1")
NORMS = (*BALLS, "l0")
BOXES = ((0.0, 1.0), None)
RADII = {"linf": 0.2, "l2": 0.6, "l1": 1.3, "l0": 3.0}


def case(
    seed: int, n: int = 6, d: int = 12, spread: float = 0.6, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Points near clean images; some pixels of the images are exactly 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(n, 1, 3, d // 3, generator=generator, dtype=dtype) * 1.4 - 0.2).clamp(0, 1)
    return x + spread * torch.randn(x.shape, generator=generator, dtype=dtype), x


seeds = st.integers(0, 10_000)


def test_distances_agree_with_numpy():
    x_adv, x = case(0, dtype=torch.float32)
    x_adv[:, :, 0] = x[:, :, 0]
    found = balls.distances(x_adv, x)
    delta = (x_adv.double() - x.double()).flatten(1).numpy()
    for norm, order in (("l0", 0), ("l1", 1), ("l2", 2), ("linf", np.inf)):
        expected = np.array([np.linalg.norm(row, order) for row in delta])
        np.testing.assert_allclose(found[norm], expected, rtol=1e-12)
        np.testing.assert_allclose(balls.distance(x_adv - x, norm), expected, rtol=1e-5)
        assert balls.distance(x_adv - x, norm).dtype == torch.float32
    np.testing.assert_allclose(found["rms"], np.sqrt((delta**2).mean(axis=1)), rtol=1e-12)


def test_distance_of_the_norm_none_is_refused():
    with pytest.raises(ValueError, match="Expected `norm`"):
        balls.distance(torch.zeros(1, 1, 2, 2), "none")


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=20, deadline=None)
@given(seed=seeds, spread=st.sampled_from((0.01, 0.3, 3.0)))
def test_projection_ends_inside_and_is_idempotent(norm, box, seed, spread):
    threat = ThreatModel(norm, RADII[norm], box)
    x_adv, x = case(seed, spread=spread)
    once = balls.project(x_adv, x, threat)
    assert (balls.distance(once - x, norm) <= RADII[norm] * (1 + 1e-12)).all()
    assert box is None or ((once >= 0) & (once <= 1)).all()
    torch.testing.assert_close(balls.project(once, x, threat), once, rtol=0, atol=1e-12)


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=15, deadline=None)
@given(seed=seeds, scale=st.floats(0, 1))
def test_projection_returns_points_inside_bit_for_bit(norm, box, seed, scale):
    threat = ThreatModel(norm, RADII[norm], box)
    x_adv, x = case(seed, dtype=torch.float32)
    inside = balls.project(x_adv, x, threat)
    inside = x + scale * 0.99 * (inside - x)  # the allowed set is convex, or for l0 a star around x
    assert torch.equal(balls.project(inside, x, threat), inside)


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("norm", BALLS)
@settings(max_examples=20, deadline=None)
@given(seed=seeds, spread=st.sampled_from((0.05, 0.5, 3.0)))
def test_projection_never_widens_a_distance(norm, box, seed, spread):
    threat = ThreatModel(norm, RADII[norm], box)
    first, x = case(seed, spread=spread)
    second = first + spread * case(seed + 1)[1]
    before = balls.distance(first - second, "l2")
    after = balls.distance(balls.project(first, x, threat) - balls.project(second, x, threat), "l2")
    assert (after <= before * (1 + 1e-12)).all()


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("norm", BALLS)
@settings(max_examples=12, deadline=None)
@given(seed=seeds, spread=st.sampled_from((0.1, 0.6, 3.0)))
def test_projection_meets_the_obtuse_angle_criterion(norm, box, seed, spread):
    """p is the projection of z on a convex set exactly where <z - p, q - p> <= 0 for every q of the set."""
    threat = ThreatModel(norm, RADII[norm], box)
    z, x = case(seed, spread=spread)
    p = balls.project(z, x, threat)
    corners = [balls.project(case(seed + k, spread=4.0)[0], x, threat) for k in range(1, 30)]
    # The hardest q of all: the point of the allowed set that is farthest in the direction z - p.
    hardest = x + _linear_maximum((z - p).flatten(1), x.flatten(1), threat).view_as(x)
    for q in (*corners, x, hardest):
        assert ((z - p) * (q - p)).flatten(1).sum(dim=1).max() <= 1e-9


def _linear_maximum(gradient: Tensor, x: Tensor, threat: ThreatModel) -> Tensor:
    """argmax <gradient, d> over ball and box, by bisection (l2), filling the steepest values first (l1), or corners."""
    low, high = (0 - x, 1 - x) if threat.box else (torch.full_like(x, -9e9), torch.full_like(x, 9e9))
    room = torch.where(gradient > 0, high, -low)
    if threat.norm == "linf":
        return room.clamp(max=threat.epsilon_or_inf) * gradient.sign()
    out = torch.zeros_like(x)
    for row in range(len(x)):
        if threat.norm == "l1":
            left = threat.epsilon_or_inf
            for pixel in gradient[row].abs().argsort(descending=True).tolist():
                out[row, pixel] = min(left, float(room[row, pixel])) * gradient[row, pixel].sign()
                left -= abs(float(out[row, pixel]))
        elif gradient[row].abs().sum() > 0:
            bottom, top = 0.0, 1e12
            for _ in range(300):
                middle = (bottom + top) / 2
                d = (middle * gradient[row].abs()).minimum(room[row])
                bottom, top = (middle, top) if d.norm() < threat.epsilon_or_inf else (bottom, middle)
            out[row] = (bottom * gradient[row].abs()).minimum(room[row]) * gradient[row].sign()
    return out


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_projection_agrees_with_a_general_solver(norm, box):
    threat = ThreatModel(norm, RADII[norm], box)
    z, x = case(7, n=5, d=6)
    found = balls.project(z, x, threat).flatten(1)
    for row in range(len(x)):
        np.testing.assert_allclose(found[row], _solve(z[row].flatten().numpy(), x[row].flatten().numpy(), threat), atol=2e-6)


def _solve(z: np.ndarray, x: np.ndarray, threat: ThreatModel) -> np.ndarray:
    """SLSQP over the positive and the negative part of the perturbation."""
    d = len(z)
    top, bottom = (1 - x, x) if threat.box else (np.full(d, 10.0), np.full(d, 10.0))

    def slack(parts: np.ndarray) -> float:
        up, down = parts[:d], parts[d:]
        return (
            threat.epsilon_or_inf - (up + down).sum()
            if threat.norm == "l1"
            else threat.epsilon_or_inf**2 - ((up - down) ** 2).sum()
        )

    found = minimize(
        lambda parts: ((x + parts[:d] - parts[d:] - z) ** 2).sum(),
        np.full(2 * d, 1e-3),
        bounds=[(0, limit) for limit in (*top, *bottom)],
        constraints={"type": "ineq", "fun": slack},
        options={"maxiter": 1000, "ftol": 1e-15},
    )
    return x + found.x[:d] - found.x[d:]


@pytest.mark.parametrize("box", BOXES)
def test_l0_projection_agrees_with_trying_every_set_of_values(box):
    threat = ThreatModel("l0", 2, box)
    z, x = case(3, n=8, d=6)
    found = balls.project(z, x, threat)
    boxed = z if box is None else z.clamp(*box)
    best = torch.full((len(x),), torch.inf, dtype=x.dtype)
    for kept in itertools.combinations(range(6), 2):
        candidate = x.flatten(1).clone()
        candidate[:, kept] = boxed.flatten(1)[:, kept]
        best = best.minimum((candidate - z.flatten(1)).square().sum(dim=1))
    torch.testing.assert_close((found - z).flatten(1).square().sum(dim=1), best)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_without_an_epsilon_is_the_box_alone(norm):
    z, x = case(1)
    assert torch.equal(balls.project(z, x, ThreatModel(norm, None)), z.clamp(0, 1))
    assert torch.equal(balls.project(z, x, ThreatModel(norm, None, None)), z)


def test_l1_projection_is_sparse_where_rescaling_is_dense():
    z, x = case(5, n=4, d=300, spread=0.3)
    delta = balls.project(z, x, ThreatModel("l1", 1.0)) - x
    assert (balls.distance(delta, "l0") < 60).all()


@pytest.mark.parametrize("norm", NORMS)
def test_projection_takes_a_radius_for_each_example(norm):
    z, x = case(2)
    radius = torch.tensor([1.0, 2.0, 0.3, 4.0, 1.5, 1.0], dtype=x.dtype) * RADII[norm]
    found = balls.project(z, x, ThreatModel(norm, None), radius)
    for row in range(len(x)):
        alone = balls.project(z[row : row + 1], x[row : row + 1], ThreatModel(norm, float(radius[row])))
        torch.testing.assert_close(found[row : row + 1], alone, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", NORMS)
def test_geometry_keeps_dtype_and_accepts_empty_batches_and_single_values(norm, dtype):
    threat = ThreatModel(norm, 1.0)
    for shape in ((0, 3, 4, 4), (2, 1, 1, 1)):
        x = torch.full(shape, 0.5, dtype=dtype)
        rng = ExampleRNG.make(0, "attack", torch.arange(shape[0]))
        made = [balls.project(x + 1, x, threat)]
        if norm != "l0":
            made += [balls.steepest(x, threat), balls.random_start(x, threat, rng), balls.stretch(x + 0.1, x, threat)]
        assert all(one.shape == x.shape and one.dtype == dtype for one in made)
        assert balls.violations(made[0], x, threat).tolist() == [False] * shape[0]


def test_projection_leaves_its_arguments_alone():
    z, x = case(4)
    copies = z.clone(), x.clone()
    for norm in NORMS:
        balls.project(z, x, ThreatModel(norm, 0.1))
        balls.project(x, x, ThreatModel(norm, 0.1, None))
    assert torch.equal(z, copies[0])
    assert torch.equal(x, copies[1])


def test_l2_projection_of_far_points_in_float32_stays_on_the_sphere():
    z, x = case(0, d=3000, dtype=torch.float32)
    for factor in (1.0, 1e4, 1e15):
        found = balls.project(x + factor * (z - x), x, ThreatModel("l2", 0.5))
        torch.testing.assert_close(balls.distance(found - x, "l2"), torch.full((6,), 0.5), rtol=1e-5, atol=0)


@pytest.mark.parametrize("norm", BALLS)
def test_stretched_points_lie_on_the_sphere_or_in_the_corner(norm):
    z, x = case(8)
    for radius in (RADII[norm], 100.0):
        threat = ThreatModel(norm, radius)
        out = balls.stretch(x + 1e-3 * (z - x), x, threat)
        length = balls.distance(out - x, norm)
        corner = torch.where(z > x, 1.0, 0.0).to(x.dtype)
        if radius == 100.0:
            torch.testing.assert_close(out, corner)
        else:
            torch.testing.assert_close(length, torch.full_like(length, radius))
        assert ((out >= 0) & (out <= 1)).all()
        # Along the ray: values that no bound holds keep the ratio of the perturbation.
        ratio = (out - x) / (z - x)
        top = ratio.flatten(1).amax(dim=1).view(-1, 1, 1, 1)
        assert ((ratio >= top * (1 - 1e-9)) | ((out - corner).abs() < 1e-12)).all()


def test_stretching_handles_no_perturbation_and_the_tiniest():
    _, x = case(9, dtype=torch.float32)
    for norm in BALLS:
        threat = ThreatModel(norm, 0.1)
        assert torch.equal(balls.stretch(x, x, threat), x)
        inner = torch.full_like(x, 0.5)
        length = balls.distance(balls.stretch(inner + 6e-8, inner, threat) - inner, norm)
        torch.testing.assert_close(length, torch.full_like(length, 0.1), rtol=1e-4, atol=0)


@pytest.mark.parametrize("norm", BALLS)
@settings(max_examples=15, deadline=None)
@given(seed=seeds, magnitude=st.sampled_from((1e-40, 1e-20, 1.0, 1e30)))
def test_steepest_direction_beats_every_other_of_unit_length(norm, seed, magnitude):
    threat = ThreatModel(norm, 1.0)
    gradient = (case(seed)[0] - 0.5).float() * magnitude
    direction = balls.steepest(gradient, threat)
    exact = gradient.double()
    torch.testing.assert_close(balls.distance(direction, norm), torch.ones(len(gradient)))
    gained = (direction.double() * exact).flatten(1).sum(dim=1)
    torch.testing.assert_close(gained, balls.distance(exact, balls.DUAL[norm]), rtol=1e-5, atol=0)
    for other in range(20):
        rival = case(seed + other + 1)[0] - 0.5
        rival = rival / balls.per_example(balls.distance(rival, norm), rival)
        assert ((rival * exact).flatten(1).sum(dim=1) <= gained * (1 + 1e-5)).all()


@pytest.mark.parametrize("norm", BALLS)
def test_steepest_direction_of_nothing_is_nothing(norm):
    gradient = torch.zeros(3, 1, 2, 2)
    gradient[1, 0, 1, 1] = -3.0
    gradient[2, 0, 0] = torch.tensor([torch.nan, 2.0])
    direction = balls.steepest(gradient, ThreatModel(norm, 1.0))
    assert not direction[0].any()
    assert direction[1].flatten().tolist() == [0, 0, 0, -1]
    assert direction[2].flatten().tolist() == [0, 1, 0, 0]
    assert balls.steepest(torch.full((1, 1, 2, 2), torch.inf), ThreatModel(norm, 1.0)).isfinite().all()


INFINITE = torch.tensor([torch.inf, -3.0, torch.inf, 1e30]).view(1, 1, 2, 2)
"""Two components that are infinite and two that are not."""


@pytest.mark.parametrize(
    ("norm", "expected"), [("linf", [1, -1, 1, 1]), ("l2", [0.5**0.5, 0, 0.5**0.5, 0]), ("l1", [1, 0, 0, 0])]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_steepest_direction_of_infinite_components_is_the_limit(norm, expected, dtype):
    gradient, threat = INFINITE.to(dtype), ThreatModel(norm, 1.0)
    expected = torch.tensor(expected, dtype=dtype)
    direction = balls.steepest(gradient, threat)
    torch.testing.assert_close(direction.flatten(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(balls.distance(direction, norm), torch.ones(1, dtype=dtype))
    assert torch.equal(balls.steepest(-gradient, threat), -direction)
    others = torch.full_like(gradient, 2.0)  # an image beside it is treated by itself
    both = balls.steepest(torch.cat((others, gradient)), threat)
    assert torch.equal(both, torch.cat((balls.steepest(others, threat), direction)))


def test_an_opposed_pair_of_infinities_and_a_nan():
    gradient = torch.tensor([torch.inf, -torch.inf, torch.nan, 5.0]).view(1, 1, 2, 2)
    direction = balls.steepest(gradient, ThreatModel("l2", 1.0)).flatten()
    torch.testing.assert_close(direction, torch.tensor([0.5**0.5, -(0.5**0.5), 0, 0]), rtol=1e-6, atol=1e-6)
    assert balls.steepest(gradient, ThreatModel("linf", 1.0)).flatten().tolist() == [1, -1, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_gradients_keep_their_bits_and_infinite_ones_their_signs(dtype):
    ordinary = torch.tensor([3.0, -1e-30, 0.0, torch.nan], dtype=dtype).view(1, 1, 2, 2)
    gradient = torch.cat((ordinary, INFINITE.to(dtype), torch.full_like(ordinary, -torch.inf)))
    found = balls.finite(gradient)
    assert torch.equal(found[0], ordinary[0].nan_to_num())
    assert torch.equal(balls.finite(ordinary)[0], ordinary[0].nan_to_num())
    assert torch.equal(found[1].sign(), gradient[1].sign())
    assert torch.equal(found[1].flatten()[[0, 2]], torch.ones(2, dtype=dtype))
    assert found[1].flatten()[[1, 3]].abs().max() <= torch.finfo(dtype).eps
    assert torch.equal(found[2], -torch.ones_like(found[2]))


def test_l1_steepest_direction_is_the_signed_largest_component():
    gradient = torch.tensor([0.5, -2.0, 1.9, 0.0]).view(1, 1, 2, 2)
    assert balls.steepest(gradient, ThreatModel("l1", 5.0)).flatten().tolist() == [0, -1, 0, 0]


def test_sparse_steps_move_the_steepest_values_as_far_as_box_and_part_let_them():
    gradient = torch.tensor([4.0, -3.0, 2.0, -1.0]).view(1, 1, 2, 2)
    x_adv = torch.tensor([0.75, 0.5, 0.5, 0.0]).view(1, 1, 2, 2)

    def step(length: float, share: float, box: tuple[float, float] | None = (0.0, 1.0)) -> list[float]:
        return balls.sparse_step(gradient, x_adv, ThreatModel("l1", 1.0, box), length, share).flatten().tolist()

    assert step(0.125, 0.01) == [0.125, 0, 0, 0]  # one value, within its room
    assert step(1.0, 0.01) == [0.25, -0.5, 0.25, 0]  # each to the bound, the rest to the next
    assert step(1.0, 0.5) == [0.25, -0.5, 0.25, 0]
    assert step(0.5, 0.5) == [0.25, -0.25, 0, 0]  # two parts of 0.25
    assert step(9.0, 0.01) == [0.25, -0.5, 0.5, 0]  # all the room there is
    assert step(1.0, 0.5, None) == [0.5, -0.5, 0, 0]
    assert not balls.sparse_step(torch.zeros_like(gradient), x_adv, ThreatModel("l1", 1.0), 1.0, 0.5).any()
    gradient = INFINITE
    assert step(0.5, 0.5) == [0.25, 0, 0.25, 0]
    assert step(0.25, 0.01) == [0.25, 0, 0, 0]


@pytest.mark.parametrize("norm", ["l0", "none"])
def test_directions_and_starts_are_refused_where_there_are_none(norm):
    x, threat = torch.zeros(1, 1, 2, 2), ThreatModel(norm, 1.0)
    with pytest.raises(ValueError, match="Expected a threat"):
        balls.steepest(x, threat)
    with pytest.raises(ValueError, match="Expected a threat"):
        balls.random_start(x, threat, ExampleRNG.make(0, "attack", torch.arange(1)))
    with pytest.raises(ValueError, match="Expected a threat"):
        balls.stretch(x, x, ThreatModel("linf", None))


@pytest.mark.parametrize("norm", BALLS)
def test_random_starts_are_uniform_in_the_ball(norm):
    """The radius of a uniform point has P(length <= t epsilon) = t^d, its components are symmetric and exchangeable."""
    d, n, epsilon = 4, 20_000, 0.3
    x = torch.full((n, 1, 2, 2), 0.5, dtype=torch.float64)
    threat = ThreatModel(norm, epsilon)
    delta = balls.random_start(x, threat, ExampleRNG.make(2, "attack", torch.arange(n))) - x
    share = (balls.distance(delta, norm) / epsilon) ** d  # uniform in [0, 1]
    assert share.min() >= 0
    assert share.max() <= 1 + 1e-9
    quantiles = torch.quantile(share, torch.linspace(0.1, 0.9, 9, dtype=x.dtype))
    assert (quantiles - torch.linspace(0.1, 0.9, 9, dtype=x.dtype)).abs().max() < 0.015
    flat = delta.flatten(1)
    deviation = flat.std(dim=0)
    assert (flat.mean(dim=0).abs() < 4 * deviation / n**0.5).all()
    # E[d_i^2] of a uniform point: 1/3 in the cube, 1/(d + 2) in the sphere, 2/((d + 1)(d + 2)) in the cross-polytope.
    variance = {"linf": 1 / 3, "l2": 1 / (d + 2), "l1": 2 / ((d + 1) * (d + 2))}[norm] * epsilon**2
    assert (deviation.square() / variance - 1).abs().max() < 0.05
    correlation = torch.corrcoef(flat.T) - torch.eye(d, dtype=x.dtype)
    assert correlation.abs().max() < 0.03


@pytest.mark.parametrize("norm", BALLS)
def test_random_starts_respect_ball_and_box_and_belong_to_examples(norm):
    _, x = case(1, dtype=torch.float32)
    threat = ThreatModel(norm, RADII[norm])
    rng = ExampleRNG.make(0, "attack", torch.arange(len(x)))
    start = balls.random_start(x, threat, rng)
    assert not balls.violations(start, x, threat, tolerance=1e-6).any()
    rows = torch.tensor([4, 1])
    assert torch.equal(balls.random_start(x[rows], threat, rng.select(rows)), start[rows])
    assert not torch.equal(balls.random_start(x, threat, rng.at(1)), start)


@pytest.mark.parametrize("norm", BALLS)
def test_violations_forgive_rounding_and_nothing_else(norm):
    _, x = case(0, d=3000, dtype=torch.float32)
    threat = ThreatModel(norm, RADII[norm])
    edge = balls.project(x + 0.7 * torch.where(x < 0.5, 1.0, -1.0), x, threat)
    assert not balls.violations(edge, x, threat).any()
    inner = ThreatModel(norm, RADII[norm] * 0.999)
    assert balls.violations(edge, x, inner).all()


def test_violations_find_box_and_numbers():
    x = torch.full((6, 1, 2, 2), 0.5)
    x_adv = x.clone()
    for row, value in enumerate((torch.nan, torch.inf, -1e-3, 1 + 1e-3, 1 + 1e-7, 0.6)):
        x_adv[row, 0, 1, 0] = value
    wide = ThreatModel("linf", None)
    assert balls.violations(x_adv, x, wide).tolist() == [True, True, True, True, False, False]
    assert balls.violations(x_adv, x, ThreatModel("none", None)).tolist() == [True, True, True, True, False, False]
    assert balls.violations(x_adv, x, ThreatModel("l0", 1, None)).tolist() == [True, True, False, False, False, False]
    assert balls.violations(x_adv, x, ThreatModel("linf", 0.2)).tolist() == [True] * 5 + [False]
    with pytest.raises(ValueError, match="shape"):
        balls.violations(x_adv[:2], x, wide)


@pytest.mark.parametrize("asked", [contextlib.nullcontext, sparing])
def test_the_l1_projection_ends_where_newtons_steps_bounce(asked):
    """The sum of the lengths falls, is nearly flat, and falls again; a hundredth more or less of the radius as well."""
    x = torch.tensor([0.6, 0.4, 0.6, 0.5]).view(1, 1, 2, 2)
    delta = torch.tensor([0.2, 1.7, 1.7, 0.5]).view_as(x)
    for epsilon in (1.5, 1.49, 1.51):
        threat = ThreatModel("l1", epsilon)
        with asked():
            projected = balls.project(x + delta, x, threat)
        torch.testing.assert_close(balls.distance(projected - x, "l1"), torch.tensor([epsilon]), rtol=1e-6, atol=0)
        assert not balls.violations(projected, x, threat).any()


def _bisected(z: Tensor, x: Tensor, epsilon: float, box: tuple[float, float] | None) -> Tensor:
    """The l1 projection of points outside, in float64, by three hundred halvings of the shift."""
    z, x = z.double(), x.double()
    delta = (z - x).flatten(1)
    low, high = box or (-torch.inf, torch.inf)
    room = torch.where(delta > 0, high - x.flatten(1), x.flatten(1) - low)
    bottom, top = torch.zeros(len(x), 1).double(), delta.abs().amax(dim=1, keepdim=True)
    for _ in range(300):
        shift = (bottom + top) / 2
        long = (delta.abs() - shift).clamp(min=0).minimum(room).sum(dim=1, keepdim=True) > epsilon
        bottom, top = shift.where(long, bottom), top.where(long, shift)
    return x + (delta.sign() * (delta.abs() - top).clamp(min=0).minimum(room)).view_as(x)


@pytest.mark.parametrize("asked", [contextlib.nullcontext, sparing])
@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize(
    ("shape", "spread", "epsilon"), [((1, 8, 8), 0.3, 4.0), ((3, 32, 32), 0.05, 12.0), ((3, 32, 32), 2.0, 20.0)]
)
def test_the_l1_projection_is_exact_to_rounding_however_it_is_found(asked, box, shape, spread, epsilon):
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(12, *shape, generator=generator).round(decimals=1)  # values on the box's bounds, and equal ones
    delta = spread * torch.randn(x.shape, generator=generator) * torch.randn(x.shape, generator=generator).exp()
    delta[0] = delta[0].sign() * spread  # all of one size
    z = x + delta
    assert (balls.distance(z.clamp(*(box or (-9e9, 9e9))) - x, "l1") > epsilon).all()
    with asked():
        found = balls.project(z, x, ThreatModel("l1", epsilon, box))
    rounding = 4 * torch.finfo(torch.float32).eps * delta.flatten(1).abs().amax(dim=1).clamp(min=1)
    error = (found.double() - _bisected(z, x, epsilon, box)).flatten(1).abs().amax(dim=1)
    assert (error <= rounding).all()


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("share", [0.01, 0.2, 1.0])
def test_a_sparse_step_is_the_same_where_nobody_asks_whether_it_has_ended(box, share):
    x_adv = case(5, n=40, d=64, dtype=torch.float32)[0]
    gradient = case(6, n=40, d=64, dtype=torch.float32)[0]
    x_adv[::2] = x_adv[::2].clamp(0, 1).round()  # little room, so that the few largest gradients do not suffice
    for length in (0.1, 2.0, 40.0):
        steps = []
        for asked in (contextlib.nullcontext, sparing):
            with asked():
                steps.append(balls.sparse_step(gradient, x_adv, ThreatModel("l1", 1.0, box), length, share))
        assert torch.equal(*steps)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_starts_on_the_surface_are_at_distance_epsilon_in_all_directions(norm, dtype):
    n, x = 4000, torch.full((4000, 1, 1, 2), 0.5, dtype=dtype)
    rng = ExampleRNG.make(3, "attack", torch.arange(n))
    delta = balls.surface_start(x, ThreatModel(norm, 0.25, None), rng) - x
    length = delta.abs().amax(dim=(1, 2, 3)) if norm == "linf" else delta.square().sum(dim=(1, 2, 3)).sqrt()
    torch.testing.assert_close(length, torch.full_like(length, 0.25), rtol=1e-6, atol=0)
    quadrants = torch.bincount((delta.flatten(1) > 0).to(torch.int64) @ torch.tensor([1, 2]), minlength=4)
    assert (quadrants - n / 4).abs().max() <= 5 * (n * 3 / 16) ** 0.5
    if norm == "l2":
        angle = torch.atan2(delta[:, 0, 0, 0], delta[:, 0, 0, 1]).sort().values / (2 * torch.pi) + 0.5
        uniform = (torch.arange(n, dtype=dtype) + 0.5) / n
        assert (angle - uniform).abs().max() <= 1.95 / n**0.5  # Kolmogorov and Smirnov, 0.1%


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_on_the_surface_respect_ball_and_box_and_belong_to_examples(norm):
    x = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    threat = ThreatModel(norm, 0.3 if norm == "linf" else 2.0, (0.0, 1.0))
    rng = ExampleRNG.make(2, "attack", torch.arange(50))
    start = balls.surface_start(x, threat, rng)
    assert not balls.violations(start, x, threat).any()
    rows = torch.tensor([7, 3])
    assert torch.equal(balls.surface_start(x[rows], threat, rng.select(rows)), start[rows])
    with pytest.raises(ValueError, match="linf or l2"):
        balls.surface_start(x, ThreatModel("l1", 1.0), rng)
