"""Feature squeezing: an image whose prediction changes when its features are squeezed is rejected."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from advbench.attacks.access import frozen
from advbench.attacks.rng import ExampleRNG
from advbench.defenses.defended import Architecture, Defended, Detector, Surrogate
from advbench.defenses.inference.bit_depth import Rounded, check_range
from advbench.defenses.inference.composition import AnyRejects, Approximated, call
from advbench.defenses.inference.median import Median, check_fits, check_size
from advbench.zoo.data import DataSet, Split
from advbench.zoo.training import Budget, Progress

_BATCH = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSqueezing:
    """Feature squeezing as a detector, Xu et al. 2018, arXiv:1704.01155.

    The model answers on the image as it is. It is rejected where the largest l1 distance between the probabilities of the
    image and of its squeezed versions, bit depth reduced or median smoothed, is above a threshold: the one that rejects
    `false_alarms` of the clean validation images at most. The authors' third squeezer, non-local means, is not among them.
    The attacker differentiates the distance with the identity for the Jacobian of the rounding.

    bits: of the reduced depth, 1 for MNIST and 5 for CIFAR-10 in the paper. median: size of the smoothing's window, 2 in the
    paper. false_alarms: share of clean images rejected, 0.05 in the paper. base: the spec of the defense that trained the
    model.
    """

    bits: int = 1
    median: int = 2
    false_alarms: float = 0.05
    base: str = "none"

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise ValueError(f"Expected `bits` in 1..8, got {self.bits}")
        check_size("median", self.median)
        if not 0 <= self.false_alarms < 1:
            raise ValueError(f"Expected `false_alarms` in [0, 1), got {self.false_alarms}")

    @property
    def inputs(self) -> Mapping[str, str]:
        """The model that is watched."""
        return {"base": self.base}

    def build(self, architecture: Architecture, data: DataSet, inputs: Mapping[str, Defended]) -> Defended:  # noqa: ARG002
        """``inputs["base"]`` with the detector, its threshold open."""
        check_range(data)
        check_fits(self.median, data)
        return watched(inputs["base"], self.squeezers(), threshold=math.nan)

    def fit(
        self,
        architecture: Architecture,  # noqa: ARG002
        data: DataSet,
        *,
        inputs: Mapping[str, Defended],
        seed: int,
        device: torch.device,
        budget: Budget,  # noqa: ARG002
        progress: Progress | None = None,  # noqa: ARG002
    ) -> Defended:
        """``inputs["base"]`` with the detector, its threshold found on the validation images of `data`, on `device`."""
        check_range(data)
        check_fits(self.median, data)
        base = inputs["base"]
        probe = SqueezedDistance(base.model, self.squeezers(), threshold=0.0, stochastic=base.stochastic).to(device)
        distances = _distances(probe, data.validation.to(device), seed)
        threshold = threshold_at(distances, self.false_alarms)
        alarms = float((distances > threshold).double().mean())
        defended = watched(base, self.squeezers(), threshold=threshold)
        defended.modules().to(device)
        return replace(defended, facts={"threshold": threshold, "false_alarms": alarms})

    def squeezers(self) -> tuple[nn.Module, ...]:
        """Images -> squeezed images, differentiable."""
        return Approximated(Rounded(self.bits), nn.Identity(), stochastic=False), Median(self.median)


def watched(base: Defended, squeezers: Sequence[nn.Module], *, threshold: float) -> Defended:
    """A defended model with the detector; a detector of its own goes on rejecting.

    The surrogates: those of `base` (``faithful``, then ``faithful-NAME``), each evading the detector of its own predictions,
    and ``base``, the first of them as if there were no detector of ours.
    """

    def beside(model: nn.Module, stochastic: bool, other: Detector | None) -> Detector:
        ours = Detector(SqueezedDistance(model, squeezers, threshold=threshold, stochastic=stochastic), stochastic)
        return ours if other is None else Detector(AnyRejects(other, ours), other.stochastic or stochastic)

    detector = beside(base.model, base.stochastic, base.detector)
    surrogates: dict[str, Surrogate] = {}
    for position, (name, inner) in enumerate(base.own_surrogates.items()):
        own = detector if inner.model is base.model else beside(inner.model, inner.stochastic, inner.detector)
        label = "faithful" if position == 0 else f"faithful-{name}"
        surrogates[label] = Surrogate(inner.model, inner.stochastic, own)
    first = next(iter(base.surrogates.values()))
    surrogates["base"] = replace(first, guarded=False)
    return Defended(base.model, base.stochastic, surrogates, detector=detector)


class SqueezedDistance(nn.Module):
    """How far predictions move when an image is squeezed, less a threshold: images (n, c, h, w) -> scores (n,).

    base: images -> logits (n, classes). squeezers: images -> images. The score is the largest l1 distance, in [0, 2],
    between the probabilities of the image and of a squeezed one, minus `threshold`. stochastic: whether `base` takes an
    rng; the image as it is then gets the very one that the score is asked with.
    """

    threshold: Tensor

    def __init__(self, base: nn.Module, squeezers: Sequence[nn.Module], *, threshold: float, stochastic: bool) -> None:
        super().__init__()
        self.base = base
        self.squeezers = nn.ModuleList(squeezers)
        self.stochastic = stochastic
        self.register_buffer("threshold", torch.tensor(threshold, dtype=torch.float32))

    def forward(self, x: Tensor, rng: ExampleRNG | None = None) -> Tensor:
        """Scores, shape (n,), above zero where the image is rejected."""
        probabilities = call(self.base, x, rng, self.stochastic).softmax(dim=1)
        distances = []
        for position, squeeze in enumerate(self.squeezers):
            own = None if rng is None else rng.fork("squeezed", position)
            squeezed = call(self.base, squeeze(x), own, self.stochastic).softmax(dim=1)
            distances.append((probabilities - squeezed).abs().sum(dim=1))
        return torch.stack(distances).amax(dim=0) - self.threshold


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
