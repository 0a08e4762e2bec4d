"""The worst case by measured yield per cost, and the nearest case: what they cost, and that no verdict depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from advbench.attacks import balls
from advbench.attacks.access import WhiteBox
from advbench.attacks.calibration import HeldOut, calibrate
from advbench.attacks.capabilities import Need, need_of
from advbench.attacks.ensemble import Ensemble, WorstCase, by_yield, nearest_case
from advbench.attacks.lbfgs import LBFGS
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel, Untargeted

MEMBERS = ("fab-t(steps=3)", "pgd(steps=4)", "square(queries=20)")
LINF = ThreatModel("linf", 0.2)


def total(order: tuple[int, ...] | list[int], broken: Tensor, passes: Tensor) -> int:
    """What attacks in this order spend on all examples."""
    left, spent = torch.ones_like(broken[0]), 0
    for attack in order:
        spent += int(passes[attack][left].sum())
        left &= ~broken[attack]
    return spent


def test_the_order_is_by_examples_per_pass_on_what_is_left():
    broken = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]]).bool()
    passes = torch.tensor([[10] * 6, [1] * 6, [7] * 6, [1] * 6])
    # The second breaks 2 in 6 passes, the first 4 in 60; then the first 2 in 40 and the third 1 in 28; nothing comes last.
    assert by_yield(broken, passes) == [1, 0, 2, 3]
    assert by_yield(broken[:, :2], passes[:, :2]) == [1, 0, 2, 3]
    assert by_yield(torch.zeros(3, 4, dtype=torch.bool), torch.ones(3, 4)) == [0, 1, 2]
    assert by_yield(torch.zeros(2, 0, dtype=torch.bool), torch.zeros(2, 0)) == [0, 1]
    # Alike alone, but one is nested in the other: what is left decides.
    nested = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]]).bool()
    assert by_yield(nested, torch.tensor([[2] * 4, [2] * 4, [2] * 4])) == [0, 2, 1]


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 12))
def test_every_order_is_a_permutation_and_the_greedy_one_is_never_the_dearest(seed, attacks, n):
    generator = torch.Generator().manual_seed(seed)
    broken = torch.rand(attacks, n, generator=generator) < 0.4
    passes = torch.randint(1, 50, (attacks, n), generator=generator)
    order = by_yield(broken, passes)
    assert sorted(order) == list(range(attacks))
    dearest = max(total(other, broken, passes) for other in permutations(range(attacks)))
    assert total(order, broken, passes) <= dearest


def net() -> nn.Module:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 4)).double()
    for parameter in model.parameters():
        parameter.data *= 2
    return model


def images(n: int, seed: int) -> Tensor:
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def held_out(model: nn.Module, threat: ThreatModel = LINF) -> HeldOut:
    x = images(40, 8)
    y = model(x).argmax(dim=1)
    y[:5] = (y[:5] + 1) % 4
    return HeldOut(x=x, y=y, index=torch.arange(40), threat=threat, model=model, batch=16)


def attacked(attack: Any, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel = LINF) -> tuple[Tensor, int]:
    """The images, and the passes that were spent."""
    rng = ExampleRNG.make(0, "attack", torch.arange(len(x)))
    with attack.knowledge(model, rng.fork("model")) as access:
        x_adv = attack(access, x, Untargeted(y), threat, rng)
    return x_adv, int(access.ledger.forwards.sum() + access.ledger.backwards.sum())


def test_a_measured_order_is_cheaper_and_changes_no_verdict():
    model, x = net(), images(60, 1)
    y = model(x).argmax(dim=1)
    measured = WorstCase(attacks=MEMBERS).calibrate(held_out(model))["order"].tolist()
    listed = WorstCase(attacks=tuple(MEMBERS[position] for position in reversed(measured)))
    assert listed.need == Need("validation", model=True)
    ordered = calibrate(listed, held_out(model))
    assert isinstance(ordered, Ensemble)
    assert list(ordered.members) == [listed.components[position] for position in (2, 1, 0)]
    found, cost = attacked(ordered, model, x, y)
    given_order, dear = attacked(listed, model, x, y)
    broken, also = (model(one).argmax(dim=1) != y for one in (found, given_order))
    assert torch.equal(broken, also)
    assert 0 < broken.sum() < 60
    assert cost < dear
    alone = [model(attacked(WorstCase(attacks=(one,)), model, x, y)[0]).argmax(dim=1) != y for one in MEMBERS]
    assert torch.equal(broken, torch.stack(alone).any(dim=0))


def test_the_order_is_the_same_in_every_batch_and_ignores_the_wrong_from_the_outset():
    model = net()
    data = held_out(model)
    wide, narrow = (WorstCase(attacks=MEMBERS).calibrate(HeldOut(**{**fields(data), "batch": batch})) for batch in (64, 3))
    assert torch.equal(wide["order"], narrow["order"])
    only_wrong = {**fields(data), "y": (model(data.x).argmax(dim=1) + 1) % 4}
    assert WorstCase(attacks=MEMBERS).calibrate(HeldOut(**only_wrong))["order"].tolist() == [0, 1, 2]


def fields(data: HeldOut) -> dict[str, Any]:
    return {name: getattr(data, name) for name in ("x", "y", "index", "threat", "model", "batch")}


def test_nothing_is_measured_where_the_order_has_no_effect():
    for changes in ({"order": "given"}, {"stop": "never"}, {"attacks": ("pgd",)}):
        assert need_of(WorstCase(**({"attacks": MEMBERS} | changes))) is None
    open_member = WorstCase(attacks=("deepfool", "lbfgs(steps=20)"), order="given")
    assert need_of(open_member) == Need("validation", model=True)
    found = calibrate(open_member, held_out(net(), ThreatModel("l2", 0.5)))
    assert [type(member).__name__ for member in found.members] == ["DeepFool", "LBFGS"]
    assert isinstance(found.members[1], LBFGS)
    assert found.members[1].c == calibrate(LBFGS(steps=20), held_out(net(), ThreatModel("l2", 0.5))).c


@dataclass(frozen=True)
class Towards:
    """Moves examples of one parity to a mean of `mean`."""

    mean: float
    parity: int

    norms: ClassVar[frozenset[str]] = frozenset({"linf"})
    minimal_norm: ClassVar[bool] = True
    knowledge: ClassVar[type] = WhiteBox
    targeted: ClassVar[bool] = True

    def __call__(self, access: WhiteBox, x: Tensor, goal: Any, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        access.loss_gradient(x, goal, lambda logits, goal: logits[:, 0])
        chosen = (access.index % 2 == self.parity).view(-1, 1, 1, 1)
        return torch.where(chosen, torch.full_like(x, self.mean), x)


class Step(nn.Module):
    """Label 1 where the mean is above 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(dim=1)
        return torch.stack((0.5 - mean, mean - 0.5), dim=1)


def test_the_nearest_of_all_is_kept_and_all_attack_everyone_but_the_wrong():
    x, y = torch.full((4, 1, 2, 2), 0.4, dtype=torch.float64), torch.tensor([0, 0, 0, 1])
    rng = ExampleRNG.make(0, "attack", torch.arange(4))
    members = [Towards(0.8, 0), Towards(0.6, 0), Towards(0.7, 0), Towards(0.45, 1)]
    with WhiteBox(Step(), rng) as access:
        x_adv = nearest_case(members, access, x, Untargeted(y), ThreatModel("linf", None), rng)
    assert access.ledger.backwards.tolist() == [4, 4, 4, 0]
    assert access.ledger.forwards.tolist() == [9, 9, 9, 1]
    # Nobody breaks the second; the last is wrong as it is.
    expected = torch.tensor([0.6, 0.45, 0.6, 0.4], dtype=torch.float64)
    torch.testing.assert_close(x_adv.flatten(1)[:, 0], expected)


def test_a_minimal_worst_case_is_the_nearest_of_its_members():
    model, x = net(), images(30, 1)
    y, threat = model(x).argmax(dim=1), ThreatModel("l2", None)
    attacks = ("ddn(steps=8)", "deepfool(steps=5)", "fmn(steps=8)")
    both = WorstCase(attacks=attacks, minimal=True)
    assert both.minimal_norm
    assert need_of(both) is None
    single = [attacked(WorstCase(attacks=(one,), minimal=True), model, x, y, threat)[0] for one in attacks]
    lengths = torch.stack([balls.distance(one - x, "l2").where(model(one).argmax(1) != y, torch.inf) for one in single])
    found, _ = attacked(both, model, x, y, threat)
    broken = model(found).argmax(dim=1) != y
    torch.testing.assert_close(balls.distance(found - x, "l2").where(broken, torch.inf), lengths.amin(dim=0))
    assert len(set(lengths.argmin(dim=0).tolist())) > 1
    with pytest.raises(ValueError, match="Expected minimal-norm attacks where `minimal` is set, got 'pgd'"):
        WorstCase(attacks=("ddn", "pgd"), minimal=True)
    with pytest.raises(ValueError, match="Expected `order` to be measured or given"):
        WorstCase(order="random")
