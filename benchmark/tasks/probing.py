"""The attack unit test: does an attack find an adversarial image where one is known to exist?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.access import NoGradientError
from advbench.attacks.attack import Attack
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel
from advbench.attacks.watch import NOT_WATCHED, WatchSettings
from advbench.defenses.defended import Defended, Surrogate
from advbench.results.statistics import TOLERANCE
from advbench.tasks.evaluation import craft
from advbench.tasks.planting import Planted, TwoLabelAnswer, blocks, edge, judged, plant
from advbench.zoo.data import Split


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """An attack under test, as a cell of the evaluation runs it.

    attack: with what was calibrated. surrogate: the model that it differentiates or asks. threat: what it is given, of a
    minimal-norm attack without an epsilon. draws, scale, watching: as `advbench.tasks.evaluation.craft` takes them.
    """

    attack: Attack
    surrogate: Surrogate
    threat: ThreatModel
    draws: int = 1
    scale: float = 1.0
    watching: WatchSettings = NOT_WATCHED


@dataclass(frozen=True, slots=True, eq=False)
class UnitTest:
    """What a cell's attacks, and a random search, found of the planted adversarial images.

    images: tried. index: data-set indices of the n images for which a model could be built, ascending, (n,). found: where
    the attacks found an adversarial image, control: where random points did, both (n,), bool. probes: how many each attack
    found alone, None where its surrogate gives no gradient. points: random points per image. features: what the readouts
    read. unbuilt: how many images have no model, by reason.
    """

    images: int
    index: Tensor
    found: Tensor
    control: Tensor
    probes: Mapping[str, int | None]
    points: int
    features: str
    unbuilt: Mapping[str, int]


def unit_test(
    defended: Defended,
    probes: Mapping[str, Probe | None],
    split: Split,
    threat: ThreatModel,
    *,
    points: int,
    seed: int,
    draws: int,
    batch: int,
    device: torch.device,
) -> UnitTest:
    """Attack models with planted adversarial images as a cell attacks the model itself; its best candidate counts.

    probes: by name, None for one that has no gradient. split: the images, ascending in their indices. threat: of the cell.
    points: of the random search, alternately in the ball and at its edge. draws: on which a stochastic model is judged,
    fresh ones for choosing and for counting.

    Raises what the attacks and the models raise, except NoGradientError; ViolationError if an attack leaves its budget.
    """
    planted = plant(defended, split, threat, seed=seed, draws=draws, batch=batch, device=device)
    judge = _Judge(planted, planted.defended(defended), seed, draws, batch, device)
    found: dict[str, Tensor] = {}
    counts: dict[str, int | None] = dict.fromkeys(probes)
    given = {name: probe for name, probe in probes.items() if probe is not None}
    for name, probe in given.items() if len(planted.split) else ():
        try:
            crafted = craft(
                probe.attack,
                planted.surrogate(probe.surrogate),
                planted.split,
                probe.threat,
                seed=seed,
                draws=probe.draws,
                batch=batch,
                device=device,
                scale=probe.scale,
                watching=probe.watching,
            )
        except NoGradientError:
            continue
        found[name] = judge.within(crafted.x_adv, threat)
        counts[name] = int(judge.verdict(found[name], "select").fooled.sum())
    control = judge.random(threat, points)
    return UnitTest(
        images=len(split),
        index=planted.split.index,
        found=judge.best(list(found.values())),
        control=judge.best(control),
        probes=counts,
        points=points,
        features=planted.features,
        unbuilt=planted.unbuilt,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Judge:
    """What the scored model, with its readouts, says of candidates: images (n, c, h, w) of the planted split."""

    planted: Planted
    binary: Defended
    seed: int
    draws: int
    batch: int
    device: torch.device

    def verdict(self, x: Tensor, purpose: str, draw: int = 0) -> TwoLabelAnswer:
        """The verdict on draws of a purpose, from a given one on."""
        parts = []
        for start in range(0, len(x), self.batch):
            rows = slice(start, start + self.batch)
            rng = ExampleRNG.make(self.seed, purpose, self.planted.split.index[rows].to(self.device)).fork("unit-test", draw)
            stochastic = self.binary.stochastic
            image = x[rows].to(self.device)
            parts.append(
                judged(self.binary.model, self.binary.detector, image, rng, stochastic=stochastic, draws=self.draws)
            )
        lead, accepted = (torch.cat([getattr(part, name) for part in parts]).cpu() for name in ("lead", "accepted"))
        return TwoLabelAnswer(lead, accepted)

    def within(self, x_adv: Tensor, threat: ThreatModel) -> Tensor:
        """The images of an attack that are within the radius, and the clean ones in place of the others."""
        x = self.planted.split.x
        near = balls.distance(x_adv.double() - x.double(), threat.norm) <= threat.epsilon_or_inf * (1 + TOLERANCE)
        return torch.where(balls.per_example(near, x), x_adv, x)

    def random(self, threat: ThreatModel, points: int) -> list[Tensor]:
        """The best of some random points, alternately in the ball and at its edge, each looked at once."""
        split = self.planted.split
        if not len(split):
            return []
        rng = ExampleRNG.make(self.seed, "attack", split.index).fork("unit-test control")
        best, highest = split.x, torch.full((len(split),), -torch.inf, dtype=torch.float64)
        once = _Judge(self.planted, self.binary, self.seed, 1, self.batch, self.device)
        turn = blocks(self.binary, split.x.shape)
        for point in range(points):
            here = rng.at(point)
            block = turn[point // 2 % len(turn)]
            x = edge(split.x, threat, here, block) if point % 2 else balls.random_start(split.x, threat, here)
            seen = once.verdict(x, "oracle", point)
            lead = seen.lead.masked_fill(~seen.accepted, -torch.inf)
            best = torch.where(balls.per_example(lead > highest, x), x, best)
            highest = lead.maximum(highest)
        return [best]

    def best(self, candidates: list[Tensor]) -> Tensor:
        """Where the strongest candidate, chosen on draws of its own, fools the model on fresh ones; (n,), bool."""
        if not candidates:
            return torch.zeros(len(self.planted.split), dtype=torch.bool)
        seen = [self.verdict(x, "select") for x in candidates]
        leads = torch.stack([one.lead for one in seen])
        allowed = torch.stack([one.accepted for one in seen])
        choice = leads.masked_fill(~allowed, -torch.inf).argmax(dim=0)
        chosen = torch.stack(candidates)[choice, torch.arange(len(choice))]
        return self.verdict(chosen, "report").fooled
