"""How many draws the gradient of a stochastic model needs, found on held-out images before the attack.

It belongs to a surrogate and a threat, not to an attack.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from advbench.attacks import balls
from advbench.attacks.access import WhiteBox
from advbench.attacks.calibration import HeldOut
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Untargeted, cross_entropy

LEVEL = 0.9
CAP = 64


@dataclass(frozen=True, slots=True)
class Convergence:
    """How many draws the mean gradient needs.

    draws: K. cosines: the median cosine between two independent means over K draws, at the clean images and, where the
    threat has an epsilon, at perturbed ones; NaN where all gradients are zero. capped: whether K is the cap and one of the
    cosines is still below the level.
    """

    draws: int
    cosines: tuple[float, ...]
    capped: bool


def converged_draws(held_out: HeldOut, *, level: float = LEVEL, cap: int = CAP) -> Convergence:
    """The draws that EOT (Athalye et al. 2018, arXiv:1707.07397) averages, by the convergence of the gradient's direction.

    K is the smallest of 1, 2, 4, ..., `cap` at which the median over the images of the cosine between the mean loss
    gradients of two independent halves of K draws each is at least `level`: at the clean images, and one step of the whole
    epsilon away from them, along the mean over all draws taken so far. A mean of K draws then has a cosine of about
    sqrt(level) with the gradient of the expected loss. Images whose gradient is zero have no direction and are left out.

    Costs 2 K forwards and backwards per image and point. Raises NoGradientError if nothing can be differentiated.
    """
    if not 0 < level < 1 or cap < 1:
        raise ValueError(f"Expected `level` in (0, 1) and `cap` >= 1, got {level} and {cap}")
    draws, cosine, gradient = _converge(held_out, "clean", level, cap)
    found = [(draws, cosine)]
    if held_out.threat.epsilon is not None and held_out.threat.norm in balls.DUAL:
        ahead = held_out.x + held_out.threat.epsilon_or_inf * balls.steepest(gradient, held_out.threat)
        perturbed = replace(held_out, x=balls.project(ahead, held_out.x, held_out.threat))
        found.append(_converge(perturbed, "perturbed", level, cap)[:2])
    cosines = tuple(cosine for _, cosine in found)
    draws = max(draws for draws, _ in found)
    return Convergence(draws, cosines, draws == cap and any(cosine < level for cosine in cosines))


def _converge(held_out: HeldOut, point: str, level: float, cap: int) -> tuple[int, float, Tensor]:
    """K, the median cosine of two halves of K draws, and the mean gradient over both, (n, c, h, w)."""
    blocks = [slice(start, start + held_out.batch) for start in range(0, len(held_out), held_out.batch)]
    halves = [[_access(held_out, rows, f"{point} {half}") for rows in blocks] for half in ("one", "other")]
    sums, draws = [torch.zeros_like(held_out.x), torch.zeros_like(held_out.x)], 0
    while True:
        more = max(1, draws)  # as many again as there were
        for total, accesses in zip(sums, halves, strict=True):
            for rows, access in zip(blocks, accesses, strict=True):
                goal = Untargeted(held_out.y[rows])
                with access.averaging(more) as asked:
                    total[rows] += more * asked.loss_gradient(held_out.x[rows], goal, cross_entropy).gradient
        draws += more
        cosine = _median_cosine(*sums)
        if not cosine < level or 2 * draws > cap:  # no direction anywhere is no reason to draw on
            return draws, cosine, (sums[0] + sums[1]) / (2 * draws)


def _access(held_out: HeldOut, rows: slice, purpose: str) -> WhiteBox:
    rng = ExampleRNG.make(held_out.seed, f"draws {purpose}", held_out.index[rows])
    detector = None if held_out.detector is None else held_out.detector.select(rows)
    return WhiteBox(held_out.attacked_model, rng, stochastic=held_out.stochastic, detector=detector)


def _median_cosine(one: Tensor, other: Tensor) -> float:
    """The median over images (n, c, h, w) of the cosine of two gradients, without those that are zero; NaN where all are."""
    one, other = (balls.finite(each).flatten(1).to(torch.float64) for each in (one, other))
    lengths = one.norm(dim=1) * other.norm(dim=1)
    cosines = ((one * other).sum(dim=1) / lengths)[lengths > 0]
    return float(cosines.median()) if len(cosines) else float("nan")
