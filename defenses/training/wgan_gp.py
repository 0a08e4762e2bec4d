"""Wasserstein GANs with gradient penalty (WGAN-GP), Gulrajani et al. 2017, arXiv:1704.00028, algorithm 1."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advbench.zoo.data import Split
from advbench.zoo.training import Progress, derive_seed, seeded


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How a generator and a critic are trained against one another; the defaults are the paper's.

    critic_steps: updates of the critic for each of the generator. penalty: weight of the gradient penalty. learning_rate,
    betas: of Adam, for both. batch_size: images per update; the paper's MNIST code has 50.
    """

    critic_steps: int = 5
    penalty: float = 10.0
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.0, 0.9)
    batch_size: int = 50


def gradient_penalty(critic: nn.Module, x: Tensor) -> Tensor:
    """Mean over images of ``(||d critic(x) / dx||_2 - 1)^2``, a scalar, differentiable in the critic's parameters.

    critic: images (n, c, h, w) -> scores (n,), each of its own image alone (no batch norm).
    """
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    norm: Tensor = gradient.flatten(1).norm(dim=1)
    return (norm - 1).square().mean()


def critic_terms(critic: nn.Module, real: Tensor, fake: Tensor, mix: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """What the critic minimises: ``mean critic(fake) - mean critic(real)``, and the weighted gradient penalty.

    real, fake: images (n, c, h, w). mix: (n, 1, 1, 1) in [0, 1], where between them the penalty is taken.
    """
    scores = critic(torch.cat((fake, real)))
    gap = scores[: len(fake)].mean() - scores[len(fake) :].mean()
    return gap, penalty * gradient_penalty(critic, real + mix * (fake - real))


def train_wgan_gp(
    generator: nn.Module,
    critic: nn.Module,
    training: Split,
    *,
    latent: int,
    iterations: int,
    rule: Rule,
    seed: int,
    device: torch.device,
    progress: Progress | None = None,
) -> None:
    """Train both in place, for so many updates of the generator; they end on `device`, the generator in evaluation mode.

    generator: latent vectors (n, latent), standard normal, -> images. critic: images -> scores (n,). The same seed, device
    and thread count give the same bits; torch's global generators are left as they were. progress: called after every
    iteration. Raises FloatingPointError if the critic's loss is not finite.
    """
    training = training.to(device)
    generator.to(device).train()
    critic.to(device).train()
    optimizers = {
        network: torch.optim.Adam(network.parameters(), lr=rule.learning_rate, betas=rule.betas, fused=True)
        for network in (generator, critic)
    }
    batches = _batches(training, rule.batch_size, seed)
    cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    with seeded(derive_seed(seed, "latents"), device), cudnn:
        for iteration in range(iterations):
            for _ in range(rule.critic_steps):
                real = next(batches)
                with torch.no_grad():
                    fake = generator(torch.randn(len(real), latent, device=device))
                mix = torch.rand(len(real), 1, 1, 1, device=device)
                loss = sum(critic_terms(critic, real, fake, mix, rule.penalty), start=real.new_zeros(()))
                _descend(optimizers[critic], loss)
            _check(loss, iteration)
            critic.requires_grad_(False)
            fake = generator(torch.randn(rule.batch_size, latent, device=device))
            _descend(optimizers[generator], -critic(fake).mean())
            critic.requires_grad_(True)
            if progress is not None:
                progress(iteration, iterations)
    generator.eval()


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _check(loss: Tensor, iteration: int) -> None:
    """FloatingPointError if the critic's loss is not finite; looked at every 64th iteration, to keep a GPU busy."""
    if iteration % 64 == 63 and not torch.isfinite(loss):
        raise FloatingPointError(
            f"Training diverged by iteration {iteration + 1}: the critic's loss is {float(loss.detach())}; "
            "lower the learning rate"
        )


def _batches(training: Split, size: int, seed: int) -> Iterator[Tensor]:
    """Images in batches of `size` without end, each pass in a fresh order; a rest too small for a batch waits a pass."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "order"))
    size = min(size, len(training))
    while True:
        order = torch.randperm(len(training), generator=generator).to(training.index.device)
        for rows in torch.split(order, size)[: len(training) // size]:
            yield training.x[rows]
