"""What an attacker may ask of a model, and how often it was asked.

An attack's first argument says the knowledge that it needs: `WhiteBox` (loss gradients, logits, vector-Jacobian products),
`ScoreBased` (logits) or `DecisionBased` (labels). Forwards, backwards and queries are counted per example. Parameter
gradients are never computed. An access is a context manager: inside it the model is in evaluation mode with frozen
parameters, afterwards it is as it came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeAlias

import torch
from torch import Tensor, nn

from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal

Loss: TypeAlias = Callable[[Tensor, Goal], Tensor]
"""(logits (n, classes), goal) -> loss (n,) that the attacker ascends."""


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Put `model` in evaluation mode with frozen parameters, and restore both whatever happens."""
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.eval()
    for parameter, _ in gradients:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in gradients:
            parameter.requires_grad_(requires_grad)


@dataclass(frozen=True, slots=True, eq=False)
class Ledger:
    """What was asked of a model, per example: int64 counts of shape (n,), each pass of a stochastic model counted."""

    forwards: Tensor
    backwards: Tensor
    queries: Tensor

    @staticmethod
    def zeros(n: int, device: torch.device | str = "cpu") -> Ledger:
        """Counts of zero for `n` examples."""
        return Ledger(*(torch.zeros(n, dtype=torch.int64, device=device) for _ in range(3)))


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """One forward and one backward: loss (n,), gradient (n, c, h, w) of each example's loss, logits (n, classes)."""

    loss: Tensor
    gradient: Tensor
    logits: Tensor


class Access:
    """A model behind a counter.

    model: images (n, c, h, w) in [0, 1] -> logits (n, classes); a stochastic one is called as ``model(x, rng)``.
    rng: the model's own randomness, with the examples' data-set indices. stochastic: whether the model takes it.
    draws: passes averaged per question for a stochastic model (EOT); one for a deterministic model.
    """

    def __init__(
        self,
        model: nn.Module,
        rng: ExampleRNG,
        *,
        stochastic: bool = False,
        draws: int = 1,
        ledger: Ledger | None = None,
        rows: Tensor | None = None,
    ) -> None:
        if draws < 1:
            raise ValueError(f"Expected `draws` >= 1, got {draws}")
        self.model = model
        self.rng = rng
        self.stochastic = stochastic
        self.draws = draws if stochastic else 1
        n = len(rng.index)
        self.ledger = Ledger.zeros(n, rng.index.device) if ledger is None else ledger
        self.rows = torch.arange(n, device=rng.index.device) if rows is None else rows
        self._frozen = frozen(model)

    def __enter__(self) -> Self:
        self._frozen = frozen(self.model)
        self._frozen.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._frozen.__exit__(kind, error, traceback)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def index(self) -> Tensor:
        """The examples' data-set indices, shape (n,), int64."""
        return self.rng.index

    def select(self, rows: Tensor) -> Self:
        """Access to some of the examples (a bool mask or int64 positions), counted in the same ledger."""
        return type(self)(
            self.model,
            self.rng.select(rows),
            stochastic=self.stochastic,
            draws=self.draws,
            ledger=self.ledger,
            rows=self.rows[rows],
        )

    def averaging(self, draws: int) -> Self:
        """Access to the same examples that averages over so many draws, counted in the same ledger."""
        return type(self)(self.model, self.rng, stochastic=self.stochastic, draws=draws, ledger=self.ledger, rows=self.rows)

    def _count(self, column: Tensor, times: int) -> None:
        column.index_add_(0, self.rows, torch.full_like(self.rows, times))

    def _forward(self, x: Tensor) -> Tensor:
        """Logits of every draw, shape (draws * n, classes), one copy of the batch after the other."""
        if len(x) != len(self):
            raise ValueError(f"Expected {len(self)} images, one for each example of the access, got {len(x)}")
        if not self.stochastic:
            self._count(self.ledger.forwards, 1)
            return self.model(x)  # type: ignore[no-any-return]
        first = self.ledger.forwards[self.rows]
        self._count(self.ledger.forwards, self.draws)
        draw = (first + torch.arange(self.draws, device=first.device).unsqueeze(1)).flatten()
        rng = self.rng.select(torch.arange(len(self), device=first.device).repeat(self.draws)).at(draw)
        return self.model(x.repeat(self.draws, 1, 1, 1), rng)  # type: ignore[no-any-return]

    def _mean(self, values: Tensor) -> Tensor:
        return values if self.draws == 1 else values.reshape(self.draws, -1, *values.shape[1:]).mean(dim=0)


def _differentiable(logits: Tensor) -> Tensor:
    """`logits`, or RuntimeError where no gradient can flow through them."""
    if logits.requires_grad:
        return logits
    raise RuntimeError("Expected logits that depend on the images differentiably: attack scores or labels, or a surrogate")


class WhiteBox(Access):
    """Everything: logits, loss gradients and vector-Jacobian products, averaged over `draws` for a stochastic model."""

    def logits(self, x: Tensor) -> Tensor:
        """Logits without a gradient, shape (n, classes); averaged over the draws."""
        with torch.no_grad():
            return self._mean(self._forward(x))

    def loss_gradient(self, x: Tensor, goal: Goal, loss: Loss) -> Evaluation:
        """The loss of each example, its gradient in the image, and the logits: one forward and one backward (per draw).

        For a stochastic model the loss, its gradient and the logits are means over the draws (EOT, Athalye et al. 2018).
        """
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = _differentiable(self._forward(x))
            losses = self._mean(loss(logits, goal.tile(self.draws)))
            (gradient,) = torch.autograd.grad(losses.sum(), x)
        self._count(self.ledger.backwards, self.draws)
        return Evaluation(losses.detach(), gradient, self._mean(logits.detach()))

    def pullback(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Logits (n, classes) and the map from cotangents (m, n, classes) to images (m, n, c, h, w).

        The map multiplies each cotangent with the Jacobian of the logits (averaged over the draws); it may be called
        repeatedly and counts m backwards (per draw) each time.
        """
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = _differentiable(self._mean(self._forward(x)))

        def pull(cotangents: Tensor) -> Tensor:
            self._count(self.ledger.backwards, self.draws * len(cotangents))
            rows = [torch.autograd.grad(logits, x, cotangent, retain_graph=True)[0] for cotangent in cotangents]
            return torch.stack(rows)

        return logits.detach(), pull


class ScoreBased(Access):
    """Logits only. Every query of a stochastic model is a fresh draw."""

    def logits(self, x: Tensor) -> Tensor:
        """Logits, shape (n, classes); counts one query per draw."""
        self._count(self.ledger.queries, self.draws)
        with torch.no_grad():
            return self._mean(self._forward(x))


class DecisionBased(Access):
    """Labels only. Every query of a stochastic model is a fresh draw."""

    def labels(self, x: Tensor) -> Tensor:
        """Predicted labels, shape (n,), int64; counts one query per draw."""
        self._count(self.ledger.queries, self.draws)
        with torch.no_grad():
            return self._mean(self._forward(x)).argmax(dim=1)
