"""What the runs of a study found: scored cells, chosen by what they are, and figures per training seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from advbench.defenses.defended import Defended
from advbench.plan.plan import Plan
from advbench.reproduction.measured import PERCENT, Figure, percent, ratio
from advbench.results.record import Examples, Record
from advbench.results.statistics import Values, clean_correct, robust
from advbench.tasks.craft import read_images
from advbench.tasks.images import scored_split
from advbench.tasks.models import load_defended
from advbench.tasks.train import read_training
from advbench.zoo.data import Split
from advbench.zoo.training import History, seeded

if TYPE_CHECKING:
    from advbench.reproduction.tuning import Tuned

_TRAIN_IMAGES = 10_000


@dataclass(frozen=True, slots=True, eq=False)
class ScoredCell:
    """A scored cell: its record and what became of every example."""

    record: Record
    examples: Examples

    @property
    def clean_error(self) -> Figure:
        """In percent."""
        return self.clean_accuracy.rest_of(PERCENT)

    @property
    def clean_accuracy(self) -> Figure:
        """In percent, on the cell's images; `advbench.reproduction.clean` has it on all test images."""
        return percent(self.examples.clean_correct / self.examples.draws, self.examples.index)

    @property
    def accuracy(self) -> Figure:
        """Under the attack, at the record's epsilon, in percent; clean errors count as errors."""
        return percent(robust(self.record, self.examples), self.examples.index)

    @property
    def adversarial_error(self) -> Figure:
        """The share that the attack made wrong at any distance, clean errors among them, in percent."""
        kept = (self._survived & clean_correct(self.examples)).astype(np.float64)
        return percent(kept, self.examples.index).rest_of(PERCENT)

    @property
    def mean_rms(self) -> Figure:
        """The mean RMS perturbation of the clean-correct examples that were made wrong."""
        return self._mean(self.examples.rms, self.broken)

    @property
    def mean_ratio(self) -> Figure:
        """The mean of ||r||_2 / ||x||_2 over the clean-correct examples that were made wrong."""
        shown = self.broken & (self.examples.image_l2 > 0)
        return self._mean(self.examples.distance_l2 / np.where(shown, self.examples.image_l2, 1.0), shown)

    def _mean(self, values: Values, chosen: NDArray[np.bool_]) -> Figure:
        """Over the chosen examples, of which another draw of images would choose others."""
        return ratio(np.where(chosen, values, 0.0), chosen.astype(np.float64), self.examples.index)

    @property
    def passes(self) -> float:
        """Forwards and backwards per attacked example; infinite where nothing was attacked."""
        counts = self.record.counts
        return float((counts["forwards"] + counts["backwards"]) / counts["examples"]) if counts["examples"] else np.inf

    @property
    def radius(self) -> float:
        """The threat's epsilon; infinity if it has none."""
        epsilon = self.record.threat["epsilon"]
        return np.inf if epsilon is None else epsilon

    @property
    def _survived(self) -> NDArray[np.bool_]:
        survived: NDArray[np.bool_] = 2 * self.examples.report_correct >= self.examples.draws
        return survived | np.isinf(self.examples.distance_l2)

    @property
    def broken(self) -> NDArray[np.bool_]:
        """Which clean-correct examples the attack made wrong, at any distance, (n,)."""
        return clean_correct(self.examples) & ~self._survived

    def correct(self) -> Values:
        """The share of correct answers under attack by example, shape (n,)."""
        return robust(self.record, self.examples)


@dataclass(frozen=True, slots=True, eq=False)
class RunFindings:
    """The cells of one run."""

    plan: Plan
    cells: tuple[ScoredCell, ...]

    def one(self, *, seed: int, **facts: object) -> ScoredCell:
        """The only cell with these facts. Raises ValueError if there is none, or more than one."""
        found = self.all(seed=seed, **facts)
        if len(found) != 1:
            raise ValueError(f"Expected one cell with seed={seed}, {_said(facts)}; got {len(found)}")
        return found[0]

    def trained(self, settings: Mapping[str, object], *, seed: int, **facts: object) -> ScoredCell:
        """The only cell of a target whose defense has this name and these arguments. ValueError as of `one`."""
        found = [cell for cell in self.all(seed=seed, **facts) if _trained_as(cell.record, settings)]
        if len(found) != 1:
            raise ValueError(f"Expected one cell with seed={seed}, {_said(settings)}; got {len(found)}")
        return found[0]

    def first(self, **facts: object) -> ScoredCell:
        """The first of the cells with these facts, for what they share. Raises ValueError if there is none."""
        found = self.all(**facts)
        if not found:
            raise ValueError(f"Expected a cell with {_said(facts)}; got none")
        return found[0]

    def all(self, **facts: object) -> list[ScoredCell]:
        """The cells with these facts: `seed`, `matrix`, `epsilon`; `defense`, `architecture`, `attack` by name.

        `source` is the label of what the adversarials were made on, `target` that of the model under attack.
        `defense_spec` is a defense with its arguments, as a run takes it. `attack_arguments` are pairs that are among those
        of the attack.
        """
        return [cell for cell in self.cells if all(_has(cell.record, name, value) for name, value in facts.items())]

    def images(self, cell: ScoredCell) -> tuple[torch.Tensor, torch.Tensor]:
        """The scored images and their adversarials, both (n, c, h, w); of a cell with one craft."""
        (craft,) = cell.record.details["crafts"]
        x_adv = read_images(craft, self.plan.config.out)
        return scored_split(self.plan.data, self.plan.config.n_examples).x, x_adv

    def perturbations(self, cell: ScoredCell) -> torch.Tensor:
        """What the attack added to the clean-correct images that it made wrong, (m, c, h, w)."""
        x, x_adv = self.images(cell)
        return (x_adv - x)[torch.from_numpy(cell.broken)]

    def history(self, cell: ScoredCell) -> History:
        """What happened in each epoch of a target's training. ValueError if it was not one training of the whole."""
        found = read_training(cell.record.details["model_key"]).history
        if found is None:
            raise ValueError(f"Expected a training with epochs, got {cell.record.target['label']}, which was made otherwise")
        return found

    def train_error(self, *, seed: int, defense: str, architecture: str) -> float:
        """The error, in percent, on the first 10,000 training images."""
        key = self.training(seed=seed, defense=defense, architecture=architecture)
        return 100.0 - 100.0 * _accuracy(self._load(key).model, self.plan.data.train)

    def defended(self, cell: ScoredCell) -> Defended:
        """The trained target of a cell, on the CPU."""
        return self._load(cell.record.details["model_key"])

    def _load(self, key: str) -> Defended:
        with seeded(0):
            return load_defended(key, self.plan.trainings, self.plan.data, torch.device("cpu"))

    def training(self, *, seed: int, defense: str, architecture: str) -> str:
        """The key of the task that trained a target."""
        for key, content in self.plan.trainings.items():
            trained_on = content.architecture.name if content.architecture else None
            if (content.seed, content.defense.name, trained_on) == (seed, defense, architecture):
                return key
        raise ValueError(f"Expected a training of {defense} on {architecture} with seed {seed}, found none")


@dataclass(frozen=True, eq=False)
class Findings:
    """What the runs of a study found, by the runs' names.

    seeds: of the trainings. tuned: how strengths were chosen, None where they were not.
    """

    runs: Mapping[str, RunFindings]
    seeds: tuple[int, ...]
    failures: Mapping[str, str] = field(default_factory=dict)
    tuned: Tuned | None = None

    def __getitem__(self, name: str) -> RunFindings:
        return self.runs[name]


def _said(facts: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value}" for name, value in facts.items())


def _trained_as(record: Record, settings: Mapping[str, object]) -> bool:
    defense = record.target["defense"]
    there = {"name": defense["name"], **defense["arguments"]}
    return all(name in there and there[name] == value for name, value in settings.items())


def _has(record: Record, name: str, value: object) -> bool:
    if name == "attack_arguments" and isinstance(value, tuple):
        return all(record.attack["arguments"].get(argument) == each for argument, each in value)
    return bool(_fact(record, name) == value)


def _fact(record: Record, name: str) -> object:
    if name == "defense":
        return record.target["defense"]["name"]
    if name == "architecture":
        return record.target["architecture"]["name"]
    if name == "target":
        return record.target["label"]
    if name == "defense_spec":
        return record.target["label"].partition(" / ")[0]
    if name == "attack":
        return record.attack["name"]
    if name == "epsilon":
        return record.threat["epsilon"]
    if name == "source":
        return None if record.source is None else record.source["label"]
    fact: object = getattr(record, name)
    return fact


def _accuracy(model: torch.nn.Module, split: Split) -> float:
    n = min(_TRAIN_IMAGES, len(split))
    with torch.inference_mode():
        parts = zip(torch.split(split.x[:n], 500), torch.split(split.y[:n], 500), strict=True)
        right = torch.cat([model(x).argmax(dim=1) == y for x, y in parts])
    return float(right.float().mean())
