"""What an attacker may ask of a model, and how often it was asked.

An attack's first argument says the knowledge that it needs: `WhiteBox` (loss gradients, logits, vector-Jacobian products),
`ScoreBased` (logits) or `DecisionBased` (labels). Forwards, backwards and queries are counted per example. Parameter
gradients are never computed. An access is a context manager: inside it the model is in evaluation mode with frozen
parameters, afterwards it is unchanged. Where a detector rejects images, a `DetectorView` shows every attack the detector's
margin as the lead of the true label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeAlias

import torch
from torch import Tensor, nn

from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Goal
from advbench.attacks.waiting import Doubt, on_host
from advbench.modes import evaluating

if TYPE_CHECKING:
    from advbench.attacks.watch import Watch

Loss: TypeAlias = Callable[[Tensor, Goal], Tensor]
"""(logits (n, classes), goal) -> loss (n,) that the attacker ascends."""

AT_ONCE = 8
"""The most draws of a stochastic model in one forward, except in `WhiteBox.pullback`."""


def ask(model: nn.Module, x: Tensor, rng: ExampleRNG | None = None) -> Tensor:
    """What a model answers on images x (n, c, h, w), called as ``model(x, rng)`` with an `rng`, as ``model(x)`` without.

    The model gets a copy, through which gradients flow: it may write into its input, by ``x.data`` too, which leaves no
    trace that could be noticed afterwards, and the images of the one who asks stay as they are.

    >>> class Writes(nn.Module):
    ...     def forward(self, x):
    ...         return x.sub_(1)
    >>> x = torch.zeros(1, 1)
    >>> ask(Writes(), x).item(), x.item()
    (-1.0, 0.0)
    """
    copy = x.clone()
    answer: Tensor = model(copy) if rng is None else model(copy, rng)
    return answer


BESIDE = 1 / 510
"""How far beside a pixel with a slope that is no number a white-box attacker asks again: half a grey level of 8 bits."""


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Put `model` in evaluation mode with frozen parameters, and restore both, after an exception too."""
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in gradients:
        parameter.requires_grad_(False)
    try:
        with evaluating(model):
            yield
    finally:
        for parameter, requires_grad in gradients:
            parameter.requires_grad_(requires_grad)


@dataclass(frozen=True, slots=True, eq=False)
class Ledger:
    """What was asked of a model, per example: int64 counts of shape (n,), each pass of a stochastic model counted.

    nonfinite: of gradients with a NaN or infinite component; empty where nobody counted them.
    """

    forwards: Tensor
    backwards: Tensor
    queries: Tensor
    nonfinite: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    @staticmethod
    def zeros(n: int, device: torch.device | str = "cpu") -> Ledger:
        """Counts of zero for `n` examples."""
        return Ledger(*(torch.zeros(n, dtype=torch.int64, device=device) for _ in range(4)))


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """One forward and one backward: loss (n,), gradient (n, c, h, w) of each example's loss, logits (n, classes)."""

    loss: Tensor
    gradient: Tensor
    logits: Tensor

    @property
    def sloped(self) -> bool | None:
        """Whether every gradient is known to have a component other than zero; None if nobody has looked."""
        return None


class Unchecked(Evaluation):
    """An evaluation on an accelerator, whose gradient is looked at when it is asked for (`advbench.attacks.waiting`).

    raw: the gradient as it comes. doubt: whether it has a component that is no number, and whether that of some example has
    none but zeros. mended: the gradient with finite components in place of those that are no numbers.
    """

    raw: Tensor
    doubt: Doubt
    mended: Callable[[], Tensor]

    def __init__(self, found: Evaluation, doubt: Doubt, mended: Callable[[], Tensor]) -> None:
        self.__dict__.update(raw=found.gradient, doubt=doubt, mended=mended)
        object.__setattr__(self, "loss", found.loss)
        object.__setattr__(self, "logits", found.logits)

    @cached_property
    def gradient(self) -> Tensor:
        """That of each example's loss, (n, c, h, w)."""
        found: Tensor = self.mended() if self.doubt.answers[0] else self.raw
        return found

    @property
    def sloped(self) -> bool:
        """Whether every gradient has a finite component other than zero."""
        return not self.doubt.answers[1]


@dataclass(frozen=True, slots=True, eq=False)
class Sides:
    """A classifier and the detector beside it, each with its own gradient: what stands on either side of an evasion.

    progress: the loss of the classifier's own logits, above zero where the goal is achieved (`margin`), (n,). score: of the
    detector, above zero where the image is rejected, (n,); minus infinity without a detector. uphill: the gradient of
    `progress`, downhill: minus that of `score`, both (n, c, h, w). logits: those of `undetected`, (n, classes).
    """

    progress: Tensor
    score: Tensor
    uphill: Tensor
    downhill: Tensor
    logits: Tensor


class NoGradientError(RuntimeError):
    """No gradient flows from the logits to the images, so that there is nothing to differentiate."""


@dataclass(frozen=True, slots=True, eq=False)
class DetectorView:
    """A detector as the attacker meets it: a rejected image is not yet an error of the model.

    model: images (n, c, h, w) -> scores (n,), an image with one above zero is rejected; called with the model's rng too
    where `stochastic`. y: true labels of the access's examples, (n,). scale: the worth of one unit of the score in logits,
    so that neither margin drowns the other.
    """

    model: nn.Module
    y: Tensor
    stochastic: bool = False
    scale: float = 1.0

    def select(self, rows: Tensor | slice) -> DetectorView:
        """The view of the given rows: a bool mask, int64 positions or a slice."""
        return replace(self, y=self.y[rows])

    def score(self, x: Tensor, rng: ExampleRNG | None) -> Tensor:
        """The detector's scores of images x, times the scale, (n,). Raises ValueError for scores of another shape."""
        score = ask(self.model, x, rng if self.stochastic else None)
        if score.shape != (len(x),):
            raise ValueError(f"Expected a detector's scores of shape ({len(x)},), got {tuple(score.shape)}")
        return score * self.scale

    def __call__(self, logits: Tensor, score: Tensor) -> Tensor:
        """The `undetected` logits of images with these scores, both of whole copies of the batch, one after the other."""
        return undetected(logits, self.y.repeat(len(logits) // len(self.y)), score)


def undetected(logits: Tensor, y: Tensor, score: Tensor) -> Tensor:
    """Logits whose true label stays on top until the image is both misclassified and accepted.

    The true logit z_y becomes max(z_y, max over k != y of z_k, plus the score). The margin of the result,
    max over k != y of z_k minus that, is min(max over k != y of z_k - z_y, -score): the smaller of the classifier's and of
    the detector's margin, above zero exactly where the model errs and the detector accepts. So the argmax, and every loss,
    ratio and linearisation made of logits, speaks of undetected errors without knowing of the detector.

    The gradient is that of the smaller margin. Their sum, which Carlini & Wagner 2017
    (arXiv:1705.07263) weigh by a constant, can rise by going deeper into one while the other holds (Bryniarski et al. 2021,
    arXiv:2106.15023); `WhiteBox.sides` gives both gradients to an attack that makes more of them. Where it is the
    detector's, the other logits are constants for the same reason: a softmax follows them a little less than their maximum
    does, which would leave a trace of the classifier's gradient, pointing back to the true label, and a step along signs
    would follow the trace where the score does not depend on a pixel.

    logits: (n, classes). y: (n,). score: (n,), above zero where an image is rejected. Returns (n, classes).
    """
    column = y.unsqueeze(1)
    fixed = logits.detach()
    kept = fixed.scatter(1, column, -torch.inf).amax(dim=1, keepdim=True) + score.unsqueeze(1)
    return torch.where(kept > fixed.gather(1, column), fixed.scatter(1, column, kept), logits)


class PerExample(nn.Module):
    """A model that answers each example in a way of its own, for example through a readout for each.

    It is called as ``model(x, rng)`` even if it is deterministic; ``rng.index`` names the examples. It is a class, not an
    attribute that any model may have: a deterministic model that was handed in is never told which images it is shown.
    """


class Access:
    """A model behind a counter.

    model: images (n, c, h, w) in [0, 1] -> logits (n, classes); a stochastic one is called as ``model(x, rng)``.
    rng: the model's own randomness, with the examples' data-set indices. stochastic: whether the model takes it.
    draws: passes averaged per question for a stochastic model (EOT); one for a deterministic model. detector: what stands
    beside the model, whose every score is counted with the forward that it belongs to.

    The attribute `stochastic` says whether answers are random: those of the model or those of its detector. `per_example`
    says whether the model is a `PerExample`. `doubts`: what an accelerator has not been asked yet about past answers.
    `watch`: what follows all questions (`advbench.attacks.watch`), None if nobody does.
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
        detector: DetectorView | None = None,
        doubts: list[Doubt] | None = None,
        watch: Watch | None = None,
    ) -> None:
        if draws < 1:
            raise ValueError(f"Expected `draws` >= 1, got {draws}")
        self.model = model
        self.rng = rng
        self.detector = detector
        self.stochastic = stochastic or (detector is not None and detector.stochastic)
        self.draws = draws if self.stochastic else 1
        self.per_example = isinstance(model, PerExample)
        self._random = stochastic
        n = len(rng.index)
        self.ledger = Ledger.zeros(n, rng.index.device) if ledger is None else ledger
        self.rows = torch.arange(n, device=rng.index.device) if rows is None else rows
        self.doubts = [] if doubts is None else doubts
        self.watch = watch
        self._frozen = frozen(model)

    def __enter__(self) -> Self:
        self._frozen = frozen(self.model if self.detector is None else nn.ModuleList([self.model, self.detector.model]))
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
            stochastic=self._random,
            draws=self.draws,
            ledger=self.ledger,
            rows=self.rows[rows],
            detector=None if self.detector is None else self.detector.select(rows),
            doubts=self.doubts,
            watch=self.watch,
        )

    def averaging(self, draws: int) -> Self:
        """Access to the same examples that averages over `draws` draws, counted in the same ledger."""
        return type(self)(
            self.model,
            self.rng,
            stochastic=self._random,
            draws=draws,
            ledger=self.ledger,
            rows=self.rows,
            detector=self.detector,
            doubts=self.doubts,
            watch=self.watch,
        )

    def _count(self, column: Tensor, times: int) -> None:
        column.index_add_(0, self.rows, torch.full_like(self.rows, times))

    def _forward(self, x: Tensor, draws: int) -> Tensor:
        """Logits of fresh draws, shape (draws * n, classes), one copy of the batch after the other."""
        if len(x) != len(self):
            raise ValueError(f"Expected {len(self)} images, one for each example of the access, got {len(x)}")
        copies, rng = self._drawn(x, draws)
        if self.watch is None:
            return self.uncounted(copies, rng)

        def ask(some: Tensor | None) -> Tensor:
            if some is None:
                return self.uncounted(copies, rng)
            return self.select(some).uncounted(copies[some], None if rng is None else rng.select(some))

        repeats = len(copies) // max(1, len(x))
        return self.watch.answers(ask, copies, self.rows.repeat(repeats), whole=self.stochastic, draws=repeats)

    def _drawn(self, x: Tensor, draws: int) -> tuple[Tensor, ExampleRNG | None]:
        """So many copies of the batch, one after the other, and the randomness of their fresh draws; counted."""
        if not self.stochastic:
            self._count(self.ledger.forwards, 1)
            return x, self.rng if self.per_example else None
        first = self.ledger.forwards[self.rows]
        self._count(self.ledger.forwards, draws)
        draw = (first + torch.arange(draws, device=first.device).unsqueeze(1)).flatten()
        rng = self.rng.select(torch.arange(len(self), device=first.device).repeat(draws)).at(draw)
        return x.repeat(draws, 1, 1, 1), rng

    def uncounted(self, x: Tensor, rng: ExampleRNG | None) -> Tensor:
        """The model's logits, (m, classes), with a detector those of `undetected`; the caller enters the pass in the ledger.

        For adapters of other libraries' attacks, which ask for any number of images at a time. x: (m, c, h, w), beside a
        detector whole copies of the batch. rng: of every image where the access is stochastic or `per_example`, else None.
        """
        logits = self._ask(x, rng)
        return logits if self.detector is None else self.detector(logits, self.detector.score(x, rng))

    def _ask(self, x: Tensor, rng: ExampleRNG | None) -> Tensor:
        """The model's own logits, in the precision of the images."""
        return in_precision(ask(self.model, x, rng if self._random or self.per_example else None), x.dtype)

    def _portions(self) -> Iterator[int]:
        """The draws of one question, so many at a time that memory stays bounded."""
        for start in range(0, self.draws, AT_ONCE):
            yield min(AT_ONCE, self.draws - start)

    def _means(self, x: Tensor) -> Tensor:
        """Logits without a gradient, averaged over the draws, shape (n, classes)."""
        with torch.no_grad():
            parts = [self._share(self._forward(x, draws), draws) for draws in self._portions()]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(dim=0)

    def _share(self, values: Tensor, draws: int) -> Tensor:
        """What (draws * n, ...) values add to the mean over all draws, shape (n, ...)."""
        if self.draws == 1:
            return values
        mean = values.reshape(draws, -1, *values.shape[1:]).mean(dim=0)
        return mean if draws == self.draws else mean * (draws / self.draws)


def _differentiable(logits: Tensor) -> Tensor:
    """`logits`, or NoGradientError if no gradient can flow through them."""
    if logits.requires_grad:
        return logits
    raise NoGradientError(
        "Expected logits that depend on the images differentiably: attack scores or labels, or a surrogate"
    )


def _per_row(mask: Tensor, x: Tensor) -> Tensor:
    """A mask (n,) in the shape that spreads over x (n, c, h, w)."""
    return mask.view(-1, *(1 for _ in x.shape[1:]))


def _suspicions(gradient: Tensor) -> Tensor:
    """Whether a component of gradients (n, c, h, w) is no number, and whether those of an example are all zero; (2,)."""
    sloped = ((gradient != 0) & gradient.isfinite()).flatten(1).any(dim=1)
    return torch.stack((~gradient.sum().isfinite(), ~sloped.all()))


def in_precision(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """Logits (n, classes) in the precision of the images, in which attacks reckon.

    Before digits are lost each row is shifted so that its largest logit is 0: every loss is that of the same logits, and the
    differences that decide keep their digits.

    >>> close = torch.tensor([[1e9, 1e9 + 1e-3]], dtype=torch.float64)
    >>> close.float().diff().item(), round(in_precision(close, torch.float32).diff().item(), 5)
    (0.0, 0.001)
    """
    if logits.dtype == dtype:
        return logits
    if logits.dtype.itemsize > dtype.itemsize:
        logits = logits - logits.detach().amax(dim=-1, keepdim=True)
    return logits.to(dtype)


class WhiteBox(Access):
    """Everything: logits, loss gradients and vector-Jacobian products, averaged over `draws` for a stochastic model.

    Roots, logarithms and powers have no finite slope at black pixels. Where components of a gradient are NaN or infinite,
    the ledger says so, and the attacker asks again, counted, at the image with these pixels moved by `BESIDE` towards grey:
    what is finite there takes their place, the rest stays as it is (attacks read NaN as zero; see `balls.finite`).
    """

    def logits(self, x: Tensor) -> Tensor:
        """Logits without a gradient, shape (n, classes); averaged over the draws."""
        return self._means(x)

    def loss_gradient(self, x: Tensor, goal: Goal, loss: Loss) -> Evaluation:
        """The loss of each example, its gradient in the image, and the logits: one forward and one backward (per draw).

        For a stochastic model the loss, its gradient and the logits are means over the draws (EOT, Athalye et al. 2018).
        Raises NoGradientError if the logits do not depend on the images differentiably.
        """
        found = self._evaluation(x, goal, loss)

        def beside(access: Self, near: Tensor, rows: Tensor) -> Tensor:
            return access._evaluation(near, goal.select(rows), loss).gradient

        if not on_host(x):
            doubt = Doubt(_suspicions(found.gradient))
            self.doubts.append(doubt)
            return Unchecked(found, doubt, lambda: self._mended(found.gradient, x, beside))
        gradient = self._mended(found.gradient, x, beside)
        return found if gradient is found.gradient else replace(found, gradient=gradient)

    def _evaluation(self, x: Tensor, goal: Goal, loss: Loss) -> Evaluation:
        """The answer to `loss_gradient` with the gradient as it comes."""
        x = x.detach().requires_grad_()
        parts = [self._loss_gradient(x, goal, loss, draws) for draws in self._portions()]
        if len(parts) == 1:
            return Evaluation(*parts[0])
        return Evaluation(*(torch.stack(column).sum(dim=0) for column in zip(*parts, strict=True)))

    def _mended(self, gradients: Tensor, x: Tensor, beside: Callable[[Self, Tensor, Tensor], Tensor]) -> Tensor:
        """The gradients with finite components, of images beside, in place of those that are no numbers, where there are.

        gradients: of one cotangent, (n, c, h, w), or of several, (m, n, c, h, w). beside: (access to some examples, images
        for them, their rows) -> gradients there.
        """
        if bool(gradients.sum().isfinite()):
            return gradients
        broken = ~gradients.isfinite()
        somewhere = broken if broken.dim() == x.dim() else broken.any(dim=0)
        rows = somewhere.flatten(1).any(dim=1).nonzero().squeeze(1)
        if not len(rows):  # the sum alone overflows
            return gradients
        self.ledger.nonfinite.index_add_(0, self.rows[rows], torch.ones_like(rows))
        here = x.detach()[rows]
        near = torch.where(somewhere[rows], here + BESIDE * (1 - 2 * (here > 0.5).to(here.dtype)), here)
        found, along = beside(self.select(rows), near, rows), gradients.dim() - x.dim()
        kept = gradients.index_select(along, rows)
        return gradients.index_copy(along, rows, found.where(~kept.isfinite() & found.isfinite(), kept))

    def _loss_gradient(self, x: Tensor, goal: Goal, loss: Loss, draws: int) -> tuple[Tensor, Tensor, Tensor]:
        """What some draws add to the loss (n,), its gradient (n, c, h, w) and the logits (n, classes)."""
        with torch.enable_grad():
            logits = _differentiable(self._forward(x, draws))
            losses = self._share(loss(logits, goal.tile(draws)), draws)
            gradient = self._gradient(losses, x, draws)
        self._count(self.ledger.backwards, draws)
        return losses.detach(), gradient, self._share(logits.detach(), draws)

    def _gradient(self, values: Tensor, x: Tensor, draws: int, *, again: bool = False) -> Tensor:
        """The gradients of the examples' own values, (n,), in the images x; zero for examples that cannot pay for theirs.

        again: whether the graph is kept.
        """
        paid = None if self.watch is None else self.watch.pays_back(self.rows, draws)
        if paid is not None:
            if not paid.any():
                return torch.zeros_like(x)
            values = values.where(paid, 0)
        (gradient,) = torch.autograd.grad(values.sum(), x, retain_graph=again)
        return gradient if paid is None else gradient.where(_per_row(paid, gradient), 0)

    def sides(self, x: Tensor, goal: Goal, loss: Loss) -> Sides:
        """The loss of the classifier as if there were no detector, the detector's score, and the gradient of each.

        One forward and two backwards (per draw), one of each without a detector; means over the draws for a stochastic
        model. A detector whose score does not depend on the images differentiably has a gradient of zero. Raises
        NoGradientError as `loss_gradient` does.
        """
        found = self._both_sides(x, goal, loss)

        def up(access: Self, near: Tensor, rows: Tensor) -> Tensor:
            return access._both_sides(near, goal.select(rows), loss).uphill

        def down(access: Self, near: Tensor, rows: Tensor) -> Tensor:
            return access._both_sides(near, goal.select(rows), loss).downhill

        return replace(found, uphill=self._mended(found.uphill, x, up), downhill=self._mended(found.downhill, x, down))

    def _both_sides(self, x: Tensor, goal: Goal, loss: Loss) -> Sides:
        """The answer to `sides` with the gradients as they come."""
        x = x.detach().requires_grad_()
        parts = [self._sides(x, goal, loss, draws) for draws in self._portions()]
        return Sides(
            *(torch.stack(column).sum(dim=0) if len(parts) > 1 else column[0] for column in zip(*parts, strict=True))
        )

    def _sides(self, x: Tensor, goal: Goal, loss: Loss, draws: int) -> tuple[Tensor, ...]:
        """What some draws add to the fields of `Sides`, in order."""
        if self.detector is None:
            losses, uphill, logits = self._loss_gradient(x, goal, loss, draws)
            return losses, torch.full_like(losses, -torch.inf), uphill, torch.zeros_like(x), logits
        with torch.enable_grad():
            copies, rng = self._drawn(x, draws)
            logits = _differentiable(self._ask(copies, rng))
            scores = self.detector.score(copies, rng)
            both = self.detector(logits.detach(), scores.detach())
            if self.watch is not None:
                rows = self.rows.repeat(draws)
                self.watch.note(copies, both, rows, self.watch.charge(rows), draws)
            losses = self._share(loss(logits, goal.tile(draws)), draws)
            uphill = self._gradient(losses, x, draws, again=True)
            self._count(self.ledger.backwards, draws)
            score, downhill = self._share(scores, draws), torch.zeros_like(x)
            if score.requires_grad:
                downhill = -self._gradient(score, x, draws)
                self._count(self.ledger.backwards, draws)
        return losses.detach(), score.detach(), uphill, downhill, self._share(both, draws)

    def pullback(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Logits (n, classes) and the map from cotangents (m, n, classes) to images (m, n, c, h, w).

        The map multiplies each cotangent with the Jacobian of the logits (averaged over the draws); it may be called
        repeatedly and counts m backwards (per draw) each time. Raises NoGradientError as `loss_gradient` does.
        """
        logits, pull = self._pullback(x)

        def mended(cotangents: Tensor) -> Tensor:
            return self._mended(
                pull(cotangents), x, lambda access, near, rows: access._pullback(near)[1](cotangents[:, rows])
            )

        return logits, mended

    def _pullback(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The answer to `pullback` with the gradients as they come."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = _differentiable(self._share(self._forward(x, self.draws), self.draws))

        def pull(cotangents: Tensor) -> Tensor:
            self._count(self.ledger.backwards, self.draws * len(cotangents))
            return torch.stack([self._pulled(logits, x, cotangent) for cotangent in cotangents])

        return logits.detach(), pull

    def _pulled(self, logits: Tensor, x: Tensor, cotangent: Tensor) -> Tensor:
        """The product of a cotangent (n, classes) with the Jacobian; zero for examples that cannot pay for theirs."""
        paid = None if self.watch is None else self.watch.pays_back(self.rows, self.draws)
        if paid is not None:
            cotangent = cotangent.where(paid.unsqueeze(1), 0)
        (product,) = torch.autograd.grad(logits, x, cotangent, retain_graph=True)
        return product if paid is None else product.where(_per_row(paid, product), 0)


class ScoreBased(Access):
    """Logits only. Every query of a stochastic model is a fresh draw."""

    def logits(self, x: Tensor) -> Tensor:
        """Logits, shape (n, classes); counts one query per draw."""
        self._count(self.ledger.queries, self.draws)
        return self._means(x)


class DecisionBased(Access):
    """Labels only. Every query of a stochastic model is a fresh draw."""

    def labels(self, x: Tensor) -> Tensor:
        """Predicted labels, shape (n,), int64; counts one query per draw."""
        self._count(self.ledger.queries, self.draws)
        return self._means(x).argmax(dim=1)
