"""Values of an attack that are found on held-out images before it runs: a constant, an order, a covariance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from advbench.attacks.access import Guard, WhiteBox
from advbench.attacks.attack import Attack
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel, Untargeted


@dataclass(frozen=True, slots=True)
class Need:
    """What the open values of an attack are found from.

    split: the images, ``train`` or ``validation``, never those that are scored. model: whether the attacked model is asked,
    so that every model has values of its own.
    """

    split: Literal["train", "validation"]
    model: bool


class Calibrated(Attack, Protocol):
    """An attack that may have open values. An attack without a `need` has none."""

    @property
    def need(self) -> Need | None:
        """What the open values are found from; None where none is open."""
        ...

    def calibrate(self, held_out: HeldOut) -> dict[str, Tensor]:
        """The open values, by name."""
        ...

    def calibrated(self, values: Mapping[str, Tensor]) -> Attack:
        """The attack with the values that `calibrate` found."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """What an attack did to held-out images.

    x_adv: (n, c, h, w). broken: whether the model gets them wrong on a fresh look, (n,), bool. passes: forwards and
    backwards that the attack took, (n,), int64.
    """

    x_adv: Tensor
    broken: Tensor
    passes: Tensor


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class HeldOut:
    """Held-out images and the model that is attacked: all that a calibration sees.

    x: (n, c, h, w); y: labels, (n,); index: positions in their split, (n,). threat: the one that the attack will run at.
    model, stochastic, draws, guard: as `Access` takes them; without a model nothing can be attacked. batch: images at once.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    threat: ThreatModel
    model: nn.Module | None = None
    stochastic: bool = False
    draws: int = 1
    seed: int = 0
    batch: int = 128
    guard: Guard | None = None

    def __len__(self) -> int:
        return len(self.y)

    def first(self, n: int) -> HeldOut:
        """The first `n` images, all where there are fewer."""
        guard = None if self.guard is None else self.guard.select(slice(n))
        return replace(self, x=self.x[:n], y=self.y[:n], index=self.index[:n], guard=guard)

    def attacked(self, attack: Attack) -> Trial:
        """Attack all images, with the same random numbers every time. Raises ValueError without a model."""
        parts = [self._attacked(attack, slice(start, start + self.batch)) for start in range(0, len(self), self.batch)]
        return Trial(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def _attacked(self, attack: Attack, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        if self.model is None:
            raise ValueError(f"Expected a model to calibrate {attack} on, got none")
        x, goal = self.x[rows], Untargeted(self.y[rows])
        rng = ExampleRNG.make(self.seed, "calibrate", self.index[rows])
        guard = None if self.guard is None else self.guard.select(rows)
        how: dict[str, Any] = {"stochastic": self.stochastic, "draws": self.draws, "guard": guard}
        with attack.knowledge(self.model, rng.fork("model"), **how) as access:
            x_adv = attack(access, x.clone(), goal, self.threat, rng.fork("attack"))
        with WhiteBox(self.model, rng.fork("verdict"), **how) as fresh:
            broken = goal.achieved(fresh.logits(x_adv))
        return x_adv, broken, access.ledger.forwards + access.ledger.backwards


def need_of(attack: Attack) -> Need | None:
    """What the open values of any attack are found from; None where it has none."""
    need: Need | None = getattr(attack, "need", None)
    return need


def calibrate(attack: Attack, held_out: HeldOut) -> Attack:
    """The attack with its open values found on `held_out`; as it is where it has none."""
    if need_of(attack) is None:
        return attack
    run: Any = attack
    found: Attack = run.calibrated(run.calibrate(held_out))
    return found
