from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from advbench.attacks import balls
from advbench.attacks.access import WhiteBox
from advbench.attacks.apgd import APGD, APGDDLR, APGDT, Climb, _check, checkpoints
from advbench.attacks.losses import margin
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Targeted, ThreatModel, Untargeted

RADII = {"linf": 0.1, "l2": 0.4, "l1": 1.0}


def rng(n: int) -> ExampleRNG:
    return ExampleRNG.make(0, "attack", torch.arange(n))


def images(n: int, side: int = 4) -> Tensor:
    """Images with values on the faces of the box, float64."""
    x = torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (1.5 * x - 0.25).clamp(0, 1)


def planes(linear, classes: int, side: int = 4) -> nn.Module:
    generator = torch.Generator().manual_seed(classes)
    weight = torch.randn(classes, 1, side, side, generator=generator, dtype=torch.float64)
    return linear(weight, torch.zeros(classes, dtype=torch.float64))


def small_net(classes: int, side: int = 4) -> nn.Module:
    torch.manual_seed(classes)
    net = nn.Sequential(nn.Flatten(), nn.Linear(side * side, 24), nn.Tanh(), nn.Linear(24, classes)).double()
    for parameter in net.parameters():
        parameter.data *= 2
    return net


# --- the ascent


def reference_ascent(height, slope, start: float, low: float, high: float, epsilon: float, steps: int) -> list[float]:
    """Algorithm 1 of arXiv:2003.01690 for one value and linf, in plain numbers: the points that it visits."""
    ends, share, last = [0.0], 0.22, 0.0  # p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)
    while share <= 1 + 1e-9:
        ends.append(share)
        share, last = share + max(share - last - 0.03, 0.06), share
    ends = [round(end * steps) for end in ends]
    visited, losses, eta = [start], [height(start)], 2 * epsilon
    best, checked_best, halved, point, before = start, -math.inf, True, start, start
    for step in range(1, steps + 1):
        ahead = min(max(point + eta * math.copysign(1, slope(point)), low), high)
        alpha = 0.75 if step > 1 else 1.0
        point, before = min(max(point + alpha * (ahead - point) + (1 - alpha) * (point - before), low), high), point
        visited.append(point)
        losses.append(height(point))
        best = point if losses[-1] > height(best) else best
        if step in ends:
            start_of_period = ends[ends.index(step) - 1]
            rises = sum(losses[i + 1] > losses[i] for i in range(start_of_period, step))
            halve = rises <= 0.75 * (step - start_of_period) or (not halved and checked_best >= height(best))
            checked_best, halved = height(best), halve
            if halve:
                eta, point, losses[-1] = eta / 2, best, height(best)
    return visited


class Landscape(nn.Module):
    """Two logits, 0 and -f(x), of images of one value; remembers where it was asked."""

    def __init__(self, f) -> None:
        super().__init__()
        self.f = f
        self.seen: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(float(x.detach()))
        value = self.f(x.flatten())
        return torch.stack((torch.zeros_like(value), value), dim=1)


@pytest.mark.parametrize("seed", range(6))
def test_the_points_are_those_of_the_paper_in_plain_numbers(seed):
    """A wavy loss, so that checkpoints of both kinds happen."""
    frequency, phase = 30 + 25 * seed, 0.7 * seed

    def f(x: Tensor) -> Tensor:
        return torch.sin(frequency * x + phase) + torch.sin(2.3 * frequency * x) - 5

    def height(point: float) -> float:
        return float(f(torch.tensor(point, dtype=torch.float64)))

    def slope(point: float) -> float:
        return frequency * math.cos(frequency * point + phase) + 2.3 * frequency * math.cos(2.3 * frequency * point)

    model, x = Landscape(f), torch.full((1, 1, 1, 1), 0.5, dtype=torch.float64)
    with WhiteBox(model, rng(1)) as access:
        APGD(loss="margin", stop="never")(access, x, Untargeted(torch.tensor([0])), ThreatModel("linf", 0.3), rng(1))
    expected = reference_ascent(height, slope, model.seen[0], 0.2, 0.8, 0.3, 100)
    assert model.seen == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("norm", "form"), [("linf", "published"), ("l2", "published"), ("linf", "box-aware"), ("l2", "box-aware")]
)
def test_the_published_form_starts_on_the_surface_of_the_ball(norm, form):
    asked = []

    class Seen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            asked.append(x.detach().clone())
            return x.flatten(1)[:, :3]

    x = images(6)
    threat = ThreatModel(norm, 0.2, None)
    with WhiteBox(Seen(), rng(6)) as access:
        APGD(steps=2, form=form, stop="never")(access, x, Untargeted(torch.zeros(6, dtype=torch.int64)), threat, rng(6))
    delta = (asked[0] - x).flatten(1)
    length = delta.abs().amax(dim=1) if norm == "linf" else delta.norm(dim=1)
    assert torch.allclose(length, torch.full_like(length, 0.2), rtol=1e-9) == (form == "published")


def test_a_step_size_halves_too_where_nothing_higher_was_found_since_the_last_checkpoint():
    """Condition 2 of the paper alone: 20 of 22 steps rise. Highest loss as before; higher; as before, but halved there."""
    points, numbers = torch.arange(3.0).view(3, 1, 1, 1), torch.ones(3)
    before = Climb(
        x_adv=points,
        previous=points,
        gradient=points,
        loss=numbers,
        best=points + 10,
        best_gradient=points,
        best_loss=torch.tensor([1.0, 2.0, 1.0]),
        step=numbers,
        rises=20 * numbers,
        settled=numbers,
        halved=torch.tensor([False, False, True]),
    )
    after = _check(before, 0.75 * 22)
    assert after.step.tolist() == [0.5, 1, 1]
    assert after.x_adv.flatten().tolist() == [10, 1, 2], "back to the best iterate"
    assert after.halved.tolist() == [True, False, False]


def test_checkpoints_are_those_of_the_paper():
    assert list(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(checkpoints(1)) == [1]
    for steps in (5, 17, 50, 1000):
        ends = list(checkpoints(steps))
        assert ends == sorted(set(ends))
        assert ends[0] > 0
        assert 0.75 * steps < ends[-1] <= steps


@pytest.mark.parametrize("norm", RADII)
def test_a_linear_model_is_driven_to_its_worst_loss(norm, linear):
    """Without a box the best margin of two classes is the clean one plus epsilon times the dual norm of the difference."""
    model, x, epsilon = planes(linear, 2), images(6), RADII[norm]
    y = model(x).argmax(dim=1)
    difference = (model.weight[1 - y] - model.weight[y]).detach()
    expected = margin(model(x), Untargeted(y)) + epsilon * balls.distance(difference, balls.DUAL[norm])
    with WhiteBox(model, rng(6)) as access:
        attack = APGD(loss="margin", stop="never")
        x_adv = attack(access, x, Untargeted(y), ThreatModel(norm, epsilon, box=None), rng(6))
    found = margin(model(x_adv), Untargeted(y))
    assert (found <= expected + 1e-9).all()
    # The sparse steps of l1 leave a rest of the ball on values that are not the best one.
    torch.testing.assert_close(found, expected, rtol=0.05 if norm == "l1" else 1e-6, atol=1e-6)


def test_sparse_steps_find_the_worst_corner_of_ball_and_box(linear):
    """In l1 with a box the best margin is that of a linear programme."""
    model, x, epsilon = planes(linear, 2), images(5), 1.5
    y = model(x).argmax(dim=1)
    with WhiteBox(model, rng(5)) as access:
        x_adv = APGD(loss="margin", stop="never")(access, x, Untargeted(y), ThreatModel("l1", epsilon), rng(5))
    gained = margin(model(x_adv), Untargeted(y)) - margin(model(x), Untargeted(y))
    for row in range(5):
        direction = (model.weight[1 - y[row]] - model.weight[y[row]]).detach().flatten().numpy()
        bounds = [(0, 1 - float(value)) for value in x[row].flatten()] + [(0, float(value)) for value in x[row].flatten()]
        cost = [*(-direction), *direction]
        best = -linprog(cost, A_ub=[[1] * len(cost)], b_ub=[epsilon], bounds=bounds).fun
        assert 0.97 * best <= float(gained[row].detach()) <= best + 1e-6


@pytest.mark.parametrize("norm", RADII)
def test_wide_phases_never_leave_the_ball(norm):
    model, x = small_net(5), images(8)
    y, threat = model(x).argmax(dim=1), ThreatModel(norm, RADII[norm])
    for stop in ("success", "never"):
        with WhiteBox(model, rng(8)) as access:
            x_adv = APGD(steps=20, stop=stop)(access, x, Untargeted(y), threat, rng(8))
        assert not balls.violations(x_adv, x, threat).any()


# --- losses and targets


@pytest.mark.parametrize("classes", [2, 3, 5, 12])
def test_targets_are_at_most_nine_and_all_wrong_classes(classes):
    model, x = small_net(classes), images(3)
    y = model(x).argmax(dim=1)
    with WhiteBox(model, rng(3)) as access:
        APGDT(steps=4)(access, x, Untargeted(y), ThreatModel("linf", 1e-6), rng(3))
    runs = min(9, classes - 1)
    assert access.ledger.forwards.tolist() == [1 + 5 * runs] * 3
    assert access.ledger.backwards.tolist() == [4 * runs] * 3


def test_each_run_goes_towards_its_target(linear):
    """Two runs of one step, as long as the ball is wide: the points are those of the two likeliest wrong classes."""
    model, x = planes(linear, 4), images(1)
    logits = model(x)
    order = logits.argsort(dim=1, descending=True)[0].tolist()
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    with WhiteBox(model, rng(1)) as access:
        APGDT(steps=1, targets=2, loss="margin", stop="never")(
            access, x, Untargeted(logits.argmax(dim=1)), ThreatModel("linf", 0.01, box=None), rng(1)
        )
    for run, target in enumerate(order[1:3]):
        start, end = seen[1 + 2 * run], seen[2 + 2 * run]
        rivals = torch.cat((model(start)[0, :target], model(start)[0, target + 1 :]))
        rival = int((model(start)[0] == rivals.max()).nonzero())
        step = (model.weight[target] - model.weight[rival]).sign()
        torch.testing.assert_close(end, (start + 0.02 * step).clamp(x - 0.01, x + 0.01))


@pytest.mark.parametrize("attack", [APGDDLR(steps=15), APGDT(steps=15)])
def test_offset_and_scale_of_logits_do_not_matter_to_the_ratio(attack):
    """Adding -1000 to every logit, and scaling by 2^20, leaves labels, the ratio and so every iterate."""
    model, x = small_net(5), images(6)
    y = model(x).argmax(dim=1)

    class Disguised(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (model(x) * 2.0**20 - 1000).double()

    found = []
    for one in (model, Disguised()):
        with WhiteBox(one, rng(6)) as access:
            found.append(attack(access, x, Untargeted(y), ThreatModel("linf", 0.05), rng(6)))
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("attack", [APGD(steps=6), APGDDLR(steps=6), APGDT(steps=6)])
@pytest.mark.parametrize("value", [0.0, 1e30])
def test_constant_logits_leave_finite_images(attack, norm, value):
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :4] * 0 + value

    x, y = images(3).float(), torch.tensor([1, 2, 3])
    threat = ThreatModel(norm, RADII[norm])
    with WhiteBox(Constant(), rng(3)) as access:
        x_adv = APGD(steps=6, stop="never")(access, x, Untargeted(y), threat, rng(3))
        assert not balls.violations(x_adv, x, threat).any()
        assert not balls.violations(attack(access, x, Untargeted(y * 0), threat, rng(3)), x, threat).any()


def test_a_targeted_goal_is_reached(linear):
    model, x = planes(linear, 5), images(8)
    y = model(x).argmax(dim=1)
    target = (y + 2) % 5
    for attack in (APGD(steps=40), APGDDLR(steps=40), APGDT(steps=40)):
        with WhiteBox(model, rng(8)) as access:
            x_adv = attack(access, x, Targeted(y, target), ThreatModel("linf", 1, box=None), rng(8))
        assert (model(x_adv).argmax(dim=1) == target).all()


# --- who is attacked


@pytest.mark.parametrize("norm", RADII)
def test_what_is_broken_costs_no_more(norm):
    model, x = small_net(4), images(12)
    y = model(x).argmax(dim=1)
    y[0] = (y[0] + 1) % 4  # already misclassified
    with WhiteBox(model, rng(12)) as access:
        x_adv = APGD(steps=30, restarts=2)(access, x, Untargeted(y), ThreatModel(norm, RADII[norm]), rng(12))
    forwards = access.ledger.forwards
    broken = model(x_adv).argmax(dim=1) != y
    assert torch.equal(x_adv[0], x[0])
    assert forwards[0] == 1
    whole = 1 + 2 * (33 if norm == "l1" else 31)
    assert 1 < broken.sum() < 12
    assert (forwards[broken] < whole).all()
    assert (forwards[~broken] == whole).all()


def test_crafts_for_transfer_climb_to_the_end():
    model, x = small_net(4), images(6)
    y = model(x).argmax(dim=1)
    y[0] = (y[0] + 1) % 4
    threat, margins = ThreatModel("linf", 0.6), []
    for stop in ("success", "never"):
        with WhiteBox(model, rng(6)) as access:
            x_adv = APGD(steps=20, stop=stop)(access, x, Untargeted(y), threat, rng(6))
        margins.append(margin(model(x_adv), Untargeted(y)))
    assert access.ledger.forwards.tolist() == [21] * 6
    broken = margins[0] > 0
    assert broken.sum() > 2
    assert (margins[1] >= margins[0]).all()
    assert (margins[1] > margins[0])[broken].sum() > 2


class Noisy(nn.Module):
    """Two logits whose slope is 1 + 3 u per draw, u uniform in [-1, 1): one draw's gradient may point the wrong way."""

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        slope = 6 * rng.uniform((), x.dtype) - 2
        score = slope * (x.flatten(1).sum(dim=1) - 8)
        return torch.stack((torch.full_like(score, 40.0), score), dim=1)


def test_a_stochastic_model_is_attacked_to_the_end_with_mean_gradients():
    x = images(5)
    with WhiteBox(Noisy(), rng(5), stochastic=True, draws=64) as access:
        attack = APGD(steps=10, loss="margin")
        x_adv = attack(access, x, Untargeted(torch.zeros(5, dtype=torch.int64)), ThreatModel("linf", 0.1), rng(5))
    assert access.ledger.forwards.tolist() == [64 * 16] * 5  # the clean look, the start, ten steps, four contenders
    torch.testing.assert_close(x_adv, (x + 0.1).clamp(max=1))


def test_bad_arguments_are_named():
    for arguments, name in (
        ({"steps": 0}, "steps"),
        ({"restarts": 0}, "restarts"),
        ({"targets": -1}, "targets"),
        ({"loss": "hinge"}, "loss"),
        ({"rho": 0}, "rho"),
    ):
        with pytest.raises(ValueError, match=f"Expected `{name}`"):
            APGD(**arguments)
    x = images(1)
    with WhiteBox(small_net(3), rng(1)) as access, pytest.raises(ValueError, match="with an epsilon"):
        APGD()(access, x, Untargeted(torch.tensor([0])), ThreatModel("l2", None), rng(1))
