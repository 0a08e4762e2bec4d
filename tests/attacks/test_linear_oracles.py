"""FGM, PGD and DeepFool against signed closed forms: on a linear model the best perturbation is known exactly."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks import balls
from advbench.attacks.deepfool import DeepFool
from advbench.attacks.fgm import FGM, FGSM
from advbench.attacks.pgd import PGD
from advbench.attacks.threat import Targeted, ThreatModel, Untargeted

NORMS = ("linf", "l2", "l1")
SHAPE = (1, 3, 4)
EPSILON = {"linf": 0.15, "l2": 0.7, "l1": 2.3}
BOXES = ((0.0, 1.0), None)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def images(n: int = 6) -> Tensor:
    """Some pixels are exactly 0 or 1."""
    return (random(1, n, *SHAPE) * 0.5 + 0.5).clamp(0, 1)


def binary(linear, x: Tensor, height: float = 1e6) -> tuple[nn.Module, Tensor]:
    """A two-class model with logits (w.x + height, 0), which says 0 everywhere, and w."""
    w = random(2, *SHAPE)
    return linear(torch.stack((w, torch.zeros_like(w))), torch.tensor([height, 0.0], dtype=x.dtype)), w


def zeros(x: Tensor) -> Untargeted:
    return Untargeted(torch.zeros(len(x), dtype=torch.int64))


def unit_descent(w: Tensor, norm: str) -> Tensor:
    if norm == "linf":
        return -w.sign()
    if norm == "l2":
        return -w / w.norm()
    largest = w.abs() == w.abs().max()
    return -w.sign() * largest


def lowest_in(threat: ThreatModel, w: Tensor, x: Tensor) -> Tensor:
    """The image of ball and box with the smallest w.x: corners (linf), a bisection on clip(-t w) (l2), greedy (l1)."""
    room = torch.where(w < 0, 1 - x, x) if threat.box else torch.full_like(x, 1e6)
    if threat.norm == "linf":
        length = room.clamp(max=threat.epsilon_or_inf)
    elif threat.norm == "l2":
        bottom, top = torch.zeros(len(x), 1, 1, 1, dtype=x.dtype), torch.full((len(x), 1, 1, 1), 1e6, dtype=x.dtype)
        for _ in range(200):
            middle = (bottom + top) / 2
            short = (middle * w.abs()).minimum(room).flatten(1).norm(dim=1).view(-1, 1, 1, 1) < threat.epsilon_or_inf
            bottom, top = middle.where(short, bottom), top.where(short, middle)
        length = (bottom * w.abs()).minimum(room)
    else:
        length, left = torch.zeros_like(x), torch.full((len(x),), threat.epsilon_or_inf, dtype=x.dtype)
        for pixel in w.flatten().abs().argsort(descending=True).tolist():
            taken = left.minimum(room.flatten(1)[:, pixel])
            length.view(len(x), -1)[:, pixel] = taken
            left = left - taken
    return x - w.sign() * length


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("norm", NORMS)
def test_fgm_takes_the_steepest_step(linear, white_box, norm, box):
    x = images()
    model, w = binary(linear, x, height=5.0)
    with white_box(model, len(x)) as access:
        found = FGM()(access, x, zeros(x), ThreatModel(norm, EPSILON[norm], box), access.rng)
    expected = x + EPSILON[norm] * unit_descent(w, norm)
    torch.testing.assert_close(found, expected if box is None else expected.clamp(0, 1), rtol=0, atol=1e-12)
    assert access.ledger.forwards.tolist() == access.ledger.backwards.tolist() == [1] * len(x)


@pytest.mark.parametrize("norm", NORMS)
def test_fgm_with_a_target_goes_the_other_way(linear, white_box, norm):
    x = images()
    model, w = binary(linear, x, height=-5.0)
    goal = Targeted(torch.ones(len(x), dtype=torch.int64), torch.zeros(len(x), dtype=torch.int64))
    with white_box(model, len(x)) as access:
        found = FGM()(access, x, goal, ThreatModel(norm, EPSILON[norm], None), access.rng)
    torch.testing.assert_close(found, x - EPSILON[norm] * unit_descent(w, norm), rtol=0, atol=1e-12)


def test_fgsm_is_the_linf_form(linear, white_box):
    x = images()
    model, _ = binary(linear, x, height=5.0)
    threat = ThreatModel("linf", 0.1)
    with white_box(model, len(x)) as access:
        found = FGSM()(access, x, zeros(x), threat, access.rng)
        assert torch.equal(found, FGM()(access, x, zeros(x), threat, access.rng))
        with pytest.raises(ValueError, match="Expected a threat in linf for FGSM, got l2"):
            FGSM()(access, x, zeros(x), ThreatModel("l2", 0.1), access.rng)


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("norm", NORMS)
def test_pgd_reaches_the_best_point_of_ball_and_box(linear, white_box, norm, box, random_start):
    """Two classes: the loss is monotone in w.x, so its maximum over the convex set of allowed images is known."""
    x = images()
    model, w = binary(linear, x, height=20.0)
    threat = ThreatModel(norm, EPSILON[norm], box)
    attack = PGD(steps=120, step_size=0.1, random_start=random_start, stop="never")
    with white_box(model, len(x)) as access:
        found = attack(access, x, zeros(x), threat, access.rng)
    best = lowest_in(threat, w, x)
    drop, possible = (((x - each) * w).flatten(1).sum(dim=1) for each in (found, best))
    # In l1 a constant step is shared out again by every projection, and the iterates stay a little off the corner.
    share = {"linf": 1 - 1e-9, "l2": 1 - 1e-4, "l1": 0.96}[norm]
    assert (drop >= share * possible).all()
    assert (drop <= (1 + 1e-9) * possible).all()
    spent = access.ledger.backwards
    # In linf the corner is reached after 10 or 20 steps of a tenth; there the iterates repeat, and the run ends.
    assert (spent <= 34).all() if norm == "linf" else (spent == 120).all()
    assert torch.equal(access.ledger.forwards, spent + (0 if norm == "linf" else 1))


@pytest.mark.parametrize("norm", NORMS)
def test_a_pgd_step_is_its_fraction_of_the_radius(linear, white_box, norm):
    x = images()
    model, w = binary(linear, x, height=5.0)
    with white_box(model, len(x)) as access:
        attack = PGD(steps=1, step_size=0.2, random_start=False, stop="never")
        found = attack(access, x, zeros(x), ThreatModel(norm, EPSILON[norm], None), access.rng)
    torch.testing.assert_close(found, x + 0.2 * EPSILON[norm] * unit_descent(w, norm), rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_restarts_set_out_from_different_points(linear, white_box, norm):
    x, seen = images(), []
    model, _ = binary(linear, x)
    hook = model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    with white_box(model, len(x)) as access:
        PGD(steps=1, restarts=3, stop="never")(access, x, zeros(x), ThreatModel(norm, EPSILON[norm]), access.rng)
    hook.remove()
    starts = torch.stack(seen[::2])  # a step has one look at its start and one at its end
    assert len(starts) == 3
    assert all((one != other).flatten(1).any(dim=1).all() for one, other in itertools.pairwise(starts))


@pytest.mark.parametrize("loss", ["cross-entropy", "margin"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_breaks_exactly_what_can_be_broken(linear, white_box, norm, loss):
    """Without a box an image falls exactly where its logit is less than epsilon |w|_dual above the boundary."""
    n = 40
    x = images(n)
    model, w = binary(linear, x, height=0.0)
    score = (x * w).flatten(1).sum(dim=1)
    reach = EPSILON[norm] * w.abs().sum() if norm == "linf" else EPSILON[norm] * w.norm()
    y = (score <= 0).long()
    margin_left = score.abs() - reach
    assert (margin_left > 0).sum() >= 3
    assert (margin_left < 0).sum() >= 3
    with white_box(model, n) as access:
        found = PGD(steps=100, loss=loss)(access, x, Untargeted(y), ThreatModel(norm, EPSILON[norm], None), access.rng)
        broken = model(found).argmax(dim=1) != y
    close = margin_left.abs() < 0.01 * reach
    assert torch.equal(broken[~close], (margin_left < 0)[~close])


def nearest_boundary(w: Tensor, b: Tensor, x: Tensor, y: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """Distance to the nearest boundary of a linear model, shape (n,), and the shortest perturbation onto it."""
    logits = x.flatten(1) @ w.flatten(1).T + b
    distances, steps = [], []
    for k in range(len(w)):
        normal = (w[k] - w[y]).flatten(1)
        gap = logits[torch.arange(len(x)), y] - logits[:, k]
        slope = normal.abs().sum(dim=1) if norm == "linf" else normal.norm(dim=1)
        length = torch.where(y == k, torch.inf, gap / slope)
        direction = normal.sign() if norm == "linf" else normal / slope.unsqueeze(1)
        distances.append(length)
        steps.append(length.unsqueeze(1) * direction)
    distance, k = torch.stack(distances).min(dim=0)
    return distance, torch.stack(steps)[k, torch.arange(len(x))].view_as(x)


@pytest.mark.parametrize("overshoot", [0.02, 0.3])
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_deepfool_goes_straight_to_the_nearest_boundary(linear, white_box, norm, classes, overshoot):
    x = images(20)
    w, b = random(3, classes, *SHAPE), random(4, classes)
    model = linear(w, b)
    y = model(x).argmax(dim=1).detach()
    with white_box(model, len(x)) as access:
        found = DeepFool(overshoot=overshoot)(access, x, Untargeted(y), ThreatModel(norm, None, None), access.rng)
    distance, step = nearest_boundary(w, b, x, y, norm)
    torch.testing.assert_close(found, x + (1 + overshoot) * step, rtol=0, atol=1e-10)
    torch.testing.assert_close(balls.distance(found - x, norm), (1 + overshoot) * distance)
    assert (model(found).argmax(dim=1) != y).all()
    assert access.ledger.backwards.tolist() == [2 * (classes - 1)] * len(x), "one step of either form"


def test_deepfool_sees_the_nearest_class_among_its_candidates(linear, white_box):
    """100 classes: the likeliest ten hold the nearest boundary of most images, and all classes that of every image."""
    x = images(20)
    w, b = random(5, 100, *SHAPE), torch.zeros(100, dtype=x.dtype)
    model = linear(w, b)
    y = model(x).argmax(dim=1).detach()
    distance, _ = nearest_boundary(w, b, x, y, "l2")
    threat = ThreatModel("l2", None, None)
    with white_box(model, len(x)) as access:
        every = DeepFool(candidates=99)(access, x, Untargeted(y), threat, access.rng)
        likeliest = DeepFool(candidates=10)(access, x, Untargeted(y), threat, access.rng)
    torch.testing.assert_close(balls.distance(every - x, "l2"), 1.02 * distance)
    assert (balls.distance(likeliest - x, "l2") >= 1.02 * distance - 1e-12).all()
    assert (model(likeliest).argmax(dim=1) != y).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_deepfool_inside_the_box_is_as_short_as_the_box_allows(linear, white_box, norm):
    """Two classes: the shortest perturbation in ball and box is where the best point of a growing ball breaks it."""
    x = images(12)
    w = random(2, *SHAPE)
    middle = 0.5 * w.sum()
    model = linear(torch.stack((w, torch.zeros_like(w))), torch.stack((-middle, 0 * middle)))
    score = (x * w).flatten(1).sum(dim=1) - middle
    y = (score <= 0).long()
    with white_box(model, len(x)) as access:
        found = DeepFool(overshoot=0.001)(access, x, Untargeted(y), ThreatModel(norm, None), access.rng)
        assert (model(found).argmax(dim=1) != y).all()
    assert ((found >= 0) & (found <= 1)).all()
    length = balls.distance(found - x, norm)
    for row in range(len(x)):
        downhill = w if y[row] == 0 else -w
        shorter = ThreatModel(norm, float(length[row]) * 0.99)
        closest = lowest_in(shorter, downhill, x[row : row + 1])
        assert ((closest * w).sum() - middle) * score[row] > 0, "a perturbation 1% shorter breaks the model too"


class Round(nn.Module):
    """Class 0 inside the sphere of a radius around a centre: logits (radius^2 - |x - centre|^2, 0)."""

    def __init__(self, centre: Tensor, radius: float) -> None:
        super().__init__()
        self.centre, self.radius = centre, radius

    def forward(self, x: Tensor) -> Tensor:
        inside = self.radius**2 - (x - self.centre).flatten(1).square().sum(dim=1)
        return torch.stack((inside, torch.zeros_like(inside)), dim=1)


def test_deepfool_finds_the_radius_of_a_sphere(white_box):
    centre = torch.full((1, *SHAPE), 0.5, dtype=torch.float64)
    offset = random(0, 8, *SHAPE)
    x = centre + 1.2 * offset / balls.per_example(balls.distance(offset, "l2"), offset)
    with white_box(Round(centre, 1.5), len(x)) as access:
        found = DeepFool(overshoot=0.02)(access, x, zeros(x), ThreatModel("l2", None, None), access.rng)
    offset = x - centre
    shortest = 1.5 - balls.distance(offset, "l2")
    length = balls.distance(found - x, "l2")
    assert (length >= shortest).all()
    # From inside, the tangent overshoots a sphere: (r^2 - s^2) / (2 s) for s = 1.2, r = 1.5.
    torch.testing.assert_close(length, torch.full_like(length, 1.02 * (1.5**2 - 1.2**2) / 2.4))
    cosine = ((found - x) * offset).flatten(1).sum(dim=1) / length / balls.distance(offset, "l2")
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_pgd_walks_radially_out_of_a_sphere(white_box):
    centre = torch.full((1, *SHAPE), 0.5, dtype=torch.float64)
    x = centre + 0.05 * random(0, 8, *SHAPE)
    attack = PGD(steps=200, random_start=False, stop="never")
    with white_box(Round(centre, 1.5), len(x)) as access:
        found = attack(access, x, zeros(x), ThreatModel("l2", 0.6, None), access.rng)
    offset = x - centre
    expected = x + 0.6 * offset / balls.per_example(balls.distance(offset, "l2"), x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shift", [-1000.0, 1e5])
@pytest.mark.parametrize("attack", [FGM(), PGD(steps=10), PGD(steps=10, loss="margin"), DeepFool()])
def test_adding_a_number_to_all_logits_changes_nothing(linear, white_box, attack, shift):
    x = images()
    w, b = random(3, 4, *SHAPE), torch.zeros(4, dtype=x.dtype)
    threat = ThreatModel("l2", 0.3)
    found = []
    for bias in (b, b + shift):
        model = linear(w, bias)
        y = linear(w, b)(x).argmax(dim=1).detach()
        with white_box(model, len(x)) as access:
            found.append(attack(access, x, Untargeted(y), threat, access.rng))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("attack", [PGD(steps=20, loss="margin"), DeepFool()])
def test_huge_logits_do_not_protect_a_model(linear, white_box, attack):
    x = images().float()
    w = random(3, 4, *SHAPE).float()
    y = linear(w, torch.zeros(4))(x).argmax(dim=1).detach()
    threat = ThreatModel("l2", 3.0)
    for scale in (1.0, 1e6):
        model = linear(scale * w, torch.zeros(4))
        with white_box(model, len(x)) as access:
            found = attack(access, x, Untargeted(y), threat, access.rng)
            assert (model(found).argmax(dim=1) != y).all()


@pytest.mark.parametrize("attack", [FGM(), PGD(steps=5), DeepFool(steps=5)])
def test_a_flat_model_moves_nothing_but_the_random_start(white_box, attack):
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0 * x.flatten(1)[:, :3] + torch.tensor([1.0, 0.0, 0.0], dtype=x.dtype)

    x = images()
    for norm in ("linf", "l2"):
        threat = ThreatModel(norm, 0.1)
        with white_box(Flat(), len(x)) as access:
            found = attack(access, x, zeros(x), threat, access.rng)
        assert not balls.violations(found, x, threat).any()
        if not isinstance(attack, PGD):
            assert torch.equal(found, x)
