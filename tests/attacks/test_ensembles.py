from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks import ATTACKS, balls
from advbench.attacks.access import DecisionBased, ScoreBased, WhiteBox
from advbench.attacks.apgd import APGD, APGDDLR, APGDT
from advbench.attacks.autoattack import AutoAttack, AutoAttackRand
from advbench.attacks.ensemble import WorstCase, named, worst_case
from advbench.attacks.fab import FAB, FABT
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.square import Square
from advbench.attacks.threat import ThreatModel, Untargeted

RADII = {"linf": 0.05, "l2": 0.25, "l1": 0.8}
SMALL = AutoAttack(steps=8, queries=25)


def rng(index: Tensor) -> ExampleRNG:
    return ExampleRNG.make(0, "attack", index)


def images(n: int, side: int = 4) -> Tensor:
    """Images, the first all black, the second all white, others with values on the faces of the box; float64."""
    x = torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = (1.5 * x - 0.25).clamp(0, 1)
    x[0:1], x[1:2] = 0, 1
    return x


def small_net(classes: int) -> nn.Module:
    torch.manual_seed(classes)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, classes)).double()
    for parameter in net.parameters():
        parameter.data *= 2
    return net


def attacked(attack: Any, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, index: Tensor | None = None):
    index = torch.arange(len(x)) if index is None else index
    with attack.knowledge(model, rng(index).fork("model")) as access:
        return attack(access, x, Untargeted(y), threat, rng(index)), access


def broken(model: nn.Module, x_adv: Tensor, y: Tensor) -> Tensor:
    return model(x_adv).argmax(dim=1) != y


@dataclass(frozen=True)
class Shift:
    """Adds a number to every value of the examples with an even or an odd index."""

    by: float
    parity: int
    minimal_norm: bool = False

    norms: ClassVar[frozenset[str]] = frozenset({"linf"})
    knowledge: ClassVar[type] = WhiteBox
    targeted: ClassVar[bool] = True

    def __call__(self, access: WhiteBox, x: Tensor, goal: Any, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        access.loss_gradient(x, goal, lambda logits, goal: logits[:, 0])
        return x + self.by * (access.index % 2 == self.parity).to(x.dtype).view(-1, 1, 1, 1)


class Step(nn.Module):
    """Label 1 where the mean is above 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(dim=1)
        return torch.stack((0.5 - mean, mean - 0.5), dim=1)


def test_each_attack_sees_what_withstood_those_before():
    x, y = torch.full((5, 1, 2, 2), 0.45, dtype=torch.float64), torch.tensor([0, 0, 0, 0, 1])
    with WhiteBox(Step(), rng(torch.arange(5))) as access:
        attacks = [Shift(0.1, parity=0), Shift(0.1, parity=1), Shift(0.1, parity=1)]
        x_adv = worst_case(attacks, access, x, Untargeted(y), ThreatModel("linf", 0.2), access.rng)
    assert access.ledger.backwards.tolist() == [1, 2, 1, 2, 0]  # the last one is already misclassified
    assert access.ledger.forwards.tolist() == [3, 5, 3, 5, 1]
    torch.testing.assert_close(x_adv[:4], x[:4] + 0.1)
    assert torch.equal(x_adv[4], x[4])


def test_never_stopping_attacks_all_and_keeps_the_highest_margin():
    x, y = torch.full((3, 1, 2, 2), 0.45, dtype=torch.float64), torch.tensor([0, 0, 1])
    with WhiteBox(Step(), rng(torch.arange(3))) as access:
        attacks = [Shift(0.15, 0), Shift(0.1, 0), Shift(-0.2, 0), Shift(0.1, 1)]
        x_adv = worst_case(attacks, access, x, Untargeted(y), ThreatModel("linf", 0.3), access.rng, "never")
    assert access.ledger.backwards.tolist() == [4, 4, 4]
    torch.testing.assert_close(x_adv.flatten(1)[:, 0], torch.tensor([0.6, 0.55, 0.25], dtype=torch.float64))


def test_a_minimal_norm_attack_counts_within_the_budget_only():
    x, y = torch.full((2, 1, 2, 2), 0.45, dtype=torch.float64), torch.tensor([0, 0])
    threat = ThreatModel("linf", 0.03)
    with WhiteBox(Step(), rng(torch.arange(2))) as access:
        x_adv = worst_case([Shift(0.1, 0, minimal_norm=True)], access, x, Untargeted(y), threat, access.rng)
        assert not broken(Step(), x_adv, y).any()
        assert not balls.violations(x_adv, x, threat).any()
        with pytest.raises(ValueError, match=r"Expected images inside .*Shift.*1 of 2 outside"):
            worst_case([Shift(0.1, 0)], access, x, Untargeted(y), threat, access.rng)
        with pytest.raises(ValueError, match="2 of 2 outside"):
            worst_case([Shift(torch.nan, 0, minimal_norm=True)], access, x, Untargeted(y), threat, access.rng)


@pytest.mark.parametrize("norm", RADII)
def test_the_order_changes_no_verdict(norm):
    model, x = small_net(4), images(16)
    y, threat = model(x).argmax(dim=1), ThreatModel(norm, RADII[norm] * 0.8)
    attacks, verdicts = ["apgd-ce(steps=3)", "fab-t(steps=3)", "square(queries=20)", "apgd-ce(steps=3)"], []
    for order in (attacks, attacks[::-1]):
        x_adv, _ = attacked(WorstCase(attacks=tuple(order)), model, x, y, threat)
        verdicts.append(broken(model, x_adv, y))
    single = [broken(model, attacked(WorstCase(attacks=(one,)), model, x, y, threat)[0], y) for one in attacks]
    assert torch.equal(verdicts[0], verdicts[1])
    assert (verdicts[0] >= torch.stack(single).any(dim=0)).all()
    assert 0 < verdicts[0].sum() < 16


def test_autoattack_is_the_standard_version():
    for norm in ("linf", "l2"):
        assert AutoAttack().components(ThreatModel(norm, 1)) == [
            APGD(steps=100, restarts=1, loss="cross-entropy", targets=0, momentum=0.75, rho=0.75),
            APGDT(steps=100, restarts=1, loss="dlr", targets=9, momentum=0.75, rho=0.75),
            FABT(steps=100, eta=1.05, alpha_max=0.1, beta=0.9, targets=9),
            Square(queries=5000, p_init=0.8, rescale=False),
        ]
    assert AutoAttack().components(ThreatModel("l1", 1)) == [
        APGD(steps=100, restarts=5, loss="cross-entropy"),
        APGDT(steps=100, restarts=1, loss="dlr", targets=5),
        FABT(steps=100, targets=9),
        Square(queries=5000, rescale=False),
    ]
    assert AutoAttackRand() == AutoAttackRand(steps=100, draws=20)


@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("classes", [2, 3, 5, 100])
def test_any_number_of_classes(classes, norm):
    """Every part runs: an example that withstands all of them has paid for all of them."""
    model, x = small_net(classes), images(8)
    y = model(x).argmax(dim=1)
    x_adv, access = attacked(SMALL, model, x, y, ThreatModel(norm, 1e-7))
    targets, sparse = min(9, classes - 1), norm == "l1"
    run = 11 if sparse else 9
    expected = 1 + (1 + (5 if sparse else 1) * run + 1) + (1 + min(5 if sparse else 9, targets) * run + 1)
    expected += (1 + 16 * targets + 1) + (1 + 25 + 1)
    whole = ~broken(model, x_adv, y)
    assert whole.any()
    assert (access.ledger.forwards[whole] == expected).all()
    wide, _ = attacked(SMALL, model, x, y, ThreatModel(norm, RADII[norm] * 4))
    assert broken(model, wide, y).float().mean() > 0.5


EVERY = [
    APGD(steps=8, restarts=2),
    APGDDLR(steps=8),
    APGDT(steps=5),
    FAB(steps=5),
    FABT(steps=5),
    Square(queries=25),
    SMALL,
    WorstCase(attacks=("pgd(steps=3)", "square(queries=5)", "fab(steps=3)")),
]


@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("attack", EVERY, ids=lambda attack: type(attack).__name__)
def test_an_example_does_not_depend_on_its_batch(attack, norm):
    model, x = small_net(5), images(9)
    y, threat = model(x).argmax(dim=1), ThreatModel(norm, RADII[norm])
    y[3] = (y[3] + 1) % 5
    whole, _ = attacked(attack, model, x, y, threat)
    order = torch.tensor([7, 2, 8, 0, 4, 1, 6, 3, 5])
    parts = ([[row] for row in range(9)], [list(range(7)), [7, 8]], [order.tolist()])
    for rows in parts:
        for part in map(torch.tensor, rows):
            found, _ = attacked(attack, model, x[part], y[part], threat, index=part)
            torch.testing.assert_close(found, whole[part], rtol=0, atol=1e-9)
    assert attacked(attack, model, x[:0], y[:0], threat)[0].shape == (0, 1, 4, 4)


@pytest.mark.parametrize("attack", EVERY, ids=lambda attack: type(attack).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_keep_their_type_and_place(attack, dtype):
    model, x = small_net(5).to(dtype), images(6).to(dtype)
    y, before = model(x).argmax(dim=1), x.clone()
    for norm, radius in RADII.items():
        threat = ThreatModel(norm, radius)
        x_adv, _ = attacked(attack, model, x, y, threat)
        assert x_adv.dtype == dtype
        assert torch.equal(x, before)
        assert not balls.violations(x_adv, x, ThreatModel(norm, None) if attack.minimal_norm else threat).any()


class Noisy(nn.Module):
    """Three logits with noise drawn for each example."""

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        mean = x.flatten(1).mean(dim=1, keepdim=True)
        return torch.cat((-mean, mean - 1, mean * 0 - 0.6), dim=1) + 0.2 * rng.normal((3,), x.dtype)


def test_the_rand_version_averages_twenty_draws():
    x, index = images(4), torch.arange(4)
    y = torch.zeros(4, dtype=torch.int64)
    with WhiteBox(Noisy(), rng(index), stochastic=True, draws=3) as access:
        x_adv = AutoAttackRand(steps=5)(access, x, Untargeted(y), ThreatModel("linf", 0.1), rng(index))
    contenders = 4
    looks = 1 + 2 * (1 + 6 + contenders + 1) + contenders
    assert access.ledger.forwards.tolist() == [20 * looks] * 4
    assert access.ledger.backwards.tolist() == [20 * 2 * 5] * 4
    assert not balls.violations(x_adv, x, ThreatModel("linf", 0.1)).any()
    assert (x_adv.flatten(1).mean(dim=1) >= x.flatten(1).mean(dim=1)).all()


@pytest.mark.parametrize("more", [{}, {"minimal": True}])
def test_draws_that_are_given_take_the_place_of_the_access_own(more):
    x, index = images(4), torch.arange(4)
    y = torch.zeros(4, dtype=torch.int64)
    attacks = ("fmn(steps=3)",) if more else ("pgd(steps=5)", "square(queries=4)")
    found = []
    for own, given in ((3, 7), (7, None), (3, None)):
        attack = WorstCase(attacks=attacks, draws=given, **more)
        with WhiteBox(Noisy(), rng(index), stochastic=True, draws=own) as access:
            x_adv = attack(access, x, Untargeted(y), ThreatModel("linf", 0.1), rng(index))
        found.append((x_adv, access.ledger.forwards, access.ledger.backwards))
    given, same, other = found
    assert all(torch.equal(one, two) for one, two in zip(given, same, strict=True))
    assert given[2].sum() * 3 == other[2].sum() * 7 > 0
    model = small_net(3)
    asked = [
        attacked(WorstCase(attacks=attacks, draws=draws, **more), model, x, y, ThreatModel("linf", 0.1))
        for draws in (None, 9)
    ]
    assert torch.equal(asked[0][0], asked[1][0])
    assert torch.equal(asked[0][1].ledger.forwards, asked[1][1].ledger.forwards)


def test_draws_below_one_are_refused():
    with pytest.raises(ValueError, match="Expected `draws` >= 1, got 0"):
        WorstCase(attacks=("pgd",), draws=0)


def test_a_worst_case_is_what_its_parts_are():
    both = WorstCase(attacks=("square", "uniform-noise"))
    assert both.knowledge is ScoreBased
    mixed = WorstCase(attacks=("deepfool", "square"), stop="never")
    assert mixed.knowledge is WhiteBox
    assert mixed.norms == frozenset({"linf", "l2"})
    assert not mixed.targeted
    assert mixed.components[1] == Square(stop="never")
    assert named("square(queries=7, rescale=False)") == Square(queries=7, rescale=False)
    assert named("apgd-t") == APGDT()


@pytest.mark.parametrize(
    ("attacks", "message"),
    [
        ((), "list of one attack or more"),
        ("square", "list of one attack or more"),
        (("sqare",), "Expected one of advbench's attacks"),
        (("square(5)",), r"Expected name\(key=value"),
        (("square(queries=",), r"Expected name\(key=value"),
        (("square(queries=open)",), r"Expected name\(key=value"),
        (("square(steps=3)",), "unexpected keyword"),
        (("square(queries=0)",), "Expected `queries` > 0"),
    ],
)
def test_bad_lists_are_named(attacks, message):
    with pytest.raises(ValueError, match=message):
        WorstCase(attacks=attacks)


def test_attacks_on_labels_do_not_fit(monkeypatch):
    monkeypatch.setattr(Square, "knowledge", DecisionBased)
    with pytest.raises(ValueError, match="knows labels"):
        WorstCase(attacks=("square",))


def test_every_name_is_registered():
    for name in ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square", "autoattack", "autoattack-rand", "worst-case"):
        assert name in ATTACKS
        assert named(name).norms == frozenset({"linf", "l2", "l1"})
