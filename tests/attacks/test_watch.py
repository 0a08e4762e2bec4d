"""What an attack visits, beside an independent log of all that it asks, and the budget that ends it, by counting models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.access import DecisionBased, DetectorView, WhiteBox
from advbench.attacks.apgd import APGDT
from advbench.attacks.deepfool import DeepFool
from advbench.attacks.fab import FAB
from advbench.attacks.fgm import FGM
from advbench.attacks.fmn import FMN
from advbench.attacks.hop_skip_jump import HopSkipJump
from advbench.attacks.losses import margin
from advbench.attacks.pgd import PGD
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.square import Square
from advbench.attacks.threat import ThreatModel, Untargeted
from advbench.attacks.watch import BudgetSpent, Watch, WatchSettings, occurrences
from advbench.defenses.defended import Surrogate
from advbench.tasks.evaluation import craft
from advbench.user_models.library_attacks import Counted
from advbench.zoo.data import Split

N, SHAPE, EPSILON = 7, (1, 4, 4), 0.08


class Logged(nn.Module):
    """A small network that writes down every image that it sees, and the slopes that come back to its logits."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.first, self.second = nn.Linear(16, 12), nn.Linear(12, 3)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.seen: list[Tensor] = []
        self.back = 0

    def answers(self, x: Tensor) -> Tensor:
        return self.second(self.first(x.flatten(1)).tanh())

    def forward(self, x: Tensor, rng: ExampleRNG | None = None) -> Tensor:
        self.seen.append(x.detach().clone())
        logits = self.answers(x)
        if rng is not None:
            logits = logits + 0.01 * rng.normal((3,), logits.dtype)
        if logits.requires_grad:
            logits.register_hook(self._came_back)
        return logits

    def _came_back(self, slope: Tensor) -> None:
        self.back += int((slope != 0).any(dim=1).sum())


@pytest.fixture
def problem():
    """The model, images that it gets right, far from each other, and their labels."""
    model = Logged()
    x = torch.rand(N, *SHAPE, generator=torch.Generator().manual_seed(4))
    return model, x, model.answers(x).argmax(dim=1).detach()


def attacked(problem, attack, threat, watch=None, *, stochastic=False, draws=1, index=None):
    model, x, y = problem
    index = torch.arange(len(x)) if index is None else index
    rng = ExampleRNG.make(0, "attack", index)
    with attack.knowledge(model, rng.fork("model"), stochastic=stochastic, draws=draws) as access:
        access.watch = watch
        try:
            return attack(access, x, Untargeted(y), threat, rng.fork("attack")), access
        except BudgetSpent:
            return None, access


def boxed(seen):
    return ((seen >= -1e-5) & (seen <= 1 + 1e-5)).flatten(1).all(dim=1)


def log_of(model, x):
    """Every image that was asked about with the example whose clean image is next to it."""
    seen = torch.cat(model.seen)
    return seen, (seen.unsqueeze(1) - x.unsqueeze(0)).flatten(2).norm(dim=2).argmin(dim=1)


@pytest.mark.parametrize("attack", [PGD(steps=15, step_size=0.3), APGDT(steps=10, targets=2), Square(queries=60), FGM()])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_kept_image_has_the_highest_margin_of_all_that_were_asked_about(problem, attack, norm):
    model, x, y = problem
    epsilon = EPSILON if norm == "linf" else 3 * EPSILON
    watch = Watch(x, Untargeted(y), ThreatModel(norm, epsilon))
    attacked(problem, attack, ThreatModel(norm, epsilon), watch)
    seen, owner = log_of(model, x)
    order = float("inf") if norm == "linf" else 2
    logits = model.answers(seen).detach()
    right = logits[torch.arange(len(seen)), y[owner]]
    lead = logits.scatter(1, y[owner].unsqueeze(1), -1e9).amax(dim=1) - right
    distance = torch.linalg.vector_norm((seen - x[owner]).flatten(1), ord=order, dim=1)
    inside = (
        (distance <= epsilon * (1 + 1e-5) + 1e-7) & (seen >= -1e-5).flatten(1).all(1) & (seen <= 1 + 1e-5).flatten(1).all(1)
    )
    for row in range(N):
        own = inside & (owner == row)
        best = lead[own].max()
        assert watch.score[row] == pytest.approx(float(best), abs=1e-5)
        assert (seen[own][lead[own] >= best - 1e-6] == watch.x_adv[row]).flatten(1).all(dim=1).any(), "one of the log"
        broken = distance[own & (lead > 0)]
        assert float(watch.nearest[row]) == pytest.approx(float(broken.min()) if len(broken) else float("inf"), rel=1e-5)
        assert bool(watch.achieved[row]) == bool(best > 0)


@pytest.mark.parametrize("attack", [FMN(steps=30), DeepFool(steps=10), HopSkipJump(queries=150)])
def test_the_kept_image_is_the_nearest_adversarial_one(problem, attack):
    model, x, y = problem
    watch = Watch(x[:1], Untargeted(y[:1]), ThreatModel("l2", None))
    attacked((model, x[:1], y[:1]), attack, ThreatModel("l2", None), watch)
    seen = torch.cat(model.seen)
    distance = (seen - x[:1]).flatten(1).norm(dim=1)
    broken = (model.answers(seen).argmax(dim=1) != y[0]) & boxed(seen)
    assert broken.any()
    assert float(watch.nearest[0]) == pytest.approx(float(distance[broken].min()), rel=1e-5)
    assert float((watch.x_adv - x[:1]).norm()) == pytest.approx(float(distance[broken].min()), rel=1e-5)


def test_of_each_example_one_image_is_kept_however_long_the_attack(problem):
    _, x, y = problem

    def size(steps):
        watch = Watch(x, Untargeted(y), ThreatModel("linf", EPSILON))
        attacked(problem, PGD(steps=steps, stop="never"), ThreatModel("linf", EPSILON), watch)
        held = [value for value in vars(watch).values() if isinstance(value, Tensor)]
        return sum(value.numel() for value in held), [value.shape for value in held if value.dim() == 4]

    (few, images), (many, _) = size(2), size(60)
    assert few == many
    assert images == [x.shape, x.shape], "the clean images and the kept ones"


def test_watching_changes_nothing_that_the_attack_sees_or_pays(problem):
    _, x, y = problem
    threat = ThreatModel("linf", EPSILON)
    for attack in (PGD(steps=8), Square(queries=40), FAB(steps=5)):
        own = ThreatModel("linf", None) if attack.minimal_norm else threat
        plain, first = attacked(problem, attack, own)
        for budget in (None, 10**6):
            seen, second = attacked(problem, attack, own, Watch(x, Untargeted(y), own, budget=budget))
            assert torch.equal(plain, seen)
            assert torch.equal(first.ledger.forwards, second.ledger.forwards)
            assert torch.equal(first.ledger.backwards, second.ledger.backwards)


ALL = [
    PGD(steps=30, stop="never"),
    PGD(steps=30),
    FMN(steps=30),
    FAB(steps=8),
    DeepFool(steps=20),
    Square(queries=80),
    HopSkipJump(queries=120),
    APGDT(steps=10, targets=2),
]


@pytest.mark.parametrize("attack", ALL, ids=lambda attack: type(attack).__name__)
@pytest.mark.parametrize("budget", [1, 2, 9, 40])
def test_no_example_spends_more_than_its_budget(problem, attack, budget):
    """Alone, so that every pass of the model is that of the one example; together, in the sum."""
    model, x, y = problem
    threat = ThreatModel("l2", None if attack.minimal_norm else 3 * EPSILON)
    for rows in (slice(0, 1), slice(0, N)):
        model.seen, model.back = [], 0
        watch = Watch(x[rows], Untargeted(y[rows]), threat, budget=budget, ends=True)
        found, _ = attacked((model, x[rows], y[rows]), attack, threat, watch)
        asked = sum(map(len, model.seen))
        assert asked == int(watch.paid.forwards.sum())
        assert model.back <= int(watch.paid.backwards.sum())
        assert int((watch.paid.forwards + watch.paid.backwards).max()) <= budget
        assert asked + model.back <= budget * len(x[rows])
        kept = watch.settled(found)
        assert kept.shape == x[rows].shape
        if budget == 1:
            assert asked == len(x[rows])


def test_an_image_is_frozen_at_its_last_pass_and_the_others_go_on(problem):
    """Two images of different appetites: the first one asks three times as often."""
    model, x, y = problem
    watch = Watch(x[:2], Untargeted(y[:2]), ThreatModel("linf", 1.0), budget=6)
    rng = ExampleRNG.make(0, "attack", torch.arange(2))
    with WhiteBox(model, rng) as access:
        access.watch = watch
        first = access.select(torch.tensor([0]))
        for round_ in range(2):
            for number in range(3):
                first.logits((x[:1] + 0.1 * (3 * round_ + number)).clamp(0, 1))
            access.logits(x[:2].clamp(0, 1))
        assert watch.frozen.tolist() == [True, False]
        assert watch.paid.forwards.tolist() == [6, 2]
        before = watch.x_adv[0].clone()
        answer = access.logits(1 - x[:2])
        assert torch.equal(watch.x_adv[0], before)
        assert torch.allclose(answer[1], model.answers(1 - x[1:2])[0])
        assert not torch.allclose(answer[0], model.answers(1 - x[:1])[0]), "its last answer, not that of this image"
        found = access.loss_gradient(x[:2] + 0.01, Untargeted(y[:2]), lambda logits, goal: logits.sum(dim=1))
        assert (found.gradient[0] == 0).all()
        assert (found.gradient[1] != 0).any()
        access.logits(x[:2])
        with pytest.raises(BudgetSpent):
            access.logits(x[:2])
    assert (watch.paid.forwards + watch.paid.backwards).tolist() == [6, 6]
    assert watch.paid.backwards.tolist() == [0, 1]
    assert torch.equal(watch.settled(torch.zeros_like(x[:2])), watch.x_adv)


def test_draws_of_random_models_are_passes(problem):
    _, x, y = problem
    threat = ThreatModel("linf", EPSILON)
    for draws, budget in ((4, 30), (4, 3), (12, 50)):
        watch = Watch(x, Untargeted(y), threat, budget=budget)
        found, _ = attacked(problem, PGD(steps=20), threat, watch, stochastic=True, draws=draws)
        spent = watch.paid.forwards + watch.paid.backwards
        assert int(spent.max()) <= budget
        assert int(spent.min()) > budget - 2 * draws
        assert found is None
        assert watch.frozen.all()


def test_a_detector_is_asked_within_the_budget_too(problem):
    model, x, y = problem
    threat = ThreatModel("linf", EPSILON)
    watch = Watch(x, Untargeted(y), threat, budget=5)
    detector = DetectorView(Far(), y)
    with WhiteBox(model, ExampleRNG.make(0, "attack", torch.arange(N)), detector=detector) as access:
        access.watch = watch
        access.sides(x, Untargeted(y), margin)
        with pytest.raises(BudgetSpent):
            access.sides(x, Untargeted(y), margin)
    assert watch.paid.forwards.tolist() == [2] * N
    assert watch.paid.backwards.tolist() == [3] * N


class Far(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).sum(dim=1) - 100


def test_other_libraries_are_followed_in_any_portions(problem):
    """Three of seven images at a time, in any order: the clean image next to each tells whose it is."""
    model, x, y = problem
    watch = Watch(x, Untargeted(y), ThreatModel("linf", EPSILON), budget=4)
    delta = 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).sign()
    with WhiteBox(model, ExampleRNG.make(0, "attack", torch.arange(N))) as access:
        access.watch = watch
        counted = Counted(access)
        part = torch.tensor([5, 0, 3])
        asked = (x[part] + delta[part]).clamp(0, 1).requires_grad_()
        counted(asked).sum().backward()
        assert watch.paid.forwards.tolist() == [1, 0, 0, 1, 0, 1, 0]
        assert watch.paid.backwards.tolist() == [1, 0, 0, 1, 0, 1, 0]
        for _ in range(3):
            counted(x[part])
        assert watch.frozen.tolist() == [True, False, False, True, False, True, False]
        before = sum(map(len, model.seen))
        counted(torch.cat([x, x]))
        assert sum(map(len, model.seen)) - before == 8, "the four that have passes left, twice"
        counted(x), counted(x)
        with pytest.raises(BudgetSpent):
            counted(x)
    assert (watch.paid.forwards + watch.paid.backwards).tolist() == [4] * N


def test_labels_alone_are_followed(problem):
    model, x, y = problem
    watch = Watch(x, Untargeted(y), ThreatModel("linf", None), budget=3)
    with DecisionBased(model, ExampleRNG.make(0, "attack", torch.arange(N))) as access:
        access.watch = watch
        far = (1 - x).round()
        labels = access.labels(far)
    assert torch.equal(labels, model.answers(far).argmax(dim=1))
    broken = labels != y
    assert torch.equal(watch.achieved, broken)
    assert torch.equal(watch.nearest.isfinite(), broken)


def test_a_craft_tells_what_was_visited_by_a_fresh_pass_and_what_was_paid(problem):
    model, x, y = problem
    split, threat = Split(x, y, torch.arange(N)), ThreatModel("linf", EPSILON)

    class Forgetful(FGM):
        def __call__(self, access, x, goal, threat, rng):
            for share in (0.5, 1.0):
                access.logits(x + share * threat.epsilon * self._away(access, x, goal))
            return x.clone()

        def _away(self, access, x, goal):
            direction = access.loss_gradient(x, goal, lambda logits, goal: -logits.gather(1, goal.y[:, None])[:, 0]).gradient
            return direction.sign() * (x > EPSILON) * (x < 1 - EPSILON)

    def crafted(**watching):
        return craft(
            Forgetful(), Surrogate(model), split, threat, seed=0, draws=1, batch=3, device=torch.device("cpu"),
            watching=WatchSettings(**watching),
        )  # fmt: skip

    plain, seen = crafted(), crafted(visited=True)
    assert plain.visited is None
    assert torch.equal(seen.x_adv, x)
    assert torch.equal(plain.x_adv, x)
    assert torch.equal(seen.ledger.forwards, plain.ledger.forwards)
    (step,) = torch.autograd.grad(-model.answers(moving := x.clone().requires_grad_()).gather(1, y[:, None]).sum(), moving)
    away = step.sign() * (x > EPSILON) * (x < 1 - EPSILON)
    broken = (model.answers(x + EPSILON * away).argmax(1) != y) | (model.answers(x + EPSILON / 2 * away).argmax(1) != y)
    assert torch.equal(seen.visited.isfinite(), broken)
    assert broken.any()
    ended = crafted(budget=3)
    assert (ended.ledger.forwards + ended.ledger.backwards).tolist() == [3] * N
    half = model.answers(x + EPSILON / 2 * away).argmax(1) != y
    assert torch.equal(model.answers(ended.x_adv).argmax(1) != y, half), "what was kept when the budget was spent"


def test_budgets_that_are_none_are_refused():
    with pytest.raises(ValueError, match="Expected `budget` >= 1, got 0"):
        WatchSettings(budget=0)
    goal = Untargeted(torch.zeros(1, dtype=torch.int64))
    assert WatchSettings().begin(torch.zeros(1, 1), goal, ThreatModel("linf", 1.0)) is None


def test_earlier_entries_are_counted():
    rows = torch.tensor([4, 4, 0, 4, 0, 9])
    assert occurrences(rows).tolist() == [sum(int(rows[j] == rows[i]) for j in range(i)) for i in range(6)]
