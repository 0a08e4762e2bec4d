"""The plan: the registry crossed into tasks, each named by what it computes.

A task's key is the SHA-256 of its canonical content, so that a changed hyper-parameter, seed, data set or source file is
another task, and a finished one is never done twice (DESIGN, sections 2 and 3).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from advbench import registry
from advbench.attacks.access import AT_ONCE, DecisionBased, WhiteBox
from advbench.attacks.calibration import need_of
from advbench.attacks.ensemble import with_stop
from advbench.attacks.preparation import CAP, LEVEL
from advbench.attacks.progress import expected_forwards
from advbench.batch import compute_batch
from advbench.calibration import threat_of
from advbench.clocks import device_name, resolve_devices
from advbench.compiling import check_compiler
from advbench.config import Config
from advbench.defenses.defended import Defended, Input, Surrogate
from advbench.models import architecture_of, build_defended
from advbench.results.store import Store
from advbench.sources import source_hash
from advbench.specs import Spec, canonical
from advbench.zoo import checkpoints, datasets, training
from advbench.zoo.data import DataSet, Split
from advbench.zoo.training import Budget

Kind = Literal["train", "substitute", "clean", "diagnose", "calibrate", "craft", "score"]
DEFAULT_ARCHITECTURE = Spec("gu2014/n200-200-10")
DEFAULT_SUBSTITUTE = Spec("gu2014/n100-100-10")
USUAL_DRAWS = 4
"""Passes averaged per question for a stochastic model where nothing says how many it takes."""
_PREPARED_ON = 32
"""Held-out images on which the draws of EOT are found."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One node of the plan.

    key: SHA-256 of the canonical `content`. needs: keys of the tasks whose results it reads. label: for people. cost: a
    rough measure, for running the longest first. facts: what the record of a score shows beside its content.
    """

    kind: Kind
    key: str
    content: Mapping[str, Any]
    needs: tuple[str, ...]
    label: str
    cost: float
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class View:
    """What an attack asks: a surrogate by name, or where that is None the model itself.

    stochastic: whether its answers are random. guarded: whether a detector is to be evaded too.
    """

    name: str | None = None
    stochastic: bool = False
    guarded: bool = False

    @staticmethod
    def of(name: str | None, surrogate: Surrogate) -> View:
        """The view of a surrogate."""
        detector = surrogate.detector
        return View(name, surrogate.stochastic or (detector is not None and detector.stochastic), detector is not None)


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A defended model of the plan: its training task, its untrained structure's properties, and its names."""

    key: str
    label: str
    seed: int
    defense: Mapping[str, Any]
    architecture: Mapping[str, Any]
    stochastic: bool
    itself: View
    surrogates: tuple[View, ...]
    batch: int
    draws: int

    def facts(self) -> dict[str, Any]:
        """The target as a record shows it."""
        names = ("name", "arguments")
        return {
            "label": self.label,
            "defense": {name: self.defense[name] for name in names},
            "architecture": {name: self.architecture[name] for name in names},
            "stochastic": self.stochastic,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Everything that a run computes. tasks: by key, needs before those who need them. cells: the keys of the scores."""

    config: Config
    data: DataSet
    devices: list[torch.device]
    tasks: Mapping[str, Task]
    cells: tuple[str, ...]

    @property
    def store(self) -> Store:
        """Where the records go."""
        return Store(self.config.out)

    def done(self, task: Task) -> bool:
        """Whether the task's result lies finished in its place."""
        if task.kind == "score":
            return self.store.status(task.key) == "ok"
        return artefact(task.kind, task.key, self.config.out).exists()

    def pending(self) -> list[Task]:
        """The tasks that must run, in order: the cells without a result, and what they need that is not there."""
        wanted: set[str] = set()
        waiting = [key for key in self.cells if not self.done(self.tasks[key])]
        while waiting:
            key = waiting.pop()
            if key not in wanted:
                wanted.add(key)
                waiting.extend(need for need in self.tasks[key].needs if not self.done(self.tasks[need]))
        return [task for key, task in self.tasks.items() if key in wanted]


def artefact(kind: Kind, key: str, out: Path) -> Path:
    """The file of a finished task: models in the user's cache, everything else under the output folder."""
    if kind in ("train", "substitute"):
        return checkpoints.cache_dir() / "models" / f"{key}.safetensors"
    if kind == "score":
        return out / "records" / key
    return out / "store" / kind / f"{key}.npz"


def scored_split(data: DataSet, n: int | None) -> Split:
    """The scored test images: all, or `n` of them by a fixed permutation, in the order of the data set."""
    if n is None or n >= len(data.test):
        return data.test
    generator = torch.Generator().manual_seed(0)
    return data.test.select(torch.randperm(len(data.test), generator=generator)[:n].sort().values)


def make_plan(config: Config, *, measure: bool = True) -> Plan:
    """Cross the components of `config` into tasks. ValueError, in one line, for anything that does not fit.

    measure: whether to measure a compute batch that is not yet known on this machine (a dry run does not).
    """
    registry.check_name("datasets", config.dataset)
    return _Planner(config, measure).plan()


class _Planner:
    """Builds a plan, task by task."""

    def __init__(self, config: Config, measure: bool) -> None:
        self.config = config
        self.measure = measure
        self.devices = resolve_devices(config.device)
        self.device = self.devices[0]
        if config.compile:
            check_compiler(self.device)
        self.data = registry.load_dataset(config.dataset, config.data_dir)
        self.radii: tuple[float | None, ...] = config.epsilon or self._usual_radius()
        self.split = scored_split(self.data, config.n_examples)
        self.attacks = [self._attack(spec) for spec in _suite(config).attacks]
        self.budget = dataclasses.asdict(self._budget())
        self.tasks: dict[str, Task] = {}
        self.cells: list[str] = []

    def plan(self) -> Plan:
        suite = _suite(self.config)
        for seed in self.config.seed:
            targets = [
                self._target(defense, architecture, seed, alone=len(suite.architectures) == 1)
                for architecture in suite.architectures
                for defense in suite.defenses
            ]
            if "white-box" in self.config.matrix:
                for target in targets:
                    self._white_box(target)
            if {"white-box", "black-box"} & set(self.config.matrix):
                for target in targets:
                    self._queries(target)
            if "black-box" in self.config.matrix and any(map(_by_gradients, self.attacks)):
                for target in targets:
                    for substitute in suite.substitutes:
                        self._black_box(target, substitute)
            if "transfer" in self.config.matrix:
                self._transfer(targets)
        return Plan(self.config, self.data, self.devices, self.tasks, tuple(self.cells))

    # --- components

    def _usual_radius(self) -> tuple[float | None, ...]:
        if self.config.norm == "none":
            return (None,)
        try:
            return (self.data.radii[self.config.norm],)
        except KeyError:
            raise ValueError(
                f"The data set {self.data.name} has no usual {self.config.norm} radius: give --epsilon"
            ) from None

    def _attack(self, spec: Spec) -> tuple[Spec, Any, dict[str, Any]]:
        attack = registry.create("attacks", spec)
        if self.config.norm not in attack.norms:
            raise ValueError(
                f"The attack {spec.name!r} is for {', '.join(sorted(attack.norms))}, got norm {self.config.norm!r}"
            )
        return spec, attack, registry.content("attacks", spec, attack)

    def _budget(self) -> Budget:
        names = ("epochs", "train_examples", "batch_size", "learning_rate", "optimizer", "schedule", "augmentation")
        given = {name: getattr(self.config, name) for name in names}
        usual = datasets.default_budget(self.config.dataset)
        return dataclasses.replace(usual, **{name: value for name, value in given.items() if value is not None})

    def _defense(self, spec: Spec) -> tuple[Any, dict[str, Any]]:
        """The component, its unset radius filled in, and its content."""
        kind: Literal["defenses", "parts"] = "parts" if spec.name in registry.table("parts") else "defenses"
        defense = registry.create(kind, spec)
        if getattr(defense, "epsilon", 0.0) is None:
            norm = getattr(defense, "norm", self.config.norm)
            given = [radius for radius in self.radii if radius is not None] if norm == self.config.norm else []
            radius = max(given, default=self.data.radii.get(norm))
            if radius is None:
                raise ValueError(f"{spec}: the data set {self.data.name} has no usual {norm} radius: give epsilon")
            defense = dataclasses.replace(defense, epsilon=radius)
        return defense, registry.content(kind, spec, defense)

    # --- tasks

    def _add(self, kind: Kind, content: dict[str, Any], needs: Iterable[str], label: str, cost: float, **facts: Any) -> str:
        content = {"task": kind, **content}
        key = hashlib.sha256(canonical(content).encode()).hexdigest()
        self.tasks.setdefault(key, Task(kind, key, content, tuple(needs), label, cost, facts))
        return key

    def _train(self, spec: Spec, architecture: Spec, seed: int) -> str:
        """The training task of a defense, after those of its inputs."""
        defense, content = self._defense(spec)
        given = {name: self._input(wanted, architecture) for name, wanted in sorted(defense.inputs.items())}
        inputs = {name: self._train(*pair, seed) for name, pair in given.items()}
        cost = self.budget["epochs"] * (1 + getattr(defense, "steps", 0)) * 10.0
        anywhere = bool(getattr(defense, "any_architecture", False))
        return self._add(
            "train",
            {
                "defense": content,
                "architecture": None if anywhere else registry.content("architectures", architecture, None),
                "fingerprint": self.data.fingerprint,
                "budget": self.budget,
                "seed": seed,
                "inputs": inputs,
                "source_hash": source_hash("advbench.models"),
            },
            inputs.values(),
            f"train {spec}" + ("" if anywhere else f" on {architecture}"),
            cost,
        )

    def _input(self, given: str | Input, architecture: Spec) -> tuple[Spec, Spec]:
        """The spec of a model that a defense is built on, and its architecture: the defense's where it names none."""
        wanted = Input(given) if isinstance(given, str) else given
        return Spec.parse(wanted.spec), Spec.parse(wanted.architecture) if wanted.architecture else architecture

    def _target(self, defense: Spec, architecture: Spec, seed: int, *, alone: bool) -> Target:
        key = self._train(defense, architecture, seed)
        contents = {name: task.content for name, task in self.tasks.items()}
        structure = build_defended(contents[key], contents, self.data)
        batch = self.config.batch or compute_batch(
            structure,
            self.data.shape,
            draws=min(self.config.draws or AT_ONCE, AT_ONCE),
            device=self.device,
            memory=checkpoints.cache_dir() / "compute-batch.json",
            measure=self.measure,
        )
        return Target(
            key,
            str(defense) if alone else f"{defense} / {architecture}",
            seed,
            contents[key]["defense"],
            contents[key]["architecture"],
            structure.stochastic,
            View.of(None, Surrogate(structure.model, structure.stochastic, structure.detector)),
            tuple(View.of(*named) for named in structure.surrogates.items()),
            batch,
            (self.config.draws or USUAL_DRAWS) if structure.stochastic else 1,
        )

    def _clean(self, target: Target) -> str:
        return self._add(
            "clean",
            {
                "target": target.key,
                "draws": self.config.score_draws if target.stochastic else 1,
                **self._where(target.batch, target.seed),
            },
            [target.key],
            f"clean accuracy of {target.label}",
            float(target.draws),
        )

    def _diagnose(self, target: Target, epsilon: float | None) -> str | None:
        """The task that looks at a target's gradients within a radius; None where the threat has no norm."""
        if self.config.norm == "none":
            return None
        return self._add(
            "diagnose",
            {
                "target": target.key,
                "threat": self._threat(epsilon),
                "draws": target.draws,
                **self._where(target.batch, target.seed),
                "harness": source_hash("advbench.diagnosis"),
            },
            [target.key],
            f"gradients of {target.label}",
            float(target.draws),
        )

    def _craft(
        self,
        source: str,
        label: str,
        attack: tuple[Spec, Any, dict[str, Any]],
        epsilon: float | None,
        *,
        batch: int,
        seed: int,
        view: View,
        transfer: bool,
    ) -> str:
        spec, component, content = attack
        usual = None if _by_gradients(attack) else USUAL_DRAWS
        draws = (self.config.draws or usual) if view.stochastic else 1
        place = {"source": source, "surrogate": view.name, "draws": draws, **self._where(batch, seed)}
        place["compile"] = self.config.compile
        wants = [*(["draws"] if draws is None else []), *(["scale"] if view.guarded else [])]
        place["preparation"] = self._prepare(wants, label, place, epsilon) if wants else None
        radius = None if component.minimal_norm else epsilon
        runs = with_stop(component, "never") if transfer else component
        calibration = self._calibrate("attacks", spec, runs, radius, label, place)
        return self._add(
            "craft",
            {
                **place,
                "attack": content,
                "threat": self._threat(epsilon),
                "transfer": transfer,
                "calibration": calibration,
            },
            [source, *filter(None, (place["preparation"], calibration))],
            f"{spec} on {label}",
            (draws or AT_ONCE) * expected_forwards(component, threat_of(self._threat(epsilon))),
        )

    def _prepare(self, wants: list[str], label: str, place: Mapping[str, Any], epsilon: float | None) -> str:
        """The task that finds on held-out images what every attack on a surrogate must know.

        wants: ``draws``, how many a gradient averages, ``scale``, what a detector's score is worth. epsilon: the attack's;
        where that is None, the usual radius of the data set.
        """
        n = min(_PREPARED_ON if wants == ["draws"] else self.config.calibration_examples, len(self.data.validation))
        content = {
            **place,
            "kind": "surrogate",
            "wants": wants,
            "converged": {"level": LEVEL, "cap": CAP, "n": min(_PREPARED_ON, n)},
            "threat": self._threat(epsilon or self.data.radii.get(self.config.norm)),
            "split": "validation",
            "n": n,
            "harness": source_hash("advbench.calibration"),
        }
        return self._add("calibrate", content, [place["source"]], f"calibrate {' and '.join(wants)} on {label}", CAP / 2)

    def _calibrate(
        self,
        kind: Literal["attacks", "defenses"],
        spec: Spec,
        component: Any,
        epsilon: float | None,
        label: str,
        place: Mapping[str, Any],
    ) -> str | None:
        """The task that finds a component's open values on held-out images; None where it has none.

        place: what the bits of a craft depend on. Values that no model is asked for depend on the images alone.
        """
        need = need_of(component)
        if need is None:
            return None
        held_out = getattr(self.data, need.split)
        n = min(self.config.calibration_examples, len(held_out)) if need.model else len(held_out)
        content: dict[str, Any] = {
            "kind": kind,
            "component": registry.content(kind, spec, component),
            "split": need.split,
            "n": n,
            "fingerprint": self.data.fingerprint,
            "harness": source_hash("advbench.calibration"),
        }
        content = {**place, "threat": self._threat(epsilon), **content} if need.model else {"source": None, **content}
        return self._add(
            "calibrate",
            content,
            [place["source"], *filter(None, [place["preparation"]])] if need.model else [],
            f"calibrate {spec}" + (f" on {label}" if need.model else ""),
            (place["draws"] or AT_ONCE) * expected_forwards(component, threat_of(self._threat(epsilon))),
        )

    def _score(
        self,
        matrix: str,
        target: Target,
        attack: tuple[Spec, Any, dict[str, Any]],
        epsilon: float | None,
        crafts: Mapping[str, str],
        source: dict[str, Any] | None,
        *,
        handed: bool = False,
        substitute: str | None = None,
        diagnosis: str | None = None,
    ) -> None:
        """A cell. crafts: candidates by name. handed: whether they were crafted on another model than that of the target."""
        spec, component, content = attack
        clean = self._clean(target)
        minimal = bool(component.minimal_norm) and not handed
        key = self._add(
            "score",
            {
                "matrix": matrix,
                "target": target.key,
                "clean": clean,
                "crafts": list(crafts.values()),
                "substitute": substitute,
                "threat": self._threat(epsilon),
                "minimal_norm": minimal,
                "dataset": self.data.name,
                **self._where(target.batch, target.seed),
            },
            [target.key, clean, *crafts.values(), *filter(None, (substitute, diagnosis))],
            f"score {spec} from {source['label'] if source else 'itself'} on {target.label}",
            float(target.draws),
            target=target.facts(),
            source=source,
            attack={
                "label": str(spec),
                "minimal_norm": minimal,
                "gradients": issubclass(component.knowledge, WhiteBox),
                **content,
            },
            diagnosis=diagnosis,
            candidates=list(crafts),
            draws={name: self.tasks[craft].content["draws"] for name, craft in crafts.items()},
            calibrations=list(dict.fromkeys(self._found_for(crafts, "calibration").values())),
            preparations=self._found_for(crafts, "preparation"),
        )
        self.cells.append(key)

    def _found_for(self, crafts: Mapping[str, str], what: str) -> dict[str, str]:
        """The tasks that found something for crafts, by the crafts' names."""
        found = {name: self.tasks[craft].content[what] for name, craft in crafts.items()}
        return {name: key for name, key in found.items() if key}

    def _threat(self, epsilon: float | None) -> dict[str, Any]:
        box = self.data.box if self.config.clip else None
        return {"norm": self.config.norm, "epsilon": epsilon, "box": list(box) if box else None}

    def _where(self, batch: int, seed: int) -> dict[str, Any]:
        """What the bits of an outcome depend on beside the components: images, seed, harness, device and batch."""
        return {
            "seed": seed,
            "fingerprint": self.data.fingerprint,
            "split": "test",
            "n": len(self.split),
            "batch": batch,
            "device": device_name(self.device),
            "harness": source_hash("advbench.evaluation"),
        }

    # --- matrices

    def _white_box(self, target: Target) -> None:
        for attack in filter(_by_gradients, self.attacks):
            for epsilon in self.radii:
                found = self._crafts(target, attack, epsilon, target.surrogates) | self._evasions(target, epsilon)
                self._score("white-box", target, attack, epsilon, found, None, diagnosis=self._diagnose(target, epsilon))
                if _IGNORING in found:
                    alone = {_IGNORING: found[_IGNORING]}
                    self._score("oblivious", target, attack, epsilon, alone, {"label": _IGNORING, "kind": "surrogate"})

    def _queries(self, target: Target) -> None:
        """Attacks that ask for scores or labels alone need no surrogate: they ask the model itself, its detector with it."""
        for attack in self.attacks:
            if not _by_gradients(attack):
                labels = issubclass(attack[1].knowledge, DecisionBased)
                source = {"label": "label queries" if labels else "score queries", "kind": "queries"}
                for epsilon in self.radii:
                    found = self._crafts(target, attack, epsilon, (target.itself,))
                    self._score("black-box", target, attack, epsilon, found, source)

    def _crafts(
        self, target: Target, attack: tuple[Spec, Any, dict[str, Any]], epsilon: float | None, views: Iterable[View]
    ) -> dict[str, str]:
        """Images crafted to fool the target itself, by what was asked."""
        found = {}
        for view in views:
            name = view.name or "itself"
            found[name] = self._craft(
                target.key,
                target.label if len(target.surrogates) == 1 else f"{target.label} ({name})",
                attack,
                None if attack[1].minimal_norm else epsilon,
                batch=target.batch,
                seed=target.seed,
                view=view,
                transfer=False,
            )
        if attack[1].minimal_norm and target.stochastic:
            # The smallest perturbation fools a random model about every other time: one that spends the whole budget stands
            # beside it, so that the model does not look robust at epsilon for that reason.
            found["whole budget"] = self._craft_for_transfer(target, attack, epsilon)
        return found

    def _evasions(self, target: Target, epsilon: float | None) -> dict[str, str]:
        """Images crafted past a target's detector, by surrogate; they stand beside every attack's."""
        guarded = [view for view in target.surrogates if view.guarded]
        if not guarded or self.config.norm not in registry.create("attacks", _EVASION).norms:
            return {}
        found = self._crafts(target, self._attack(_EVASION), epsilon, guarded)
        return {f"{name}, {_EVASION}": craft for name, craft in found.items()}

    def _black_box(self, target: Target, architecture: Spec) -> None:
        content = registry.content("architectures", architecture, None)
        substitute = self._add(
            "substitute",
            {
                "target": target.key,
                "architecture": content,
                "rounds": self.config.substitute_rounds,
                "step": self.config.substitute_step,
                "seeds": self.config.substitute_seeds,
                "fingerprint": self.data.fingerprint,
                "seed": target.seed,
                "source_hash": source_hash("advbench.substitutes"),
            },
            [target.key],
            f"substitute {architecture} for {target.label}",
            20.0 * 2**self.config.substitute_rounds,
        )
        label = f"substitute {architecture}"
        batch = self._substitute_batch(architecture)
        for attack in filter(_by_gradients, self.attacks):
            for epsilon in self.radii:
                craft = self._craft(
                    substitute,
                    f"{label} for {target.label}",
                    attack,
                    epsilon,
                    batch=batch,
                    seed=target.seed,
                    view=View(),
                    transfer=True,
                )
                source = {"label": label, "kind": "substitute", "architecture": {"name": content["name"]}}
                found = {"substitute": craft}
                self._score("black-box", target, attack, epsilon, found, source, handed=True, substitute=substitute)

    def _substitute_batch(self, architecture: Spec) -> int:
        with training.seeded(0):
            network = architecture_of(architecture.name, architecture.keywords, self.data)
        return self.config.batch or compute_batch(
            Defended(network),
            self.data.shape,
            draws=1,
            device=self.device,
            memory=checkpoints.cache_dir() / "compute-batch.json",
            measure=self.measure,
        )

    def _craft_for_transfer(self, source: Target, attack: tuple[Spec, Any, dict[str, Any]], epsilon: float | None) -> str:
        """Images crafted on a model to be shown to any: every example, the whole budget, the faithful surrogate.

        Those of an attack that asks for scores or labels alone come from the model itself.
        """
        return self._craft(
            source.key,
            source.label,
            attack,
            epsilon,
            batch=source.batch,
            seed=source.seed,
            view=source.surrogates[0] if _by_gradients(attack) else source.itself,
            transfer=True,
        )

    def _transfer(self, targets: list[Target]) -> None:
        for attack in self.attacks:
            for epsilon in self.radii:
                for source in targets:
                    craft = self._craft_for_transfer(source, attack, epsilon)
                    facts = source.facts()
                    for target in targets:
                        found = {source.label: craft}
                        self._score("transfer", target, attack, epsilon, found, {**facts, "kind": "model"}, handed=True)


_EVASION = Spec("selective-pgd")
"""The attack that stands beside every other one where there is a detector."""

_IGNORING = "base"
"""The surrogate of an attacker who ignores a defense's test-time parts."""


def _by_gradients(attack: tuple[Spec, Any, dict[str, Any]]) -> bool:
    """Whether an attack differentiates what it attacks."""
    return issubclass(attack[1].knowledge, WhiteBox)


@dataclass(frozen=True, slots=True)
class _Suite:
    defenses: tuple[Spec, ...]
    attacks: tuple[Spec, ...]
    architectures: tuple[Spec, ...]
    substitutes: tuple[Spec, ...]


def _suite(config: Config) -> _Suite:
    """The components of a run: those that were named, and the default suite for the rest."""
    norm = config.norm
    if norm == "none":
        attacks, trained = [Spec("correlated-noise")], list[Spec]()
    else:
        attacks = [Spec("fgsm" if norm == "linf" else "fgm"), Spec("pgd")]
        attacks += [Spec("deepfool")] if norm in ("linf", "l2") else []
        trained = [Spec(f"robust-{norm}"), Spec(f"pgd-{norm}")]
    defenses = (Spec("none"), *trained, Spec.of("input-noise", {"passes": 2}))
    return _Suite(
        _unique(config.defense or defenses),
        _unique(config.attack or attacks),
        _unique(config.architecture or (DEFAULT_ARCHITECTURE,)),
        _unique(config.substitute or (DEFAULT_SUBSTITUTE,)),
    )


def _unique(specs: Iterable[Spec]) -> tuple[Spec, ...]:
    return tuple(dict.fromkeys(specs))
