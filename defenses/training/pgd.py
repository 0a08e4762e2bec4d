"""PGD adversarial training: robust optimisation with a multi-step adversary from a random start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from advbench.attacks.threat import Norm
from advbench.defenses.training.robust_optimisation import RobustOptimisation


@dataclass(frozen=True, slots=True, kw_only=True)
class PGDTraining(RobustOptimisation):
    """PGD adversarial training, Madry et al. 2018, arXiv:1706.06083.

    The fields are those of `RobustOptimisation`. The defaults are the paper's for CIFAR-10 (7 steps of 2/255 at epsilon
    8/255, from a random start); on MNIST the paper takes 40 steps of 0.01 at epsilon 0.3. Epsilon grows over the first
    half of the training, which the paper does not do: on the validation images of digits (three seeds, PGD with 40 steps)
    59% are kept in linf at 1/8 against 58% without growth, 52% in l2 at 2 against 50%, and in linf at 3/16 36% against 10%,
    where the training without growth never gets off the ground.
    """

    steps: int = 7
    step_size: float = 0.25
    random_start: bool = True
    warm_up: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class PGDLinf(PGDTraining):
    """PGD adversarial training in the linf ball, Madry et al. 2018, arXiv:1706.06083."""

    norm: ClassVar[Norm] = "linf"


@dataclass(frozen=True, slots=True, kw_only=True)
class PGDL2(PGDTraining):
    """PGD adversarial training in the l2 ball, Madry et al. 2018, arXiv:1706.06083."""

    norm: ClassVar[Norm] = "l2"


@dataclass(frozen=True, slots=True, kw_only=True)
class PGDL1(PGDTraining):
    """PGD adversarial training in the l1 ball, sparse steps, Madry et al. 2018, arXiv:1706.06083.

    The start is the clean image unless `random_start` asks otherwise: nearly all of an l1 ball's volume lies at its surface
    in tiny changes of every pixel, so that a random start spends the whole epsilon on noise, which the steps must first take
    back. sparsity: the share of the values that a step is spread over, as in the attack (`balls.sparse_step`): one pixel per
    step would reach few pixels in few steps.
    """

    norm: ClassVar[Norm] = "l1"
    random_start: bool = False
    sparsity: float = 0.01

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is another class than the one that a bare super() closes over.
        PGDTraining.__post_init__(self)
        if not 0 < self.sparsity <= 1:
            raise ValueError(f"Expected `sparsity` in (0, 1], got {self.sparsity}")

    def _share(self) -> float | None:
        return self.sparsity
