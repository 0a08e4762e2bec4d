from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks import balls
from advbench.attacks.access import ScoreBased
from advbench.attacks.losses import margin
from advbench.attacks.noise import UniformNoise
from advbench.attacks.pgd import PGD
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Targeted, ThreatModel, Untargeted, cross_entropy

SHAPE = (1, 4, 4)
NORMS = ("linf", "l2", "l1")
RADII = {"linf": 0.2, "l2": 0.5, "l1": 1.2}


def net() -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 5)).double()
    for parameter in model.parameters():
        parameter.data = 0.7 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return model


def images(n: int = 24) -> Tensor:
    return torch.rand(n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def labelled(model: nn.Module, x: Tensor, wrong: int = 3) -> Tensor:
    """The model's labels, of which the first few are changed."""
    y = model(x).argmax(dim=1).detach()
    y[:wrong] = (y[:wrong] + 1) % 5
    return y


@pytest.mark.parametrize("random_start", [True, False])
def test_pgd_leaves_alone_what_is_already_wrong(white_box, random_start):
    model, x = net(), images()
    goal = Untargeted(labelled(model, x))
    with white_box(model, len(x)) as access:
        found = PGD(steps=5, random_start=random_start)(access, x, goal, ThreatModel("linf", 0.05), access.rng)
    assert torch.equal(found[:3], x[:3])
    assert access.ledger.forwards[:3].tolist() == [1] * 3
    assert (access.ledger.backwards[:3] == (0 if random_start else 1)).all()
    assert (balls.distance(found[3:] - x[3:], "linf") > 0).all()


def test_pgd_that_never_stops_attacks_everything_to_the_end(white_box):
    model, x = net(), images()
    goal = Untargeted(labelled(model, x))
    threat = ThreatModel("linf", 0.1)
    with white_box(model, len(x)) as stopping:
        early = PGD(steps=15)(stopping, x, goal, threat, stopping.rng)
    with white_box(model, len(x)) as access:
        late = PGD(steps=15, stop="never")(access, x, goal, threat, access.rng)
    assert (access.ledger.forwards == 16).all()
    assert (access.ledger.backwards == 15).all()
    assert stopping.ledger.backwards.sum() < access.ledger.backwards.sum()
    assert (balls.distance(late - x, "linf") > 0.09).all()
    losses = [cross_entropy(model(each), goal) for each in (early, late)]
    broken = [goal.achieved(model(each)) for each in (early, late)]
    assert torch.equal(*broken)
    assert (losses[1] >= losses[0] - 1e-12).all()
    assert losses[1][broken[1]].mean() > 1.3 * losses[0][broken[0]].mean()


@pytest.mark.parametrize("norm", NORMS)
def test_more_steps_and_restarts_never_do_worse(white_box, norm):
    model, x = net(), images()
    goal, threat = Untargeted(labelled(model, x)), ThreatModel(norm, RADII[norm])

    def reached(**arguments: int) -> Tensor:
        with white_box(model, len(x)) as access:
            found = PGD(stop="never", **arguments)(access, x, goal, threat, access.rng)
        return cross_entropy(model(found), goal) + 1e3 * goal.achieved(model(found))

    base = reached(steps=5)
    assert (reached(steps=10) >= base - 1e-12).all()
    assert (reached(steps=5, restarts=3) >= base - 1e-12).all()
    assert (reached(steps=5, restarts=3) > base + 1e-9).any()


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_reaches_targets(white_box, norm):
    model, x = net(), images()
    y = labelled(model, x, wrong=0)
    goal = Targeted(y, (y + 2) % 5)
    with white_box(model, len(x)) as access:
        found = PGD(steps=60)(access, x, goal, ThreatModel(norm, 4 * RADII[norm]), access.rng)
    assert goal.achieved(model(found)).float().mean() > 0.8


@pytest.mark.parametrize("norm", NORMS)
def test_pgd_is_not_beaten_by_the_best_of_many_random_points(white_box, norm):
    model, x = net(), images()
    goal, threat = Untargeted(labelled(model, x)), ThreatModel(norm, RADII[norm])
    with white_box(model, len(x)) as access:
        climbed = PGD(steps=40, stop="never")(access, x, goal, threat, access.rng)
        guessed = UniformNoise(points=200, stop="never")(access, x, goal, threat, access.rng)
    climbed, guessed = cross_entropy(model(climbed), goal), cross_entropy(model(guessed), goal)
    assert (climbed > guessed).all()


class Blurred(nn.Module):
    """Two classes, their logits (w.x + noise, 0) with noise that is uniform in [-half, half) per draw."""

    def __init__(self, half: float) -> None:
        super().__init__()
        self.half = half

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        score = 10 * (x.flatten(1).mean(dim=1) - 0.5) + self.half * (2 * rng.uniform((), x.dtype) - 1)
        return torch.stack((score, torch.zeros_like(score)), dim=1)


def test_a_lucky_draw_does_not_end_the_attack_on_a_stochastic_model(white_box):
    x = torch.full((30, *SHAPE), 0.55, dtype=torch.float64)  # score 0.5, noise up to 2: often wrong by luck
    goal = Untargeted(torch.zeros(30, dtype=torch.int64))
    threat = ThreatModel("linf", 0.1)
    with white_box(Blurred(2.0), 30, stochastic=True) as access:
        found = PGD(steps=20, random_start=False, loss="margin")(access, x, goal, threat, access.rng)
    assert (access.ledger.backwards == 20).all()
    assert (x - found).flatten(1).mean(dim=1).mean() > 0.08  # the iterates that are kept lie near the lower corner, 0.1


def test_noise_is_the_worst_of_its_points(white_box):
    model, x = net(), images()
    goal, threat = Untargeted(labelled(model, x)), ThreatModel("l2", 0.5)
    rng = ExampleRNG.make(0, "attack", torch.arange(len(x)))
    with ScoreBased(model, rng) as access:
        found = UniformNoise(points=4, stop="never")(access, x, goal, threat, rng)
        assert access.ledger.queries.tolist() == [4] * len(x)
    points = torch.stack([balls.random_start(x, threat, rng.at(point)) for point in range(4)])
    order = torch.stack([cross_entropy(model(each), goal) + 1e3 * goal.achieved(model(each)) for each in points])
    assert torch.equal(found, points[order.argmax(dim=0), torch.arange(len(x))])
    with ScoreBased(model, rng) as access:
        UniformNoise(points=4)(access, x, goal, threat, rng)
    first = goal.achieved(model(points[0]))
    assert (access.ledger.queries[first] == 1).all()
    assert (access.ledger.queries[~first] > 1).all()


@pytest.mark.parametrize(
    ("attack", "field"),
    [(PGD, "steps"), (PGD, "step_size"), (PGD, "restarts"), (PGD, "sparsity"), (UniformNoise, "points")],
)
def test_numbers_that_make_no_sense_are_refused(attack, field):
    with pytest.raises(ValueError, match=f"Expected `{field}` > 0, got 0"):
        attack(**{field: 0})
    with pytest.raises(ValueError, match="Expected `loss`"):
        attack(loss="none")


def test_the_margin_loss_breaks_a_model_whose_cross_entropy_is_flat(white_box):
    class Confident(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = 1e5 * (x.flatten(1).mean(dim=1) - 0.5)
            return torch.stack((score, -score), dim=1)

    x = torch.full((4, *SHAPE), 0.55)
    goal = Untargeted(torch.zeros(4, dtype=torch.int64))
    threat = ThreatModel("linf", 0.1)
    with white_box(Confident(), 4) as access:
        found = PGD(steps=10, loss="margin", random_start=False)(access, x, goal, threat, access.rng)
        assert (margin(Confident()(found), goal) > 0).all()
        assert not access.loss_gradient(x, goal, cross_entropy).gradient.any()


def climbed(model: nn.Module, x: Tensor, y: Tensor, epsilon: float, step: float, steps: int) -> Tensor:
    """PGD without a random start, every step of it, by the book: the images of the highest (broken, loss), (n, c, h, w)."""
    x_adv, best, score = x, x.clone(), torch.full((len(x),), -torch.inf, dtype=x.dtype)
    for number in range(steps + 1):
        z = x_adv.clone().requires_grad_()
        logits = model(z)
        loss = nn.functional.cross_entropy(logits, y, reduction="none")
        rank = loss.detach() + 1e6 * (logits.argmax(dim=1) != y)
        best, score = best.where((rank <= score)[:, None, None, None], x_adv), score.maximum(rank)
        if number < steps:
            (gradient,) = torch.autograd.grad(loss.sum(), z)
            x_adv = (x_adv + step * gradient.sign()).clamp(x - epsilon, x + epsilon).clamp(0, 1)
    return best


@pytest.mark.parametrize("stop", ["success", "never"])
@pytest.mark.parametrize("epsilon", [0.02, 0.04, 0.06])
def test_pgd_ends_where_it_cycles_and_returns_what_all_steps_would(white_box, epsilon, stop):
    model, x = net(), images(60)
    y = labelled(model, x, wrong=0)
    with white_box(model, len(x)) as access:
        attack = PGD(steps=400, step_size=0.1, random_start=False, stop=stop)
        found = attack(access, x, Untargeted(y), ThreatModel("linf", epsilon), access.rng)
    expected = climbed(model, x, y, epsilon, 0.1 * epsilon, 400)
    broken = model(expected).argmax(dim=1) != y
    assert torch.equal(model(found).argmax(dim=1) != y, broken)
    assert (~broken).sum() > 3
    whole = torch.ones_like(broken) if stop == "never" else ~broken
    losses = [cross_entropy(model(each[whole]), Untargeted(y[whole])) for each in (found, expected)]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-12)
    assert access.ledger.backwards[~broken].double().mean() < 150


def test_on_a_linear_model_pgd_ends_in_the_corner(white_box):
    """It takes ceil(1 / step_size) steps from the image to the corner of ball and box, where the next steps stay."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double()
    x = images()
    y = model(x).argmax(dim=1)
    threat = ThreatModel("linf", 1e-4)
    with white_box(model, len(x)) as access:
        PGD(steps=1000, step_size=0.3, random_start=False)(access, x, Untargeted(y), threat, access.rng)
    # The corner is reached after 4 steps; of the iterates 0, 1, 2, ... the landmarks are 1, 2, 4, and the fifth is equal.
    assert access.ledger.backwards.tolist() == [6] * len(x)
    with white_box(model, len(x)) as access:
        PGD(steps=1000, step_size=0.3, random_start=False, restarts=3)(access, x, Untargeted(y), threat, access.rng)
    assert access.ledger.backwards.tolist() == [18] * len(x)


def test_pgd_takes_every_step_in_other_norms(white_box):
    model, x = net(), images()
    y = labelled(model, x, wrong=0)
    for norm in ("l2", "l1"):
        with white_box(model, len(x)) as access:
            PGD(steps=70, stop="never")(access, x, Untargeted(y), ThreatModel(norm, RADII[norm]), access.rng)
        assert access.ledger.backwards.tolist() == [70] * len(x)
