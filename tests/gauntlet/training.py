"""Data, training and the cache of the gauntlet's models, in plain PyTorch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.datasets import MNIST

from advbench.attacks.threat import Norm
from advbench.zoo.checkpoints import cache_dir, fingerprint
from tests.gauntlet.models import Recipe
from tests.gauntlet.networks import NETWORKS, InBlocks, Scaled

ATTACK_STEPS = 5
TEMPERATURE = 100.0
BETA = 6.0
MACHINES, MAMMALS = (0, 1, 8, 9), (3, 4, 5, 7)

Shift = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(model, images, labels) -> the images to train on."""


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """A model and the first test images that it gets right: x (n, c, h, w), labels y (n,), their numbers `index` (n,).

    weights: the fingerprint of the model's.
    """

    recipe: Recipe
    model: nn.Module
    weights: str
    x: Tensor
    y: Tensor
    index: Tensor


def data_dir() -> Path:
    """The folder with MNIST and cifar10-small.npz. Raises FileNotFoundError where $ADVBENCH_DATA names none."""
    folder = Path(os.environ.get("ADVBENCH_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    if not folder.is_dir():
        raise FileNotFoundError(f"Expected a folder with MNIST and cifar10-small.npz in $ADVBENCH_DATA, got {folder}")
    return folder


def examples(recipe: Recipe, *, train: bool) -> tuple[Tensor, Tensor, int]:
    """Images (n, c, h, w) in [0, 1], labels (n,) and the number of classes."""
    x, y = _cifar(train) if recipe.task in ("cifar", "kinds") else _mnist(train)
    x = functional.avg_pool2d(x, 2) if recipe.halved else x
    if recipe.task == "kinds":
        return x, torch.tensor([0 if k in MACHINES else 1 if k in MAMMALS else 2 for k in range(10)])[y], 3
    if recipe.task == "parity":
        return x, y % 2, 2
    if recipe.task == "pairs":
        half = len(x) // 2
        return torch.cat((x[:half], x[half:]), dim=3), 10 * y[:half] + y[half:], 100
    return x, y, 10


@cache
def _mnist(train: bool) -> tuple[Tensor, Tensor]:
    data = MNIST(str(data_dir()), train=train)
    return data.data.unsqueeze(1) / 255, data.targets.clone()


@cache
def _cifar(train: bool) -> tuple[Tensor, Tensor]:
    part = "train" if train else "test"
    with np.load(data_dir() / "cifar10-small.npz") as data:
        pixels, labels = data[f"x_{part}"], data[f"y_{part}"]
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255, torch.from_numpy(labels).flatten().long()


def problem(recipe: Recipe, images: int | None = None) -> Problem:
    """The model, from the cache or trained, and the images to attack."""
    model = model_of(recipe)
    x, y, _ = examples(recipe, train=False)
    count, found = images or recipe.images, []
    with torch.no_grad():
        for start in range(0, len(x), 500):
            right = model(x[start : start + 500]).argmax(dim=1) == y[start : start + 500]
            found += (start + right.nonzero().squeeze(1)).tolist()
            if len(found) >= count:
                break
    index = torch.tensor(found[:count])
    faced = InBlocks(model) if count > 100 else model
    return Problem(recipe, faced.eval(), fingerprint(model), x[index].contiguous(), y[index], index)


def model_of(recipe: Recipe) -> nn.Module:
    """The model in evaluation mode with frozen parameters, from the cache, else trained and kept there."""
    torch.set_num_threads(1)
    trained = (
        recipe.task,
        recipe.halved,
        recipe.network,
        recipe.units,
        recipe.scale,
        recipe.training,
        recipe.norm,
        recipe.radius,
    )
    schedule = (recipe.updates, recipe.batch, recipe.rate, recipe.seed)
    key = hashlib.sha256(repr((trained, schedule)).encode()).hexdigest()[:12]
    path = cache_dir() / "gauntlet" / f"{recipe.name}-{key}.pt"
    x, y, classes = examples(recipe, train=True)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        body = NETWORKS[recipe.network](tuple(x.shape[1:]), classes, recipe.units)
        if path.exists():
            body.load_state_dict(torch.load(path, weights_only=True))
        else:
            _train(recipe, body, x, y)
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(body.state_dict(), path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)
    model = body if recipe.scale == 1 else Scaled(body, recipe.scale)
    return model.eval().requires_grad_(False)


def _train(recipe: Recipe, body: nn.Module, x: Tensor, y: Tensor) -> None:
    """Train the body by its recipe, whose logits are scaled afterwards."""
    shift: Shift = {
        "pgd": lambda model, x, y: attacked(model, x, recipe, _error(y)),
        "one-step": lambda model, x, y: attacked(model, x, recipe, _error(y), steps=1, step_size=1.0, start=0.0),
    }.get(recipe.training, lambda model, x, y: x)
    if recipe.training == "trades":
        _fit(recipe, body, x, lambda rows: _trades(recipe, body, x[rows], y[rows]))
    elif recipe.training == "distilled":
        teacher = NETWORKS[recipe.network](tuple(x.shape[1:]), int(y.max()) + 1, recipe.units)
        _fit(recipe, teacher, x, lambda rows: functional.cross_entropy(teacher(x[rows]) / TEMPERATURE, y[rows]))
        teacher.eval()
        _fit(recipe, body, x, lambda rows: _soft(body(x[rows]), teacher(x[rows]).detach()))
    else:
        _fit(recipe, body, x, lambda rows: functional.cross_entropy(body(shift(body, x[rows], y[rows])), y[rows]))


def _fit(recipe: Recipe, model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> None:
    """Adam on one cycle of the rate, on random batches."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), recipe.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=recipe.updates, pct_start=0.1)
    for _ in range(recipe.updates):
        value = loss(torch.randint(len(x), (recipe.batch,)))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()


def _error(y: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda logits: functional.cross_entropy(logits, y, reduction="sum")


def _soft(logits: Tensor, teacher: Tensor) -> Tensor:
    """The cross-entropy with the teacher's probabilities, both at the temperature."""
    return -((teacher / TEMPERATURE).softmax(dim=1) * (logits / TEMPERATURE).log_softmax(dim=1)).sum(dim=1).mean()


def _trades(recipe: Recipe, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Zhang et al. 2019 (arXiv:1901.08573): the clean error, and the divergence of attacked answers from clean ones."""
    clean = model(x).log_softmax(dim=1)
    fixed = clean.detach()

    def divergence(logits: Tensor) -> Tensor:
        return functional.kl_div(logits.log_softmax(dim=1), fixed, log_target=True, reduction="sum")

    z = attacked(model, x, recipe, divergence)
    apart = functional.kl_div(model(z).log_softmax(dim=1), clean, log_target=True, reduction="batchmean")
    return functional.nll_loss(clean, y) + BETA * apart


def attacked(
    model: nn.Module,
    x: Tensor,
    recipe: Recipe,
    loss: Callable[[Tensor], Tensor],
    *,
    steps: int = ATTACK_STEPS,
    step_size: float = 0.33,
    start: float = 1.0,
) -> Tensor:
    """Projected gradient ascent on a loss of the logits, in the recipe's ball and the box.

    step_size: in radii. start: how far the random start lies, in radii.
    """
    radius = recipe.radius
    z = (x + start * radius * _direction(torch.randn_like(x), recipe.norm, dense=True)).clamp(0, 1)
    if recipe.norm == "linf":
        z = (x + start * radius * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    for _ in range(steps):
        z.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(model(z)), z)
        delta = z.detach() - x + step_size * radius * _direction(gradient, recipe.norm)
        z = (x + _shortened(delta, recipe.norm, radius)).clamp(0, 1)
    return z


def _direction(gradient: Tensor, norm: Norm, *, dense: bool = False) -> Tensor:
    """The gradient's signs, in l2 the gradient at length 1, in l1 the signs of its largest 2%; of length 1 in the norm."""
    if norm == "linf":
        return gradient.sign()
    flat = gradient.flatten(1)
    if norm == "l1" and not dense:
        least = flat.abs().quantile(0.98, dim=1, keepdim=True)
        flat = flat.sign() * (flat.abs() >= least)
    order = 2 if norm == "l2" else 1
    return (flat / flat.norm(order, dim=1, keepdim=True).clamp(min=1e-12)).view_as(gradient)


def _shortened(delta: Tensor, norm: Norm, radius: float) -> Tensor:
    """A perturbation brought into the ball: clipped, in l2 scaled, in l1 soft-thresholded (Duchi et al. 2008)."""
    if norm == "linf":
        return delta.clamp(-radius, radius)
    flat = delta.flatten(1)
    if norm == "l2":
        return (flat * (radius / flat.norm(2, dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1)).view_as(delta)
    sizes = flat.abs().sort(dim=1, descending=True).values
    over = (sizes.cumsum(dim=1) - radius) / torch.arange(1, sizes.shape[1] + 1)
    last = (sizes > over).sum(dim=1, keepdim=True) - 1
    threshold = over.gather(1, last).clamp(min=0)
    return (flat.sign() * (flat.abs() - threshold).clamp(min=0)).view_as(delta)
