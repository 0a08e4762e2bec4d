"""Attacks against known truth: models whose smallest adversarial perturbation is exact, in every norm, inside the box.

Linear models and small ReLU networks are made of polyhedra in which the logits are affine, so that the nearest adversarial
point is a linear program (linf, l1) or a least-distance problem (l2), solved by SciPy. Ellipsoids have a secular equation,
cones and planted half-spaces a closed form. Nothing here uses the package's own geometry, but for the attacks.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq, linprog, minimize, nnls
from torch import Tensor, nn

from advbench.attacks import ATTACKS
from advbench.attacks.ensemble import named
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel, Untargeted

Floats = NDArray[np.float64]
ORDER = {"linf": np.inf, "l2": 2.0, "l1": 1.0}
DUAL = {"linf": 1.0, "l2": 2.0, "l1": np.inf}


def nearest(x: Floats, normals: Floats, levels: Floats, norm: str) -> float:
    """The distance from x, (d,), to the points z with ``normals @ z <= levels``; infinite where there are none.

    A linear program for linf and l1; for l2 the least-distance problem as non-negative least squares (Lawson & Hanson 1974,
    chapter 23), an active-set method, whose answer is checked for feasibility.
    """
    room, d = levels - normals @ x, len(x)
    if norm == "l2":
        size = np.linalg.norm(normals, axis=1)
        stacked = np.vstack([-(normals / size[:, None]).T, -room / size])
        target = np.append(np.zeros(d), 1.0)
        weights, residual = nnls(stacked, target, maxiter=100 * len(levels))
        if residual < 1e-9:
            return np.inf
        rest = stacked @ weights - target
        delta = -rest[:d] / rest[d]
        assert (normals @ delta <= room + 1e-7 * size).all()
        return float(np.linalg.norm(delta))
    if norm == "linf":
        eye, one = np.eye(d), -np.ones((d, 1))
        held = np.vstack([np.hstack([eye, one]), np.hstack([-eye, one])])
        a = np.vstack([np.hstack([normals, np.zeros((len(levels), 1))]), held])
        found = linprog(np.append(np.zeros(d), 1.0), a, np.append(room, np.zeros(2 * d)), bounds=(None, None))
    else:
        found = linprog(np.ones(2 * d), np.hstack([normals, -normals]), room, bounds=(0, None))
    return float(found.fun) if found.status == 0 else np.inf


@dataclass(frozen=True)
class Pieces:
    """Polyhedra that make up the model's domain: ``normals @ z <= levels`` in each, with the logits slopes @ z + heights."""

    regions: tuple[tuple[Floats, Floats, Floats, Floats], ...]

    def minimum(self, x: Floats, y: int, norm: str) -> float:
        """The distance from x, (d,), to the nearest point of a class other than y, or on a boundary with one."""
        problems = []
        for normals, levels, slopes, heights in self.regions:
            for k in range(len(heights)):
                if k != y:
                    a, b = np.vstack([normals, slopes[y] - slopes[k]]), np.append(levels, heights[k] - heights[y])
                    flat = np.abs(a).max(axis=1) < 1e-12  # where nothing reaches the unit: always true, or never
                    if (b[flat] < 0).any():
                        continue
                    a, b = a[~flat], b[~flat]
                    far = (a @ x - b) / np.linalg.norm(a, ord=DUAL[norm], axis=1)
                    problems.append((max(0.0, float(far.max())), len(problems), a, b))
        best = np.inf
        for bound, _, a, b in sorted(problems):
            if bound >= best:  # no single constraint is nearer than that
                break
            best = min(best, nearest(x, a, b, norm))
        return best


def cube(d: int) -> tuple[Floats, Floats]:
    return np.vstack([np.eye(d), -np.eye(d)]), np.append(np.ones(d), np.zeros(d))


def pieces(model: nn.Sequential, box: bool = True) -> Pieces:
    """All activation patterns of a network of linear layers with ReLU between them that some point of the box has."""
    layers = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in model if isinstance(m, nn.Linear)]
    d, regions = layers[0][0].shape[1], []
    walls = cube(d) if box else (np.zeros((0, d)), np.zeros(0))
    for bits in itertools.product((0.0, 1.0), repeat=sum(len(bias) for _, bias in layers[:-1])):
        a, c, (normals, levels), left = np.eye(d), np.zeros(d), walls, np.array(bits)
        for weight, bias in layers[:-1]:
            on, left = left[: len(bias)], left[len(bias) :]
            a, c = weight @ a, weight @ c + bias
            sign = 1 - 2 * on
            normals, levels = np.vstack([normals, sign[:, None] * a]), np.append(levels, -sign * c)
            a, c = on[:, None] * a, on * c
        weight, bias = layers[-1]
        if linprog(np.zeros(d), normals, levels, bounds=(None, None)).status == 0:
            regions.append((normals, levels, weight @ a, weight @ c + bias))
    return Pieces(tuple(regions))


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def network(sizes: tuple[int, ...], seed: int) -> nn.Sequential:
    """Random weights whose kinks cross the unit cube and whose classes all have a share of it."""
    rng, layers = random(seed), []
    at = rng.uniform(size=(4000, sizes[0]))
    for number, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        layer = nn.Linear(inputs, outputs).double()
        weight = rng.normal(size=(outputs, inputs)) * (2.0 if number == 0 else 1.0)
        last = number == len(sizes) - 2
        bias = -(at @ weight.T).mean(axis=0) if last else -(at[rng.integers(len(at), size=outputs)] * weight).sum(axis=1)
        layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
        at = at @ weight.T + bias
        layers.append(layer)
        if not last:
            layers.append(nn.ReLU())
            at = at.clip(0)
    return nn.Sequential(nn.Flatten(), *layers)


@dataclass(frozen=True)
class Problem:
    """A model, images that it gets right, and the exact minimum of each in one norm."""

    model: nn.Module
    x: Tensor
    y: Tensor
    minima: Floats
    box: tuple[float, float] | None = (0.0, 1.0)


SIZES = {"linear": (6, 4), "shallow": (3, 6, 3), "pixels": (2, 8, 4), "deep": (4, 5, 4, 3)}
SHAPES = {"linear": (1, 2, 3), "shallow": (1, 1, 3), "pixels": (1, 1, 2), "deep": (1, 2, 2)}
N = 24


@cache
def pieces_of(kind: str, box: bool) -> tuple[nn.Sequential, Pieces]:
    model = network(SIZES[kind], seed=3)
    found = pieces(model, box)
    return model.requires_grad_(False), found


@cache
def problem(kind: str, norm: str, box: bool = True) -> Problem:
    model, found = pieces_of(kind, box)
    x = random(8).uniform(size=(N, SIZES[kind][0]))
    x[::4] = (1.6 * x[::4] - 0.3).clip(0, 1)  # some pixels at exactly 0 and 1
    images = torch.tensor(x).view(N, *SHAPES[kind])
    y = model(images).argmax(dim=1)
    minima = np.array([found.minimum(x[i], int(y[i]), norm) for i in range(N)])
    return Problem(model, images, y, minima, (0.0, 1.0) if box else None)


def attacked(attack: Any, case: Problem, norm: str, epsilon: float | None = None) -> tuple[Floats, NDArray[np.bool_]]:
    """The distance of what comes back, worked here, and whether a fresh look at it is an error; (n,) each."""
    rng = ExampleRNG.make(0, "attack", torch.arange(len(case.x)))
    with attack.knowledge(case.model, rng.fork("model")) as access:
        threat = ThreatModel(norm, epsilon, case.box)
        x_adv = attack(access, case.x.clone(), Untargeted(case.y), threat, rng.fork("attack"))
    delta = (x_adv - case.x).flatten(1).numpy()
    assert np.isfinite(delta).all()
    if case.box:
        assert ((x_adv >= 0) & (x_adv <= 1)).all()
    broken = (case.model(x_adv).argmax(dim=1) != case.y).numpy()
    return np.linalg.norm(delta, ord=ORDER[norm], axis=1), broken


# --- the oracle itself


@pytest.mark.parametrize("norm", ORDER)
def test_the_exact_minimum_is_that_of_an_exhaustive_search(norm):
    """No error on a grid of 401 x 401 images of two pixels is nearer, and one is next to it."""
    case, axis = problem("pixels", norm), np.linspace(0, 1, 401)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    labels = case.model(torch.tensor(grid).view(-1, 1, 1, 2)).argmax(dim=1).numpy()
    for image, label, minimum in zip(case.x.flatten(1).numpy(), case.y.numpy(), case.minima, strict=True):
        found = np.linalg.norm(grid[labels != label] - image, ord=ORDER[norm], axis=1).min()
        assert minimum - 1e-9 <= found <= minimum + 2 / 400


def test_the_least_distance_is_that_of_a_general_solver():
    rng, compared = random(5), 0
    for _ in range(12):
        x, normals = rng.uniform(size=5), rng.normal(size=(7, 5))
        levels = normals @ x - rng.uniform(-0.5, 0.3, size=7)
        held = [{"type": "ineq", "fun": lambda z, n=normals, h=levels: h - n @ z}]
        found = minimize(lambda z, x=x: ((z - x) ** 2).sum(), x, constraints=held, method="SLSQP", options={"ftol": 1e-14})
        exact = nearest(x, normals, levels, "l2")
        if found.success:
            compared += 1
            assert exact == pytest.approx(float(found.fun) ** 0.5, abs=1e-6)
    assert compared >= 8
    assert nearest(np.zeros(1), np.array([[1.0], [-1.0]]), np.array([-1.0, -1.0]), "l2") == np.inf


# --- minimal-norm attacks

CLOSE: dict[str, dict[str, tuple[float, float]]] = {
    "fab": {"linear": (1.01, 0.9), "shallow": (1.06, 0.8), "deep": (1.1, 0.5)},
    "fab-t(steps=40)": {"linear": (1.01, 0.9), "shallow": (1.06, 0.8)},
    "ddn": {"linear": (1.25, 0.75), "shallow": (1.05, 0.7), "deep": (3.0, 0.6)},
    "fmn": {"linear": (1.01, 0.9), "shallow": (1.05, 0.8), "deep": (1.2, 0.6)},
    "deepfool": {"linear": (1.05, 0.9), "shallow": (1.1, 0.8), "deep": (1.2, 0.5)},
    "carlini-wagner(steps=100,search_steps=6,initial_constant=0.1)": {"linear": (1.05, 0.8), "shallow": (1.05, 0.8)},
    "hop-skip-jump(queries=1500)": {"linear": (1.2, 0.7), "shallow": (1.2, 0.8)},
    "worst-case(attacks=('fmn','fab'),minimal=True)": {"deep": (1.1, 0.7)},
}
"""Attack -> model -> within which factor of the exact minimum it comes on at least which share of the images."""

MINIMAL = [
    (spec, kind, norm)
    for spec, bars in CLOSE.items()
    for kind in bars
    for norm in (ORDER if kind != "deep" else ("l2",))
    if norm in named(spec).norms
]


@pytest.mark.parametrize(("spec", "kind", "norm"), MINIMAL)
def test_no_adversarial_is_nearer_than_the_exact_minimum_and_most_are_next_to_it(spec, kind, norm):
    case = problem(kind, norm)
    distance, broken = attacked(named(spec), case, norm)
    ratio = np.where(broken, distance, np.inf) / case.minima
    assert (ratio >= 1 - 1e-9).all(), "nearer than possible"
    factor, share = CLOSE[spec][kind]
    assert (ratio <= factor).mean() >= share


FREE: dict[str, tuple[float, float]] = {
    "fab": (1.01, 0.9),
    "fmn": (1.01, 0.9),
    "ddn": (1.25, 0.7),
    "deepfool": (1.03, 0.9),
    "carlini-wagner(steps=100,search_steps=6,initial_constant=0.1)": (1.1, 0.75),
    "hop-skip-jump(queries=1500)": (1.25, 0.7),
}


@pytest.mark.parametrize(("spec", "norm"), [(spec, norm) for spec in FREE for norm in ORDER if norm in named(spec).norms])
def test_without_a_box_the_exact_minimum_is_found_too(spec, norm):
    """A linear model: the distance to the nearest class boundary, by the dual norm of its normal and by a program alike."""
    case = problem("linear", norm, box=False)
    weight, logits = case.model[1].weight.detach(), case.model(case.x).detach()
    own = torch.nn.functional.one_hot(case.y, 4).bool()
    slopes = np.linalg.norm((weight.unsqueeze(0) - weight[case.y].unsqueeze(1)).numpy(), ord=DUAL[norm], axis=2)
    gaps = logits[own].unsqueeze(1) - logits
    closed = np.where(own, np.inf, gaps.numpy() / np.where(own, 1, slopes)).min(axis=1)
    np.testing.assert_allclose(case.minima, closed, rtol=1e-7)
    distance, broken = attacked(named(spec), case, norm)
    ratio = np.where(broken, distance, np.inf) / closed
    assert (ratio >= 1 - 1e-9).all()
    assert (ratio <= FREE[spec][0]).mean() >= FREE[spec][1]


class Ellipsoid(nn.Module):
    """Class 0 inside an ellipsoid: logits (1 - (z - centre)^T A (z - centre), 0), A of given axes and eigenvalues."""

    def __init__(self, centre: Floats, axes: Floats, curvatures: Floats) -> None:
        super().__init__()
        self.centre, self.matrix = torch.tensor(centre), torch.tensor(axes * curvatures @ axes.T)

    def forward(self, x: Tensor) -> Tensor:
        away = x.flatten(1) - self.centre
        inside = 1 - ((away @ self.matrix) * away).sum(dim=1)
        return torch.stack((inside, torch.zeros_like(inside)), dim=1)


@cache
def ellipsoid() -> Problem:
    """Images inside; z - c = (I - t A)^-1 (x - c) for the root 0 < t < 1 / largest eigenvalue of the secular equation."""
    rng, d = random(2), 6
    axes, curvatures, centre = (
        np.linalg.qr(rng.normal(size=(d, d)))[0],
        np.array([1.0, 2.0, 3.0, 5.0, 8.0, 12.0]),
        np.full(d, 0.5),
    )
    model = Ellipsoid(centre, axes, curvatures)
    away = rng.normal(size=(N, d))
    size = np.sqrt((away @ axes) ** 2 @ curvatures)
    away *= (rng.uniform(0.3, 0.8, size=N) / size)[:, None]
    minima = []
    for one in away @ axes:
        ends = 1e-12, (1 - 1e-12) / curvatures[-1]
        root = brentq(lambda t, one=one: curvatures @ (one / (1 - t * curvatures)) ** 2 - 1, *ends, xtol=1e-15)
        minima.append(np.linalg.norm(one / (1 - root * curvatures) - one))
    x = torch.tensor(centre + away).view(N, 1, 2, 3)
    return Problem(model, x, torch.zeros(N, dtype=torch.int64), np.array(minima), None)


@pytest.mark.parametrize(
    ("spec", "factor", "share"),
    [
        ("fab", 1.02, 0.9),
        ("ddn", 1.01, 0.9),
        ("fmn", 1.001, 0.9),
        ("carlini-wagner(steps=100,search_steps=6,initial_constant=0.1)", 1.02, 0.9),
        ("deepfool", 2.2, 0.8),  # the first point over the boundary along tangents
        ("hop-skip-jump(queries=1500)", 1.6, 0.8),
    ],
)
def test_an_ellipsoid_is_left_at_the_root_of_its_secular_equation(spec, factor, share):
    case = ellipsoid()
    distance, broken = attacked(named(spec), case, "l2")
    ratio = np.where(broken, distance, np.inf) / case.minima
    assert (ratio >= 1 - 1e-9).all()
    assert (ratio <= factor).mean() >= share


class Planted(nn.Module):
    """Adversarial balls at known points: class k + 1 is ball k, its logit the radius less the distance; 0 is the rest."""

    def __init__(self, points: Tensor, radii: Tensor) -> None:
        super().__init__()
        self.points, self.radii = points, radii

    def forward(self, x: Tensor) -> Tensor:
        away = x.flatten(1).unsqueeze(1) - self.points
        leads = self.radii - away.square().sum(dim=2).sqrt()
        return torch.cat((torch.zeros_like(leads[:, :1]), leads), dim=1)


@cache
def planted() -> Problem:
    rng = random(4)
    points, radii = rng.uniform(size=(3, 6)), np.array([0.1, 0.2, 0.15])
    x = rng.uniform(size=(N, 6))
    leads = np.linalg.norm(x[:, None] - points, axis=2) - radii
    assert (leads > 0).all()
    images, labels = torch.tensor(x).view(-1, 1, 2, 3), torch.zeros(N, dtype=torch.int64)
    return Problem(Planted(torch.tensor(points), torch.tensor(radii)), images, labels, leads.min(axis=1))


@pytest.mark.parametrize("spec", ["fab", "fmn", "deepfool", "carlini-wagner(steps=100,search_steps=6,initial_constant=0.1)"])
def test_planted_adversarials_are_found_at_their_known_distance(spec):
    case = planted()
    distance, broken = attacked(named(spec), case, "l2")
    ratio = np.where(broken, distance, np.inf) / case.minima
    assert (ratio >= 1 - 1e-9).all()
    assert (ratio <= 1.05).mean() >= 0.9


@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_carlini_wagners_last_run_breaks_images_whatever_the_size_of_the_logits(scale):
    """Five values of c from 1e-3 are far too small for logits of a thousandth: the last run must not end before c rose."""
    rng = random(7)
    normal = torch.tensor(rng.normal(size=(2, 6)))
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 2).double()).requires_grad_(False)
    model[1].weight.data, model[1].bias.data = scale * normal, scale * torch.tensor([1.0, 0.0]).double()
    x = torch.tensor(rng.uniform(size=(N, 1, 2, 3)))
    y = model(x).argmax(dim=1)
    gap = (model(x)[:, 0] - model(x)[:, 1]).abs() / (scale * (normal[0] - normal[1]).norm())
    case = Problem(model, x, y, gap.numpy(), None)
    distance, broken = attacked(named("carlini-wagner(steps=200,search_steps=5)"), case, "l2")
    assert broken.all()
    assert (distance >= case.minima * (1 - 1e-9)).all()
    assert np.median(distance / case.minima) <= 1.1


def test_lbfgs_ends_at_the_minimum_of_its_own_objective():
    """Two classes, no box: along the normal, c t + log(1 + exp(gap - t n)) is least where n sigmoid(gap - t n) = c."""
    rng, c = random(6), 0.3
    normal, x = torch.tensor(rng.normal(size=6)), torch.tensor(rng.uniform(size=(N, 1, 2, 3)))
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 2).double()).requires_grad_(False)
    model[1].weight.data, model[1].bias.data = torch.stack((normal, 0 * normal)), torch.tensor([3.0, 0.0]).double()
    gap, n = model(x)[:, 0].numpy(), float(normal.norm())
    assert (gap > 0).all()
    case = Problem(model, x, torch.zeros(N, dtype=torch.int64), np.zeros(N), None)
    distance, broken = attacked(named(f"lbfgs(c={c})"), case, "l2")
    assert broken.all()
    np.testing.assert_allclose(distance, (gap - np.log(c / n / (1 - c / n))) / n, rtol=1e-3)


# --- attacks of a fixed radius

BOTH = ("linear", "shallow")
REACHED: dict[str, tuple[float, tuple[str, ...]]] = {
    "uniform-noise(points=50)": (0.5, BOTH),
    "correlated-noise": (0.8, BOTH),
    "fgm": (0.8, BOTH),
    "fgsm": (0.8, BOTH),
    "r-fgsm": (0.4, BOTH),
    "pgd": (0.9, BOTH),
    "selective-pgd(steps=40)": (0.9, ("shallow",)),
    "mi-fgsm": (0.8, BOTH),
    "di-fgsm": (0.8, BOTH),
    "ti-fgsm(kernel_size=1)": (0.8, BOTH),
    "apgd-ce": (0.75, BOTH),
    "apgd-dlr": (0.75, BOTH),
    "apgd-t(steps=50)": (0.95, BOTH),
    "square(queries=250)": (0.65, ("linear",)),
    "auto(steps=15,long_steps=30,queries=40,survey=20,all_targets=2,all_queries=60)": (0.95, ("shallow",)),
    "autoattack(steps=25,queries=30)": (0.95, ("shallow",)),
    "autoattack-rand(steps=50)": (0.8, ("shallow",)),
    "worst-case(attacks=('apgd-t(steps=25)','square(queries=30)'))": (0.95, ("linear",)),
}
"""Attack -> the share of the images, whose exact minimum is 1.15 times below the radius, that it breaks at least; models."""

FIXED = [(spec, kind, norm) for spec in REACHED for kind in REACHED[spec][1] for norm in ORDER if norm in named(spec).norms]


@pytest.mark.parametrize(("spec", "kind", "norm"), FIXED)
def test_a_fixed_radius_breaks_what_it_can_reach_and_nothing_else(spec, kind, norm):
    case = problem(kind, norm)
    minima = case.minima
    epsilon = float(1.15 * np.quantile(minima, 0.6))
    distance, broken = attacked(named(spec), case, norm, epsilon)
    assert (distance <= epsilon * (1 + 1e-9)).all()
    beyond, reachable = minima > epsilon, 1.15 * minima <= epsilon
    assert beyond.sum() >= 5
    assert not broken[beyond].any(), "what no perturbation of the ball can break"
    assert broken[reachable].mean() >= REACHED[spec][0]


def test_every_registered_attack_is_held_to_known_truth():
    """But for L-BFGS, held to its own objective above, and noise with the covariance of data, which needs data."""
    held = {spec.partition("(")[0] for spec in (*CLOSE, *REACHED)}
    assert set(ATTACKS) - held == {"lbfgs", "estimated-noise"}
