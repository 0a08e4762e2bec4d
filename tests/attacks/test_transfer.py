from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks import balls
from advbench.attacks.access import DecisionBased, ScoreBased, WhiteBox
from advbench.attacks.deepfool import DeepFool
from advbench.attacks.fgm import FGM
from advbench.attacks.pgd import PGD
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel, Untargeted
from advbench.attacks.transfer import Stretched, for_transfer

SHAPE = (1, 3, 4)


@dataclass(frozen=True)
class Fixed:
    """A minimal-norm attack that always finds the same perturbation."""

    delta: float = 0.01

    norms: ClassVar[frozenset[str]] = frozenset({"linf", "l2", "l1", "l0"})
    minimal_norm: ClassVar[bool] = True
    knowledge: ClassVar[type] = ScoreBased
    targeted: ClassVar[bool] = True

    def __call__(self, access: object, x: Tensor, goal: object, threat: ThreatModel, rng: ExampleRNG) -> Tensor:
        return (x + self.delta).clamp(0, 1)


class Bump(nn.Module):
    """Class 1 near a mean brightness, class 0 on both sides of it."""

    def __init__(self, centre: float, width: float) -> None:
        super().__init__()
        self.centre, self.width = centre, width

    def forward(self, x: Tensor) -> Tensor:
        off = (x.flatten(1).mean(dim=1) - self.centre).abs()
        return torch.stack((off, torch.full_like(off, self.width)), dim=1)


def grey(*levels: float) -> Tensor:
    return torch.tensor(levels, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, *SHAPE).contiguous()


def rng(n: int) -> ExampleRNG:
    return ExampleRNG.make(0, "attack", torch.arange(n))


def zeros(n: int) -> Untargeted:
    return Untargeted(torch.zeros(n, dtype=torch.int64))


def test_attacks_are_told_never_to_stop_and_minimal_ones_are_stretched():
    assert for_transfer(PGD(steps=3)) == PGD(steps=3, stop="never")
    assert for_transfer(FGM()) == FGM()
    stretched = for_transfer(DeepFool(steps=3))
    assert stretched == Stretched(DeepFool(steps=3))
    assert not stretched.minimal_norm
    assert stretched.norms == DeepFool.norms
    assert stretched.knowledge is WhiteBox
    assert not stretched.targeted
    assert for_transfer(stretched) == stretched


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_perturbations_are_stretched_to_the_sphere(norm):
    x = grey(0.3, 0.5)
    threat = ThreatModel(norm, 0.2)
    with ScoreBased(Bump(0.9, 0.01), rng(2)) as access:  # far from the bump the loss grows towards it
        found = Stretched(Fixed(0.001))(access, x, zeros(2), threat, rng(2))
    length = balls.distance(found - x, norm)
    torch.testing.assert_close(length, torch.full_like(length, 0.2))
    assert (found > x).all()


def test_a_success_within_the_budget_is_kept_where_stretching_loses_it():
    x = grey(0.3, 0.3)
    threat = ThreatModel("linf", 0.2)
    with ScoreBased(Bump(0.35, 0.02), rng(2)) as access:
        found = Stretched(Fixed(0.05))(access, x, zeros(2), threat, rng(2))
    torch.testing.assert_close(found, x + 0.05)


def test_perturbations_beyond_the_budget_are_shortened():
    x = grey(0.3, 0.3)
    threat = ThreatModel("linf", 0.02)
    with ScoreBased(Bump(0.35, 0.02), rng(2)) as access:
        found = Stretched(Fixed(0.05))(access, x, zeros(2), threat, rng(2))
    torch.testing.assert_close(found, x + 0.02)


def test_examples_that_were_left_alone_are_moved_too(linear):
    w = torch.arange(-5.5, 6.0, dtype=torch.float64).view(*SHAPE)
    model = linear(torch.stack((w, 0 * w)), torch.tensor([-1e3, 0.0], dtype=torch.float64))  # wrong everywhere
    x = grey(0.4, 0.6)
    for norm in ("linf", "l2"):
        threat = ThreatModel(norm, 0.1)
        with WhiteBox(model, rng(2)) as access:
            assert torch.equal(DeepFool()(access, x, zeros(2), threat, rng(2)), x)
            found = for_transfer(DeepFool())(access, x, zeros(2), threat, rng(2))
        direction = -w.sign() if norm == "linf" else -w / w.norm()
        torch.testing.assert_close(found, x + 0.1 * direction)
    with ScoreBased(model, rng(2)) as access:
        blind = Stretched(Fixed(0.0))(access, x, zeros(2), ThreatModel("l2", 0.1), rng(2))
    torch.testing.assert_close(balls.distance(blind - x, "l2"), torch.full((2,), 0.1, dtype=x.dtype))


def test_other_knowledge_and_other_threats():
    x = grey(0.3, 0.5)
    with DecisionBased(Bump(0.9, 0.01), rng(2)) as access:
        found = Stretched(Fixed(0.001))(access, x, zeros(2), ThreatModel("linf", 0.2), rng(2))
        torch.testing.assert_close(found, x + 0.2)
        assert access.ledger.queries.tolist() == [0, 0]
    with ScoreBased(Bump(0.9, 0.01), rng(2)) as access:
        unbound = Stretched(Fixed(0.001))(access, x, zeros(2), ThreatModel("l2", None), rng(2))
        torch.testing.assert_close(unbound, x + 0.001)
        sparse = Stretched(Fixed(0.1))(access, x, zeros(2), ThreatModel("l0", 3), rng(2))
        assert balls.distance(sparse - x, "l0").tolist() == [3, 3]
