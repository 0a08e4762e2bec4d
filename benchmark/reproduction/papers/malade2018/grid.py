"""Srinivasan et al. 2018 (arXiv:1805.12017): schedules of the Langevin steps, searched by forward passes alone.

The rule. A schedule's score is the mean of two accuracies on validation images, clean ones and FGSM images that were made on
another net. Every combination of the axes is scored. Where the best one lies at an edge of an axis, that axis is extended,
and what is new beside the best is scored too, until nothing is. Of equal scores the smaller cross-entropy decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from advbench.attacks.access import frozen
from advbench.attacks.rng import ExampleRNG
from advbench.defenses.defended import Defended
from advbench.defenses.inference.malade import sampler_of
from advbench.reproduction.study import Settings
from advbench.zoo.data import Split


@dataclass(frozen=True, slots=True, order=True)
class Schedule:
    """a_t = step_size decay^t + step_offset and d_t = noise decay^t + noise_offset, t = 0 to steps - 1."""

    step_size: float
    noise: float
    decay: float
    steps: int
    step_offset: float = 0.05
    noise_offset: float = 0.005

    @property
    def settings(self) -> Settings:
        """As arguments of `mala` and `malade`."""
        return asdict(self)

    @property
    def text(self) -> str:
        """For people."""
        return f"N = {self.steps}, a_0 = {self.step_size:g}, d_0 = {self.noise:g}, decay {self.decay:g}"


@dataclass(frozen=True, slots=True)
class Axis:
    """Values of one number of a schedule, ascending, and those that are added one by one below and above them."""

    values: tuple[float, ...]
    lower: tuple[float, ...] = ()
    higher: tuple[float, ...] = ()

    def extended(self, best: float) -> Axis:
        """The axis with one more value where `best` is at an edge that has more; else the same."""
        if best == self.values[0] and self.lower:
            return Axis((self.lower[0], *self.values), self.lower[1:], self.higher)
        if best == self.values[-1] and self.higher:
            return Axis((*self.values, self.higher[0]), self.lower, self.higher[1:])
        return self


@dataclass(frozen=True, slots=True)
class Grid:
    """The axes of a search. offset: whether step size and noise end at the offsets of `Schedule`, or at zero."""

    step_size: Axis = Axis((0.4, 0.7, 1.0, 1.4), (0.2, 0.1), (1.8, 2.2, 2.6, 3.0))
    noise: Axis = Axis((0.0, 0.1), (), (0.2, 0.4))
    decay: Axis = Axis((0.3, 0.6, 0.9), (0.1,), (0.97,))
    steps: Axis = Axis((3, 5, 10), (2, 1), (20, 40))
    offset: bool = True

    def schedules(self) -> Iterator[Schedule]:
        """Every combination."""
        offsets = {} if self.offset else {"step_offset": 0.0, "noise_offset": 0.0}
        axes = (self.step_size.values, self.noise.values, self.decay.values, self.steps.values)
        for step_size, noise, decay, steps in product(*axes):
            yield Schedule(step_size, noise, decay, int(steps), **offsets)

    def around(self, one: Schedule) -> list[Schedule]:
        """The combinations that are at most one place from `one` on every axis."""
        near = {name: _beside(getattr(self, name).values, getattr(one, name)) for name in _AXES}
        return [each for each in self.schedules() if all(getattr(each, name) in near[name] for name in _AXES)]

    def extended(self, best: Schedule) -> Grid:
        """The grid with one more value on every axis that `best` is at an edge of."""
        axes = {name: getattr(self, name).extended(getattr(best, name)) for name in _AXES}
        return Grid(**axes, offset=self.offset)


def _beside(values: tuple[float, ...], value: float) -> tuple[float, ...]:
    place = values.index(value)
    return values[max(0, place - 1) : place + 2]


_AXES = tuple(one.name for one in fields(Grid) if one.name != "offset")
FAMILIES: Mapping[str, Grid] = {
    "constant": Grid(decay=Axis((1.0,)), offset=False),
    "annealed": Grid(offset=False),
    "annealed, with an offset": Grid(),
}
"""How step size and noise fall; the last is the paper's."""


@dataclass(frozen=True, slots=True)
class ScheduleScore:
    """A schedule on validation images: accuracies in percent, and the cross-entropy of both kinds of images."""

    schedule: Schedule = field(compare=False)
    clean: float
    attacked: float
    loss: float

    @property
    def score(self) -> tuple[float, float]:
        """What the search maximises."""
        return (self.clean + self.attacked) / 2, -self.loss


def best(found: Iterable[ScheduleScore]) -> ScheduleScore:
    """The one with the highest score."""
    return max(found, key=lambda one: one.score)


def searched(defended: Defended, clean: Split, x_adv: Tensor, grid: Grid, seed: int) -> list[ScheduleScore]:
    """All schedules that the rule scores, the extensions among them.

    defended: one of `mala` or `malade`; its own schedule does not count, and comes back. clean: images with their labels.
    x_adv: their adversarials, (n, c, h, w). Every schedule sees the same random numbers.
    """
    found = {one.schedule: one for one in scored(defended, clean, x_adv, grid.schedules(), seed)}
    while True:
        top = best(found.values()).schedule
        grid = grid.extended(top)
        wanted = [one for one in grid.around(top) if one not in found]
        if not wanted:
            return list(found.values())
        found |= {one.schedule: one for one in scored(defended, clean, x_adv, wanted, seed)}


def scored(
    defended: Defended, clean: Split, x_adv: Tensor, schedules: Iterable[Schedule], seed: int
) -> Iterator[ScheduleScore]:
    """Schedules on images and their adversarials; those that differ in the number of steps alone share one chain."""
    sampler, classifier = sampler_of(defended), defended.surrogates["base"].model
    chains = dict[tuple[float, ...], list[Schedule]]()
    for one in schedules:
        chains.setdefault((one.step_size, one.noise, one.decay, one.step_offset, one.noise_offset), []).append(one)
    before = sampler.strength.clone(), sampler.decay, sampler.steps, sampler.step_offset, sampler.noise_offset
    both, y = torch.cat((clean.x, x_adv)), clean.y
    rng = ExampleRNG.make(seed, "calibrate", clean.index.repeat(2)).fork("purifier")
    try:
        with frozen(defended.model), torch.inference_mode():
            for (step_size, noise, decay, step_offset, noise_offset), chain in chains.items():
                sampler.strength.copy_(torch.tensor((step_size, noise)))
                sampler.decay, sampler.step_offset, sampler.noise_offset = decay, step_offset, noise_offset
                sampler.steps = max(one.steps for one in chain)
                states = sampler.trajectory(both, rng)
                for one in chain:
                    yield _scored(one, classifier(states[one.steps]), y)
    finally:
        sampler.strength.copy_(before[0])
        sampler.decay, sampler.steps, sampler.step_offset, sampler.noise_offset = before[1:]


def _scored(schedule: Schedule, logits: Tensor, y: Tensor) -> ScheduleScore:
    """logits: of the clean images and then of their adversarials, (2 n, classes)."""
    right = 100.0 * (logits.argmax(dim=1) == y.repeat(2)).double()
    clean, attacked = right.view(2, -1).mean(dim=1).tolist()
    return ScheduleScore(schedule, clean, attacked, float(cross_entropy(logits.double(), y.repeat(2))))
