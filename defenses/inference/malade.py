"""MALA and MALADE: images are relaxed by Langevin dynamics before they are classified."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from advbench.attacks.access import WhiteBox, frozen
from advbench.attacks.fgm import FGSM
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel, Untargeted
from advbench.defenses.defended import Defended, Input
from advbench.defenses.inference.at_test_time import TestTimeDefense
from advbench.defenses.inference.composition import Purified, call, purified
from advbench.defenses.inference.langevin import MAX_STEPS, Langevin
from advbench.zoo.data import DataSet, Split

STEP_SIZES = (0.1, 0.2, 0.4, 1.0)
"""The a_0 that the search chooses among."""
NOISES = (0.0, 0.02, 0.05, 0.1)
"""The d_0 that the search chooses among."""
_SEARCHED = 128
"""The most validation images that the search is scored on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaxed(TestTimeDefense):
    """A classifier behind Langevin steps along the score of a denoiser.

    x_(t+1) = x_t + a_t (r(x_t) - x_t) + d_t n_t, n_t normal, and x_N is classified; a_t and d_t as in
    `advbench.defenses.inference.langevin.Langevin`, which has the optional Metropolis step too.

    steps: N, 10 in the paper. step_size, noise: a_0 and d_0; None searches `STEP_SIZES` and `NOISES` for the most accurate
    pair on FGSM images within `epsilon` that were made on another net, of the architecture `attacker`, from the last
    validation images (128 at most); equals are told apart by the cross-entropy. decay, step_offset, noise_offset: of the
    annealing; the paper's values are lost, and these are guesses. clip: whether x_N is clipped to [0, 1]. sigma: of the
    denoiser's training. base: the spec of the defense that trained the classifier.

    The surrogates are those of `advbench.defenses.inference.composition.purified`; ``bpda-one-step`` has the Jacobian of the
    denoiser for that of all the steps.
    """

    norm: ClassVar[str] = "linf"

    steps: int = 10
    step_size: float | None = None
    noise: float | None = None
    decay: float = 0.9
    step_offset: float = 0.05
    noise_offset: float = 0.005
    metropolis: bool = False
    clip: bool = False
    sigma: float = 0.3
    epsilon: float | None = None
    attacker: str = "gu2014/n100-100-10"
    base: str = "none"

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MAX_STEPS:
            raise ValueError(f"Expected `steps` in 1 to {MAX_STEPS}, got {self.steps}")
        for name in ("step_size", "noise", "step_offset", "noise_offset"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"Expected `{name}` >= 0, got {value}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"Expected `decay` in (0, 1], got {self.decay}")
        if self.metropolis and not self.noise_offset and not self.noise:
            raise ValueError("Expected `noise` or `noise_offset` > 0 with `metropolis`, got 0: it weighs noisy proposals")

    @property
    @abstractmethod
    def denoiser(self) -> str:
        """The spec of the part that the score comes from."""

    @property
    def searches(self) -> bool:
        """Whether step size or noise is to be found."""
        return self.step_size is None or self.noise is None

    @property
    def models(self) -> Mapping[str, str | Input]:
        """The denoiser, and the net that the search's images are made on."""
        attacker = {"attacker": Input("none", self.attacker)} if self.searches else {}
        return {"denoiser": self.denoiser, **attacker}

    def wrap(self, inputs: Mapping[str, Defended]) -> Defended:
        """Langevin steps in front of ``inputs["base"]``, with room for the strength that will have been found."""
        denoiser = inputs["denoiser"].model
        stochastic = self.noise != 0 or self.noise_offset > 0
        sampler = Langevin(
            denoiser,
            steps=self.steps,
            decay=self.decay,
            step_offset=self.step_offset,
            noise_offset=self.noise_offset,
            metropolis=self.metropolis,
            clip=self.clip,
            stochastic=stochastic,
        )
        return purified(inputs["base"], sampler, stochastic=stochastic, substitutes={"one-step": denoiser})

    def fitted(self, data: DataSet, inputs: Mapping[str, Defended], *, seed: int, device: torch.device) -> Defended:
        """The defense with its strength found, on `device`; `facts` say which, and how accurate it was in the search."""
        defended = self.wrap(inputs)
        defended.modules().to(device).eval()
        sampler = sampler_of(defended)
        candidates = product(_given(self.step_size, STEP_SIZES), _given(self.noise, NOISES))
        if not self.searches:
            sampler.strength.copy_(torch.tensor(next(candidates)))
            return defended
        if self.epsilon is None:
            raise ValueError("Expected `epsilon` for the images of the search, got None")
        split = data.validation.select(slice(-min(_SEARCHED, len(data.validation)), None)).to(device)
        x_adv = _transferred(inputs["attacker"], split, ThreatModel("linf", self.epsilon, data.box), seed)
        step_size, noise, accuracy = strongest(defended, sampler, x_adv, split, candidates, seed)
        facts = {"step_size": step_size, "noise": noise, "search_accuracy": accuracy}
        return Defended(defended.model, defended.stochastic, defended.surrogates, facts=facts, detector=defended.detector)


@dataclass(frozen=True, slots=True, kw_only=True)
class MALA(Relaxed):
    """MALA, Langevin steps along the score of a DAE, before any classifier (Srinivasan et al. 2018, arXiv:1805.12017)."""

    @property
    def denoiser(self) -> str:
        """The autoencoder that all classifiers share."""
        return f"dae(sigma={self.sigma!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class MALADE(Relaxed):
    """MALADE, Langevin steps along the score of a classifier's sDAE (Srinivasan et al. 2018, arXiv:1805.12017).

    weight: of the cross-entropy in the sDAE's training, None for ``2 sigma^2``; 0 leaves a DAE.
    """

    weight: float | None = None

    @property
    def denoiser(self) -> str:
        """The autoencoder of this classifier."""
        weight = "" if self.weight is None else f", weight={self.weight!r}"
        return f"sdae(base={self.base!r}, sigma={self.sigma!r}{weight})"


def sampler_of(defended: Defended) -> Langevin:
    """The Langevin steps of a defense that `Relaxed` built. TypeError for any other."""
    model = defended.model
    if not isinstance(model, Purified) or not isinstance(model.purifier, Langevin):
        raise TypeError(f"Expected a model behind Langevin steps, got {type(model).__name__}")
    return model.purifier


def strongest(
    defended: Defended,
    sampler: Langevin,
    x_adv: Tensor,
    split: Split,
    candidates: Iterable[tuple[float, float]],
    seed: int,
) -> tuple[float, float, float]:
    """The pair (a_0, d_0) under which the model labels `x_adv` best, and its accuracy; the sampler is left with it.

    Every pair sees the same random numbers. Of pairs with equal accuracy the one with the smallest cross-entropy is chosen.
    """
    scores: dict[tuple[float, float], tuple[float, float]] = {}
    rng = ExampleRNG.make(seed, "calibrate", split.index)
    with frozen(defended.model), torch.no_grad():
        for pair in candidates:
            sampler.strength.copy_(torch.tensor(pair))
            logits = call(defended.model, x_adv, rng, defended.stochastic)
            right = float((logits.argmax(dim=1) == split.y).double().mean())
            scores[pair] = right, -float(cross_entropy(logits.double(), split.y))
    best = max(scores, key=scores.__getitem__)
    sampler.strength.copy_(torch.tensor(best))
    return *best, scores[best][0]


def _transferred(attacker: Defended, split: Split, threat: ThreatModel, seed: int) -> Tensor:
    """FGSM images made on `attacker`."""
    rng = ExampleRNG.make(seed, "calibrate", split.index)
    with WhiteBox(attacker.model, rng.fork("attacker"), stochastic=attacker.stochastic) as access:
        return FGSM()(access, split.x, Untargeted(split.y), threat, rng.fork("attack"))


def _given(value: float | None, grid: tuple[float, ...]) -> tuple[float, ...]:
    return grid if value is None else (value,)
