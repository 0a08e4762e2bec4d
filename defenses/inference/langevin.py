"""Langevin dynamics on images: steps along the score that a denoiser estimates, with noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from advbench.attacks.rng import ExampleRNG
from advbench.defenses.inference.composition import checkpointed

State: TypeAlias = tuple[Tensor, ...]
"""The images x, and with the Metropolis step their residuals r(x) - x."""

Step: TypeAlias = Callable[[State, int], State]
"""(state, t from 0) -> the next state."""


MAX_STEPS = 256
"""The most steps that have noise of their own."""

_DRAWS = 2**24
"""A step's stream starts so many draws after that of the step before it."""

_AT_ONCE = 2**18
"""The most numbers drawn at once, unless one step has more."""

_KEPT_WHOLE = 2**19
"""The most numbers in the images of all steps together whose graph is kept whole, instead of run again for the gradient.

The denoiser keeps some sixty numbers for each: about 130 MB. It saves a third of a small batch's gradient.
"""


class Langevin(nn.Module):
    """Annealed Langevin steps, x + a_t (r(x) - x) + d_t n with n normal, from each image on (Srinivasan et al. 2018).

    a_t = a_0 decay^t + step_offset and d_t = d_0 decay^t + noise_offset (arXiv:1805.12017 says that annealing with an offset
    works best, the formulas are lost). a multiplies the residual, so that 1 steps onto r(x); the step in units of the score
    is a sigma^2. The buffer `strength` holds a_0 and d_0.

    Images (n, c, h, w) -> images of that shape, which may leave [0, 1] unless `clip`. Differentiable through every step, in
    memory for about 2 sqrt(steps) of them where all of them together are large. stochastic: whether any d_t is above zero;
    only then is an rng wanted.

    metropolis: whether every step may be rejected (`log_acceptance`). A rejection is a decision, through which no gradient
    flows; the branch taken is differentiated.
    """

    strength: Tensor

    def __init__(
        self,
        denoiser: nn.Module,
        *,
        steps: int,
        decay: float,
        step_offset: float,
        noise_offset: float,
        metropolis: bool,
        clip: bool,
        stochastic: bool,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.steps = steps
        self.decay = decay
        self.step_offset = step_offset
        self.noise_offset = noise_offset
        self.metropolis = metropolis
        self.clip = clip
        self.stochastic = stochastic
        self.register_buffer("strength", torch.zeros(2))

    def extra_repr(self) -> str:
        """What the structure is, beside its parts."""
        return f"steps={self.steps}, metropolis={self.metropolis}, stochastic={self.stochastic}"

    def annealed(self) -> tuple[list[float], list[float]]:
        """a_t and d_t of every step."""
        step, noise = self.strength.tolist()
        decays = [self.decay**t for t in range(self.steps)]
        return [step * decay + self.step_offset for decay in decays], [noise * decay + self.noise_offset for decay in decays]

    def forward(self, x: Tensor, rng: ExampleRNG | None = None) -> Tensor:
        """The images after the last step."""
        step, state = self._stepping(x, rng), self._start(x)
        if x.numel() * self.steps > _KEPT_WHOLE:
            state = checkpointed(step, state, self.steps)
        else:
            for t in range(self.steps):
                state = step(state, t)
        last = state[0]
        return last.clamp(0, 1) if self.clip else last

    def trajectory(self, x: Tensor, rng: ExampleRNG | None = None) -> Tensor:
        """The images before and after every step, never clipped, shape (steps + 1, n, c, h, w)."""
        step, states = self._stepping(x, rng), [self._start(x)]
        for t in range(self.steps):
            states.append(step(states[-1], t))
        return torch.stack([state[0] for state in states])

    def states(self, x: Tensor, rng: ExampleRNG | None = None) -> Tensor:
        """The images before and after every step, the last one as `forward` has it, (steps + 1, n, c, h, w).

        For a gradient no more than these is kept where they are many; each step runs a second time then.
        """
        step, state = self._stepping(x, rng), self._start(x)
        again = x.numel() * self.steps > _KEPT_WHOLE and torch.is_grad_enabled() and x.requires_grad
        found = [x]
        for t in range(self.steps):
            state = checkpoint(step, state, t, use_reentrant=False, preserve_rng_state=False) if again else step(state, t)
            found.append(state[0])
        found[-1] = found[-1].clamp(0, 1) if self.clip else found[-1]
        return torch.stack(found)

    def _start(self, x: Tensor) -> State:
        return (x, self._residual(x)) if self.metropolis else (x,)

    def _residual(self, x: Tensor) -> Tensor:
        return self.denoiser(x) - x  # type: ignore[no-any-return]

    def _stepping(self, x: Tensor, rng: ExampleRNG | None) -> Step:
        """The steps of the images `x`, whose noise is theirs alone."""
        if self.stochastic and rng is None:
            raise ValueError("Expected `rng`, an ExampleRNG of the images, got None: the steps are noisy")
        a, d = self.annealed()
        noise = Noise(rng.fork("noise"), x, self.steps) if self.stochastic and rng is not None else None
        odds = (
            rng.fork("accept").uniform((self.steps,), torch.float64).log() if self.metropolis and rng is not None else None
        )

        def step(state: State, t: int) -> State:
            x = state[0]
            moved = x.add(state[1], alpha=a[t]) if self.metropolis else x.lerp(self.denoiser(x), a[t])
            proposed = moved if noise is None else moved.add_(noise(t), alpha=d[t])
            if odds is None:
                return (proposed,)
            residual = self._residual(proposed)
            accepted = odds[:, t].view(-1, 1, 1, 1) < log_acceptance(state[1], residual, a[t], d[t])
            return torch.where(accepted, proposed, x), torch.where(accepted, residual, state[1])

        return step


class Noise:
    """Standard normal images of every step, each a pure function of (example, draw, step), several steps drawn at once.

    A draw costs about a hundred small operations at any size, more than a forward of one image.

    rng: of the images. x: images (n, c, h, w), for shape and precision. steps: at most `MAX_STEPS`.
    """

    def __init__(self, rng: ExampleRNG, x: Tensor, steps: int) -> None:
        self.rng = rng
        self.shape = tuple(x.shape[1:])
        self.dtype = x.dtype
        self.steps = steps
        self.at_once = max(1, _AT_ONCE // max(1, x.numel()))
        self.first = -1
        self.drawn: tuple[Tensor, ...] = ()

    def __call__(self, t: int) -> Tensor:
        """The noise of step t, (n, c, h, w)."""
        first = t - t % self.at_once
        if first != self.first:
            self.first, self.drawn = first, self._draw(first, min(self.at_once, self.steps - first))
        return self.drawn[t - first]

    def _draw(self, first: int, count: int) -> tuple[Tensor, ...]:
        """The noise of `count` steps, (n, c, h, w) each: of step t at the draws beyond t * 2**24."""
        index, draw = self.rng.index, self.rng.draw
        beyond = torch.arange(first * _DRAWS, (first + count) * _DRAWS, _DRAWS, device=index.device).unsqueeze(1)
        rng = replace(self.rng, index=index.repeat(count), draw=(draw + beyond).flatten())
        with torch.inference_mode():  # its small operations cost a tenth less
            drawn = rng.normal(self.shape, self.dtype)
        return drawn.clone().view(count, len(index), *self.shape).unbind()


def log_acceptance(before: Tensor, after: Tensor, a: float, d: float) -> Tensor:
    """Logarithm of the Metropolis-Hastings ratio of one Langevin step, from the residuals at its two ends.

    The target. With g(x) = r(x) - x = sigma^2 grad log p_sigma(x), the step x' ~ N(x + a g(x), d^2) is the Langevin proposal
    for pi = p_sigma^beta, beta = 2 a sigma^2 / d^2: a noise smaller than sigma sqrt(2 a) sharpens the density (Roberts and
    Tweedie 1996, doi:10.2307/3318418). A schedule has a target of its own in every step.

    The ratio. An autoencoder gives a score and no density, so log pi(x') - log pi(x) is the line integral of the score
    beta g / sigma^2 along the straight segment (Alain and Bengio 2014, arXiv:1211.4246; Sjoberg et al. 2023,
    arXiv:2307.14012), by the trapezoid of its ends: a (g + g')^T (x' - x) / d^2. Added to the logarithm of the
    proposals' ratio, (||x' - x - a g||^2 - ||x - x' - a g'||^2) / (2 d^2), all but a^2 (||g||^2 - ||g'||^2) / (2 d^2)
    cancels: no evaluation beside those at the ends, and no sigma. It is exact where the score is linear, that is for
    Gaussian densities.

    before, after: g(x) and g(x'), (n, c, h, w). a, d: step size and noise, d > 0. Returns (n, 1, 1, 1), float64.
    """
    shrunk = before.double().square() - after.double().square()
    return 0.5 * (a / d) ** 2 * shrunk.sum(dim=(1, 2, 3), keepdim=True)
