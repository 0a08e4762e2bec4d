"""The cheaper ensemble: AutoAttack's verdicts, and passes where they may pay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks import balls
from advbench.attacks.access import WhiteBox
from advbench.attacks.apgd import APGD
from advbench.attacks.auto import Auto
from advbench.attacks.autoattack import AutoAttack
from advbench.attacks.losses import margin
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal, Targeted, ThreatModel, Untargeted

RADII = {"linf": 0.3, "l2": 0.75, "l1": 2.4}
SMALL = Auto(steps=10, long_steps=20, queries=200, survey=50, all_targets=2, all_queries=300)


def images(n: int) -> Tensor:
    """Images with values on the faces of the box, (n, 1, 4, 4), float64."""
    x = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (1.5 * x - 0.25).clamp(0, 1)


def small_net(classes: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(classes)
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, classes)).double()
    for parameter in net.parameters():
        parameter.data *= 2
    return net


def attacked(
    attack: Any, model: nn.Module, x: Tensor, goal: Goal, threat: ThreatModel, index: Tensor | None = None, **arguments: Any
) -> tuple[Tensor, WhiteBox]:
    rng = ExampleRNG.make(0, "attack", torch.arange(len(x)) if index is None else index)
    with WhiteBox(model, rng.fork("model"), **arguments) as access:
        return attack(access, x, goal, threat, rng), access


def short_count(attack: Auto, targets: int) -> int:
    """Forwards of an example that withstands from afar, in linf or l2: the runs that each gets."""
    run = attack.steps + 1
    return 1 + run + 1 + targets * (run + 2 * attack.steps + 1) + run + attack.survey + run


@pytest.mark.parametrize("norm", RADII)
def test_what_autoattack_breaks_it_breaks(norm):
    model, x = small_net(4), images(24)
    goal, threat = Untargeted(model(x).argmax(dim=1)), ThreatModel(norm, RADII[norm])
    thorough, _ = attacked(AutoAttack(steps=40, queries=400), model, x, goal, threat)
    cheap, _ = attacked(Auto(queries=600, all_queries=600), model, x, goal, threat)
    expected, found = goal.achieved(model(thorough)), goal.achieved(model(cheap))
    assert 4 <= expected.sum() <= 20
    assert (found >= expected).all()
    assert not balls.violations(cheap, x, threat).any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("targeted", [False, True])
def test_a_linear_model_breaks_exactly_within_reach(linear, norm, targeted):
    """Two classes, no box: an example breaks where its margin is below epsilon times the dual norm of the difference."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(2, 1, 4, 4, generator=generator, dtype=torch.float64)
    model, x = linear(weight, torch.zeros(2, dtype=torch.float64)), images(30)
    logits = model(x).detach()
    y = logits.argmax(dim=1)
    goal = Targeted(y, 1 - y) if targeted else Untargeted(y)
    slope = balls.distance((weight[:1] - weight[1:]), balls.DUAL[norm])
    reach = (logits[:, 0] - logits[:, 1]).abs() / slope
    epsilon = float(reach.sort().values[14:16].mean())  # between the 15th and the 16th
    x_adv, _ = attacked(SMALL, model, x, goal, ThreatModel(norm, epsilon, box=None))
    clear = (reach / epsilon - 1).abs() > 0.02
    assert clear.sum() >= 25
    assert torch.equal(goal.achieved(model(x_adv))[clear], (reach < epsilon)[clear])


class Reversed(torch.autograd.Function):
    """The identity, with the gradient's sign turned."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


class Masked(nn.Module):
    """A small network behind rounding to multiples of 1/20, whose gradient is zero or points the wrong way."""

    def __init__(self, gradient: str) -> None:
        super().__init__()
        self.net, self.gradient = small_net(3), gradient

    def forward(self, x: Tensor) -> Tensor:
        rounded = torch.round(x * 20) / 20
        return self.net(rounded if self.gradient == "zero" else Reversed.apply(x) + (rounded - x).detach())


@pytest.mark.parametrize("gradient", ["zero", "reversed"])
def test_masked_gradients_hide_nothing_from_squares(gradient):
    model, x = Masked(gradient), images(24)
    goal, threat = Untargeted(model(x).argmax(dim=1)), ThreatModel("linf", 0.1)
    blind, thorough, cheap = (
        goal.achieved(model(attacked(attack, model, x, goal, threat)[0]))
        for attack in (
            APGD(steps=20),
            AutoAttack(steps=10, queries=600),
            Auto(steps=10, queries=600, survey=100, all_queries=900),
        )
    )
    assert thorough.sum() >= blind.sum() + 3
    assert not thorough.all()
    assert (cheap >= thorough).all()


@pytest.mark.parametrize("gradient", ["zero", "reversed"])
def test_an_example_that_gradients_mislead_gets_autoattacks_budget(gradient):
    x, threat = images(24), ThreatModel("linf", 0.1)
    budget = Auto(steps=10, long_steps=20, queries=200, survey=50, all_queries=1500)
    spent = {}
    for model in (Masked(gradient), small_net(3)):
        goal = Untargeted(model(x).argmax(dim=1))
        found = {}
        for attack in (budget, replace(budget, misled=1e9)):
            x_adv, access = attacked(attack, model, x, goal, threat)
            found[attack.misled] = goal.achieved(model(x_adv))
            spent[type(model), attack.misled] = access.ledger.forwards[~found[attack.misled]]
        if isinstance(model, Masked):
            assert found[0.8].sum() >= found[1e9].sum() + 2
            assert (found[0.8] | ~found[1e9]).all()
    assert (spent[Masked, 0.8] > 1500).double().mean() >= 0.8
    assert (spent[Masked, 1e9] < 700).double().mean() >= 0.8  # all but those that gradients did not move at all
    assert (spent[nn.Sequential, 0.8] < 700).all()


def test_an_example_costs_and_gets_what_it_does_alone():
    model, x = small_net(5), images(10)
    y, threat = model(x).argmax(dim=1), ThreatModel("linf", RADII["linf"])
    y[3] = (y[3] + 1) % 5
    whole, access = attacked(SMALL, model, x, Untargeted(y), threat)
    assert access.ledger.forwards[3] == 1
    for row in range(10):
        one = torch.tensor([row])
        alone, own = attacked(SMALL, model, x[one], Untargeted(y[one]), threat, index=one)
        torch.testing.assert_close(alone, whole[one], rtol=0, atol=1e-9)
        assert own.ledger.forwards == access.ledger.forwards[row]
        assert own.ledger.backwards == access.ledger.backwards[row]


@pytest.mark.parametrize(("classes", "targets"), [(2, 1), (3, 2), (6, 3)])
def test_an_example_far_from_breaking_gets_the_short_runs_alone(classes, targets):
    model, x = small_net(classes), images(8)
    goal = Untargeted(model(x).argmax(dim=1))
    x_adv, access = attacked(SMALL, model, x, goal, ThreatModel("linf", 1e-6))
    assert not goal.achieved(model(x_adv)).any()
    assert access.ledger.forwards.tolist() == [short_count(SMALL, targets)] * 8
    assert access.ledger.backwards.tolist() == [SMALL.steps * (3 + 2 * targets)] * 8


def test_without_a_stop_broken_examples_go_through_everything():
    model, x = small_net(6), images(8)
    goal, threat = Untargeted(model(x).argmax(dim=1)), ThreatModel("l2", 2.0)
    stopped, _ = attacked(SMALL, model, x, goal, threat)
    never, access = attacked(Auto(steps=10, long_steps=20, queries=200, survey=50, stop="never"), model, x, goal, threat)
    assert goal.achieved(model(stopped)).all()
    longer = 3 * (2 * 20 + 1) + 21 + (200 - 50) + 2 * 11
    assert access.ledger.forwards.tolist() == [short_count(SMALL, 3) + longer] * 8
    assert (margin(model(never), goal) > margin(model(stopped), goal)).all()
    single, _ = attacked(APGD(steps=10, stop="never"), model, x, goal, threat)
    assert margin(model(never), goal).mean() > margin(model(single), goal).mean()


class Noisy(nn.Module):
    """Two logits with noise: any example is wrong in some draws."""

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        mean = x.flatten(1).mean(dim=1, keepdim=True)
        return torch.cat((0.5 - mean, mean - 0.5), dim=1) + 0.5 * rng.normal((2,), x.dtype)


def test_a_lucky_draw_ends_nothing():
    x, goal = images(6), Untargeted(torch.zeros(6, dtype=torch.int64))
    _, access = attacked(SMALL, Noisy(), x, goal, ThreatModel("linf", 0.1), stochastic=True, draws=2)
    assert (access.ledger.forwards >= 2 * short_count(SMALL, 1)).all()


@pytest.mark.parametrize(
    "field", ["steps", "long_steps", "targets", "near", "queries", "survey", "misled", "all_targets", "all_queries"]
)
def test_numbers_are_checked(field):
    with pytest.raises(ValueError, match=f"Expected `{field}` > 0"):
        Auto(**{field: 0})
