"""Several autoencoders of one kind that differ on purpose, and the random choice of one for each image."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from advbench.attacks.rng import ExampleRNG
from advbench.defenses.defended import Architecture, Defended
from advbench.defenses.inference.composition import call
from advbench.defenses.inference.denoiser import DAE, untrained
from advbench.defenses.training.trained import fresh, stream
from advbench.zoo.data import DataSet
from advbench.zoo.training import Budget, Objective, Progress, Step, train


@dataclass(frozen=True, slots=True, kw_only=True)
class DAEPool(DAE):
    """Denoising autoencoders that are trained together to differ, Meng and Chen 2017, arXiv:1705.09064.

    All see the same noisy images. Minimised is, over autoencoders r_i and pixels, the sum of ``||r_i(x + v) - x||^2`` less
    `diversity` times that of ``||r_i(x + v) - mean of r_j(x + v)||^2``. As the first sum is the second and `count` times the
    squared error of the mean, a diversity below 1 is bounded below.

    count: autoencoders, eight in that paper. diversity: its alpha, in [0, 1). The other fields are those of `DAE`.
    """

    any_architecture: ClassVar[bool] = True

    count: int = 8
    diversity: float = 0.2

    def __post_init__(self) -> None:
        DAE.__post_init__(self)
        check_pool(self.count, self.diversity)

    @property
    def training_passes(self) -> float:
        """A forward and a backward of each autoencoder."""
        return float(self.count)

    def build(self, architecture: Architecture, data: DataSet, inputs: Mapping[str, Defended]) -> Defended:  # noqa: ARG002
        """The untrained autoencoders. ValueError for images without a range of pixels."""
        return Defended(self._untrained(data, seed=0))

    def fit(
        self,
        architecture: Architecture,  # noqa: ARG002
        data: DataSet,
        *,
        inputs: Mapping[str, Defended],  # noqa: ARG002
        seed: int,
        device: torch.device,
        budget: Budget,
        progress: Progress | None = None,
    ) -> Defended:
        """The trained autoencoders, on `device`; `seed` fixes weights, order and noise."""
        pool, objective, own = self._untrained(data, seed), diverse(self.sigma, self.diversity), self._budget(budget)
        history = train(pool, objective, data, budget=own, seed=seed, device=device, progress=progress, streams=stream)
        return Defended(pool, history=history)

    def _untrained(self, data: DataSet, seed: int) -> Pool:
        """Autoencoders with weights of their own."""
        pool = fresh(lambda: Pool(untrained(data) for _ in range(self.count)), seed)
        assert isinstance(pool, Pool)
        return pool


class Pool(nn.Module):
    """Modules side by side: images (n, c, h, w) -> what each makes of them, (modules, n, c, h, w)."""

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """The images of all members."""
        return torch.stack([member(x) for member in self.members])


class Chosen(nn.Module):
    """One of several modules for each image and draw, all equally likely: (images (n, c, h, w), rng) -> what that one says.

    members: images -> rows of one shape. device: names the stream of the choice, so that two devices of a defense choose
    independently. stochastic: whether the members take an rng. The gradient is that of the member that was chosen.
    """

    def __init__(self, members: Iterable[nn.Module], device: str, *, stochastic: bool = False) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.device = device
        self.stochastic = stochastic

    def extra_repr(self) -> str:
        """What the structure is, beside its parts."""
        return f"device={self.device}"

    def choice(self, rng: ExampleRNG) -> Tensor:
        """The position of each image's member, (n,), int64."""
        return rng.fork("choice", self.device).integers(len(self.members))

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        """The answers, (n, ...); each member is shown its own images alone."""
        choice = self.choice(rng)
        rows = [(choice == position).nonzero().squeeze(1) for position in range(len(self.members))]
        parts = [
            call(member, x[own], rng.select(own), self.stochastic)
            for member, own in zip(self.members, rows, strict=True)
            if len(own)
        ]
        order = torch.cat(rows).argsort()
        return torch.cat(parts)[order]


def diverse(sigma: float, diversity: float) -> Objective:
    """The squared errors of all autoencoders, less `diversity` times how far they are from their mean; means over images."""

    def objective(model: nn.Module, x: Tensor, _: Tensor, step: Step) -> Mapping[str, Tensor]:
        noise = stream(step).fork("denoising").normal(tuple(x.shape[1:]), x.dtype)
        denoised = model(x + sigma * noise)
        apart = _squared(denoised - denoised.mean(dim=0))
        return {"reconstruction": _squared(denoised - x), "diversity": -diversity * apart}

    return objective


def _squared(difference: Tensor) -> Tensor:
    """Squares summed over autoencoders and pixels, averaged over images: (m, n, c, h, w) -> a scalar."""
    return difference.square().flatten(2).sum(dim=(0, 2)).mean()


def check_pool(count: int, diversity: float) -> None:
    """ValueError for less than one autoencoder, or a diversity whose loss has no bound."""
    if count < 1:
        raise ValueError(f"Expected at least one autoencoder, got {count}")
    if not (math.isfinite(diversity) and 0 <= diversity < 1):
        raise ValueError(f"Expected `diversity` in [0, 1), got {diversity}")
