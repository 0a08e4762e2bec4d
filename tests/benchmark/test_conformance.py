"""Every check fires on an attack that was built to deserve it, and on no honest one."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from advbench import conformance
from advbench.attacks import balls
from advbench.attacks.access import Access, WhiteBox
from advbench.attacks.pgd import PGD
from advbench.attacks.threat import cross_entropy
from advbench.conformance import CHECKS, Broken, Inapplicable, Verdict, examine
from advbench.registry.specs import Spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Climb:
    """An honest attack: a few gradient steps in linf."""

    norms: ClassVar[frozenset[str]] = frozenset({"linf"})
    minimal_norm: ClassVar[bool] = False
    knowledge: ClassVar[type[Access]] = WhiteBox
    targeted: ClassVar[bool] = False
    loss: ClassVar[Any] = staticmethod(cross_entropy)

    def __call__(self, access: WhiteBox, x: Tensor, goal: Any, threat: Any, rng: Any) -> Tensor:
        x_adv = x.clone()
        for _ in range(4):
            gradient = access.loss_gradient(self.before(x_adv), goal, self.loss).gradient
            x_adv = balls.project(x_adv + 0.5 * threat.epsilon * self.direction(gradient), x, threat)
        return self.last(x_adv, x, access, rng)

    def before(self, x: Tensor) -> Tensor:
        return x

    def direction(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def last(self, x_adv: Tensor, x: Tensor, access: WhiteBox, rng: Any) -> Tensor:
        return x_adv


class Oversteps(Climb):
    def last(self, x_adv, x, access, rng):
        return (x + 1.5 * (x_adv - x)).clamp(0, 1)


class LeavesTheBox(Climb):
    def last(self, x_adv, x, access, rng):
        return x + 0.05


class Doubles(Climb):
    def last(self, x_adv, x, access, rng):
        return x_adv.float()


class FollowsTheBatch(Climb):
    """Divides by a norm over the whole batch."""

    def direction(self, gradient):
        return (100 * gradient / gradient.norm()).clamp(-1, 1)


class GlobalNoise(Climb):
    def last(self, x_adv, x, access, rng):
        return torch.where(torch.rand_like(x) < 0.5, x_adv, x)


class FourClasses(Climb):
    """Takes for granted that there are at least four classes."""

    loss = staticmethod(lambda logits, goal: logits.sort(dim=1).values[:, -4] - logits.gather(1, goal.y[:, None])[:, 0])


class MasksByOneHot(Climb):
    """The margin that multiplies logits with (1 - onehot), as in several libraries' C&W."""

    @staticmethod
    def loss(logits, goal):
        own = torch.nn.functional.one_hot(goal.y, logits.shape[1])
        other = ((1 - own) * logits).amax(dim=1)
        return torch.clamp(other - (own * logits).sum(dim=1), max=0)


class Atanh(Climb):
    """Works in the space of tanh without a margin, where pixels at 0 and 1 have no gradient."""

    def __call__(self, access, x, goal, threat, rng):
        hidden = torch.atanh((2 * x - 1).clamp(-1, 1))
        x_adv = x.clone()
        for _ in range(4):
            gradient = access.loss_gradient(x_adv, goal, cross_entropy).gradient * 2 * x_adv * (1 - x_adv)
            hidden = hidden + 2.0 * gradient.sign() * (gradient != 0)
            x_adv = balls.project((torch.tanh(hidden) + 1) / 2, x, threat)
        return x_adv


class DividesByZero(Climb):
    def direction(self, gradient):
        return gradient / gradient.flatten(1).abs().amax(dim=1).view(-1, 1, 1, 1)


class Trains(Climb):
    def last(self, x_adv, x, access, rng):
        access.model.head.bias.data += 1
        return x_adv


class Swallows(Climb):
    def __call__(self, *arguments):
        try:
            return super().__call__(*arguments)
        except OverflowError:
            return arguments[1].clone()


class Forgets(Climb):
    """Goes back to a random point of the ball after it has found what it looked for."""

    def last(self, x_adv, x, access, rng):
        access.logits(x_adv)
        return x + 0.001 * rng.normal(tuple(x.shape[1:]), x.dtype).clamp(-1, 1) * (x > 0.01) * (x < 0.99)


class Farther(Climb):
    """Of minimal norm: asks about images on the way, and returns the last and farthest."""

    minimal_norm: ClassVar[bool] = True

    def __call__(self, access, x, goal, threat, rng):
        direction = access.loss_gradient(x, goal, self.loss).gradient.sign()
        found, nearest = x.clone(), x.clone()
        for step in range(1, 30):
            found = (x + 0.02 * step * direction).clamp(0, 1)
            fresh = goal.achieved(access.logits(found)) & (nearest == x).flatten(1).all(dim=1)
            nearest[fresh] = found[fresh]
        return self.chosen(nearest, found)

    def chosen(self, nearest, last):
        return last


class Nearest(Farther):
    def chosen(self, nearest, last):
        return nearest


class Denies(Climb):
    def attacked(self, access, x, goal, threat, rng):
        return self(access, x, goal, threat, rng), torch.zeros(len(x), dtype=torch.bool)


class Knows(Climb):
    def attacked(self, access, x, goal, threat, rng):
        x_adv = self(access, x, goal, threat, rng)
        return x_adv, goal.achieved(access.logits(x_adv))


@pytest.mark.parametrize(
    ("attack", "check"),
    [
        (Oversteps, "budget"),
        (LeavesTheBox, "box"),
        (Doubles, "dtype"),
        (FollowsTheBatch, "batches"),
        (GlobalNoise, "seeds"),
        (FourClasses, "classes"),
        (MasksByOneHot, "shifted logits"),
        (Atanh, "pixels at 0 and 1"),
        (GlobalNoise, "stochastic model"),
        (DividesByZero, "zero gradient"),
        (Trains, "model untouched"),
        (Swallows, "model untouched"),
        (Denies, "success flag"),
        (Forgets, "bookkeeping"),
        (Farther, "bookkeeping"),
    ],
)
def test_a_check_fires_on_the_attack_that_deserves_it(attack, check):
    with pytest.raises(Broken) as found:
        CHECKS[check](attack(), "linf")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("check", CHECKS)
def test_an_honest_attack_holds_every_check(check):
    CHECKS[check](Knows(), "linf")


def test_one_that_keeps_the_nearest_is_not_named_and_the_other_is_by_its_fault():
    CHECKS["bookkeeping"](Nearest(), "linf")
    with pytest.raises(Broken, match=r"bad bookkeeping: it lost \d+ of 24 adversarial images that it asked about"):
        CHECKS["bookkeeping"](Farther(), "linf")


def test_an_attack_that_is_defined_by_another_order_is_told_apart():
    class ByDefinition(Farther):
        returns: ClassVar[str] = "the last iterate"

    with pytest.raises(Inapplicable, match="returns the last iterate by its definition, and lost"):
        CHECKS["bookkeeping"](ByDefinition(), "linf")


def test_checks_that_say_nothing_say_so():
    with pytest.raises(Inapplicable, match="no claims"):
        CHECKS["success flag"](Climb(), "linf")

    class Idle(Climb):
        def last(self, x_adv, x, access, rng):
            return x.clone()

    for check in ("shifted logits", "pixels at 0 and 1"):
        with pytest.raises(Inapplicable, match="so short a run"):
            CHECKS[check](Idle(), "linf")


def test_iterations_are_cut_down_unless_they_are_given():
    assert conformance.shortened(Spec("pgd")) == PGD(steps=6)
    assert conformance.shortened(Spec.of("pgd", {"steps": 9})).steps == 9


def test_verdicts_name_the_norm_and_become_a_table(monkeypatch):
    monkeypatch.setattr(conformance, "shortened", lambda spec: Oversteps())
    found = examine(Spec("mine"))
    assert [verdict.check for verdict in found] == list(CHECKS)
    assert found[0] == Verdict("mine", "budget", "fails", found[0].reason)
    assert found[0].reason.startswith("linf: ")
    columns, rows = conformance.tables([found])[0]
    assert columns == ["attack", *CHECKS]
    assert rows[0][:2] == ["mine", "fails"]
    assert conformance.lines(found)[0].startswith("mine, budget: linf: ")


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "advbench", "conformance", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"ADVBENCH_CACHE": str(cwd / "cache"), "NO_COLOR": "1", "COLUMNS": "200"},
        timeout=300,
    )


def test_the_command_prints_what_holds(tmp_path):
    found = run("fgsm", "--format", "json", cwd=tmp_path)
    assert found.returncode == 0
    assert {verdict["check"] for verdict in json.loads(found.stdout)} == set(CHECKS)
    assert "fgsm: 12 of 13 hold" in found.stderr
    refused = run("nothing", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.strip().count("\n") == 0
