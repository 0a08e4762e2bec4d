"""The quasi-Newton minimisation behind L-BFGS, beside dense matrices in NumPy and beside SciPy's L-BFGS-B."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, rosen, rosen_der

from advbench.attacks.quasi_newton import _direction, minimise

D, PAIRS, N = 7, 4, 3


def dense(gradient, free, moves, turns):
    """Minus H g of the free variables, H from the update of BFGS, pair by pair, in full matrices."""
    moves, turns = moves[:, free], turns[:, free]
    pairs = [(s, y) for s, y in zip(moves, turns, strict=True) if s @ y > 1e-10 * (y @ y)]
    s, y = pairs[-1]
    inverse = (s @ y) / (y @ y) * np.eye(free.sum())
    for s, y in pairs:
        rho = 1 / (s @ y)
        left = np.eye(len(s)) - rho * np.outer(s, y)
        inverse = left @ inverse @ left.T + rho * np.outer(s, s)
    direction = np.zeros(len(gradient))
    direction[free] = -inverse @ gradient[free]
    return direction


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("held", [False, True])
def test_the_direction_is_minus_the_inverse_hessian_of_bfgs_times_the_gradient(seed, held):
    rng = np.random.default_rng(seed)
    curved = rng.normal(size=(D, D))
    moves = rng.normal(size=(PAIRS, N, D))
    turns = moves @ (curved @ curved.T + np.eye(D))
    turns[1, 0] = -turns[1, 0]  # a pair without positive curvature, which is left out
    free = rng.uniform(size=(N, D)) > 0.4 * held
    gradient = rng.normal(size=(N, D)) * free
    expected = [dense(gradient[i], free[i], moves[:, i], turns[:, i]) for i in range(N)]
    direction = _direction(*(torch.from_numpy(one) for one in (gradient, free, moves, turns)))
    np.testing.assert_allclose(direction * torch.from_numpy(free), np.array(expected), rtol=1e-9, atol=1e-12)


def test_without_pairs_the_direction_is_the_steepest_of_length_one_at_most():
    gradient = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], dtype=torch.float64)
    none = torch.zeros(PAIRS, 3, 2, dtype=torch.float64)
    direction = _direction(gradient, torch.ones(3, 2, dtype=torch.bool), none, none)
    np.testing.assert_allclose(direction, [[-0.6, -0.8], [-0.6, -0.8], [0, 0]], atol=1e-15)


@pytest.mark.parametrize("upper", [5.0, 0.8])
def test_rosenbrocks_valley_ends_where_scipys_search_does_within_twice_the_evaluations(upper):
    """Steepest descent needs thousands of evaluations here."""
    starts = np.array([[-1.2, 0.7, -0.5, 0.3], [0.0, 0.0, 0.0, 0.0], [0.5, -1.0, 0.5, -1.0]])
    theirs = [
        minimize(rosen, one, jac=rosen_der, method="L-BFGS-B", bounds=[(-2, upper)] * 4, options={"maxcor": 10})
        for one in starts
    ]
    evaluations = np.zeros(len(starts), dtype=int)

    def objective(points, rows):
        evaluations[rows.numpy()] += 1
        values = np.array([rosen(one) for one in points.numpy()])
        slopes = np.array([rosen_der(one) for one in points.numpy()])
        return torch.from_numpy(values), torch.from_numpy(slopes)

    start = torch.from_numpy(starts)
    ours = minimise(objective, start, torch.full_like(start, -2), torch.full_like(start, upper), steps=500)
    np.testing.assert_allclose(ours, np.array([one.x for one in theirs]), atol=2e-3)
    assert (evaluations <= [2 * one.nfev for one in theirs]).all()


@pytest.mark.parametrize(("value", "length"), [(1.0, 1 / 4), (0.5, 1 / 3), (-5e-5, 0.5), (9.0, 0.1), (np.nan, 0.1)])
def test_a_rejected_step_is_shortened_to_the_minimum_of_the_parabola_through_it(value, length):
    """a t^2 - t through (1, value) has a = 1 + value and is least at 1 / (2 a), of which a tenth to a half is taken.

    At the shorter length the value is twice the length: a = 3 / length, least at a sixth of it.
    """
    asked = []

    def objective(points, _):
        asked.append(float(points))
        values = {0.0: 0.0, 1.0: value}
        return torch.tensor([values.get(asked[-1], 2 * asked[-1])]).double(), torch.full((1, 1), -1.0).double()

    start, bound = torch.zeros(1, 1).double(), torch.full((1, 1), 10.0).double()
    minimise(objective, start, -bound, bound, steps=4)
    assert asked == pytest.approx([0.0, 1.0, length, length / 6])
