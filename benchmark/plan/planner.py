"""The tasks of a plan, one by one: their contents, keys and needs, from the registry's components."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any, Literal

from advbench.attacks.access import AT_ONCE, WhiteBox
from advbench.attacks.attack import Attack
from advbench.attacks.calibration import need_of
from advbench.attacks.ensemble import with_stop
from advbench.attacks.preparation import CAP, LEVEL
from advbench.attacks.progress import expected_forwards
from advbench.clocks import device_name, resolve_devices
from advbench.config import Config
from advbench.defenses.defended import Defended, Input, Surrogate
from advbench.plan.compute_batch import compute_batch
from advbench.plan.suite import suite_of
from advbench.registry import registry
from advbench.registry.sources import source_hash
from advbench.registry.specs import Spec, canonical
from advbench.tasks.calibration import threat_of
from advbench.tasks.models import architecture_of, build_defended
from advbench.tasks.task import Kind, Target, Task, View, scored_split
from advbench.zoo import checkpoints, datasets, training
from advbench.zoo.data import DataSet
from advbench.zoo.training import Budget

USUAL_DRAWS = 4
"""Passes averaged per question for a stochastic model where nothing says how many it takes."""
_PREPARED_ON = 32
"""Held-out images on which the draws of EOT are found."""

MODULES: Mapping[Kind, str] = {
    "train": "advbench.tasks.train",
    "substitute": "advbench.tasks.substitute",
    "clean": "advbench.tasks.clean",
    "diagnose": "advbench.tasks.diagnose",
    "calibrate": "advbench.tasks.calibrate",
    "craft": "advbench.tasks.craft",
    "score": "advbench.tasks.score",
}
"""The module that runs each kind of task; its code and what it imports of advbench is part of the task's content."""

VERSIONED: frozenset[Kind] = frozenset({"clean", "diagnose", "calibrate", "craft", "score"})
"""Kinds whose content names the versions of torch and torchvision. Trained weights stay what they are without them."""


@dataclass(frozen=True, slots=True, eq=False)
class PlannedAttack:
    """An attack of a plan. component: the attack itself. content: what names it in a key."""

    spec: Spec
    component: Attack
    content: Mapping[str, Any]

    @property
    def minimal_norm(self) -> bool:
        """Whether it seeks the smallest perturbation, whatever epsilon is."""
        return bool(self.component.minimal_norm)

    @property
    def by_gradients(self) -> bool:
        """Whether it differentiates the model that it attacks."""
        return issubclass(self.component.knowledge, WhiteBox)


class Planner:
    """Adds tasks to a plan, each once.

    data: the data set where it is loaded already. tasks: by key, needs before those who need them. contents: theirs, by key.
    cells: keys of scores.
    """

    def __init__(self, config: Config, measure: bool, data: DataSet | None = None) -> None:
        self.config = config
        self.measure = measure
        self.devices = resolve_devices(config.device)
        self.device = self.devices[0]
        self.device_name = device_name(self.device)
        self.data = registry.load_dataset(config.dataset, config.data_dir) if data is None else data
        self.radii: tuple[float | None, ...] = config.epsilon or self._usual_radius()
        self.split = scored_split(self.data, config.n_examples)
        self.attacks = [self.attack(spec) for spec in suite_of(config).attacks]
        self.budget = dataclasses.asdict(self._budget())
        self.tasks: dict[str, Task] = {}
        self.contents: dict[str, Mapping[str, Any]] = {}
        self._looks: dict[tuple[Any, ...], str] = {}
        self.cells: list[str] = []

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

    @property
    def gradient_attacks(self) -> list[PlannedAttack]:
        """The attacks that differentiate what they attack."""
        return [attack for attack in self.attacks if attack.by_gradients]

    def attack(self, spec: Spec) -> PlannedAttack:
        """The attack of a spec. ValueError if it does not support the norm of the run."""
        attack = registry.attacks.create(spec)
        if self.config.norm not in attack.norms:
            raise ValueError(
                f"The attack {spec.name!r} is for {', '.join(sorted(attack.norms))}, got norm {self.config.norm!r}"
            )
        return PlannedAttack(spec, attack, registry.content("attacks", spec, attack))

    def _budget(self) -> Budget:
        names = ("epochs", "train_examples", "batch_size", "learning_rate", "optimizer", "schedule", "augmentation")
        given = {name: getattr(self.config, name) for name in names}
        usual = datasets.default_budget(self.config.dataset)
        return dataclasses.replace(usual, **{name: value for name, value in given.items() if value is not None})

    def _defense(self, spec: Spec) -> tuple[Any, dict[str, Any]]:
        """The component, its unset radius filled in, and its content."""
        kind = registry.of_defense(spec.name)
        defense: Any = kind.create(spec)
        if getattr(defense, "epsilon", 0.0) is None:
            norm = getattr(defense, "norm", self.config.norm)
            given = [radius for radius in self.radii if radius is not None] if norm == self.config.norm else []
            radius = max(given, default=self.data.radii.get(norm))
            if radius is None:
                raise ValueError(f"{spec}: the data set {self.data.name} has no usual {norm} radius: give epsilon")
            defense = dataclasses.replace(defense, epsilon=radius)
        return defense, registry.content(kind.kind, spec, defense)

    # --- tasks

    def add(self, kind: Kind, content: dict[str, Any], needs: Iterable[str], label: str, cost: float, **facts: Any) -> str:
        """Add a task where it is not there yet; returns its key."""
        content = {"task": kind, **content, "code": source_hash(MODULES[kind])}
        if kind in VERSIONED:
            content["versions"] = versions()
        key = hashlib.sha256(canonical(content).encode()).hexdigest()
        if key not in self.tasks:
            self.tasks[key] = Task(kind, key, content, tuple(needs), label, cost, facts)
            self.contents[key] = content
        return key

    def _train(self, spec: Spec, architecture: Spec, seed: int) -> str:
        """The training task of a defense, after those of its inputs."""
        defense, content = self._defense(spec)
        given = {name: self._input(wanted, architecture) for name, wanted in sorted(defense.inputs.items())}
        inputs = {name: self._train(*pair, seed) for name, pair in given.items()}
        cost = self.budget["epochs"] * (1 + getattr(defense, "steps", 0)) * 10.0
        anywhere = bool(getattr(defense, "any_architecture", False))
        return self.add(
            "train",
            {
                "defense": content,
                "architecture": None if anywhere else registry.content("architectures", architecture, None),
                "fingerprint": self.data.fingerprint,
                "budget": self.budget,
                "seed": seed,
                "inputs": inputs,
            },
            inputs.values(),
            f"train {spec}" + ("" if anywhere else f" on {architecture}"),
            cost,
        )

    def _input(self, given: str | Input, architecture: Spec) -> tuple[Spec, Spec]:
        """The spec of a model that a defense is built on, and its architecture: the defense's where it names none."""
        wanted = Input(given) if isinstance(given, str) else given
        return Spec.parse(wanted.spec), Spec.parse(wanted.architecture) if wanted.architecture else architecture

    def target(self, defense: Spec, architecture: Spec, seed: int, *, alone: bool) -> Target:
        """A defended model of the plan, its training added. alone: whether it needs no architecture in its name."""
        key = self._train(defense, architecture, seed)
        content = self.contents[key]
        structure = build_defended(content, self.contents, self.data)
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
            content["defense"],
            content["architecture"],
            structure.stochastic,
            View.of(None, Surrogate(structure.model, structure.stochastic, structure.detector)),
            tuple(View.of(*named) for named in structure.surrogates.items()),
            batch,
            (self.config.draws or USUAL_DRAWS) if structure.stochastic else 1,
        )

    def _clean(self, target: Target) -> str:
        """The task that counts what a target gets right without an attack; the same one for all its cells."""
        asked = ("clean", target.key, target.batch)
        if asked not in self._looks:
            self._looks[asked] = self._add_clean(target)
        return self._looks[asked]

    def _add_clean(self, target: Target) -> str:
        return self.add(
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

    def diagnose(self, target: Target, epsilon: float | None) -> str | None:
        """The task that looks at a target's gradients within a radius; None where the threat has no norm."""
        if self.config.norm == "none":
            return None
        asked = ("diagnose", target.key, target.batch, target.draws, epsilon)
        if asked not in self._looks:
            self._looks[asked] = self._add_diagnosis(target, epsilon)
        return self._looks[asked]

    def _add_diagnosis(self, target: Target, epsilon: float | None) -> str:
        return self.add(
            "diagnose",
            {
                "target": target.key,
                "threat": self._threat(epsilon),
                "draws": target.draws,
                **self._where(target.batch, target.seed),
            },
            [target.key],
            f"gradients of {target.label}",
            float(target.draws),
        )

    def craft(
        self,
        source: str,
        label: str,
        attack: PlannedAttack,
        epsilon: float | None,
        *,
        batch: int,
        seed: int,
        view: View,
        transfer: bool,
    ) -> str:
        """The task that crafts images. source, label: the model's task and name. transfer: without a stop."""
        usual = None if attack.by_gradients else USUAL_DRAWS
        draws = (self.config.draws or usual) if view.stochastic else 1
        place = {"source": source, "surrogate": view.name, "draws": draws, **self._where(batch, seed)}
        place["compile"] = self.config.compile
        wants = [*(["draws"] if draws is None else []), *(["scale"] if view.guarded else [])]
        place["preparation"] = self._prepare(wants, label, place, epsilon) if wants else None
        radius = None if attack.minimal_norm else epsilon
        runs = with_stop(attack.component, "never") if transfer else attack.component
        calibration = self._calibrate("attacks", attack.spec, runs, radius, label, place)
        return self.add(
            "craft",
            {
                **place,
                "attack": attack.content,
                "threat": self._threat(epsilon),
                "transfer": transfer,
                "calibration": calibration,
            },
            [source, *filter(None, (place["preparation"], calibration))],
            f"{attack.spec} on {label}",
            (draws or AT_ONCE) * expected_forwards(attack.component, threat_of(self._threat(epsilon))),
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
        }
        return self.add("calibrate", content, [place["source"]], f"calibrate {' and '.join(wants)} on {label}", CAP / 2)

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
        }
        content = {**place, "threat": self._threat(epsilon), **content} if need.model else {"source": None, **content}
        return self.add(
            "calibrate",
            content,
            [place["source"], *filter(None, [place["preparation"]])] if need.model else [],
            f"calibrate {spec}" + (f" on {label}" if need.model else ""),
            (place["draws"] or AT_ONCE) * expected_forwards(component, threat_of(self._threat(epsilon))),
        )

    def score(
        self,
        matrix: str,
        target: Target,
        attack: PlannedAttack,
        epsilon: float | None,
        crafts: Mapping[str, str],
        source: dict[str, Any] | None,
        *,
        handed: bool = False,
        substitute: str | None = None,
        diagnosis: str | None = None,
    ) -> None:
        """A cell. crafts: candidates by name. handed: whether they were crafted on another model than that of the target."""
        clean = self._clean(target)
        minimal = attack.minimal_norm and not handed
        key = self.add(
            "score",
            {
                "matrix": matrix,
                "target": target.key,
                "clean": clean,
                "crafts": list(crafts.values()),
                "substitute": substitute,
                "diagnosis": diagnosis,
                "threat": self._threat(epsilon),
                "minimal_norm": minimal,
                "dataset": self.data.name,
                **self._where(target.batch, target.seed),
            },
            [target.key, clean, *crafts.values(), *filter(None, (substitute, diagnosis))],
            f"score {attack.spec} from {source['label'] if source else 'itself'} on {target.label}",
            float(target.draws),
            target=target.facts(),
            source=source,
            attack={
                "label": str(attack.spec),
                "minimal_norm": minimal,
                "gradients": attack.by_gradients,
                **attack.content,
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
        """What the bits of an outcome depend on beside the components: images, seed, device and batch."""
        return {
            "seed": seed,
            "fingerprint": self.data.fingerprint,
            "split": "test",
            "n": len(self.split),
            "batch": batch,
            "device": self.device_name,
        }

    def substitute_batch(self, architecture: Spec) -> int:
        """The compute batch of a substitute."""
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


@cache
def versions() -> dict[str, str]:
    """The installed versions of what computes the numbers."""
    return {name: metadata.version(name) for name in ("torch", "torchvision")}
