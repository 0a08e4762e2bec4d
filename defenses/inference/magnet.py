"""MagNet: an autoencoder reforms images before they are classified, and detectors reject those that it changes much."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor, nn

from advbench.attacks.access import frozen
from advbench.attacks.rng import ExampleRNG
from advbench.defenses.defended import Defended, Detector, Input
from advbench.defenses.inference.at_test_time import TestTimeDefense
from advbench.defenses.inference.autoencoder_pool import Chosen, Pool, check_pool
from advbench.defenses.inference.composition import any_rejects, call, purified
from advbench.zoo.data import DataSet, Split

_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class MagNet(TestTimeDefense):
    """MagNet, a DAE as reformer, its reconstruction error and divergence as detectors, Meng and Chen 2017, arXiv:1705.09064.

    The classifier sees r(x), one full step of the denoiser that `mala` has too, without noise: how Srinivasan et al. 2018
    (arXiv:1805.12017) run MagNet, without its detector (``detector=None``). Each detector has a threshold of its own, the
    smallest that rejects at most `fpr` of the clean validation images; an image is rejected if any of them rejects it.

    detector: p of the reconstruction error ``(mean of |r(x) - x|^p)^(1/p)`` over pixels, one or several, 1 and 2 in Meng
    and Chen on MNIST; None has no such detector. temperatures: T of the Jensen-Shannon divergence between the softmax of
    the classifier's logits / T on x and on r(x), 10 and 40 there on CIFAR-10; none by default. fpr: rate of clean images
    that each detector rejects, 0.001 in that paper on MNIST. autoencoders: how many are trained to differ
    (`DAEPool`, with `diversity`), of which the reformer and each detector choose one at random for every image and draw;
    eight in the paper's gray-box defense, and 1 chooses nothing. sigma: of the denoiser's training. base: the spec of the
    defense that trained the classifier.

    What differs from Meng and Chen is the autoencoder: one network for reformer and detectors, of Srinivasan et al.'s layers
    and noise, unclipped, where theirs are two of 3 x 3 convolutions with three filters, trained on noise of 0.1.

    The attacker sees through all of it: the gradient of reformer, detectors and classifier is exact for every choice, and
    averaged over choices where they are random.
    """

    detector: float | tuple[float, ...] | None = 2.0
    temperatures: tuple[float, ...] = ()
    fpr: float = 0.01
    autoencoders: int = 1
    diversity: float = 0.2
    sigma: float = 0.3
    base: str = "none"

    def __post_init__(self) -> None:
        if not all(math.isfinite(p) and p >= 1 for p in self.powers):
            raise ValueError(f"Expected `detector` >= 1 or None, got {self.detector}")
        if not all(math.isfinite(temperature) and temperature > 0 for temperature in self.temperatures):
            raise ValueError(f"Expected `temperatures` > 0, got {self.temperatures}")
        if not 0 <= self.fpr < 1:
            raise ValueError(f"Expected `fpr` in [0, 1), got {self.fpr}")
        check_pool(self.autoencoders, self.diversity)

    @property
    def powers(self) -> tuple[float, ...]:
        """The p of each detector of reconstruction errors."""
        if self.detector is None:
            return ()
        return self.detector if isinstance(self.detector, tuple) else (self.detector,)

    @property
    def models(self) -> Mapping[str, str | Input]:
        """The denoiser, or the pool of them, that all classifiers share."""
        if self.autoencoders == 1:
            return {"denoiser": f"dae(sigma={self.sigma!r})"}
        return {"denoiser": f"dae-pool(count={self.autoencoders}, diversity={self.diversity!r}, sigma={self.sigma!r})"}

    def wrap(self, inputs: Mapping[str, Defended]) -> Defended:
        """The denoiser in front of ``inputs["base"]``, and the detectors beside it, their thresholds not yet set."""
        denoiser, base = inputs["denoiser"].model, inputs["base"]
        members = tuple(denoiser.members) if isinstance(denoiser, Pool) else (denoiser,)
        reformer = Chosen(members, "reformer") if len(members) > 1 else members[0]
        first = next(iter(base.surrogates.values()))
        detector = self._detector(members, base.model, base.stochastic)
        followed = None if first.model is base.model else self._detector(members, first.model, first.stochastic)
        return purified(base, reformer, stochastic=len(members) > 1, detector=detector, followed=followed)

    def _detector(self, members: Sequence[nn.Module], classifier: nn.Module, stochastic: bool) -> Detector | None:
        """What rejects where any detector does, None without one; its divergences are those of `classifier`."""
        relative = len(self.powers) + len(self.temperatures) > 1
        found = [
            _of_pool([ReconstructionError(member, p, relative=relative) for member in members], stochastic=False)
            for p in self.powers
        ]
        found += [
            _of_pool(
                [Divergence(classifier, member, t, stochastic=stochastic, relative=relative) for member in members],
                stochastic=stochastic,
            )
            for t in self.temperatures
        ]
        return reduce(any_rejects, found) if found else None

    def fitted(self, data: DataSet, inputs: Mapping[str, Defended], *, seed: int, device: torch.device) -> Defended:
        """The defense with its thresholds calibrated on the validation images, on `device`; `facts` say which."""
        defended = self.wrap(inputs)
        parts = defended.modules().to(device).eval()
        if defended.detector is None:
            return defended
        split, detector = data.validation.to(device), defended.detector
        with frozen(parts), torch.no_grad():
            for judge in (part for part in parts.modules() if isinstance(part, Judge)):
                judge.threshold.copy_(threshold(_over(split, seed, judge.mark), self.fpr))
            facts = _thresholds(detector)
            scores = _over(split, seed, lambda x, rng: call(detector.model, x, rng, detector.stochastic))
            facts["false_alarms"] = float((scores > 0).double().mean())
        return replace(defended, facts=facts)


class Judge(nn.Module):
    """How suspicious images are, less a threshold: images (n, c, h, w) -> scores (n,), above zero where one is rejected.

    The buffer `threshold` is what `mark` is compared with. relative: whether the score is in units of the threshold, so that
    those of different detectors can be compared.
    """

    threshold: Tensor

    def __init__(self, *, relative: bool) -> None:
        super().__init__()
        self.relative = relative
        self.register_buffer("threshold", torch.zeros(()))

    @property
    @abstractmethod
    def label(self) -> str:
        """What is judged, in a word."""

    @abstractmethod
    def mark(self, x: Tensor, rng: ExampleRNG | None = None) -> Tensor:
        """How suspicious the images are, shape (n,), at least zero."""

    def forward(self, x: Tensor, rng: ExampleRNG | None = None) -> Tensor:
        """The score, shape (n,)."""
        score = self.mark(x, rng) - self.threshold
        return score / self.threshold.clamp_min(_SMALLEST) if self.relative else score


_SMALLEST = 1e-12
"""The smallest threshold that scores are measured in."""


class ReconstructionError(Judge):
    """How far images are from their reconstructions, less a threshold: images (n, c, h, w) -> scores (n,).

    denoiser: images -> images. p: of the norm, the mean being taken over pixels. relative: as `Judge` has it.
    """

    def __init__(self, denoiser: nn.Module, p: float, *, relative: bool = False) -> None:
        super().__init__(relative=relative)
        self.denoiser = denoiser
        self.p = p

    @property
    def label(self) -> str:
        """The norm."""
        return f"error_{self.p:g}"

    def mark(self, x: Tensor, rng: ExampleRNG | None = None) -> Tensor:  # noqa: ARG002
        """The error, shape (n,)."""
        residual = (self.denoiser(x) - x).flatten(1)
        error: Tensor = torch.linalg.vector_norm(residual, ord=self.p, dim=1) / residual.shape[1] ** (1 / self.p)
        return error


class Divergence(Judge):
    """How far apart a classifier's answers on images and on their reconstructions are, less a threshold.

    Images (n, c, h, w) -> scores (n,). The mark is the Jensen-Shannon divergence, in [0, log 2], of the softmax of logits
    over the temperature: a high one tells apart what a confident classifier rounds to one (Meng and Chen 2017,
    arXiv:1705.09064).

    classifier: images -> logits (n, classes). denoiser: images -> images. stochastic: whether the classifier takes an rng;
    the reconstruction then meets the random numbers that the reformed image does.
    """

    def __init__(
        self, classifier: nn.Module, denoiser: nn.Module, temperature: float, *, stochastic: bool, relative: bool = False
    ) -> None:
        super().__init__(relative=relative)
        self.classifier = classifier
        self.denoiser = denoiser
        self.temperature = temperature
        self.stochastic = stochastic

    @property
    def label(self) -> str:
        """The temperature."""
        return f"divergence_{self.temperature:g}"

    def mark(self, x: Tensor, rng: ExampleRNG | None = None) -> Tensor:
        """The divergence, shape (n,)."""
        before, after = (None if rng is None else rng.fork(name) for name in ("unreformed", "base"))
        one = call(self.classifier, x, before, self.stochastic)
        other = call(self.classifier, self.denoiser(x), after, self.stochastic)
        one, other = ((logits / self.temperature).log_softmax(dim=1) for logits in (one, other))
        middle = torch.logaddexp(one, other) - math.log(2)
        parts = one.exp() * (one - middle) + other.exp() * (other - middle)
        return parts.sum(dim=1) / 2


def threshold(errors: Tensor, fpr: float) -> Tensor:
    """The smallest of `errors`, shape (n,), that at most a share `fpr` of them, in [0, 1), exceeds; a scalar."""
    return errors.sort().values[len(errors) - 1 - math.floor(fpr * len(errors))]


def _of_pool(judges: Sequence[Judge], *, stochastic: bool) -> Detector:
    """The detector of one kind of judges, one for each autoencoder, of which one is chosen where there are several."""
    if len(judges) == 1:
        return Detector(judges[0], stochastic)
    return Detector(Chosen(judges, judges[0].label, stochastic=stochastic), stochastic=True)


def _thresholds(detector: Detector) -> dict[str, float]:
    """The thresholds by detector; where there are several autoencoders or detectors, by name and position."""
    judges = [part for part in detector.model.modules() if isinstance(part, Judge)]
    if len(judges) == 1:
        return {"threshold": float(judges[0].threshold)}
    places: dict[str, int] = {}
    found = {}
    for judge in judges:
        place = places[judge.label] = places.get(judge.label, 0) + 1
        found[f"threshold_{judge.label}_{place}"] = float(judge.threshold)
    return found


def _over(split: Split, seed: int, ask: Callable[[Tensor, ExampleRNG], Tensor]) -> Tensor:
    """What is said of all images of a split, (n,)."""
    parts = []
    for start in range(0, len(split), _BATCH):
        part = split.select(slice(start, start + _BATCH))
        parts.append(ask(part.x, ExampleRNG.make(seed, "calibrate", part.index)))
    return torch.cat(parts)
