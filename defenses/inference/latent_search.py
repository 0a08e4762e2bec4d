"""The nearest image that a generator can make, and the derivatives of that search.

For an image x the search takes L steps of gradient descent with momentum on ``d(z) = mean over pixels of (G(z) - x)^2`` from
several starts, and keeps the nearest G(z) (Samangouei et al. 2018, arXiv:1805.06605). Images and starts are rows of one
batch; rows never meet, so an example's answer does not depend on its batch. Only z is differentiated, never the generator's
parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from advbench.attacks.rng import ExampleRNG
from advbench.defenses.kernels.autograd import AutogradContext

_CURVATURE_FLOOR = 1e-30
_DRAWS = 2**24
"""A restart's stream starts so many draws after that of the restart before it."""
_ROWS = {True: 1024, False: 8192}
"""Images times restarts in one descent: on a CPU, elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Descent:
    """Gradient descent on the distance. steps: L. learning_rate: tenfold smaller in the last fifth. momentum: of SGD."""

    steps: int
    learning_rate: float
    momentum: float

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.learning_rate * (0.1 if step >= math.ceil(0.8 * self.steps) else 1.0)

    def damping(self, pixels: int) -> float:
        """The ridge whose solution L steps from zero come near, on a linear generator of so many pixels.

        Descent along an eigenvector of ``J^T J`` of value c leaves the share exp(-c t) of the error, t the sum of the step
        lengths ``2 rate / pixels / (1 - momentum)``; a ridge leaves 1 / (1 + c / ridge). They meet near ridge = 1 / t.
        """
        length = sum(self.rate(step) for step in range(self.steps)) * 2 / pixels / (1 - self.momentum)
        return 1 / length


def nearest(
    generator: nn.Module, x: Tensor, starts: Tensor, descent: Descent, *, path: bool = False
) -> tuple[Tensor, Tensor]:
    """The nearest generated images (n, c, h, w), and their latent vectors (n, latent).

    x: images (n, c, h, w). starts: latent vectors (n, restarts, latent). path: whether every latent vector that the chosen
    restart went through comes back, (steps + 1, n, latent), the last one the image's. No gradient flows.
    """
    n, restarts, _ = starts.shape
    z, x = starts.detach().flatten(0, 1), x.detach().repeat_interleave(restarts, dim=0)
    velocity, visited = torch.zeros_like(z), []
    for step in range(descent.steps):
        if path:
            visited.append(z)
        velocity = _slope(generator, z, x).add_(velocity, alpha=descent.momentum)
        z = z - descent.rate(step) * velocity
    with torch.no_grad():
        images = generator(z)
        error = (images - x).square().flatten(1).mean(dim=1).nan_to_num(nan=torch.inf)
    rows = error.view(n, restarts).argmin(dim=1) + torch.arange(n, device=z.device) * restarts
    return images[rows], torch.stack([one[rows] for one in (*visited, z)]) if path else z[rows]


def _slope(generator: nn.Module, z: Tensor, x: Tensor) -> Tensor:
    """Gradients (rows, latent) of each row's distance: one forward, one backward."""
    with torch.enable_grad():
        z = z.requires_grad_()
        images = generator(z)
        cotangent = (images.detach() - x).mul_(2 / x[0].numel())
        (gradient,) = torch.autograd.grad(images, z, cotangent)
    z.requires_grad_(False)
    return gradient


class _Path(AutogradContext, Protocol):
    """What `Unrolled` keeps beside the images and the path."""

    generator: nn.Module
    descent: Descent


class Unrolled(torch.autograd.Function):
    """`nearest` with the exact gradient of its L steps: the adjoint of momentum descent, from the kept path backwards.

    Of the choice between restarts the derivative is zero. The graph of one step exists at a time; what is kept are latent
    vectors, 128 numbers per step and image.
    """

    @staticmethod
    def forward(ctx: _Path, x: Tensor, generator: nn.Module, starts: Tensor, descent: Descent) -> Tensor:
        """The nearest generated images."""
        images, path = nearest(generator, x, starts, descent, path=True)
        ctx.save_for_backward(x, path)
        ctx.generator, ctx.descent = generator, descent
        return images

    @staticmethod
    @once_differentiable
    def backward(ctx: _Path, cotangent: Tensor) -> tuple[Tensor, None, None, None]:
        """The cotangents of the images `x`."""
        x, path = ctx.saved_tensors
        return unrolled_pullback(ctx.generator, x, path, ctx.descent, cotangent), None, None, None


def unrolled_pullback(generator: nn.Module, x: Tensor, path: Tensor, descent: Descent, cotangent: Tensor) -> Tensor:
    """The cotangent (n, c, h, w) times the Jacobian of ``x -> G(z_L(x))``; path: (steps + 1, n, latent).

    With g_t the gradient of the distance at z_t, ``v_(t+1) = m v_t + g_t`` and ``z_(t+1) = z_t - r_t v_(t+1)``; each step is
    a Hessian-vector product in (z, x).
    """
    with torch.enable_grad():
        z = path[-1].detach().requires_grad_()
        (z_bar,) = torch.autograd.grad(generator(z), z, cotangent)
    v_bar, x_bar = torch.zeros_like(z_bar), torch.zeros_like(x)
    for step in reversed(range(descent.steps)):
        v_bar = v_bar - descent.rate(step) * z_bar
        with torch.enable_grad():
            z, free = path[step].detach().requires_grad_(), x.detach().requires_grad_()
            images = generator(z)
            residual = (images - free) * (2 / x[0].numel())
            (gradient,) = torch.autograd.grad(images, z, residual, create_graph=True)
            by_z, by_x = torch.autograd.grad(gradient, (z, free), v_bar)
        z_bar, x_bar = z_bar + by_z, x_bar + by_x
        v_bar = descent.momentum * v_bar
    return x_bar


class _Tangent(AutogradContext, Protocol):
    """What `Projected` keeps beside the latent vectors."""

    generator: nn.Module
    ridge: float


class Projected(torch.autograd.Function):
    """`nearest` with the Jacobian of the converged argmin: the projection on the generator's tangent space.

    By the implicit function theorem, without the residual's curvature (Gauss-Newton),
    ``dG(z*)/dx = J (J^T J + ridge)^-1 J^T`` with J = dG/dz at z*, and a ridge for the steps that were not taken.
    """

    @staticmethod
    def forward(ctx: _Tangent, x: Tensor, generator: nn.Module, starts: Tensor, descent: Descent) -> Tensor:
        """The nearest generated images."""
        images, z = nearest(generator, x, starts, descent)
        ctx.save_for_backward(z)
        ctx.generator, ctx.ridge = generator, descent.damping(x[0].numel())
        return images

    @staticmethod
    @once_differentiable
    def backward(ctx: _Tangent, cotangent: Tensor) -> tuple[Tensor, None, None, None]:
        """The cotangents, projected."""
        (z,) = ctx.saved_tensors
        return projection(ctx.generator, z, cotangent, ridge=ctx.ridge), None, None, None


def projection(
    generator: nn.Module, z: Tensor, u: Tensor, *, ridge: float, iterations: int = 32, tolerance: float = 1e-4
) -> Tensor:
    """``J (J^T J + ridge)^-1 J^T u`` for images u (n, c, h, w), with J = dG/dz at z (n, latent).

    Conjugate gradients on each row by itself, at most `iterations` (each one product with J and one with its transpose),
    until the residual is `tolerance` times that of zero.
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        images = generator(z)
        # The gradient is linear in its cotangent, so its own derivative by the cotangent is the product with J.
        dual = torch.zeros_like(images, requires_grad=True)
        (back,) = torch.autograd.grad(images, z, dual, create_graph=True)

    def push(v: Tensor) -> Tensor:
        return torch.autograd.grad(back, dual, v, retain_graph=True)[0]

    def pull(w: Tensor) -> Tensor:
        return torch.autograd.grad(images, z, w, retain_graph=True)[0]

    right = pull(u)
    solution, residual, direction = torch.zeros_like(right), right, right
    squared = residual.square().sum(dim=1, keepdim=True)
    enough = squared * tolerance**2
    for _ in range(iterations):
        if bool((squared <= enough).all()):
            break
        image = pull(push(direction)) + ridge * direction
        length = squared / (direction * image).sum(dim=1, keepdim=True).clamp_min(_CURVATURE_FLOOR)
        length = torch.where(squared > enough, length, torch.zeros_like(length))
        solution, residual = solution + length * direction, residual - length * image
        new = residual.square().sum(dim=1, keepdim=True)
        direction = residual + new / squared.clamp_min(_CURVATURE_FLOOR) * direction
        squared = new
    return push(solution).detach()


class Reconstruction(nn.Module):
    """Images (n, c, h, w) -> the nearest images of a generator, by descent from random starts.

    generator: latent vectors (n, latent) -> images; it has an attribute `latent`. restarts: starts per image, normal with
    variance 1 / latent as in the authors' code. jacobian: what autograd sees, `unrolled` (the L steps, exactly) or
    `projected` (that of the converged argmin).
    """

    def __init__(self, generator: nn.Module, descent: Descent, *, restarts: int, jacobian: str = "unrolled") -> None:
        super().__init__()
        self.generator = generator
        self.descent = descent
        self.restarts = restarts
        self.derivative = {"unrolled": Unrolled, "projected": Projected}[jacobian]

    def extra_repr(self) -> str:
        """What the structure is, beside its parts."""
        return f"{self.descent}, restarts={self.restarts}, {self.derivative.__name__}"

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        """The reconstructions, each from starts of its own example and draw."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self.search(x, rng)[0]
        parts = self._parts(x, rng)
        return torch.cat([self.derivative.apply(images, self.generator, starts, self.descent) for images, starts in parts])

    def search(self, x: Tensor, rng: ExampleRNG) -> tuple[Tensor, Tensor]:
        """The reconstructions and their latent vectors (n, latent), without a gradient."""
        with torch.inference_mode(False), torch.no_grad():
            x = x.clone() if x.is_inference() else x
            found = [nearest(self.generator, images, starts, self.descent) for images, starts in self._parts(x, rng)]
            return torch.cat([images for images, _ in found]), torch.cat([z for _, z in found])

    def starts(self, rng: ExampleRNG, dtype: torch.dtype) -> Tensor:
        """Latent vectors (n, restarts, latent); the first ones are the same for any number of restarts."""
        n, latent = len(rng.index), int(self.generator.latent)  # type: ignore[arg-type]
        restart = torch.arange(self.restarts, device=rng.index.device).repeat(n)
        each = rng.select(torch.arange(n, device=rng.index.device).repeat_interleave(self.restarts))
        drawn = each.at(each.draw + restart * _DRAWS).normal((latent,), dtype)
        return drawn.view(n, self.restarts, latent) / math.sqrt(latent)

    def _parts(self, x: Tensor, rng: ExampleRNG) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and their starts, so many at a time that memory stays bounded."""
        size = max(1, _ROWS[x.device.type == "cpu"] // self.restarts)
        return zip(torch.split(x, size), torch.split(self.starts(rng, x.dtype), size), strict=True)
