"""The references' outcomes on the gauntlet: run once, kept in `references.npz`, so that later only ours run.

For every model the file holds the distances of all references, (references, images) float32, infinite where an image was
not broken, and a JSON text that says which they are: norm, attack, library, version, seed, passes per image, seconds, images
refused by our check of ball and box; the radii, the indices of the images and the fingerprint of the weights. Weights that
were trained on another machine may differ; references of other weights are not used.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from advbench.attacks import balls
from advbench.attacks.threat import Norm, ThreatModel
from tests.gauntlet.models import LARGEST
from tests.gauntlet.pairs import PAIRS, Setting, quiet, squares, version_of
from tests.gauntlet.training import Problem

FILE = Path(__file__).with_name("references.npz")
RULE = ("ddn", "fmn", "deepfool", "fab")
"""The attacks whose references set a radius that the recipe leaves open."""
ENSEMBLE = "autoattack"
"""The name of pyautoattack's standard ensemble among the references."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What an attack did to every image.

    distances: of each image to its adversarial in the norm, (n,), infinite where the model is right or the image is refused.
    forwards, backwards: passes per image. seconds: in all. refused: images outside the ball or the box.
    """

    distances: Tensor
    forwards: float
    backwards: float
    seconds: float
    refused: int


@dataclass(frozen=True, slots=True)
class Key:
    """Which run of a reference it is."""

    norm: Norm
    attack: str
    library: str
    seed: int = 0


@dataclass(slots=True, eq=False)
class Book:
    """A model's references. weights: the fingerprint. index: of the images, in order. radii: by norm."""

    weights: str
    index: list[int]
    radii: dict[Norm, float] = field(default_factory=dict)
    outcomes: dict[Key, Outcome] = field(default_factory=dict)
    versions: dict[Key, str] = field(default_factory=dict)


class Counted(nn.Module):
    """A model that counts the images of its forwards and backwards."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.forwards, self.backwards = model, 0, 0
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        logits: Tensor = self.model(x)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


def verified(model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, threat: ThreatModel) -> tuple[Tensor, int]:
    """Distances of misclassified images that pass the check of ball and box, else infinity; how many fail the check."""
    with torch.no_grad():
        bad = balls.violations(x_adv, x, threat)
        broken = (model(x_adv).argmax(dim=1) != y) & ~bad
    return balls.distance(x_adv - x, threat.norm).where(broken, torch.inf).float(), int(bad.sum())


def load() -> dict[str, Book]:
    """The references of all models; none where the file is missing."""
    if not FILE.exists():
        return {}
    books = {}
    with np.load(FILE, allow_pickle=False) as data:
        for name in {key.removesuffix(".json") for key in data.files if key.endswith(".json")}:
            told = json.loads(str(data[f"{name}.json"]))
            book = Book(told["weights"], told["index"], told["radii"])
            for row, entry in zip(torch.from_numpy(data[name]), told["references"], strict=True):
                key = Key(**entry["key"])
                book.versions[key] = entry["version"]
                book.outcomes[key] = Outcome(row, **entry["cost"])
            books[name] = book
    return books


def save(books: dict[str, Book]) -> None:
    """Write all references anew, as a whole or not at all."""
    arrays = {}
    for name, book in sorted(books.items()):
        entries = []
        for key, outcome in book.outcomes.items():
            costs = ("forwards", "backwards", "seconds", "refused")
            cost = {cost: round(getattr(outcome, cost), 2) for cost in costs}
            entries.append({"key": asdict(key), "version": book.versions[key], "cost": cost})
        told = {"weights": book.weights, "index": book.index, "radii": book.radii, "references": entries}
        arrays[f"{name}.json"] = np.array(json.dumps(told))
        arrays[name] = torch.stack([outcome.distances for outcome in book.outcomes.values()]).numpy()
    temporary = FILE.with_suffix(".new.npz")
    np.savez_compressed(temporary, **arrays)
    temporary.replace(FILE)


def book_of(books: dict[str, Book], problem: Problem) -> Book:
    """The model's references, empty where there are none of these weights and images."""
    found = books.get(problem.recipe.name)
    index = problem.index.tolist()
    return found if found and found.weights == problem.weights and found.index == index else Book(problem.weights, index)


def run(problem: Problem, key: Key, epsilon: float | None) -> Outcome:
    """Run one reference. epsilon: the radius where the attack has one."""
    classes = _classes(problem)
    counted = Counted(problem.model)
    queries = problem.recipe.queries
    setting = Setting(counted, problem.x, problem.y, classes, key.norm, epsilon, queries, key.seed)
    start = time.perf_counter()
    with quiet(key.seed):
        x_adv = PAIRS[key.attack].references[key.library](setting).detach()
    return _outcome(problem, x_adv, counted, time.perf_counter() - start, ThreatModel(key.norm, epsilon))


def radius(book: Book, problem: Problem, norm: Norm) -> float:
    """The recipe's radius, else by the rule: the median of the smallest distances that the references of `RULE` found."""
    if norm in book.radii:
        return book.radii[norm]
    given = problem.recipe.radii[norm]
    if given is not None:
        return given
    attacks = [attack for attack in RULE if norm in PAIRS[attack].norms]
    keys = [Key(norm, attack, library) for attack in attacks for library in PAIRS[attack].libraries(norm)]
    missing = [key for key in keys if key not in book.outcomes]
    if missing:
        raise ValueError(
            f"Expected the references that set the radius of {problem.recipe.name} first, got none of {missing}"
        )
    found = [book.outcomes[key].distances for key in keys]
    return min(float(f"{torch.stack(found).amin(dim=0).median():.2g}"), LARGEST[norm])


def ensemble(problem: Problem, book: Book, norm: Norm, seed: int = 0) -> Outcome:
    """pyautoattack's standard ensemble, from the runs of its parts: an image that one of them breaks within the radius is
    broken. Where Square has not run on all images it runs on those that are left. Passes are those of the parts, each on all
    images; in sequence they cost less.

    So does the library, whose parts attack every image on its own. With two or three classes there is no targeted ratio of
    logits, as its authors advise; APGD on the ratio itself takes the place of `apgd-t` where there are three.
    """
    epsilon = book.radii[norm]
    parts = [part for part in ("apgd-ce", "apgd-t", "fab-t") if _runs(part, problem)]
    parts += ["apgd-dlr"] if _classes(problem) == 3 else []
    asked = Key(norm, "square", "pyautoattack", seed) in book.outcomes
    parts += ["square"] if asked else []
    runs = [book.outcomes[Key(norm, part, "pyautoattack", seed)] for part in parts]
    nearest = torch.stack([run.distances for run in runs]).amin(dim=0)
    distances = nearest.where(nearest <= epsilon * (1 + 1e-5), torch.inf)
    left = distances.isinf()
    counted, start, refused = Counted(problem.model), time.perf_counter(), 0
    if left.any() and not asked:
        x, y = problem.x[left], problem.y[left]
        with quiet(seed):
            setting = Setting(counted, x, y, _classes(problem), norm, epsilon, problem.recipe.queries, seed)
            x_adv = squares(setting).detach()
        found, refused = verified(problem.model, x, y, x_adv, ThreatModel(norm, epsilon))
        distances[left] = found
    seconds = time.perf_counter() - start + sum(run.seconds for run in runs)
    n = len(problem.x)
    forwards = counted.forwards / n + sum(run.forwards for run in runs)
    return Outcome(distances, forwards, sum(run.backwards for run in runs), seconds, refused)


def fill(problem: Problem, book: Book, norm: Norm, attack: str, seed: int = 0) -> list[Key]:
    """Run what is missing of an attack's references in a norm; the keys that were run."""
    pair = PAIRS[attack]
    if not pair.minimal:
        book.radii[norm] = radius(book, problem, norm)
    epsilon = None if pair.minimal else book.radii[norm]
    done = []
    for key in [Key(norm, attack, library, seed) for library in pair.libraries(norm)]:
        if key not in book.outcomes:
            book.outcomes[key], book.versions[key] = run(problem, key, epsilon), version_of(key.library)
            done.append(key)
    key = Key(norm, ENSEMBLE, "pyautoattack", seed)
    if attack == ENSEMBLE and key not in book.outcomes:
        book.outcomes[key], book.versions[key] = ensemble(problem, book, norm, seed), version_of(key.library)
        done.append(key)
    return done


def applies(attack: str, problem: Problem, norm: Norm) -> bool:
    """Whether the pair is compared on a model in a norm."""
    pair = PAIRS[attack]
    return norm in pair.norms and _runs(attack, problem)


def _runs(attack: str, problem: Problem) -> bool:
    return _classes(problem) >= PAIRS[attack].fewest


def _classes(problem: Problem) -> int:
    with torch.no_grad():
        return int(problem.model(problem.x[:1]).shape[1])


def _outcome(problem: Problem, x_adv: Tensor, counted: Counted, seconds: float, threat: ThreatModel) -> Outcome:
    distances, refused = verified(problem.model, problem.x, problem.y, x_adv, threat)
    n = len(problem.x)
    return Outcome(distances, counted.forwards / n, counted.backwards / n, seconds, refused)
