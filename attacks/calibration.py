"""What is found on held-out images before an attack runs: its open values, and what a detector's score is worth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from advbench.attacks.access import Access, DetectorView, WhiteBox, ask
from advbench.attacks.attack import Attack
from advbench.attacks.capabilities import Calibrated, Need, calibrated
from advbench.attacks.losses import margin
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel, Untargeted

__all__ = ["Calibrated", "HeldOut", "Need", "Trial", "calibrate", "open_values", "score_scale"]

AccessT = TypeVar("AccessT", bound=Access)


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
    model, stochastic, draws, detector: as `Access` takes them; without a model nothing is attacked. batch: images at once.
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
    detector: DetectorView | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def attacked_model(self) -> nn.Module:
        """The model. Raises ValueError without one."""
        if self.model is None:
            raise ValueError("Expected a model to attack, got none")
        return self.model

    def first(self, n: int) -> HeldOut:
        """The first `n` images, all where there are fewer."""
        detector = None if self.detector is None else self.detector.select(slice(n))
        return replace(self, x=self.x[:n], y=self.y[:n], index=self.index[:n], detector=detector)

    def attacked(self, attack: Attack) -> Trial:
        """Attack all images, with the same random numbers every time. Raises ValueError without a model."""
        parts = [self._attacked(attack, slice(start, start + self.batch)) for start in range(0, len(self), self.batch)]
        return Trial(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def _attacked(self, attack: Attack, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        model = self.attacked_model
        x, goal = self.x[rows], Untargeted(self.y[rows])
        rng = ExampleRNG.make(self.seed, "calibrate", self.index[rows])
        detector = None if self.detector is None else self.detector.select(rows)

        def access_of(kind: type[AccessT], purpose: str) -> AccessT:
            return kind(model, rng.fork(purpose), stochastic=self.stochastic, draws=self.draws, detector=detector)

        with access_of(attack.knowledge, "model") as access:
            x_adv = attack(access, x.clone(), goal, self.threat, rng.fork("attack"))
        with access_of(WhiteBox, "verdict") as fresh:
            broken = goal.achieved(fresh.logits(x_adv))
        return x_adv, broken, access.ledger.forwards + access.ledger.backwards


def open_values(attack: Attack, held_out: HeldOut) -> dict[str, Tensor]:
    """The open values of an attack, found on `held_out`, by name; empty for an attack without any."""
    return attack.calibrate(held_out) if isinstance(attack, Calibrated) and attack.need is not None else {}


def calibrate(attack: Attack, held_out: HeldOut) -> Attack:
    """The attack with its open values found on `held_out`; as it is where it has none."""
    return calibrated(attack, open_values(attack, held_out))


def score_scale(held_out: HeldOut) -> float:
    """The worth of one unit of a detector's score in logits, so that the margins of both are of one size on clean images.

    The median size of the classifier's margin over the median size of the score; 1 if that is not a positive number.
    Raises ValueError without a detector.
    """
    detector = held_out.detector
    if detector is None:
        raise ValueError("Expected a detector whose scores are to be weighed, got none")
    rng = ExampleRNG.make(held_out.seed, "scale", held_out.index)
    with (
        WhiteBox(held_out.attacked_model, rng, stochastic=held_out.stochastic, detector=detector) as access,
        torch.no_grad(),
    ):
        logits = ask(access.model, held_out.x, rng if held_out.stochastic else None)
        score = ask(detector.model, held_out.x, rng if detector.stochastic else None)
    scale = float(margin(logits, Untargeted(held_out.y)).abs().median() / score.abs().median())
    return scale if 0 < scale < torch.inf else 1.0
