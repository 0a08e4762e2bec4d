"""The one training loop. A defense changes what is minimised, never how the loop runs."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from advbench.devices import random_state, seed_generator, set_random_state
from advbench.modes import evaluate, evaluating
from advbench.zoo.augmentation import AUGMENTATIONS, Stream, Transform, identity
from advbench.zoo.data import DataSet, Split
from advbench.zoo.optimizers import WAME
from advbench.zoo.preprocessing import fit_statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long and how a model is trained.

    epochs: passes over the training images. train_examples: how many of them, all if None. batch_size: images per step.
    optimizer: `adam`, `sgd` or `wame`. learning_rate: the highest one. momentum: of sgd, Nesterov's unless `nesterov` is
    False. weight_decay: L2 coefficient on weight matrices (not on biases and norms). schedule: `constant`, `cosine` (down
    to 0), `one-cycle` (up from 0 over the first quarter, then down to 0, both straight), `tenths` (a tenth after a fifth of
    the steps and again after two fifths), `half-tenth` (a half after three tenths, a tenth after six) or `halving` (every
    twelfth). patience: epochs without a better validation loss before the training stops and the best weights come back;
    None trains to the end and keeps the last. augmentation: what happens to the training images, a name in
    `advbench.zoo.augmentation`.

    Raises ValueError for an unknown optimizer, schedule or augmentation, or a number out of range.
    """

    epochs: int = 10
    train_examples: int | None = None
    batch_size: int = 128
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 0.0
    schedule: str = "one-cycle"
    patience: int | None = None
    augmentation: str = "none"

    def __post_init__(self) -> None:
        for name in ("epochs", "train_examples", "batch_size", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"Expected `{name}` >= 1, got {value}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f"Expected `learning_rate` > 0, got {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"Expected `momentum` in [0, 1), got {self.momentum}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"Expected `weight_decay` >= 0, got {self.weight_decay}")
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("augmentation", AUGMENTATIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"Expected `{name}` among {', '.join(known)}, got {getattr(self, name)!r}")


def _adam(groups: list[dict[str, object]], budget: Budget) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=budget.learning_rate)


def _sgd(groups: list[dict[str, object]], budget: Budget) -> torch.optim.Optimizer:
    nesterov = budget.nesterov and budget.momentum > 0
    return torch.optim.SGD(groups, lr=budget.learning_rate, momentum=budget.momentum, nesterov=nesterov)


def _wame(groups: list[dict[str, object]], budget: Budget) -> torch.optim.Optimizer:
    return WAME(groups, lr=budget.learning_rate)


OPTIMIZERS: dict[str, Callable[[list[dict[str, object]], Budget], torch.optim.Optimizer]] = {
    "adam": _adam,
    "sgd": _sgd,
    "wame": _wame,
}
"""name -> (parameter groups, budget) -> optimizer."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "one-cycle": lambda done: min(done / 0.25, (1 - done) / 0.75),
    "tenths": lambda done: 1.0 if done < 0.2 else 0.1 if done < 0.4 else 0.01,
    "half-tenth": lambda done: 1.0 if done < 0.3 else 0.5 if done < 0.6 else 0.1,
    "halving": lambda done: 0.5 ** min(math.floor(12 * done), 11),
}
"""name -> (share of the steps done, in (0, 1)) -> factor of the learning rate.

The stepped ones are those of the authors' code: `tenths` and `half-tenth` for MNIST and CIFAR of Mosca & Magoulas 2018,
`halving`, in 300 epochs, for CIFAR-10 of Shaham et al. 2015.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """Where the training stands, for an objective that needs random numbers or a schedule.

    seed: the training seed. epoch, iteration: from 0; `iteration` counts steps over all epochs. index: the batch's data-set
    indices, shape (n,), int64. training: False while the loss is taken on the validation split. progress: share of all steps
    that are done, in [0, 1). transform: the augmentation that the batch's images have been through, a linear map of images
    (n, c, h, w) that draws nothing anew.
    """

    seed: int
    epoch: int
    iteration: int
    index: Tensor
    training: bool = True
    progress: float = 1.0
    transform: Transform = identity


Objective: TypeAlias = Callable[[nn.Module, Tensor, Tensor, Step], Mapping[str, Tensor]]
"""(model, x, y, step) -> named scalar loss terms, whose sum is minimised."""

Streams: TypeAlias = Callable[[Step], Stream]
"""The random numbers of a step by example, from which an augmentation draws."""

Progress: TypeAlias = Callable[[int, int], None]
"""(steps done, steps in all), called after every step."""


@dataclass(frozen=True, slots=True)
class History:
    """What happened in each epoch that ran.

    terms: mean of each loss term over the training images. validation_loss: the objective on the validation split, empty
    without `patience`. validation_accuracy: in [0, 1], on the first 1,000 images of that split, NaN where the model gives no
    logits. seconds: wall-clock time.
    kept_epoch: the epoch, from 0, whose weights the model ends with.

    Without `patience` the validation split decides nothing, so that a data set whose `validation` is another split gives
    the accuracy curve of that one.
    """

    terms: tuple[Mapping[str, float], ...]
    validation_loss: tuple[float, ...]
    validation_accuracy: tuple[float, ...]
    seconds: tuple[float, ...]
    kept_epoch: int


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor, _: Step) -> Mapping[str, Tensor]:
    """The plain objective: mean cross-entropy of clean images."""
    return {"cross_entropy": nn.functional.cross_entropy(model(x), y)}


def derive_seed(seed: int, purpose: str) -> int:
    """A seed of 63 bits for one purpose of a training, so that purposes share no random numbers."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "little") >> 1


GENERATORS = threading.RLock()
"""Held by the thread that draws from global generators: others that seed them meanwhile would bend its numbers."""


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's global generators of the CPU and of `device`, and put their states back afterwards.

    Other threads that seed them wait until then.
    """
    device = torch.device(device)
    places = dict.fromkeys((torch.device("cpu"), device))
    with GENERATORS:
        states = [(place, random_state(place)) for place in places]
        try:
            for place in places:
                seed_generator(place, seed)
            yield
        finally:
            for place, state in states:
                set_random_state(place, state)


def accuracy(model: nn.Module, split: Split, batch: int = 512) -> float:
    """Share of the images of `split` that `model` labels right, in [0, 1]; `split` lies on the model's device.

    Raises ValueError for an empty split.
    """
    if not len(split):
        raise ValueError("Expected at least one image to measure accuracy on, got none")
    with evaluating(model), torch.inference_mode():
        pairs = zip(torch.split(split.x, batch), torch.split(split.y, batch), strict=True)
        correct = [(model(x).argmax(dim=1) == y).sum() for x, y in pairs]
    return int(torch.stack(correct).sum()) / len(split)


def train(
    model: nn.Module,
    objective: Objective,
    data: DataSet,
    *,
    budget: Budget,
    seed: int,
    device: torch.device | str,
    progress: Progress | None = None,
    streams: Streams | None = None,
) -> History:
    """Minimise the sum of the objective's terms, in place; the model ends on `device` in evaluation mode.

    Submodules with a ``fit_statistics(x)`` method see the training images first. Parameters that need no gradient stay as
    they are. The same seed, device and thread count give the same bits; torch's global generators are left untouched.
    streams: where the numbers of the budget's augmentation come from; only a budget without one goes without.

    Raises FloatingPointError when a loss term is not finite, and ValueError for an objective without terms or for an
    augmentation without `streams`.
    """
    augmentation = AUGMENTATIONS[budget.augmentation]
    if augmentation is not None and streams is None:
        raise ValueError(
            f"Expected `streams` to draw the augmentation {budget.augmentation!r} from, got None: give random "
            "numbers by step, or train without augmentation"
        )
    device = torch.device(device)
    training, validation = data.train.first(budget.train_examples).to(device), data.validation.to(device)
    model.to(device)
    fit_statistics(model, training.x)
    cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    with seeded(derive_seed(seed, "layers"), device), cudnn:
        history = _Loop(model, objective, training, validation, budget, seed, progress, streams).run()
    evaluate(model)
    return history


_WATCHED = 1_000
"""Validation images that are classified after every epoch, which decides nothing."""


class _Loop:
    """One training run: where it stands, what happened so far, and the best weights."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        training: Split,
        validation: Split,
        budget: Budget,
        seed: int,
        progress: Progress | None,
        streams: Streams | None,
    ) -> None:
        self.model = model
        self.objective = objective
        self.training = training
        self.validation = validation
        self.budget = budget
        self.seed = seed
        self.progress = progress
        self.streams = streams
        self.optimizer = OPTIMIZERS[budget.optimizer](_parameter_groups(model, budget.weight_decay), budget)
        self.order = torch.Generator().manual_seed(derive_seed(seed, "order"))
        self.batches = -(-len(training) // budget.batch_size)
        self.iteration = 0
        self.best_weights: dict[str, Tensor] = {}

    def run(self) -> History:
        """Train until the budget is spent or patience runs out."""
        terms, losses, accuracies, seconds = [], [], [], []
        kept = 0
        for epoch in range(self.budget.epochs):
            start = time.perf_counter()
            terms.append(self._epoch(epoch))
            kept = epoch
            if self.budget.patience is not None:
                losses.append(self._validation_loss(epoch))
                kept = losses.index(min(losses))
                if kept == epoch:
                    self.best_weights = {name: value.clone() for name, value in self.model.state_dict().items()}
            accuracies.append(self._validation_accuracy())
            seconds.append(time.perf_counter() - start)
            if self.budget.patience is not None and epoch - kept >= self.budget.patience:
                break
        if self.best_weights:
            self.model.load_state_dict(self.best_weights)
        return History(tuple(terms), tuple(losses), tuple(accuracies), tuple(seconds), kept)

    def _epoch(self, epoch: int) -> dict[str, float]:
        """One pass in a fresh order, in batches whose sizes differ by at most one; the mean of each loss term."""
        self.model.train()
        order = torch.randperm(len(self.training), generator=self.order).to(self.training.index.device)
        sums: dict[str, Tensor] = {}
        for rows in order.tensor_split(self.batches):
            batch = self.training.select(rows)
            done = self.iteration / (self.batches * self.budget.epochs)
            step = self._augmented(Step(self.seed, epoch, self.iteration, batch.index, progress=done))
            terms = _terms(self.objective(self.model, step.transform(batch.x), batch.y, step))
            self._descend(sum(terms.values(), start=torch.zeros((), device=batch.x.device)))
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value.detach() * len(batch)
            if self.progress is not None:
                self.progress(self.iteration, self.batches * self.budget.epochs)
        return _finite({name: float(value) / len(self.training) for name, value in sums.items()}, epoch)

    def _augmented(self, step: Step) -> Step:
        """The step with the transform of its batch."""
        augmentation = AUGMENTATIONS[self.budget.augmentation]
        if augmentation is None or self.streams is None:
            return step
        x = self.training.x
        drawn = augmentation.draw((x.shape[1], x.shape[2], x.shape[3]), self.streams(step).fork("augmentation"), x.dtype)
        return replace(step, transform=drawn)

    def _descend(self, loss: Tensor) -> None:
        factor = SCHEDULES[self.budget.schedule]((self.iteration + 0.5) / (self.batches * self.budget.epochs))
        for group in self.optimizer.param_groups:
            group["lr"] = self.budget.learning_rate * factor
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.iteration += 1

    def _validation_loss(self, epoch: int) -> float:
        """The objective on the validation split in evaluation mode, averaged over images."""
        total = 0.0
        with evaluating(self.model):
            for start in range(0, len(self.validation), self.budget.batch_size):
                batch = self.validation.select(slice(start, start + self.budget.batch_size))
                step = Step(self.seed, epoch, self.iteration, batch.index, training=False)
                terms = _terms(self.objective(self.model, batch.x, batch.y, step))
                total += sum(float(value.detach()) for value in terms.values()) * len(batch)
        return _finite({"validation": total / len(self.validation)}, epoch)["validation"]

    def _validation_accuracy(self) -> float:
        with evaluating(self.model), torch.inference_mode():
            is_classifier = self.model(self.validation.x[:1]).ndim == 2
        return accuracy(self.model, self.validation.first(_WATCHED)) if is_classifier else math.nan


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Trainable parameters in two groups: matrices and filters with weight decay, biases and norms without."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("Expected a model with trainable parameters, got none")
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


def _terms(terms: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if not terms:
        raise ValueError("Expected an objective to return at least one loss term, got none")
    return terms


def _finite(values: dict[str, float], epoch: int) -> dict[str, float]:
    for name, value in values.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"Training diverged at epoch {epoch + 1}: loss term {name!r} is {value}; lower the learning rate"
            )
    return values
