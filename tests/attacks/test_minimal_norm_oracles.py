"""DDN, FMN, Carlini-Wagner and HopSkipJump against exact distances: linear, round and exhaustively searched models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks import balls
from advbench.attacks.carlini_wagner import CarliniWagner
from advbench.attacks.ddn import DDN
from advbench.attacks.fmn import FMN
from advbench.attacks.hop_skip_jump import HopSkipJump
from advbench.attacks.lbfgs import LBFGS
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Targeted, ThreatModel, Untargeted

SHAPE = (1, 4, 5)
EXACT = [
    (DDN(), "l2", 1.03),
    (FMN(), "l2", 1.001),
    (FMN(), "linf", 1.001),
    (FMN(), "l1", 1.001),
    (CarliniWagner(steps=200, learning_rate=0.01), "l2", 1.01),
    (HopSkipJump(queries=2500), "l2", 1.03),
    (HopSkipJump(queries=2500), "linf", 1.06),
]
"""Attack, norm, and what the median of found over exact distance may be at most."""

GRADIENT_ATTACKS = [
    (DDN(), "l2"),
    (FMN(), "l2"),
    (FMN(), "linf"),
    (FMN(), "l1"),
    (FMN(), "l0"),
    (CarliniWagner(steps=100, learning_rate=0.05), "l2"),
    (LBFGS(c=0.5), "l2"),
]
EVERY_ATTACK = [*GRADIENT_ATTACKS, (HopSkipJump(queries=500), "l2"), (HopSkipJump(queries=500), "linf")]


def name(value: Any) -> str | None:
    return type(value).__name__ if hasattr(value, "knowledge") else None


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def images(n: int) -> Tensor:
    """Many pixels are exactly 0 or 1."""
    return (random(1, n, *SHAPE) * 0.5 + 0.5).clamp(0, 1)


def run(attack: Any, model: nn.Module, x: Tensor, goal: Any, threat: ThreatModel) -> tuple[Tensor, Any]:
    rng = ExampleRNG.make(0, "attack", torch.arange(len(x)))
    with attack.knowledge(model, rng.fork("model")) as access:
        return attack(access, x, goal, threat, rng.fork("attack")), access.ledger


def broken(model: nn.Module, x_adv: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x_adv).argmax(dim=1) != y


def shortest(normal: Tensor, gap: float, room: Tensor, norm: str) -> float:
    """The least length of a move, each value within its room, with sum |normal| move = gap."""
    slope = normal.abs()
    if float((slope * room).nan_to_num().sum()) < gap:
        return float("inf")
    if norm == "l1":
        length = 0.0
        for i in slope.argsort(descending=True).tolist():
            step = min(float(room[i]), gap / float(slope[i]))
            length, gap = length + step, gap - step * float(slope[i])
            if gap <= 1e-15:
                break
        return length
    low, high = 0.0, 1e4
    for _ in range(200):
        middle = (low + high) / 2
        moves = (middle * (slope if norm == "l2" else torch.ones_like(slope))).minimum(room)
        low, high = (middle, high) if float((slope * moves).sum()) < gap else (low, middle)
    moves = (high * (slope if norm == "l2" else torch.ones_like(slope))).minimum(room)
    return float(moves.norm()) if norm == "l2" else float(moves.max())


def exact_distances(weight: Tensor, bias: Tensor, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """The distance of each image to the nearest boundary of the linear model, inside the box."""
    found = []
    logits = x.flatten(1) @ weight.flatten(1).T + bias
    for row, image in enumerate(x.flatten(1)):
        label, distances = int(y[row]), []
        for k in range(len(weight)):
            if k != label:
                normal = (weight[k] - weight[label]).flatten()
                room = torch.where(normal > 0, 1 - image, image) if threat.box else torch.full_like(image, 1e9)
                distances.append(shortest(normal, float(logits[row, label] - logits[row, k]), room, threat.norm))
        found.append(min(distances))
    return torch.tensor(found, dtype=x.dtype)


@pytest.mark.parametrize("box", [(0.0, 1.0), None])
@pytest.mark.parametrize("classes", [2, 100])
@pytest.mark.parametrize(("attack", "norm", "tolerance"), EXACT, ids=name)
def test_a_linear_model_is_broken_at_its_exact_distance(linear, attack, norm, tolerance, classes, box):
    x = images(8)
    weight = random(2, classes, *SHAPE)
    bias = -weight.flatten(1).sum(dim=1) / 2
    model = linear(weight, bias)
    y = model(x).argmax(dim=1).detach()
    threat = ThreatModel(norm, None, box)
    x_adv, _ = run(attack, model, x, Untargeted(y), threat)
    assert broken(model, x_adv, y).all()
    if box is not None:
        assert ((x_adv >= 0) & (x_adv <= 1)).all()
    ratio = balls.distance(x_adv - x, norm) / exact_distances(weight, bias, x, y, threat)
    assert (ratio >= 1 - 1e-7).all(), "nearer than possible"
    if isinstance(attack, DDN) and classes == 100:
        tolerance = 1.35  # the cross-entropy's gradient mixes all classes
    assert ratio.median() <= tolerance


@pytest.mark.parametrize(("attack", "norm"), GRADIENT_ATTACKS, ids=name)
def test_a_target_is_reached_and_costs_no_less_than_any_wrong_class(linear, attack, norm):
    x, classes = images(8), 5
    weight = random(2, classes, *SHAPE)
    bias = -weight.flatten(1).sum(dim=1) / 2
    model = linear(weight, bias)
    y = model(x).argmax(dim=1).detach()
    goal = Targeted(y, (y + 1) % classes)
    x_adv, _ = run(attack, model, x, goal, ThreatModel(norm, None))
    assert torch.equal(model(x_adv).argmax(dim=1), goal.target)
    if norm != "l0":
        nearest = exact_distances(weight, bias, x, y, ThreatModel(norm, None))
        assert (balls.distance(x_adv - x, norm) >= (1 - 1e-7) * nearest).all()


def test_fmn_changes_as_few_pixels_as_a_linear_model_needs(linear):
    x = images(12)
    w = random(2, *SHAPE)
    gap = 0.4 * w.abs().sum()
    for row in range(len(x)):
        image = x[row : row + 1]
        model = linear(torch.stack((w, 0 * w)), torch.stack((gap - (image * w).sum(), 0 * gap)))
        gains = (w.abs() * torch.where(w < 0, 1 - image, image)).flatten().sort(descending=True).values.cumsum(dim=0)
        if gains[-1] <= gap:
            continue
        needed = int((gains <= gap).sum()) + 1
        y = torch.zeros(1, dtype=torch.int64)
        x_adv, _ = run(FMN(), model, image, Untargeted(y), ThreatModel("l0", None))
        assert broken(model, x_adv, y).all()
        assert needed <= int(balls.distance(x_adv - image, "l0")) <= needed + 1


class Round(nn.Module):
    """Class 0 inside the sphere of a radius around a centre: logits (radius^2 - |x - centre|^2, 0)."""

    def __init__(self, centre: Tensor, radius: float) -> None:
        super().__init__()
        self.centre, self.radius = centre, radius

    def forward(self, x: Tensor) -> Tensor:
        inside = self.radius**2 - (x - self.centre).flatten(1).square().sum(dim=1)
        return torch.stack((inside, torch.zeros_like(inside)), dim=1)


@pytest.mark.parametrize(
    "attack", [DDN(), FMN(), CarliniWagner(steps=200), HopSkipJump(queries=4000)], ids=lambda attack: type(attack).__name__
)
def test_a_sphere_is_left_radially(attack):
    centre = torch.full((1, *SHAPE), 0.5, dtype=torch.float64)
    offset = random(0, 6, *SHAPE)
    x = centre + 0.8 * offset / balls.per_example(balls.distance(offset, "l2"), offset)
    y = torch.zeros(len(x), dtype=torch.int64)
    model = Round(centre, 1.2)
    x_adv, _ = run(attack, model, x, Untargeted(y), ThreatModel("l2", None, None))
    assert broken(model, x_adv, y).all()
    length = balls.distance(x_adv - x, "l2")
    assert (length >= 0.4).all()
    assert length.median() <= 0.4 * (1.35 if isinstance(attack, HopSkipJump) else 1.01)


@pytest.mark.parametrize("attack", [DDN(), FMN()], ids=lambda attack: type(attack).__name__)
def test_a_zero_gradient_is_left_in_a_random_direction(attack):
    centre = torch.full((3, *SHAPE), 0.5, dtype=torch.float64)
    y = torch.zeros(3, dtype=torch.int64)
    model = Round(centre[:1], 0.5)
    x_adv, _ = run(attack, model, centre, Untargeted(y), ThreatModel("l2", None))
    assert broken(model, x_adv, y).all()
    torch.testing.assert_close(balls.distance(x_adv - centre, "l2"), torch.full((3,), 0.5).double(), rtol=0.01, atol=0)


@pytest.mark.parametrize(
    ("attack", "norm", "power"),
    [(*one, None) for one in GRADIENT_ATTACKS] + [(*one, 1 / 2.2) for one in GRADIENT_ATTACKS],
    ids=name,
)
def test_black_pixels_without_a_finite_slope_leave_the_others_to_the_attack(linear, attack, norm, power):
    """A root and its square are the identity with a slope of NaN at 0; a gamma correction has an infinite one."""
    inner, x = linear(random(20, 2, *SHAPE), torch.zeros(2, dtype=torch.float64)), images(12)
    x[:, 0, 0] = 0

    class Shown(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return inner(x.sqrt().square() if power is None else x**power)

    y = Shown()(x).argmax(dim=1).detach()
    x_adv, _ = run(attack, Shown(), x, Untargeted(y), ThreatModel(norm, None))
    assert not balls.violations(x_adv, x, ThreatModel(norm, None)).any()
    assert broken(Shown(), x_adv, y).sum() >= 10


class TwoPixels(nn.Module):
    """A smooth network of two pixels and three classes that meet inside the square: 4%, 34% and 62% of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(1.5 * random(10, 12, 2))
        self.centre = nn.Parameter(0.5 + 0.25 * random(11, 12, 2))
        self.second = nn.Parameter(random(12, 3, 12))

    def forward(self, x: Tensor) -> Tensor:
        hidden = ((x.flatten(1).unsqueeze(1) - self.centre) * self.first).sum(dim=2).tanh()
        return (hidden.unsqueeze(1) * self.second).sum(dim=2)


@pytest.mark.parametrize(("attack", "norm", "_"), EXACT, ids=name)
def test_nothing_nearer_exists_on_a_model_of_two_pixels(attack, norm, _):
    """Every point is broken, none nearer than an exhaustive search, and four in five next to where it finds the boundary.

    The others end at a boundary that is locally the nearest: a gradient, or a walk along the boundary, sees no other.
    """
    model, points = TwoPixels(), 401
    axis = torch.linspace(0, 1, points, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis).view(-1, 1, 1, 2)
    x = grid[torch.arange(97, len(grid), 4987)]
    with torch.no_grad():
        y, answers = model(x).argmax(dim=1), model(grid).argmax(dim=1)
    assert (answers.bincount(minlength=3) > 0.03 * len(grid)).all()
    exact = torch.stack([balls.distance(grid[answers != y[i]] - x[i], norm).min() for i in range(len(x))])
    x_adv, _ledger = run(attack, model, x, Untargeted(y), ThreatModel(norm, None))
    assert broken(model, x_adv, y).all()
    length = balls.distance(x_adv - x, norm)
    cell = 2 / (points - 1)
    assert (length >= exact - cell).all(), "nearer than the exhaustive search allows"
    tolerance = 1.25 if isinstance(attack, HopSkipJump) else 1.02
    assert (length <= tolerance * exact + cell).double().mean() >= 0.8


@pytest.mark.parametrize(("attack", "norm"), EVERY_ATTACK, ids=name)
def test_adding_a_number_to_all_logits_changes_nothing(linear, attack, norm):
    x, found = images(5), []
    weight = random(3, 4, *SHAPE)
    for shift in (0.0, -1000.0):
        model = linear(weight, torch.full((4,), shift, dtype=x.dtype))
        y = linear(weight, torch.zeros(4, dtype=x.dtype))(x).argmax(dim=1).detach()
        x_adv, _ = run(attack, model, x, Untargeted(y), ThreatModel(norm, None))
        assert broken(model, x_adv, y).all()
        found.append(balls.distance(x_adv - x, norm))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-3, 1e6, 1e20])
@pytest.mark.parametrize(("attack", "norm"), EVERY_ATTACK, ids=name)
def test_the_magnitude_of_the_logits_does_not_protect_a_model(linear, attack, norm, scale):
    if isinstance(attack, LBFGS) and scale < 1:
        attack = LBFGS(c=1e-5)  # the constant weighs the distance against the logits
    x = images(5).float()
    weight = random(3, 4, *SHAPE).float()
    y = linear(weight, torch.zeros(4))(x).argmax(dim=1).detach()
    model = linear(scale * weight, torch.zeros(4))
    x_adv, _ = run(attack, model, x, Untargeted(y), ThreatModel(norm, None))
    assert x_adv.isfinite().all()
    assert broken(model, x_adv, y).all()


@pytest.mark.parametrize(("attack", "norm"), EVERY_ATTACK, ids=name)
def test_binary_images_are_moved_off_their_edges(linear, attack, norm):
    """Every pixel is exactly 0 or 1, where only one direction is open and tanh space is flat."""
    x = images(8).round().float()
    weight = random(7, 3, *SHAPE).float()
    bias = -weight.flatten(1).sum(dim=1) / 2
    model = linear(weight, bias)
    y = model(x).argmax(dim=1).detach()
    x_adv, _ = run(attack, model, x, Untargeted(y), ThreatModel(norm, None))
    assert broken(model, x_adv, y).all()


@pytest.mark.parametrize(("attack", "norm"), EVERY_ATTACK, ids=name)
def test_a_flat_model_leaves_every_image_as_it_is(attack, norm):
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * x.flatten(1)[:, :3] + torch.tensor([1.0, 0.0, 0.0], dtype=x.dtype)

    x = images(3)
    x_adv, _ = run(attack, Flat(), x, Untargeted(torch.zeros(3, dtype=torch.int64)), ThreatModel(norm, None))
    assert torch.equal(x_adv, x)


@pytest.mark.parametrize(("attack", "norm"), EVERY_ATTACK, ids=name)
def test_images_that_are_wrong_already_cost_one_pass_and_stay(linear, attack, norm):
    x = images(6)
    model = linear(random(3, 4, *SHAPE), torch.zeros(4, dtype=x.dtype))
    y = model(x).argmax(dim=1).detach()
    wrong = torch.tensor([True, False, True, False, False, True])
    y = torch.where(wrong, (y + 1) % 4, y)
    x_adv, ledger = run(attack, model, x, Untargeted(y), ThreatModel(norm, None))
    assert torch.equal(x_adv[wrong], x[wrong])
    assert (ledger.forwards[wrong] == 1).all()
    assert (ledger.forwards[~wrong] > 1).all()
    assert (balls.distance(x_adv - x, norm)[~wrong] > 0).all()


class Net(nn.Module):
    """A small network whose boundaries curve."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(random(8, 24, 20)), nn.Parameter(random(9, 4, 24))

    def forward(self, x: Tensor) -> Tensor:
        hidden = ((x.flatten(1).unsqueeze(1) - 0.5) * self.first).sum(dim=2).tanh()
        return (hidden.unsqueeze(1) * self.second).sum(dim=2)


SHORT = [
    (DDN(steps=15), "l2"),
    *((FMN(steps=15), norm) for norm in ("l2", "linf", "l1", "l0")),
    (CarliniWagner(steps=12, search_steps=4, learning_rate=0.1, initial_constant=0.1), "l2"),
    (LBFGS(c=0.5, steps=20), "l2"),
    *((HopSkipJump(queries=300), norm) for norm in ("l2", "linf")),
]


@pytest.mark.parametrize(("attack", "norm"), SHORT, ids=name)
def test_full_runs_do_not_depend_on_batch_and_order(attack, norm):
    model, x = Net(), images(7)
    y = model(x).argmax(dim=1).detach()
    threat, order = ThreatModel(norm, None), torch.tensor([3, 0, 6, 2, 5, 1, 4])
    expected, _ = run(attack, model, x, Untargeted(y), threat)
    assert broken(model, expected, y).any()
    for rows in (order, *order.split(1), *order.split(3)):
        rng = ExampleRNG.make(0, "attack", rows)
        with attack.knowledge(model, rng.fork("model")) as access:
            found = attack(access, x[rows], Untargeted(y[rows]), threat, rng.fork("attack"))
        torch.testing.assert_close(found, expected[rows], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("attack", "norm"), GRADIENT_ATTACKS, ids=name)
def test_every_step_costs_one_forward_and_one_backward(linear, attack, norm):
    x = images(4)
    model = linear(random(3, 4, *SHAPE), torch.zeros(4, dtype=x.dtype))
    y = model(x).argmax(dim=1).detach()
    _, ledger = run(attack, model, x, Untargeted(y), ThreatModel(norm, None))
    runs = {DDN: 1, FMN: 2}.get(type(attack), 0)  # of so many steps, each with a look at its last iterate
    assert torch.equal(ledger.forwards, ledger.backwards + runs)
    if runs:
        assert ledger.backwards.tolist() == [runs * attack.steps] * 4
