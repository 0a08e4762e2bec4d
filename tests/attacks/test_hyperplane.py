from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.hyperplane import way_to_hyperplane
from advbench.attacks.threat import ThreatModel

NORMS = ("linf", "l2", "l1")


def problems(n: int, d: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points of the box, some values on its faces, normals with zeros, and levels of both signs; (n, 1, 1, d), (n,)."""
    generator = torch.Generator().manual_seed(seed)
    x = (1.4 * torch.rand(n, 1, 1, d, generator=generator, dtype=torch.float64) - 0.2).clamp(0, 1)
    normal = torch.randn(n, 1, 1, d, generator=generator, dtype=torch.float64)
    normal[torch.rand(n, 1, 1, d, generator=generator) < 0.2] = 0
    return x, normal, torch.randn(n, generator=generator, dtype=torch.float64)


def shortest(x: np.ndarray, normal: np.ndarray, level: float, norm: str) -> float:
    """The length of the shortest step to the plane inside the box, by scipy; infinity where the box does not meet it."""
    d, low, high = len(x), -x, 1 - x
    equality = {"A_eq": normal[None], "b_eq": [level]}
    if norm == "linf":  # minimise t with |delta_i| <= t
        both = np.block([[np.eye(d), -np.ones((d, 1))], [-np.eye(d), -np.ones((d, 1))]])
        found = linprog(
            [0] * d + [1],
            both,
            np.zeros(2 * d),
            np.append(normal, 0)[None],
            [level],
            [*zip(low, high, strict=True), (0, None)],
        )
        return float(found.fun) if found.success else np.inf
    if norm == "l1":  # delta = plus - minus
        bounds = [(0, one) for one in high] + [(0, -one) for one in low]
        found = linprog(np.ones(2 * d), A_eq=np.append(normal, -normal)[None], b_eq=[level], bounds=bounds)
        return float(found.fun) if found.success else np.inf
    if linprog(np.zeros(d), **equality, bounds=[*zip(low, high, strict=True)]).status == 2:
        return np.inf
    found = minimize(
        lambda delta: delta @ delta,
        np.zeros(d),
        jac=lambda delta: 2 * delta,
        bounds=[*zip(low, high, strict=True)],
        constraints={"type": "eq", "fun": lambda delta: normal @ delta - level, "jac": lambda delta: normal},
        options={"ftol": 1e-15, "maxiter": 500},
    )
    return float(found.fun) ** 0.5


@pytest.mark.parametrize("norm", NORMS)
def test_way_is_the_shortest_one_inside_the_box(norm):
    x, normal, level = problems(60, 5, seed=0)
    threat = ThreatModel(norm, None)
    way = way_to_hyperplane(x, normal, level, threat)
    reached = (normal * way).flatten(1).sum(dim=1)
    lengths = balls.distance(way, norm)
    assert ((x + way >= -1e-12) & (x + way <= 1 + 1e-12)).all()
    missed = 0
    for row in range(len(x)):
        expected = shortest(x[row].flatten().numpy(), normal[row].flatten().numpy(), float(level[row]), norm)
        if np.isinf(expected):
            missed += 1
            direction = normal[row] * level[row].sign()
            best = torch.where(direction > 0, direction * (1 - x[row]), -direction * x[row]).sum()
            assert (reached[row] * level[row].sign()).item() == pytest.approx(best.item(), abs=1e-9)
        else:
            assert reached[row].item() == pytest.approx(level[row].item(), abs=1e-9)
            assert lengths[row].item() == pytest.approx(expected, abs=2e-6)
    assert 3 < missed < 50  # both cases were seen


@pytest.mark.parametrize("norm", NORMS)
def test_without_a_box_the_length_is_that_of_the_dual_norm(norm):
    x, normal, level = problems(20, 7, seed=1)
    way = way_to_hyperplane(x, normal, level, ThreatModel(norm, None, box=None))
    torch.testing.assert_close((normal * way).flatten(1).sum(dim=1), level)
    torch.testing.assert_close(balls.distance(way, norm), level.abs() / balls.distance(normal, balls.DUAL[norm]))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_any_magnitude_is_safe(norm, scale):
    x, normal, level = (one.float() for one in problems(20, 6, seed=2))
    threat = ThreatModel(norm, None)
    way = way_to_hyperplane(x, normal, level, threat)
    scaled = way_to_hyperplane(x, normal * scale, level * scale, threat)
    torch.testing.assert_close(scaled, way, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("box", [(0.0, 1.0), None])
def test_nothing_moves_on_the_plane_or_without_a_normal(norm, box):
    x, normal, level = problems(4, 6, seed=3)
    threat = ThreatModel(norm, None, box)
    assert torch.equal(way_to_hyperplane(x, normal, 0 * level, threat), torch.zeros_like(x))
    assert torch.equal(way_to_hyperplane(x, 0 * normal, level, threat), torch.zeros_like(x))


def test_norm_without_a_way_is_an_error():
    x, normal, level = problems(1, 3, seed=4)
    with pytest.raises(ValueError, match="linf, l2 or l1"):
        way_to_hyperplane(x, normal, level, ThreatModel("l0", None))
