"""Defense-GAN: classify the nearest image that a generator can make."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from advbench.defenses.defended import Defended, Input, Surrogate
from advbench.defenses.inference.at_test_time import TestTimeDefense
from advbench.defenses.inference.composition import Purified, purified
from advbench.defenses.inference.latent_attack import LatentChord
from advbench.defenses.inference.latent_search import Descent, Reconstruction


@dataclass(frozen=True, slots=True, kw_only=True)
class DefenseGAN(TestTimeDefense):
    """Defense-GAN, classify the nearest image that a generator can make, Samangouei et al. 2018, arXiv:1805.06605.

    ``z* = argmin over restarts of ||G(z) - x||^2`` after `steps` of gradient descent with momentum on the mean squared
    difference; the model behind it sees G(z*). The starts are random, so the defense is stochastic.

    steps: L, 200 in the paper's code. restarts: R, 10 there. learning_rate: 10 there, a tenth of it in the last fifth of the
    steps. momentum: 0.7 there. base: the spec of the defense that trained the model behind it. generator: the spec of the
    part that makes images.

    The surrogates beside those of `purified`: ``faithful`` differentiates the steps exactly, in memory that does not grow
    with them but for their latent vectors; ``bpda-projection`` has the Jacobian of the converged argmin; ``latent`` walks
    along the generator's range.

    The floor of the cost is `steps` times one forward and one backward (to z alone) of the generator on ``images *
    restarts`` rows: ``images = generator(z); torch.autograd.grad(images, z, cotangent)`` under
    `advbench.attacks.access.frozen`, with ``generator = defended.model.purifier.generator``.
    """

    steps: int = 200
    restarts: int = 10
    learning_rate: float = 10.0
    momentum: float = 0.7
    base: str = "none"
    generator: str = "generator"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"Expected `steps` >= 1, got {self.steps}")
        if not 1 <= self.restarts <= 256:
            raise ValueError(f"Expected `restarts` in 1 to 256, got {self.restarts}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"Expected `learning_rate` > 0, got {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"Expected `momentum` in [0, 1), got {self.momentum}")

    @property
    def models(self) -> Mapping[str, str | Input]:
        """The generator."""
        return {"generator": self.generator}

    def wrap(self, inputs: Mapping[str, Defended]) -> Defended:
        """The search in front of ``inputs["base"]``, on ``inputs["generator"]``. ValueError for a part without latents."""
        generator, base = inputs["generator"].model, inputs["base"]
        if not hasattr(generator, "latent"):
            raise ValueError(
                f"Expected `generator` to name a part that makes images of latent vectors, got {self.generator!r}: "
                "`generator` does"
            )
        descent = Descent(steps=self.steps, learning_rate=self.learning_rate, momentum=self.momentum)
        exact = Reconstruction(generator, descent, restarts=self.restarts)
        tangent = Reconstruction(generator, descent, restarts=self.restarts, jacobian="projected")
        defended = purified(base, exact, stochastic=True)
        inner = next(iter(base.surrogates.values()))
        known = dict(defended.surrogates)
        bare = known.pop("base")
        known["bpda-projection"] = Surrogate(
            Purified(tangent, inner.model, stochastic=True, base_stochastic=inner.stochastic), stochastic=True
        )
        known["latent"] = Surrogate(LatentChord(exact, inner.model, stochastic=inner.stochastic), stochastic=True)
        return dataclasses.replace(defended, surrogates=known | {"base": bare})
