"""Score: a cell of a matrix, its record, its outcomes and its gallery."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from advbench.attacks.access import NoGradientError
from advbench.attacks.threat import ThreatModel
from advbench.clocks import environment
from advbench.results.record import (
    AttackPart,
    CountsPart,
    DetailsPart,
    Examples,
    Gallery,
    MeasuredPart,
    Plain,
    Record,
    SourcePart,
    TargetPart,
)
from advbench.results.store import Store
from advbench.tasks.artefacts import IF_SET, Kind, artefact
from advbench.tasks.calibrate import read_values
from advbench.tasks.clean import read_clean
from advbench.tasks.components import Component
from advbench.tasks.context import Context, data_of, defended_of
from advbench.tasks.craft import read_craft
from advbench.tasks.diagnose import read_diagnosis
from advbench.tasks.evaluation import Craft, ViolationError, score, verified
from advbench.tasks.images import Images, scored_split
from advbench.tasks.known_noise import read_known_noise
from advbench.tasks.precision import Precision
from advbench.tasks.substitute import read_substitute
from advbench.tasks.train import read_training
from advbench.tasks.unit_test import read_unit_test
from advbench.zoo.data import Split


@dataclass(frozen=True, slots=True)
class ScoreContent:
    """What a scored cell depends on.

    matrix: which one it belongs to. target, clean: keys of the model's training and of its answers on clean images.
    crafts: keys of the candidates' crafts. substitute: key of the substitute that was attacked in the model's place, if one
    was. diagnosis, unit_test: keys of the look at the model's gradients and of the test of the attacks, if there are any.
    minimal_norm: whether the nearest candidate that fools the model counts. dataset: its name. images: the scored ones.
    known_noise: key of the answers to an attacker who knows the draws, if there are any.
    """

    kind: ClassVar[Kind] = "score"

    matrix: str
    target: str
    clean: str
    crafts: tuple[str, ...]
    substitute: str | None
    diagnosis: str | None
    unit_test: str | None
    threat: ThreatModel
    minimal_norm: bool
    dataset: str
    images: Images
    known_noise: str | None = field(default=None, metadata=IF_SET)

    @property
    def needs(self) -> tuple[str, ...]:
        """The model, its clean answers, the crafts, and what the record shows beside them."""
        return (self.target, self.clean, *self.crafts, *filter(None, self._beside))

    @property
    def _beside(self) -> tuple[str | None, ...]:
        return self.substitute, self.diagnosis, self.unit_test, self.known_noise

    def label(self, attack: str, source: str, target: str) -> str:
        """For people: the attack, what it was crafted on, and the model."""
        return f"score {attack} from {source} on {target}"


@dataclass(frozen=True, slots=True)
class TargetFacts:
    """A target as its record shows it. label: its name in the run. stochastic: whether its answers are random."""

    label: str
    defense: Component
    architecture: Component
    stochastic: bool

    def described(self) -> TargetPart:
        """As a record holds it."""
        return {
            "label": self.label,
            "defense": self.defense.named(),
            "architecture": self.architecture.named(),
            "stochastic": self.stochastic,
        }


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What the candidates of a cell were crafted on, as its record shows it.

    kind: a surrogate of the target, answers to queries, a substitute or another model. architecture: a substitute's, by
    name. model: the other model; reports read its components, so that it is there for that kind and for no other one.

    Raises ValueError for a model that is missing or that another kind has.
    """

    label: str
    kind: Literal["surrogate", "queries", "substitute", "model"]
    architecture: str | None = None
    model: TargetFacts | None = None

    def __post_init__(self) -> None:
        if (self.kind == "model") != (self.model is not None):
            raise ValueError(f"Expected `model` with the kind 'model' and with no other, got kind {self.kind!r}")

    def described(self) -> SourcePart:
        """As a record holds it."""
        found: SourcePart = {"label": self.label, "kind": self.kind}
        if self.model is not None:
            found |= {**self.model.described(), "kind": self.kind}
        if self.architecture is not None:
            found["architecture"] = {"name": self.architecture}
        return found


@dataclass(frozen=True, slots=True)
class AttackFacts:
    """An attack as a record shows it.

    label: as the user names it. minimal_norm: whether the cell counts distances. gradients: whether it differentiates.
    family: its kind, for people. budget: passes for each image and candidate, without end if None.
    """

    label: str
    minimal_norm: bool
    gradients: bool
    family: str
    component: Component
    budget: int | None = None

    def described(self) -> AttackPart:
        """As a record holds it."""
        found: AttackPart = {
            "label": self.label,
            "minimal_norm": self.minimal_norm,
            "gradients": self.gradients,
            "family": self.family,
            "name": self.component.name,
            "arguments": self.component.keywords,
            "source_hash": self.component.source_hash,
        }
        if self.component.parts:
            found["parts"] = dict(self.component.parts)
        if self.component.identity:
            found["identity"] = self.component.identity
        if self.budget is not None:
            found["budget"] = self.budget
        return found


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the crafts that a cell takes the worst of.

    name: by what was asked. draws: passes that a question averaged; None if the preparation says. calibration, preparation:
    keys of the calibrations of the attack and of its surrogate, if there are any.
    """

    name: str
    draws: int | None
    calibration: str | None
    preparation: str | None


@dataclass(frozen=True, slots=True)
class ScoreFacts:
    """What the record of a cell shows beside its content.

    source: None if the target itself was attacked. candidates: in the order of the content's crafts. precision: in which
    they were crafted. known_draws: so many draws the attacker of `ScoreContent.known_noise` knows, one after the other.
    """

    target: TargetFacts
    source: SourceFacts | None
    attack: AttackFacts
    candidates: tuple[Candidate, ...]
    precision: Precision = "float32"
    known_draws: int = 1


def failed_record(key: str, content: ScoreContent, facts: ScoreFacts, reason: str) -> Record:
    """The row of a cell that has no numbers, and why."""
    measured: MeasuredPart = {"device": content.images.device, "environment": environment()}
    return _record(key, content, facts, status="error", reason=reason, measured=measured)


def run(key: str, content: ScoreContent, facts: ScoreFacts, context: Context, device: torch.device) -> None:
    """Score the candidates of a cell and write its record."""
    split = scored_split(data_of(context), content.images.n)
    clean, weights = read_clean(artefact("clean", content.clean, context.out), len(split))
    allowed = replace(content.threat, epsilon=None) if content.minimal_norm else content.threat
    read = [_read_craft(craft, split, allowed, context) for craft in content.crafts]
    named = {each.name: craft for each, craft in zip(facts.candidates, read, strict=True) if craft is not None}
    crafts = list(named.values())
    if not crafts:
        raise NoGradientError("Expected a surrogate whose logits depend on the images differentiably, got none")
    found = score(
        defended_of(content.target, context, device),
        split,
        clean,
        [one.x_adv for one in crafts],
        norm=content.threat.norm,
        minimal_norm=content.minimal_norm,
        epsilon=content.threat.epsilon,
        seed=content.images.seed,
        batch=content.images.batch,
        device=device,
        visited=[one.visited for one in crafts],
    )
    accuracies = dict.fromkeys(each.name for each in facts.candidates) | dict(zip(named, found.accuracies, strict=True))
    record = _record(
        key,
        content,
        facts,
        weights_sha256=weights,
        counts=_counts(crafts, len(split)),
        details={**_details(content, facts, context), "candidates": accuracies},
        measured=_measured(crafts, content, context),
    )
    Store(context.out).write(record, found.examples, _gallery(found.examples, split, found.x_adv, found.prediction))


def _read_craft(key: str, split: Split, threat: ThreatModel, context: Context) -> Craft | None:
    """A finished craft, verified again: what lies in a folder may have been changed since the attack returned it.

    Raises ViolationError, and removes the file so that the next run crafts again, if its images are not those of an attack
    on `split` within `threat`.
    """
    place = artefact("craft", key, context.out)
    found = read_craft(place, len(split))
    try:
        if found is not None:
            verified(found.x_adv, split, threat)
    except ViolationError as error:
        place.unlink(missing_ok=True)
        raise ViolationError(f"{error}: {place} has been changed, and is removed; run again to craft anew") from None
    return found


_SHOWN = 32
"""The most numbers of a calibrated value that a record shows."""


def _record(
    key: str,
    content: ScoreContent,
    facts: ScoreFacts,
    *,
    status: str = "ok",
    reason: str = "",
    weights_sha256: str = "",
    counts: CountsPart | None = None,
    details: DetailsPart | None = None,
    measured: MeasuredPart,
) -> Record:
    images, threat = content.images, content.threat
    return Record(
        key=key,
        status=status,
        reason=reason,
        matrix=content.matrix,
        dataset={"name": content.dataset, "split": "test", "fingerprint": images.fingerprint, "n": images.n},
        target=facts.target.described(),
        source=None if facts.source is None else facts.source.described(),
        attack=facts.attack.described(),
        weights_sha256=weights_sha256,
        threat={"norm": threat.norm, "epsilon": threat.epsilon, "box": None if threat.box is None else list(threat.box)},
        seed=images.seed,
        counts={} if counts is None else counts,
        details={} if details is None else details,
        measured=measured,
    )


def _counts(crafts: Sequence[Craft], examples: int) -> CountsPart:
    """The passes and queries of all crafts together."""
    return {
        "examples": examples,
        "forwards": sum(int(one.ledger.forwards.sum()) for one in crafts),
        "backwards": sum(int(one.ledger.backwards.sum()) for one in crafts),
        "queries": sum(int(one.ledger.queries.sum()) for one in crafts),
    }


def _measured(crafts: Sequence[Craft], content: ScoreContent, context: Context) -> MeasuredPart:
    """What all crafts took together."""
    watched: MeasuredPart = {"watch_seconds": sum(one.watch_seconds for one in crafts)}
    return {
        **(watched if any(one.visited is not None for one in crafts) else {}),
        "seconds": sum(one.measured.seconds for one in crafts),
        "peak_memory_bytes": max(one.measured.peak_memory_bytes for one in crafts),
        "device": content.images.device,
        "threads": 1,
        "tasks_beside": context.tasks_beside,
        "environment": environment(),
    }


def _details(content: ScoreContent, facts: ScoreFacts, context: Context) -> DetailsPart:
    trained = read_training(content.target)
    details: DetailsPart = {
        "compute_batch": content.images.batch,
        "model_key": content.target,
        "crafts": list(content.crafts),
        "train": asdict(context.trainings[content.target].budget),
        "train_seconds": trained.seconds,
        "precision": {"crafted": facts.precision, "scored": "float32"},
    }
    if trained.facts:
        details["train_facts"] = {name: _finite(value) for name, value in trained.facts.items()}
    details |= _calibrated(facts, context)
    if content.diagnosis:
        details["diagnosis"] = read_diagnosis(artefact("diagnose", content.diagnosis, context.out))
    if content.unit_test:
        details["unit_test"] = read_unit_test(artefact("unit-test", content.unit_test, context.out)).described()
    if content.known_noise:
        correct, reason = read_known_noise(artefact("known-noise", content.known_noise, context.out))
        details["known_noise"] = {"draws": facts.known_draws, "correct": correct.tolist(), "reason": reason}
    if content.substitute:
        found = read_substitute(content.substitute, context)
        details["substitute"] = {
            "queries": found.queries,
            "fidelity": _finite(found.fidelity),
            "sizes": list(found.sizes),
            "seconds": found.seconds,
        }
    return details


def _calibrated(facts: ScoreFacts, context: Context) -> DetailsPart:
    """What was found for the crafts on held-out images, and the draws that each took."""
    details: DetailsPart = {}
    calibrations = [read_values(key, context) for key in _distinct(each.calibration for each in facts.candidates)]
    if calibrations:
        # What a person can read: a constant, an order; not a covariance.
        details["calibration"] = [
            {name: value.tolist() for name, value in values.items() if value.numel() <= _SHOWN} for values in calibrations
        ]
    prepared = {each.name: read_values(each.preparation, context) for each in facts.candidates if each.preparation}
    if prepared:
        details["preparation"] = {
            name: {what: _shown(value) for what, value in values.items()} for name, values in prepared.items()
        }
    one = torch.tensor(1)
    details["draws"] = {
        each.name: each.draws or int(prepared.get(each.name, {}).get("draws", one)) for each in facts.candidates
    }
    return details


def _distinct(keys: Iterable[str | None]) -> list[str]:
    """The keys that there are, each once, in order."""
    return list(dict.fromkeys(key for key in keys if key))


def _shown(value: Tensor) -> Plain:
    """A number or a list of numbers for JSON, None for one that is not finite."""
    listed = value.flatten().tolist()
    found = [_finite(one) for one in listed]
    return list(found) if value.ndim else found[0]


def _finite(value: float) -> float | None:
    """A number for JSON, None if it is not finite."""
    return value if math.isfinite(value) else None


def _gallery(examples: Examples, split: Split, x_adv: Tensor, prediction: Tensor) -> Gallery:
    """The first image of each class, ten at most, the same ones in every cell of a data set."""
    firsts = {int(label): row for row, label in reversed(list(enumerate(split.y.tolist())))}
    rows = sorted(firsts.values())[:10]
    return Gallery(
        clean=split.x[rows].numpy(),
        adversarial=x_adv[rows].numpy(),
        index=examples.index[rows],
        label=split.y[rows].numpy(),
        prediction=prediction[rows].numpy(),
    )
