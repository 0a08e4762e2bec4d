"""Models with a known adversarial image: the construction of the attack unit test.

Zimmermann et al. 2022, "Increasing confidence in adversarial robustness evaluations" (arXiv:2206.13991): each image gets a
classifier of two labels, behind the whole defended pipeline, that tells one point at the edge of the
threat's ball from points near the image. That point is an adversarial image that exists for certain, so an attack that finds
none is too weak for this pipeline.

Where this differs from the paper: the readout is Fisher's discriminant in closed form, not logistic regression; other points
at the edge are held to the image's own label, which keeps a random search from succeeding; the readout's logits are as large
as the model's own at the image, so that an attack that fails for saturated logits fails here too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.access import frozen
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel
from advbench.defenses.defended import Defended, Detector, Surrogate
from advbench.defenses.inference.composition import call
from advbench.tasks.readouts import Binary, Readouts, best_of, features_of, last_linear, separate, shifted
from advbench.zoo.data import Split

INNER = 32
"""Points near each image, the image among them."""
RIVALS = 32
"""Points at the edge of the ball that are to keep the label of the inner ones, so that being at the edge is not enough."""
NEAR = 0.95
"""The radius of the ball of the inner points, a share of epsilon."""
CANDIDATES = 2
"""Points at the edge of which the one that is easiest to tell from the others is planted."""
CANDIDATES_PAST_A_DETECTOR = 16
"""As many where a detector may reject some."""
CLOSENESS = 0.9
"""Where the label changes: from the most similar of the other points (0) to the planted one (1)."""
CLOSENESS_OF_MEANS = 0.5
"""The same for a stochastic model, whose answers vary around the mean."""
LIKELIEST = 8
"""The most similar points, which are looked at again through the finished model."""
_PROBED = 4


@dataclass(frozen=True, slots=True, eq=False)
class TwoLabelAnswer:
    """What a model of two labels says of images, means over its draws.

    lead: of the second label, (n,), float64. accepted: whether no detector rejects, (n,), bool.
    """

    lead: Tensor
    accepted: Tensor

    @property
    def fooled(self) -> Tensor:
        """Which images have the second label and are accepted, (n,), bool."""
        return (self.lead > 0) & self.accepted


@dataclass(frozen=True, slots=True, eq=False)
class Planted:
    """Images with a model of two labels each, and an image that is known to fool it.

    split: the n images for which this could be built, all with the label 0. planted: (n, c, h, w), inside the threat's ball
    around them and the box. readouts: theirs. layer: where they stand in the pipeline (`advbench.tasks.readouts.Binary`).
    unbuilt: how many images were left out, by reason.
    """

    split: Split
    planted: Tensor
    readouts: Readouts
    layer: torch.nn.Linear | None
    unbuilt: Mapping[str, int]

    @property
    def features(self) -> str:
        """What the readouts read, for people."""
        d = self.readouts.weight.shape[1]
        return f"{d} logits" if self.layer is None else f"{d} features before the last linear layer"

    def defended(self, defended: Defended) -> Defended:
        """The model with the readouts in place of its own, its surrogates and its detector."""
        views = {name: self.surrogate(one) for name, one in defended.surrogates.items()}
        return Defended(
            self._binary(defended.model, defended.stochastic), defended.stochastic, views, detector=defended.detector
        )

    def surrogate(self, surrogate: Surrogate) -> Surrogate:
        """A surrogate with the readouts in place of its own."""
        return replace(surrogate, model=self._binary(surrogate.model, surrogate.stochastic))

    def _binary(self, pipeline: torch.nn.Module, stochastic: bool) -> Binary:
        return Binary(pipeline, self.layer, self.readouts, stochastic=stochastic)


NOT_ALLOWED = "a detector rejects every point at the edge"
NOT_SEPARATED = "no point at the edge can be told from the inner points"
NOT_CONFIRMED = "the planted point does not fool the model on fresh draws"
CLEAN_WRONG = "the clean image has the wrong label on fresh draws"


def plant(
    defended: Defended, split: Split, threat: ThreatModel, *, seed: int, draws: int, batch: int, device: torch.device
) -> Planted:
    """Build the models of the images of `split`, ascending in their indices, and verify each planted image.

    draws: passes over which a stochastic model's answers are averaged. batch: images per pass. The random numbers belong to
    the examples, so an image's readout depends on neither the batch nor the other images, but for rounding.

    Raises ValueError without an epsilon or for a norm other than linf, l2, l1.
    """
    check_threat(threat)
    few = split.select(slice(_PROBED)).to(device)
    views = [(defended.model, defended.stochastic), *((one.model, one.stochastic) for one in defended.surrogates.values())]
    found, reasons = [], Counter[str]()
    modules = [model for model, _ in views] + ([defended.detector.model] if defended.detector else [])
    with frozen(torch.nn.ModuleList(modules)):
        layer = last_linear(views, few.x, ExampleRNG.make(seed, "unit-test", few.index)) if len(few) > 1 else None
        for start in range(0, len(split), batch):
            part = split.select(slice(start, start + batch)).to(device)
            built, why = _Planting(defended, layer, part, threat, seed, draws).built()
            found.append(built)
            reasons.update(why)
    readouts = Readouts(*(torch.cat([getattr(one.readouts, name) for one in found]) for name in _READOUT))
    whole = Split(*(torch.cat([getattr(one.split, name) for one in found]) for name in ("x", "y", "index")))
    return Planted(whole, torch.cat([one.planted for one in found]), readouts, layer, dict(reasons))


def check_threat(threat: ThreatModel) -> None:
    """Raise ValueError for a threat without a ball: no epsilon, or a norm other than linf, l2, l1."""
    if threat.epsilon is None or threat.norm not in balls.DUAL:
        raise ValueError(f"Expected a threat in linf, l2 or l1 with an epsilon for the unit test, got {threat}")


_READOUT = ("index", "weight", "bias", "offset")


def edge(x: Tensor, threat: ThreatModel, rng: ExampleRNG, block: int = 1) -> Tensor:
    """A random point at the edge of the ball around each image, (n, c, h, w): a corner for linf, the sphere for l2 and l1.

    Clipped to the box, on the sphere as far as the box leaves room. block: pixels along the side of a square that moves as
    one: detectors of noise often accept what is smooth.
    """
    c, h, w = x.shape[1:]
    coarse = rng.fork("edge").normal((c, -(-h // block), -(-w // block)), x.dtype)
    direction = coarse.repeat_interleave(block, dim=2).repeat_interleave(block, dim=3)[:, :, :h, :w]
    if threat.norm == "linf":
        return balls.project(x + threat.epsilon_or_inf * direction.sign(), x, threat)
    return balls.project(balls.stretch(x + direction, x, threat), x, threat)


def blocks(defended: Defended, shape: torch.Size) -> list[int]:
    """The blocks of points at the edge, which are taken in turn: single pixels, and past a detector larger squares too."""
    if defended.detector is None:
        return [1]
    return [2**power for power in range(max(shape[-2:]).bit_length())]


def judged(
    model: torch.nn.Module, detector: Detector | None, x: Tensor, rng: ExampleRNG, *, stochastic: bool, draws: int
) -> TwoLabelAnswer:
    """What a model of two labels and a detector say of images (n, c, h, w); a deterministic pipeline is asked once."""
    with torch.no_grad():
        pairs = [model(x, rng.at(draw)).double() for draw in range(draws if stochastic else 1)]
    lead = torch.stack([pair[:, 1] - pair[:, 0] for pair in pairs]).mean(dim=0)
    if detector is None:
        return TwoLabelAnswer(lead, torch.ones_like(lead, dtype=torch.bool))
    return TwoLabelAnswer(lead, _accepted(detector, x, rng, draws))


def _accepted(detector: Detector, x: Tensor, rng: ExampleRNG, draws: int) -> Tensor:
    """Whether a detector accepts images (n, c, h, w), by its mean score over the draws, (n,), bool."""
    with torch.no_grad():
        asked = range(draws if detector.stochastic else 1)
        scores = [call(detector.model, x, rng.at(draw), detector.stochastic).double() for draw in asked]
    return torch.stack(scores).mean(dim=0) <= 0


class _Planting:
    """The construction for one batch of images."""

    def __init__(
        self, defended: Defended, layer: torch.nn.Linear | None, part: Split, threat: ThreatModel, seed: int, draws: int
    ) -> None:
        self.defended, self.layer, self.part, self.threat = defended, layer, part, threat
        self.rng = ExampleRNG.make(seed, "unit-test", part.index)
        self.draws = draws if defended.stochastic else 1
        self.closeness = CLOSENESS_OF_MEANS if defended.stochastic else CLOSENESS

    def built(self) -> tuple[Planted, list[str]]:
        """The models of the images that have one, and why the others have none."""
        others = self._others()
        found = [self._features(x, self.rng.fork("draw").at(point)) for point, x in enumerate(others)]
        features, margin = torch.stack([one for one, _ in found], dim=1), found[0][1]
        points = [self._edge("edge", number) for number in range(self._candidates)]
        allowed = torch.stack([self._allowed(point, number) for number, point in enumerate(points)])
        best, choice = best_of([separate(features, self._mean(x, number)) for number, x in enumerate(points)], allowed)
        planted = torch.stack(points)[choice, torch.arange(len(choice), device=choice.device)]
        readouts = best.readouts(self.part.index, margin, self.closeness)
        likeliest = (features @ best.weight.unsqueeze(2)).squeeze(2).topk(LIKELIEST, dim=1).indices
        readouts, apart = self._centred(readouts, planted, torch.stack(others), likeliest)
        clean, fooled = (self._verdict(readouts, x, "verify") for x in (self.part.x, planted))
        reasons = (
            (NOT_ALLOWED, ~allowed.any(dim=0)),
            (NOT_SEPARATED, ~(apart & (best.gap > 0))),
            (NOT_CONFIRMED, ~fooled.fooled | balls.violations(planted, self.part.x, self.threat)),
            (CLEAN_WRONG, clean.fooled),
        )
        why = [next((name for name, holds in reasons if bool(holds[row])), "") for row in range(len(self.part))]
        return self._kept(readouts, planted, torch.tensor([not one for one in why])), [one for one in why if one]

    def _kept(self, readouts: Readouts, planted: Tensor, good: Tensor) -> Planted:
        rows = good.nonzero().flatten().to(planted.device)
        kept = self.part.select(rows).to("cpu")
        split = Split(kept.x, torch.zeros_like(kept.y), kept.index)
        return Planted(split, planted[rows].cpu(), readouts.select(rows), self.layer, {})

    @property
    def _candidates(self) -> int:
        return CANDIDATES if self.defended.detector is None else CANDIDATES_PAST_A_DETECTOR

    def _others(self) -> list[Tensor]:
        """The points that keep the image's label, each (n, c, h, w): the image, points near it, and some at the edge."""
        near = replace(self.threat, epsilon=NEAR * self.threat.epsilon_or_inf)
        inner = self.rng.fork("inner")
        found = [balls.random_start(self.part.x, near, inner.at(point)) for point in range(INNER - 1)]
        return [self.part.x, *found, *(self._edge("rival", point) for point in range(RIVALS))]

    def _edge(self, purpose: str, number: int) -> Tensor:
        """A point at the edge, (n, c, h, w)."""
        turn = blocks(self.defended, self.part.x.shape)
        return edge(self.part.x, self.threat, self.rng.fork(purpose).at(number), turn[number % len(turn)])

    def _features(self, x: Tensor, rng: ExampleRNG) -> tuple[Tensor, Tensor]:
        return features_of(self.defended.model, self.layer, x, rng, stochastic=self.defended.stochastic)

    def _mean(self, x: Tensor, number: int) -> Tensor:
        """Features of a point at the edge, means over the draws, (n, d)."""
        stream = self.rng.fork("draw at the edge", number)
        return torch.stack([self._features(x, stream.at(draw))[0] for draw in range(self.draws)]).mean(dim=0)

    def _allowed(self, x: Tensor, number: int) -> Tensor:
        """Whether the detector accepts a point, by its mean score, (n,), bool."""
        detector = self.defended.detector
        if detector is None:
            return torch.ones(len(x), dtype=torch.bool, device=x.device)
        stream = self.rng.fork("detector", number)
        return _accepted(detector, x, stream, self.draws)

    def _centred(self, readouts: Readouts, planted: Tensor, others: Tensor, likeliest: Tensor) -> tuple[Readouts, Tensor]:
        """The readouts with the offset that puts the change of the label in its place at the end of the pipeline.

        What stands behind the readouts, such as a mean of predictions, may have moved it. likeliest: which of the `others`,
        (points, n, c, h, w), are looked at beside the image, (n, k). Returns with the readouts where the planted image
        leads all of them, (n,), bool.
        """
        rows = torch.arange(len(planted), device=planted.device)
        looked_at = (planted, self.part.x, *(others[column, rows] for column in likeliest.T))
        beyond, *leads = (self._verdict(readouts, x, "centre").lead for x in looked_at)
        highest = torch.stack(leads).amax(dim=0)
        return shifted(readouts, -(highest + self.closeness * (beyond - highest))), beyond > highest

    def _verdict(self, readouts: Readouts, x: Tensor, purpose: str) -> TwoLabelAnswer:
        stochastic = self.defended.stochastic
        binary = Binary(self.defended.model, self.layer, readouts, stochastic=stochastic)
        rng = self.rng.fork(purpose)
        return judged(binary, self.defended.detector, x, rng, stochastic=stochastic, draws=self.draws)
