"""What a white-box attacker knows of a model that changes images step by step before it classifies them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from advbench.attacks.access import WhiteBox
from advbench.attacks.losses import margin
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Untargeted

View: TypeAlias = Callable[["Staged", Tensor], nn.Module]
"""(model, true labels (n,)) -> what an attacker looks at in its place: images -> logits (n, classes)."""


class Staged(nn.Module):
    """A classifier behind something that changes images in one or several steps.

    It is a class, not an attribute that any model may have, as `advbench.attacks.access.PerExample` is. A subclass is called
    as any model is; `rng` is None where it is not stochastic.
    """

    @property
    def substituted(self) -> bool:
        """Whether its gradient is that of something that stands in for the steps."""
        return False

    @abstractmethod
    def states(self, x: Tensor, rng: ExampleRNG | None) -> Tensor:
        """The images before the first and after every step, (steps + 1, n, c, h, w), differentiable in `x`."""

    @abstractmethod
    def classified(self, x: Tensor, rng: ExampleRNG | None) -> Tensor:
        """What the classifier says of images as they are, (n, classes), as if nothing had changed them."""


def staged(model: nn.Module) -> Staged | None:
    """The model if it is known to change images before it classifies them, compiled or not, else None."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, Staged) else None


def through(access: WhiteBox, view: nn.Module, *, evading: bool) -> WhiteBox:
    """Access to the same examples, counted in the same ledger, through something else that the model is made of.

    evading: whether the detector goes on looking at the images.
    """
    return WhiteBox(
        view,
        access.rng,
        stochastic=access.stochastic,
        draws=access.draws,
        ledger=access.ledger,
        rows=access.rows,
        detector=access.detector if evading else None,
        doubts=access.doubts,
    )


class Bare(nn.Module):
    """The classifier alone: images -> logits (n, classes)."""

    def __init__(self, model: Staged, y: Tensor) -> None:  # noqa: ARG002
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, rng: ExampleRNG | None = None) -> Tensor:
        """The logits of images that nothing has changed."""
        return self.model.classified(x, rng)


class EveryStep(nn.Module):
    """The mean logits of the images at every step: images -> (n, classes).

    A loss at every step of a chain, after the deviated reconstructions of DiffAttack (Kang et al. 2023, arXiv:2311.16124):
    the gradient of an early step does not have to come through all the later ones.
    """

    def __init__(self, model: Staged, y: Tensor) -> None:  # noqa: ARG002
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, rng: ExampleRNG | None = None) -> Tensor:
        """The mean over the steps."""
        return by_step(self.model, x, rng).mean(dim=0)


class FirstToHold(nn.Module):
    """The logits at the first step whose image is still classified right, the last one where none is: (n, classes).

    One step after the other is won, from the image itself on. y: true labels, (n,); images come as whole copies of the
    batch, one after the other.
    """

    def __init__(self, model: Staged, y: Tensor) -> None:
        super().__init__()
        self.model = model
        self.y = y

    def forward(self, x: Tensor, rng: ExampleRNG | None = None) -> Tensor:
        """The logits of the step that is selected for each image."""
        logits = by_step(self.model, x, rng)
        goal = Untargeted(self.y.repeat(len(x) // len(self.y)))
        holds = torch.stack([margin(one, goal) <= 0 for one in logits.detach()])
        holds[-1] = True
        first = holds.to(torch.int8).argmax(dim=0)
        return logits[first, torch.arange(len(x), device=x.device)]


def by_step(model: Staged, x: Tensor, rng: ExampleRNG | None) -> Tensor:
    """The classifier's logits at every step, (steps + 1, n, classes)."""
    return torch.stack([model.classified(state, rng) for state in model.states(x, rng)])
