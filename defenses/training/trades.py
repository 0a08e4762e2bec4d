"""TRADES: the clean loss, and how far the answer may be driven from the clean one inside the ball."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from advbench.attacks import balls
from advbench.attacks.threat import Norm, ThreatModel
from advbench.defenses.training.ascent import climb
from advbench.defenses.training.trained import Trained, stream
from advbench.modes import evaluating
from advbench.zoo.training import Step

_NOISE = 1e-3
"""Standard deviation of the start around the clean image, where the divergence has no gradient (algorithm 1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trades(Trained):
    """TRADES, Zhang et al. 2019, arXiv:1901.08573.

    The loss is ``J(x) + beta * KL(p(x) || p(x_adv))`` (algorithm 1), x_adv found by projected steepest ascent
    on that divergence from the clean image plus a little noise. As in the authors' code, the ascent runs in evaluation mode
    and both terms in training mode, the divergence with a gradient in both of its answers.

    norm: the ball, set by the subclass. epsilon: its size in pixel units of [0, 1]; None is that of the run's
    threat, which the plan fills in. beta: 1 / lambda of the paper, 6 in its main results; 0 is plain training. steps,
    step_size: of the ascent, the latter as a fraction of epsilon; 10 steps of 2/255 at epsilon 8/255 for CIFAR-10. clip:
    keep perturbed images in [0, 1].
    """

    norm: ClassVar[Norm]
    epsilon: float | None = None
    beta: float = 6.0
    steps: int = 10
    step_size: float = 0.25
    clip: bool = True

    def __post_init__(self) -> None:
        if self.epsilon is not None:
            ThreatModel(self.norm, self.epsilon)
        if not self.beta >= 0:
            raise ValueError(f"Expected `beta` >= 0, got {self.beta}")
        if self.steps < 1:
            raise ValueError(f"Expected `steps` >= 1, got {self.steps}")
        if not self.step_size > 0:
            raise ValueError(f"Expected `step_size` > 0, got {self.step_size}")

    @property
    def threat(self) -> ThreatModel:
        """The set of images that the training defends against. ValueError if `epsilon` is None."""
        if self.epsilon is None:
            raise ValueError(f"Expected `epsilon` > 0, got None: give {type(self).__name__} one in {self.norm}")
        return ThreatModel(self.norm, self.epsilon, (0.0, 1.0) if self.clip else None)

    def objective(self, model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
        """Cross-entropy of the clean batch, and `beta` times the divergence; with one fixed start in validation."""
        if self.beta == 0:
            return {"clean": cross_entropy(model(x), y)}
        x_adv = self._perturbed(model, x, step)
        clean = model(x)
        return {"clean": cross_entropy(clean, y), "divergence": self.beta * divergence(clean, model(x_adv)).mean()}

    def _perturbed(self, model: nn.Module, x: Tensor, step: Step) -> Tensor:
        threat = self.threat
        noise = _NOISE * stream(step).normal(tuple(x.shape[1:]), x.dtype)
        with evaluating(model):
            clean = model(x).detach()
            return climb(
                model,
                x,
                balls.project(x + noise, x, threat),
                lambda logits: divergence(clean, logits),
                threat,
                steps=self.steps,
                step_size=self.step_size,
            )


def divergence(clean: Tensor, perturbed: Tensor) -> Tensor:
    """KL(p || q) of the softmax answers p to clean and q to perturbed images, in nats; logits (n, classes), result (n,)."""
    p, q = log_softmax(clean, dim=1), log_softmax(perturbed, dim=1)
    return kl_div(q, p, reduction="none", log_target=True).sum(dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TradesLinf(Trades):
    """TRADES in the linf ball, Zhang et al. 2019, arXiv:1901.08573."""

    norm: ClassVar[Norm] = "linf"


@dataclass(frozen=True, slots=True, kw_only=True)
class TradesL2(Trades):
    """TRADES in the l2 ball, Zhang et al. 2019, arXiv:1901.08573."""

    norm: ClassVar[Norm] = "l2"
