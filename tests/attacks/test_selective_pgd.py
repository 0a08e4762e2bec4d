"""Evasion of a detector: both gradients, the directions made of them, and layers that no other attack finds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks import balls
from advbench.attacks.access import AT_ONCE, DetectorView, Sides, WhiteBox
from advbench.attacks.losses import margin
from advbench.attacks.pgd import PGD
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.selective_pgd import _DIRECTIONS, SelectivePGD, reach
from advbench.attacks.threat import ThreatModel, Untargeted

THREAT = ThreatModel("linf", 0.2)
D = 64


def rng(n: int) -> ExampleRNG:
    return ExampleRNG.make(0, "attack", torch.arange(n))


def grey(n: int) -> Tensor:
    return torch.full((n, 1, 8, 8), 0.5)


class Pixel(nn.Module):
    """Two classes: class 1 where the first pixel is above 0.6; the others pull a little the other way round."""

    def forward(self, x: Tensor) -> Tensor:
        delta = x.flatten(1) - 0.5
        lead = 30 * (delta[:, 0] - 0.1) + 0.05 * delta[:, 1:].sum(dim=1)
        return torch.stack((torch.zeros_like(lead), lead), dim=1)


class Far(nn.Module):
    """Rejects images farther than 0.15 from grey in l2: a step along signs is 1.6 long, the shortest error 0.1."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5).flatten(1).square().sum(dim=1).add(1e-12).sqrt() - 0.15


class Confident(nn.Module):
    """Accepts an error only where the lead of the wrong class is below 0.02, as a disagreement of softmaxes would."""

    def forward(self, x: Tensor) -> Tensor:
        logits = Pixel()(x)
        return logits[:, 1] - 0.02


def evaded(attack, detector: nn.Module, n: int = 5, scale: float = 10.0) -> Tensor:
    y = torch.zeros(n, dtype=torch.int64)
    with attack.knowledge(Pixel(), rng(n), detector=DetectorView(detector, y, scale=scale)) as access:
        x_adv = attack(access, grey(n), Untargeted(y), THREAT, rng(n).fork("attack"))
    assert not balls.violations(x_adv, grey(n), THREAT).any()
    return (Pixel()(x_adv).argmax(dim=1) != 0) & (detector(x_adv) <= 0)


@pytest.mark.parametrize("strategy", ["joint", "selective", "orthogonal"])
def test_finds_the_short_error_that_steps_along_signs_walk_past(strategy):
    assert evaded(SelectivePGD(strategies=(strategy,)), Far()).all()
    assert not evaded(PGD(steps=100, step_size=0.1), Far()).any()


@pytest.mark.parametrize("strategy", ["joint", "selective"])
def test_finds_the_thin_layer_of_errors_without_confidence(strategy):
    assert evaded(SelectivePGD(strategies=(strategy,)), Confident()).all()
    assert not evaded(PGD(steps=100, step_size=0.1), Confident()).any()


def test_a_detector_that_accepts_no_error_is_not_passed():
    class Errors(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Pixel()(x)[:, 1] + 0.5

    assert not evaded(SelectivePGD(steps=30), Errors()).any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_without_a_detector_it_leaves_a_linear_model_where_the_ball_touches_the_boundary(norm):
    epsilon = {"linf": 0.1, "l2": 0.5, "l1": 0.4}[norm]
    w = torch.randn(D, generator=torch.Generator().manual_seed(0))
    dual = {"linf": w.abs().sum(), "l2": w.norm(), "l1": w.abs().max()}[norm]

    class Plane(nn.Module):
        def __init__(self, offset: float) -> None:
            super().__init__()
            self.offset = offset

        def forward(self, x: Tensor) -> Tensor:
            lead = (x.flatten(1) - 0.5) @ w - self.offset
            return torch.stack((torch.zeros_like(lead), lead), dim=1)

    y = torch.zeros(1, dtype=torch.int64)
    for share, broken in ((0.9, True), (1.01, False)):
        model = Plane(float(share * epsilon * dual))
        with WhiteBox(model, rng(1)) as access:
            attack = SelectivePGD(steps=200, step_sizes=(0.4,))
            x_adv = attack(access, grey(1), Untargeted(y), ThreatModel(norm, epsilon), rng(1).fork("attack"))
        assert bool((model(x_adv).argmax(dim=1) != 0).all()) == broken


def test_the_sides_are_the_gradients_of_each_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    watch = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)).double()
    x, y = torch.rand(20, 1, 8, 8, dtype=torch.float64), torch.randint(3, (20,))
    detector = DetectorView(watch, y, scale=3.0)
    with WhiteBox(model, rng(20), detector=detector) as access:
        found = access.sides(x, Untargeted(y), margin)
        assert access.ledger.forwards.tolist() == [1] * 20
        assert access.ledger.backwards.tolist() == [2] * 20
        torch.testing.assert_close(found.logits, access.logits(x))
    x.requires_grad_()
    progress, score = margin(model(x), Untargeted(y)), 3.0 * watch(x)
    torch.testing.assert_close(found.progress, progress.detach())
    torch.testing.assert_close(found.score, score.detach())
    torch.testing.assert_close(found.uphill, torch.autograd.grad(progress.sum(), x)[0])
    torch.testing.assert_close(found.downhill, -torch.autograd.grad(score.sum(), x)[0])


def test_the_sides_of_an_unwatched_model_and_of_a_detector_without_a_gradient():
    y = torch.zeros(3, dtype=torch.int64)

    class Hard(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.detach().flatten(1)[:, 0] > 0.55).float() - 0.5

    with WhiteBox(Pixel(), rng(3)) as access:
        found = access.sides(grey(3), Untargeted(y), margin)
        assert access.ledger.backwards.tolist() == [1] * 3
    assert found.score.eq(-torch.inf).all()
    assert not found.downhill.any()
    with WhiteBox(Pixel(), rng(3), detector=DetectorView(Hard(), y)) as access:
        found = access.sides(grey(3), Untargeted(y), margin)
    assert found.uphill.any()
    assert not found.downhill.any()


class NoisyPixel(nn.Module):
    """The margin of `Pixel` with a normal offset per draw."""

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        return Pixel()(x) + torch.stack((torch.zeros(len(x)), 0.1 * rng.normal(())), dim=1)


class NoisyFar(nn.Module):
    """The score of `Far` with the very offset that the classifier got."""

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        return Far()(x) + 0.1 * rng.normal(())


@pytest.mark.parametrize("draws", [1, AT_ONCE + 3])
def test_the_sides_of_a_random_model_are_means_over_draws_that_both_share(draws):
    y, x = torch.zeros(4, dtype=torch.int64), grey(4) + 0.05
    detector = DetectorView(NoisyFar(), y, stochastic=True)
    with WhiteBox(NoisyPixel(), rng(4), stochastic=True, draws=draws, detector=detector) as access:
        found = access.sides(x, Untargeted(y), margin)
        assert access.ledger.forwards.tolist() == [draws] * 4
        assert access.ledger.backwards.tolist() == [2 * draws] * 4
    offset = 0.1 * torch.stack([rng(4).at(draw).normal(()) for draw in range(draws)]).mean(dim=0)
    torch.testing.assert_close(found.progress, margin(Pixel()(x), Untargeted(y)) + offset)
    torch.testing.assert_close(found.score, Far()(x) + offset)


def sides(progress: list[float], score: list[float]) -> Sides:
    generator = torch.Generator().manual_seed(0)
    n = len(progress)
    up, down = (torch.randn(n, 1, 8, 8, generator=generator) * size for size in (100.0, 0.01))
    return Sides(torch.tensor(progress), torch.tensor(score), up, down, torch.zeros(n, 2))


def test_directions_are_of_length_one_and_free_of_the_scale_of_either_side():
    given = sides([-1.0, -1.0, 1.0, 1.0], [1.0, -1.0, 1.0, -1.0])
    scaled = Sides(given.progress, given.score, 7 * given.uphill, 0.3 * given.downhill, given.logits)
    up, down = (each / each.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for each in (given.uphill, given.downhill))
    for make in _DIRECTIONS.values():
        found = make(given)
        torch.testing.assert_close(found.flatten(1).norm(dim=1), torch.ones(4))
        torch.testing.assert_close(make(scaled), found)
    both = (up + down) / (up + down).flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    # right and rejected: both; right: the classifier; wrong and rejected: the detector; neither: both again
    torch.testing.assert_close(_DIRECTIONS["joint"](given), torch.stack((both[0], up[1], down[2], both[3])))
    torch.testing.assert_close(_DIRECTIONS["selective"](given), torch.stack((up[0], up[1], down[2], both[3])))


def test_an_orthogonal_step_costs_nothing_on_the_other_side():
    given = sides([-1.0, 1.0], [1.0, 1.0])
    found = _DIRECTIONS["orthogonal"](given).flatten(1)
    assert abs(float(found[0] @ given.downhill[0].flatten())) < 1e-6  # towards the error, along the detector's level
    assert abs(float(found[1] @ given.uphill[1].flatten())) < 1e-2 * float(given.uphill[1].norm()) / 1e3
    assert float(found[0] @ given.uphill[0].flatten()) > 0
    assert float(found[1] @ given.downhill[1].flatten()) > 0


def test_an_orthogonal_step_along_parallel_gradients_is_the_gradient():
    given = sides([-1.0], [1.0])
    same = Sides(given.progress, given.score, given.uphill, given.uphill * 2, given.logits)
    up = given.uphill / given.uphill.norm()
    torch.testing.assert_close(_DIRECTIONS["orthogonal"](same), up)
    nothing = Sides(given.progress, given.score, 0 * given.uphill, 0 * given.uphill, given.logits)
    for make in _DIRECTIONS.values():
        assert not make(nothing).any()


def test_the_reach_is_the_longest_perturbation_in_l2():
    x = grey(2)
    assert reach(ThreatModel("linf", 0.2), x) == pytest.approx(0.2 * 8)
    assert reach(ThreatModel("l2", 0.2), x) == reach(ThreatModel("l1", 0.2), x) == 0.2


def test_the_result_of_an_example_does_not_depend_on_its_batch():
    n = 6
    y = torch.zeros(n, dtype=torch.int64)
    x = (grey(n) + 0.1 * rng(n).uniform((1, 8, 8), torch.float32)).clamp(0, 1)
    attack = SelectivePGD(steps=10, restarts=2)

    def images(rows: Tensor) -> Tensor:
        own = ExampleRNG.make(0, "attack", rows)
        with WhiteBox(Pixel(), own, detector=DetectorView(Far(), y[rows])) as access:
            return attack(access, x[rows], Untargeted(y[rows]), THREAT, own.fork("attack"))

    whole = images(torch.arange(n))
    torch.testing.assert_close(images(torch.tensor([4, 1])), whole[[4, 1]])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"steps": 0}, "`steps` > 0"),
        ({"step_sizes": ()}, "`step_sizes` above 0, one or more"),
        ({"step_sizes": (0.1, -1.0)}, "`step_sizes` above 0"),
        ({"strategies": ("sum",)}, "`strategies` of joint, selective, orthogonal"),
        ({"strategies": ()}, "`strategies` of joint"),
    ],
)
def test_refuses_what_makes_no_sense(arguments, said):
    with pytest.raises(ValueError, match=said):
        SelectivePGD(**arguments)
