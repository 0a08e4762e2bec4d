"""What attacks declare: every cost against the ledger, and what holds for an attack that declares nothing."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks import ATTACKS
from advbench.attacks.access import DecisionBased, ScoreBased, WhiteBox
from advbench.attacks.auto import Auto
from advbench.attacks.capabilities import (
    ASCENT,
    DECISIONS,
    MINIMAL_NORM,
    NOISE,
    ONE_STEP,
    SCORES,
    Calibrated,
    Grouped,
    Passes,
    Priced,
    Shortened,
    cut,
    family_of,
    need_of,
    passes_of,
    short_of,
    with_stop,
)
from advbench.attacks.ensemble import named
from advbench.attacks.pgd import PGD
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel, Untargeted
from advbench.attacks.transfer import for_transfer
from advbench.conformance import EPSILON, SHAPE, shortened
from advbench.registry.specs import Spec
from advbench.results import flags

TOLERANCE = 0.01
"""How far the counted passes may be from the declared ones, as a share of these."""
CLASSES = 5


class Unbreakable(nn.Module):
    """A network whose first logit leads by 50, far above what the others reach: it has gradients, and no errors."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first, self.last = nn.Linear(math.prod(SHAPE), 16).double(), nn.Linear(16, CLASSES).double()
        for parameter in self.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, CLASSES)."""
        logits: Tensor = self.last(self.first(x.flatten(1)).tanh())
        return logits + 50 * nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), CLASSES)


def images() -> Tensor:
    """Three images, float64."""
    return torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def spent(attack: Any, threat: ThreatModel) -> Passes:
    """What an attack takes for each of three examples that it does not break: equal for all, or the most."""
    x = images()
    rng, goal = ExampleRNG.make(0, "attack", torch.arange(len(x))), Untargeted(torch.zeros(len(x), dtype=torch.int64))
    model = Unbreakable()
    with attack.knowledge(model, rng.fork("model")) as access:
        x_adv = attack(access, x, goal, threat, rng.fork("attack"))
    assert not goal.achieved(model(x_adv)).any()
    return Passes(float(access.ledger.forwards.max()), float(access.ledger.backwards.max()))


CELLS = [(name, norm) for name in ATTACKS for norm in sorted(named(name).norms)]


@pytest.mark.parametrize(("name", "norm"), CELLS)
@pytest.mark.parametrize("transfer", [False, True])
def test_a_declared_cost_is_what_the_ledger_counts(name, norm, transfer):
    if transfer and norm == "none":
        pytest.skip("no budget to spend")
    attack = shortened(Spec(name))
    assert isinstance(attack, Priced)
    attack = for_transfer(attack) if transfer else attack
    threat = ThreatModel(norm, None if attack.minimal_norm else EPSILON[norm])
    declared, counted = attack.passes(threat, CLASSES), spent(attack, threat)
    for said, found in ((declared.forwards, counted.forwards), (declared.backwards, counted.backwards)):
        assert found <= (1 + TOLERANCE) * said
        assert declared.at_most or found >= (1 - TOLERANCE) * said


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_declares_its_family_and_a_setting_that_costs_less(name):
    attack = named(name)
    assert isinstance(attack, Grouped)
    assert isinstance(attack, Shortened)
    threat = ThreatModel(min(attack.norms), None if attack.minimal_norm or "none" in attack.norms else 0.1)
    whole, short = (passes_of(each, threat, CLASSES) for each in (attack, attack.short()))
    assert type(attack.short()) is type(attack)
    assert short.forwards <= min(whole.forwards, 1000)
    assert short.forwards < whole.forwards or whole.forwards == 1


def test_an_ensemble_that_never_stops_costs_all_that_it_declares_at_most():
    """Every image is an error from the outset, and so near to everything that `auto` leaves no part out."""
    attack, threat, x = Auto(steps=8, long_steps=9, queries=160, survey=20, stop="never"), ThreatModel("linf", 0.1), images()
    rng, wrong = ExampleRNG.make(0, "attack", torch.arange(len(x))), Untargeted(torch.ones(len(x), dtype=torch.int64))
    with WhiteBox(Unbreakable(), rng.fork("model")) as access:
        attack(access, x, wrong, threat, rng.fork("attack"))
    declared = attack.passes(threat, CLASSES)
    assert access.ledger.forwards.tolist() == [declared.forwards] * len(x)
    assert access.ledger.backwards.tolist() == [declared.backwards] * len(x)


def test_older_records_have_the_families_that_attacks_declare():
    assert (flags.NOISE, flags.ONE_STEP, flags.SCORES, flags.DECISIONS) == (NOISE, ONE_STEP, SCORES, DECISIONS)
    told = {name: family_of(named(name)) for name in ATTACKS}
    assert {
        name: family for name, family in told.items() if family in (NOISE, ONE_STEP, SCORES, DECISIONS)
    } == flags.FAMILIES


def test_passes_add_and_multiply():
    assert (Passes(2, 1) + Passes(3, at_most=True)) * 2 == Passes(10, 2, at_most=True)


@dataclass(frozen=True)
class Plain:
    """A plug-in that declares nothing beyond what every attack has."""

    steps: int = 50
    restarts: int = 3
    queries: int | None = None
    shape: str = "square"
    norms = frozenset({"l2"})
    minimal_norm = False
    knowledge = WhiteBox
    targeted = False

    def __call__(self, access: WhiteBox, x: Tensor, goal: Untargeted, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        """The images as they are."""
        return x.clone()


def test_what_holds_for_a_plug_in_that_declares_nothing():
    threat = ThreatModel("l2", 1.0)
    assert passes_of(Plain(), threat, 10) == Passes(151, 150)
    assert short_of(Plain()) == Plain(steps=6, restarts=2, queries=40)
    assert family_of(Plain()) == ASCENT
    assert need_of(Plain()) is None
    assert not isinstance(Plain(), Calibrated)
    assert with_stop(Plain(), "never") == Plain()


def test_a_plug_in_s_cost_is_guessed_through_what_it_wraps_and_what_it_is_made_of():
    threat = ThreatModel("l2", 1.0)

    class Wrapper:
        attack = Plain()

    class List:
        def components(self, threat: ThreatModel) -> list[Any]:
            assert threat.norm == "l2"
            return [Plain(), PGD(steps=9, stop="never")]

    class Strange:
        steps = "many"
        targets = (1, 2)

    assert passes_of(Wrapper(), threat, 10) == Passes(151, 150)
    assert passes_of(List(), threat, 10) == Passes(151 + 10, 150 + 9)
    assert passes_of(Strange(), threat, 10).forwards == 2


@pytest.mark.parametrize(
    ("changes", "family"),
    [
        ({"minimal_norm": True}, MINIMAL_NORM),
        ({"knowledge": ScoreBased}, SCORES),
        ({"knowledge": DecisionBased, "minimal_norm": True}, DECISIONS),
    ],
)
def test_a_family_follows_from_the_access_and_the_goal(changes, family):
    other = type("Other", (Plain,), changes)
    assert family_of(other()) == family


def test_a_stop_is_set_where_there_is_a_field_for_it():
    assert with_stop(PGD(), "never") == PGD(stop="never")
    assert cut(PGD(steps=3), steps=6, queries=4) == PGD(steps=3)
    assert dataclasses.replace(PGD(), steps=6, restarts=1) == short_of(PGD())
