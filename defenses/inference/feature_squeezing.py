"""Feature squeezing: an image whose prediction changes when its features are squeezed is rejected."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from advbench.attacks.access import frozen
from advbench.attacks.rng import ExampleRNG
from advbench.defenses.defended import Defended, Detector, Surrogate
from advbench.defenses.inference.at_test_time import TestTimeDefense
from advbench.defenses.inference.bit_depth import Rounded, SoftRounded, check_range
from advbench.defenses.inference.composition import Approximated, any_rejects, call
from advbench.defenses.inference.median import Median, check_fits, check_size
from advbench.defenses.inference.non_local_means import NonLocal, check_reach, check_windows
from advbench.zoo.data import DataSet, Split

_BATCH = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSqueezing(TestTimeDefense):
    """Feature squeezing as a detector, Xu et al. 2018, arXiv:1704.01155.

    The model answers on the image as it is. It is rejected where the largest l1 distance between the probabilities of the
    image and of its squeezed versions (bit depth reduced, median smoothed, non-local means) is above a threshold: the one
    that rejects `false_alarms` of the clean validation images at most. The attacker differentiates the distance as
    `SqueezedDistance` has it, and through the rounding with the slopes of `SoftRounded`, or with the identity's.

    bits: of the reduced depth. median: size of the smoothing's window. search, patch, strength: of non-local means
    (`NonLocalMeans`), left out where `search` is None. The paper's best joint detectors are ``bits=1,median=2`` for MNIST,
    ``bits=5,median=2,search=13,patch=3,strength=2`` for CIFAR-10 and ``bits=5,median=2,search=11,patch=3,strength=4`` for
    ImageNet. false_alarms: share of clean images rejected, 0.05 in the paper. base: the spec of the defense that trained
    the model.
    """

    bits: int = 1
    median: int = 2
    search: int | None = None
    patch: int = 3
    strength: float = 2.0
    false_alarms: float = 0.05
    base: str = "none"

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"Expected `bits` in 1..8, got {self.bits}")
        check_size("median", self.median)
        check_windows(3 if self.search is None else self.search, self.patch, self.strength)
        if not 0 <= self.false_alarms < 1:
            raise ValueError(f"Expected `false_alarms` in [0, 1), got {self.false_alarms}")

    def check(self, data: DataSet) -> None:
        """ValueError for images without a range of pixels, or that are smaller than the windows."""
        check_range(data)
        check_fits(self.median, data)
        if self.search is not None:
            check_reach(self.search, self.patch, data)

    def wrap(self, inputs: Mapping[str, Defended]) -> Defended:
        """``inputs["base"]`` with the detector, its threshold open."""
        return self._with_detector(inputs["base"], math.nan)

    def fitted(self, data: DataSet, inputs: Mapping[str, Defended], *, seed: int, device: torch.device) -> Defended:
        """``inputs["base"]`` with the detector, its threshold found on the validation images of `data`, on `device`."""
        base = inputs["base"]
        probe = SqueezedDistance(base.model, self.squeezers(), threshold=0.0, stochastic=base.stochastic).to(device)
        distances = _distances(probe, data.validation.to(device), seed)
        threshold = threshold_at(distances, self.false_alarms)
        alarms = float((distances > threshold).double().mean())
        defended = self._with_detector(base, threshold)
        defended.modules().to(device)
        return replace(defended, facts={"threshold": threshold, "false_alarms": alarms})

    def squeezers(self, rounding: nn.Module | None = None) -> tuple[nn.Module, ...]:
        """Images -> squeezed images, differentiable; the bit depth with the slopes of `rounding`, else `SoftRounded`'s."""
        depth = Approximated(Rounded(self.bits), rounding or SoftRounded(self.bits), stochastic=False)
        smoothing: tuple[nn.Module, ...] = (depth, Median(self.median))
        return smoothing if self.search is None else (*smoothing, NonLocal(self.search, self.patch, self.strength))

    def _with_detector(self, base: Defended, threshold: float) -> Defended:
        return with_detector(base, self.squeezers(), self.squeezers(nn.Identity()), threshold=threshold)


def with_detector(
    base: Defended, squeezers: Sequence[nn.Module], straight: Sequence[nn.Module], *, threshold: float
) -> Defended:
    """A defended model with the detector; a detector of its own goes on rejecting.

    straight: the same squeezers with other slopes, those of BPDA.

    The surrogates: those of `base` (``faithful``, then ``faithful-NAME``), each evading the detector of its own predictions.
    Then, of the first of them: ``follow``, where the squeezed images are to follow the image, whose own prediction stays out
    of the detector's slope; ``joint``, whose logits are the mean over the image and its squeezed versions (`Joint`), so that
    all are driven to one wrong class; ``bpda``, with the slopes of `straight`. ``base`` is the first as if there were no
    detector of ours.
    """

    def beside(inner: Surrogate, squeezers: Sequence[nn.Module], *, held: bool = False) -> Detector:
        random = inner.stochastic
        ours = Detector(SqueezedDistance(inner.model, squeezers, threshold=threshold, stochastic=random, held=held), random)
        return ours if inner.detector is None else any_rejects(inner.detector, ours)

    scored = Surrogate(base.model, base.stochastic, base.detector)
    detector = beside(scored, squeezers)
    surrogates: dict[str, Surrogate] = {}
    for position, (name, inner) in enumerate(base.surrogates.items()):
        own = detector if inner.model is base.model else beside(inner, squeezers)
        label = "faithful" if position == 0 else f"faithful-{name}"
        surrogates[label] = Surrogate(inner.model, inner.stochastic, own, exact=inner.exact)
    first = next(iter(base.surrogates.values()))
    joint = Joint(first.model, squeezers, stochastic=first.stochastic)
    surrogates["follow"] = Surrogate(first.model, first.stochastic, beside(first, squeezers, held=True))
    surrogates["joint"] = Surrogate(joint, first.stochastic, surrogates["faithful"].detector, exact=False)
    surrogates["bpda"] = Surrogate(first.model, first.stochastic, beside(first, straight))
    surrogates["base"] = replace(first, evading=False, exact=False)
    return Defended(base.model, base.stochastic, surrogates, detector=detector)


class SqueezedDistance(nn.Module):
    """How far predictions move when an image is squeezed, less a threshold: images (n, c, h, w) -> scores (n,).

    The score is the largest l1 distance, in [0, 2], between the probabilities of the image and of a squeezed one, minus
    `threshold`. Where the model is confident of different classes the distance is flat: near 2 its slope underflows to zero,
    and the detector hides from the attacker. So its slope is that of `steepened`, which points the same way and never
    vanishes; the value is the score itself.

    base: images -> logits (n, classes). squeezers: images -> images. stochastic: whether `base` takes an rng; the image as
    it is then gets the very one that the score is asked with. held: whether the slope takes the prediction of the image for
    fixed, so that only the squeezed ones follow.
    """

    threshold: Tensor

    def __init__(
        self, base: nn.Module, squeezers: Sequence[nn.Module], *, threshold: float, stochastic: bool, held: bool = False
    ) -> None:
        super().__init__()
        self.base = base
        self.squeezers = nn.ModuleList(squeezers)
        self.stochastic = stochastic
        self.held = held
        self.register_buffer("threshold", torch.tensor(threshold, dtype=torch.float32))

    def forward(self, x: Tensor, rng: ExampleRNG | None = None) -> Tensor:
        """Scores, shape (n,), above zero where the image is rejected."""
        own, *squeezed = (
            logits.log_softmax(dim=1) for logits in predictions(self.base, self.squeezers, x, rng, self.stochastic)
        )
        aim = own.detach() if self.held else own
        distance = torch.stack([(own.exp() - other.exp()).abs().sum(dim=1) for other in squeezed]).amax(dim=0).detach()
        slope = torch.stack([steepened(aim, other) for other in squeezed]).amax(dim=0)
        return distance - self.threshold + (slope - slope.detach())


class Joint(nn.Module):
    """The mean logits of an image and its squeezed versions, images (n, c, h, w) -> (n, classes).

    He et al. 2017 (arXiv:1706.04701): what errs in all of them with one and the same class is not told by their differences.
    """

    def __init__(self, base: nn.Module, squeezers: Sequence[nn.Module], *, stochastic: bool) -> None:
        super().__init__()
        self.base = base
        self.squeezers = nn.ModuleList(squeezers)
        self.stochastic = stochastic

    def forward(self, x: Tensor, rng: ExampleRNG | None = None) -> Tensor:
        """Logits, shape (n, classes)."""
        return torch.stack(predictions(self.base, self.squeezers, x, rng, self.stochastic)).mean(dim=0)


def predictions(
    base: nn.Module, squeezers: Iterable[nn.Module], x: Tensor, rng: ExampleRNG | None, stochastic: bool
) -> list[Tensor]:
    """Logits (n, classes) of images (n, c, h, w) and of each squeezed version, which has randomness of its own."""
    found = [call(base, x, rng, stochastic)]
    for position, squeeze in enumerate(squeezers):
        own = None if rng is None else rng.fork("squeezed", position)
        found.append(call(base, squeeze(x), own, stochastic))
    return found


def steepened(own: Tensor, other: Tensor) -> Tensor:
    """A strictly increasing function of the l1 distance d of two rows of probabilities, whose slope does not vanish.

    d up to 1, and 1 - log(2 - d) from there, with the slope 1 / (2 - d). Since 2 - d is twice the sum of the smaller of
    each two probabilities, it is worked in logarithms and exact where d itself rounds to 2.

    own, other: log-probabilities, (n, classes). Returns (n,).
    """
    distance = (own.exp() - other.exp()).abs().sum(dim=1)
    common = torch.minimum(own, other).logsumexp(dim=1) + math.log(2)
    return torch.where(distance <= 1, distance, 1 - common)


def threshold_at(distances: Tensor, false_alarms: float) -> float:
    """The lowest of the clean images' distances (n,) that at most a share `false_alarms` of them exceed."""
    allowed = min(int(false_alarms * len(distances)), len(distances) - 1)
    return float(distances.sort(descending=True).values[allowed])


def _distances(probe: SqueezedDistance, split: Split, seed: int) -> Tensor:
    """The distances of the images of `split`, (n,)."""
    with frozen(probe), torch.inference_mode():
        parts = []
        for start in range(0, len(split), _BATCH):
            part = split.select(slice(start, start + _BATCH))
            parts.append(call(probe, part.x, ExampleRNG.make(seed, "calibrate", part.index), probe.stochastic))
    return torch.cat(parts)
