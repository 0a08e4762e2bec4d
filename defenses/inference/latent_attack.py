"""What an attacker sees who searches the latent space of a generator instead of the space of images.

Adversarial images lie on the generator's own range, where the search for the nearest generated image leaves them as they are
(Athalye et al. 2018, arXiv:1802.00420, section 5.4.1; Jalal et al. 2017, arXiv:1712.09196). The way there is a chord from
G(z*) to an image G(z') that the classifier errs on; it takes the place of the gradient, so that every attack of the harness
walks along it, stays in its own ball, and is verified as ever.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from advbench.attacks.rng import ExampleRNG
from advbench.defenses.inference.composition import call
from advbench.defenses.inference.latent_search import Reconstruction
from advbench.defenses.kernels.autograd import AutogradContext

_SMALL = 1e-12


class LatentChord(nn.Module):
    """A classifier behind a reconstruction, whose gradient is the slope along a chord found in latent space.

    Images -> exactly the logits of the defended model at the same draw. For a cotangent u of the logits the gradient is
    ``delta * d / ||d||^2``, with d = G(z') - G(z*) and delta the rise of ``<u, logits>`` from G(z*) to G(z'): along d it
    predicts that rise, as a gradient would.

    base: images -> logits. stochastic: whether `base` takes an rng. steps: Newton steps of the search for z'. reach: length
    of the longest step, in latent units (the starts have length one).
    """

    def __init__(
        self, reconstruction: Reconstruction, base: nn.Module, *, stochastic: bool, steps: int = 10, reach: float = 1.0
    ) -> None:
        super().__init__()
        self.reconstruction = reconstruction
        self.base = base
        self.stochastic = stochastic
        self.steps = steps
        self.reach = reach

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        """Logits (n, classes)."""
        inner = rng.fork("base")
        with torch.no_grad():
            images, z = self.reconstruction.search(x, rng.fork("purifier"))
            logits = call(self.base, images, inner, self.stochastic)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return logits
        found: Tensor = _Chord.apply(x, logits, z, self, inner)
        return found

    def slope(self, z: Tensor, u: Tensor, rng: ExampleRNG) -> Tensor:
        """The gradient (n, c, h, w) that stands for cotangents u (n, classes) at the latent vectors z (n, latent)."""
        u = u - u.mean(dim=1, keepdim=True)
        images, value, gradient = self._ascent(z, u, rng)
        first, start = value, images
        # Newton's way to a value beyond zero, where the logits that u raises have passed those that it lowers.
        wanted = value + 1.5 * value.abs()
        for _ in range(self.steps):
            squared = gradient.square().sum(dim=1).clamp_min(_SMALL**2)
            length = ((wanted - value).clamp_min(0) / squared).minimum(self.reach / squared.sqrt())
            z = z + length.unsqueeze(1) * gradient
            images, value, gradient = self._ascent(z, u, rng)
        chord = images - start
        norm = chord.square().flatten(1).sum(dim=1).clamp_min(_SMALL)
        return chord * ((value - first) / norm).view(-1, 1, 1, 1)

    def _ascent(self, z: Tensor, u: Tensor, rng: ExampleRNG) -> tuple[Tensor, Tensor, Tensor]:
        """G(z), ``<u, logits of G(z)>`` of shape (n,), and its gradient in z."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            images = self.reconstruction.generator(z)
            value = (u * call(self.base, images, rng, self.stochastic)).sum(dim=1)
            (gradient,) = torch.autograd.grad(value.sum(), z)
        return images.detach(), value.detach(), gradient


class _Slopes(AutogradContext, Protocol):
    """What `_Chord` keeps beside the latent vectors."""

    model: LatentChord
    rng: ExampleRNG


class _Chord(torch.autograd.Function):
    """Logits as they are, with the slope of the chord as their gradient."""

    @staticmethod
    def forward(ctx: _Slopes, x: Tensor, logits: Tensor, z: Tensor, model: LatentChord, rng: ExampleRNG) -> Tensor:  # noqa: ARG004
        """The logits."""
        ctx.save_for_backward(z)
        ctx.model, ctx.rng = model, rng
        return logits.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: _Slopes, cotangent: Tensor) -> tuple[Tensor, None, None, None, None]:
        """The slopes."""
        (z,) = ctx.saved_tensors
        return ctx.model.slope(z, cotangent, ctx.rng), None, None, None, None
