"""The tasks of a plan, one by one: their contents, from the registry's components."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

import torch

from advbench.attacks.access import AT_ONCE, WhiteBox
from advbench.attacks.attack import Attack
from advbench.attacks.capabilities import GIVEN, family_of, need_of, passes_of, with_stop
from advbench.attacks.draws import CAP, LEVEL
from advbench.attacks.threat import ThreatModel
from advbench.clocks import resolve_devices
from advbench.config import BUDGET, Config
from advbench.defenses.capabilities import fits_any_architecture, open_norm, passes_per_image, with_epsilon
from advbench.defenses.defended import Defended, Defense, Input, Surrogate
from advbench.plan.compute_batch import compute_batch
from advbench.plan.keys import Keys
from advbench.plan.place import Place, devices_of
from advbench.plan.suite import suite_of
from advbench.plan.targets import Target, View
from advbench.registry import registry
from advbench.registry.schemes import OWN
from advbench.registry.specs import Spec
from advbench.tasks.answers import alike, answers
from advbench.tasks.calibrate import Converged, DataCalibration, ModelCalibration, SurrogateCalibration, Want
from advbench.tasks.clean import CleanContent
from advbench.tasks.components import Component, architecture_of
from advbench.tasks.craft import CraftContent
from advbench.tasks.diagnose import DiagnoseContent
from advbench.tasks.images import Images, scored_split, split_of
from advbench.tasks.known_noise import KnownNoiseContent
from advbench.tasks.models import answers_of, build_defended
from advbench.tasks.planting import INNER, RIVALS
from advbench.tasks.score import AttackFacts, Candidate, ScoreContent, ScoreFacts, SourceFacts, TargetFacts
from advbench.tasks.substitute import SubstituteContent
from advbench.tasks.surrogates import Attacked
from advbench.tasks.task import ScoreTask, Task, TaskContent
from advbench.tasks.train import TrainContent
from advbench.tasks.unit_test import UnitTestContent
from advbench.zoo import checkpoints, datasets, training
from advbench.zoo.data import DataSet
from advbench.zoo.training import Budget

_Part = TypeVar("_Part")
USUAL_DRAWS = 4
"""Passes averaged per question for a stochastic model where nothing says how many it takes."""
MOST_POINTS = 200
"""The most random points that stand beside an attack in its unit test."""
_PREPARED_ON = 32
"""Held-out images on which the draws of EOT are found."""


@dataclass(frozen=True, slots=True, eq=False)
class PlannedAttack:
    """An attack of a plan. attack: the attack itself. component: what names it in a key. label: as the user names it."""

    spec: Spec
    attack: Attack
    component: Component
    label: str

    @property
    def minimal_norm(self) -> bool:
        """Whether it seeks the smallest perturbation, for any epsilon."""
        return self.attack.minimal_norm

    @property
    def given(self) -> bool:
        """Whether it asks nothing, as its images were found elsewhere."""
        return family_of(self.attack) == GIVEN

    @property
    def by_gradients(self) -> bool:
        """Whether it differentiates the model that it attacks."""
        return issubclass(self.attack.knowledge, WhiteBox)


_NAMED = frozenset({str, PlannedAttack})
"""What names a place by itself; anything else does by how it is spelled, as 1 and 1.0 are two."""
_OWN_WEIGHTS = "own"
"""The defense that gives a network its weights, and trains nothing."""


class Planner:
    """Adds tasks to a plan, each once.

    data: the data set where it is loaded already. place: what the plan is told of the device that it is for; if None, the
    configuration's device of this machine, of which everything is measured. devices: those of this machine that are of this
    place. batches, answered: what was measured, and what networks of the user's answered. tasks: by key, needs before those
    who need them. trainings, substitutes, crafts: the contents of such tasks, by key. cells: keys of scores.
    """

    def __init__(self, config: Config, measure: bool, data: DataSet | None = None, place: Place | None = None) -> None:
        self.config = config
        self.devices = resolve_devices(config.device) if place is None else devices_of(place, config.device)
        self.measure = measure and bool(self.devices)
        self.place = Place.of(self.devices[0]) if place is None else place
        self.device = self.devices[0] if self.devices else torch.device(self.place.kind)
        self.batches = dict(self.place.batches)
        self.answered: dict[str, None] = {}
        self.data = registry.load_dataset(config.dataset, config.data_dir) if data is None else data
        self.epsilons: tuple[float | None, ...] = config.epsilon or self._usual_epsilon()
        self._check_epsilons()
        self.split = scored_split(self.data, config.n_examples)
        self.attacks = [self.attack(spec) for spec in suite_of(config).attacks]
        self.budget = self._budget()
        self.tasks: dict[str, Task] = {}
        self.trainings: dict[str, TrainContent] = {}
        self.substitutes: dict[str, SubstituteContent] = {}
        self.crafts: dict[str, CraftContent] = {}
        self._looks: dict[tuple[str, str, int, float | None], str] = {}
        self._keys = Keys()
        self._threats: dict[tuple[type, float | None], ThreatModel] = {}
        self._scored: dict[tuple[int, int], Images] = {}
        self._kept: dict[tuple[object, ...], object] = {}
        self.cells: list[str] = []

    def _once(self, make: Callable[[], _Part], *place: object) -> _Part:
        """What `make` makes for this `place`, made once: contents that share a part share one object."""
        named = tuple([part if part.__class__ in _NAMED else repr(part) for part in place])
        if named not in self._kept:
            self._kept[named] = make()
        return cast(_Part, self._kept[named])

    # --- components

    def _usual_epsilon(self) -> tuple[float | None, ...]:
        if self.config.norm == "none":
            return (None,)
        try:
            return (self.data.radii[self.config.norm],)
        except KeyError:
            raise ValueError(
                f"The data set {self.data.name} has no usual epsilon in {self.config.norm}: give --epsilon"
            ) from None

    def _check_epsilons(self) -> None:
        """Refuse radii within which every image is the same: they were meant in other units."""
        box = self.data.box if self.config.clip else None
        if box is None or self.config.norm == "none":
            return
        width, pixels = box[1] - box[0], math.prod(self.data.shape)
        widest = width * {"linf": 1.0, "l2": math.sqrt(pixels), "l1": float(pixels)}[self.config.norm]
        beyond = [epsilon for epsilon in self.epsilons if epsilon is not None and epsilon > widest]
        if beyond:
            raise ValueError(
                f"Expected `epsilon` at most {widest:g} in {self.config.norm}, the size of the box {box}, got "
                f"{beyond[0]:g}: it is in units of pixels in [0, 1], such as 8/255"
            )

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
        return PlannedAttack(spec, attack, Component.of("attacks", spec, attack), str(spec))

    def _budget(self) -> Budget:
        given = {name: getattr(self.config, name) for name in BUDGET}
        usual = datasets.default_budget(self.config.dataset)
        return dataclasses.replace(usual, **{name: value for name, value in given.items() if value is not None})

    def _defense(self, spec: Spec) -> tuple[Defense, Component]:
        """The defense, its open epsilon filled in, and what names it in a key."""
        kind = registry.of_defense(spec.name)
        defense = kind.create(spec)
        norm = open_norm(defense, self.config.norm)
        if norm is not None:
            defense = with_epsilon(defense, self._defended_epsilon(spec, norm))
        return defense, Component.of(kind.kind, spec, defense)

    def _defended_epsilon(self, spec: Spec, norm: str) -> float:
        """The epsilon of a defense that leaves it open: the largest of the run's, else the usual one of the data set."""
        given = [epsilon for epsilon in self.epsilons if epsilon is not None] if norm == self.config.norm else []
        epsilon = max(given, default=self.data.radii.get(norm))
        if epsilon is None:
            raise ValueError(f"{spec}: the data set {self.data.name} has no usual epsilon in {norm}: give epsilon")
        return epsilon

    def _input(self, given: str | Input, architecture: Spec) -> tuple[Spec, Spec]:
        """The spec of a model that a defense is built on, and its architecture: the defense's where it names none."""
        wanted = Input(given) if isinstance(given, str) else given
        return Spec.parse(wanted.spec), Spec.parse(wanted.architecture) if wanted.architecture else architecture

    # --- tasks

    def add(self, content: TaskContent, label: str, cost: float) -> str:
        """Add a task unless it is there; returns its key."""
        key = self._keys.of(content)
        self.tasks.setdefault(key, Task(key, content, label, cost))
        return key

    def _train(self, spec: Spec, architecture: Spec, seed: int) -> str:
        """The training task of a defense, after those of its inputs."""
        defense, component = self._once(lambda: self._defense(spec), "defense", spec)
        if not len(self.data.train) and spec.name != _OWN_WEIGHTS and passes_per_image(defense) > 0:
            raise ValueError(
                f"Expected training images for {spec}, got none in {self.data.name}: trained models alone are scored on it, "
                "as by `advbench evaluate`"
            )
        given = {name: self._input(wanted, architecture) for name, wanted in sorted(defense.inputs.items())}
        anywhere = fits_any_architecture(defense)
        content = TrainContent(
            defense=component,
            architecture=None if anywhere else self._architecture(architecture),
            fingerprint=self.data.fingerprint,
            budget=self.budget,
            seed=seed,
            inputs=tuple((name, self._train(*pair, seed)) for name, pair in given.items()),
        )
        answers = self._once(lambda: self._answers(content), "answers", spec, architecture)
        content = dataclasses.replace(content, answers=answers)
        cost = self.budget.epochs * passes_per_image(defense) * 10.0
        key = self.add(content, content.label(str(spec), str(architecture)), cost)
        self.trainings[key] = content
        return key

    def _architecture(self, architecture: Spec) -> Component:
        """What names an architecture in a key."""
        return self._once(lambda: Component.of("architectures", architecture), "architecture", architecture)

    def _named(self, architecture: Spec) -> Component:
        """What names a substitute's architecture in a key; of the user's, its answers to fixed images too."""
        component = self._architecture(architecture)
        if not component.name.startswith(OWN):
            return component
        with training.seeded(0):
            network = architecture_of(component, self.data)
        return dataclasses.replace(component, identity=f"{component.identity} {self._told(answers(network, self.data))}")

    def _answers(self, content: TrainContent) -> str:
        """What a network of the user's answers to fixed images; an empty text for a registered architecture."""
        if content.architecture is None or not content.architecture.name.startswith(OWN):
            return ""
        return self._told(answers_of(content, build_defended(content, self.trainings, self.data), self.data))

    def _told(self, found: str) -> str:
        """The answers of a network as the place has them, if it has some like these; else the ones that were found."""
        like = (told for told in self.place.answers if alike(told, found))
        chosen = found if found in self.place.answers else next(like, found)
        self.answered[chosen] = None
        return chosen

    def target(self, defense: Spec, architecture: Spec, seed: int, *, alone: bool) -> Target:
        """A defended model of the plan, its training added. alone: whether it needs no architecture in its name.

        Raises ValueError for a part that has no architecture to be attacked.
        """
        key = self._train(defense, architecture, seed)
        content = self.trainings[key]
        if content.architecture is None:
            raise ValueError(f"Expected a defense of a classifier, got the part {defense}, which is made for none")
        label = str(defense) if alone else f"{defense} / {architecture}"

        def untrained() -> Target:
            assert content.architecture is not None
            structure = build_defended(content, self.trainings, self.data)
            return Target(
                key,
                seed,
                TargetFacts(label, content.defense, content.architecture, structure.stochastic),
                View.of(None, Surrogate(structure.model, structure.stochastic, structure.detector)),
                tuple(View.of(*named) for named in structure.surrogates.items()),
                self._batch(structure, min(self.config.draws or AT_ONCE, AT_ONCE)),
                (self.config.draws or USUAL_DRAWS) if structure.stochastic else 1,
            )

        # An untrained structure depends on no seed.
        return dataclasses.replace(self._once(untrained, "target", defense, architecture), key=key, seed=seed)

    def substitute(self, target: Target, architecture: Spec) -> str:
        """The task that trains a substitute on a target's labels."""
        content = SubstituteContent(
            target=target.key,
            architecture=self._named(architecture),
            rounds=self.config.substitute_rounds,
            step=self.config.substitute_step,
            seeds=self.config.substitute_seeds,
            fingerprint=self.data.fingerprint,
            seed=target.seed,
        )
        key = self.add(content, content.label(str(architecture), target.label), 20.0 * 2**content.rounds)
        self.substitutes[key] = content
        return key

    def substitute_batch(self, substitute: str) -> int:
        """The compute batch of a substitute, by its key."""
        component = self.substitutes[substitute].architecture

        def measured() -> int:
            with training.seeded(0):
                network = architecture_of(component, self.data)
            return self._batch(Defended(network), 1)

        return self._once(measured, "substitute", component)

    def _batch(self, structure: Defended, draws: int) -> int:
        """The compute batch of an untrained model for the scored images."""
        return self.config.batch or compute_batch(
            structure,
            self.data.shape,
            images=len(self.split),
            draws=draws,
            device=self.device,
            memory=checkpoints.cache_dir() / "compute-batch.json",
            measure=self.measure,
            named=self.place.name,
            known=self.batches,
        )

    def _clean(self, target: Target) -> str:
        """The task that counts what a target gets right without an attack; the same one for all its cells."""
        asked = ("clean", target.key, target.batch, None)
        if asked not in self._looks:
            draws = self.config.score_draws if target.stochastic else 1
            content = CleanContent(target.key, draws, self._images(target.batch, target.seed))
            self._looks[asked] = self.add(content, content.label(target.label), float(target.draws))
        return self._looks[asked]

    def diagnose(self, target: Target, epsilon: float | None) -> str | None:
        """The task that looks at a target's gradients within a radius; None where the threat has no norm."""
        if self.config.norm == "none":
            return None
        asked = ("diagnose", target.key, target.batch, epsilon)
        if asked not in self._looks:
            images = self._images(target.batch, target.seed)
            content = DiagnoseContent(target.key, self._threat(epsilon), target.draws, images)
            self._looks[asked] = self.add(content, content.label(target.label), float(target.draws))
        return self._looks[asked]

    def unit_test(
        self, target: Target, attack: PlannedAttack, epsilon: float | None, crafts: Mapping[str, str]
    ) -> str | None:
        """The task that tests whether a cell's attacks find planted adversarial images; None if it is not wanted.

        crafts: the cell's candidates by name. Random points are as many as an image's forwards in the attack, within limits.
        """
        if not self.config.unit_test:
            return None
        threat, images = self._threat(epsilon), self._images(target.batch, target.seed)
        n = min(images.n, self.config.unit_test_images)
        content = UnitTestContent(
            target=target.key,
            crafts=tuple((name, dataclasses.replace(self.crafts[key], visited=False)) for name, key in crafts.items()),
            threat=threat,
            points=max(1, min(MOST_POINTS, math.ceil(self._effort(attack, threat)))),
            draws=self.config.score_draws if target.stochastic else 1,
            images=dataclasses.replace(images, n=n),
        )
        cost = n / images.n * (target.draws * (INNER + RIVALS) + sum(self.tasks[key].cost for key in crafts.values()))
        return self.add(content, content.label(attack.label, target.label), cost)

    def known_noise(self, target: Target, attack: PlannedAttack, crafts: Mapping[str, str]) -> str | None:
        """The task that attacks a random target at draws that are known; None if it is not wanted, or not possible.

        crafts: the cell's candidates by name, of which the first is taken: the faithful surrogate's. An attack of minimal
        norm, and one on a model with a detector, is left out.
        """
        if not self.config.known_noise or not target.stochastic or attack.minimal_norm or target.itself.evading:
            return None
        first = next(iter(crafts.values()))
        images = self._images(target.batch, target.seed)
        candidate = dataclasses.replace(self.crafts[first], visited=False)
        content = KnownNoiseContent(target.key, candidate, self.config.score_draws, images)
        cost = self.config.score_draws * self._effort(attack, candidate.threat)
        return self.add(content, content.label(attack.label, target.label), cost)

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
        images, threat = self._images(batch, seed), self._threat(epsilon)
        usual = None if attack.by_gradients else USUAL_DRAWS
        draws = (self.config.draws or usual) if view.stochastic else 1
        asked = self._once(
            lambda: Attacked(source, view.name, draws, self.config.compile, precision=self.config.precision),
            "attacked",
            source,
            view.name,
            draws,
        )
        attacked = self._prepared(asked, view, label, epsilon, images)
        runs = self._once(lambda: with_stop(attack.attack, "never") if transfer else attack.attack, "runs", attack, transfer)
        within = None if attack.minimal_norm else epsilon
        content = CraftContent(
            attacked=attacked,
            attack=attack.component,
            threat=threat,
            transfer=transfer,
            calibration=self._calibrate(attack.spec, runs, self._threat(within), label, attacked, images),
            images=images,
            passes=self.config.budget,
            visited=self._followed(view, transfer=transfer),
        )
        effort = (draws or AT_ONCE) * self._effort(attack, threat)
        cost = min(effort, self.config.budget or effort)
        key = self.add(content, content.label(attack.label, label), cost)
        self.crafts[key] = content
        return key

    def _followed(self, view: View, *, transfer: bool) -> bool:
        """Whether what an attack visits is kept: where it asks the scored model itself, whose answers are not random."""
        config, exact = self.config, view.exact and not view.stochastic and not transfer
        return config.visited and exact and config.norm != "none" and config.precision == "float32"

    def _prepared(self, attacked: Attacked, view: View, label: str, epsilon: float | None, images: Images) -> Attacked:
        """The attacked model with the task that finds on held-out images what every attack on it must know, if anything.

        epsilon: the attack's; if that is None, the usual one of the data set.
        """
        draws: tuple[Want, ...] = ("draws",) if attacked.draws is None else ()
        scale: tuple[Want, ...] = ("scale",) if view.evading else ()
        wants = draws + scale
        if not wants:
            return attacked
        n = min(self.config.calibration_examples if scale else _PREPARED_ON, len(self.data.validation))
        content = SurrogateCalibration(
            wants=wants,
            attacked=attacked,
            converged=Converged(LEVEL, CAP, min(_PREPARED_ON, n)),
            threat=self._threat(epsilon or self.data.radii.get(self.config.norm)),
            images=dataclasses.replace(images, split="validation", n=n),
        )
        found = self.add(content, content.label(label), CAP / 2)
        return self._once(lambda: dataclasses.replace(attacked, preparation=found), "prepared", attacked, found)

    def _calibrate(
        self, spec: Spec, attack: Attack, threat: ThreatModel, label: str, attacked: Attacked, images: Images
    ) -> str | None:
        """The task that finds an attack's open values on held-out images; None where it has none.

        Values that no model is asked for depend on the images alone.
        """
        need = self._once(lambda: need_of(attack), "need", id(attack))  # which is kept
        if need is None:
            return None
        component, held_out = Component.of("attacks", spec, attack), len(split_of(self.data, need.split))
        if not need.model:
            of_data = DataCalibration(component, self.data.fingerprint, need.split, held_out)
            return self.add(of_data, of_data.label(str(spec)), self._forwards(attack, threat))
        n = min(self.config.calibration_examples, held_out)
        images = dataclasses.replace(images, split=need.split, n=n)
        content = ModelCalibration(component, attacked, threat, images)
        cost = (attacked.draws or AT_ONCE) * self._forwards(attack, threat)
        return self.add(content, content.label(str(spec), label), cost)

    def score(
        self,
        matrix: str,
        target: Target,
        attack: PlannedAttack,
        epsilon: float | None,
        crafts: Mapping[str, str],
        source: SourceFacts | None,
        *,
        handed: bool = False,
        substitute: str | None = None,
        diagnosis: str | None = None,
        unit_test: str | None = None,
        known_noise: str | None = None,
    ) -> None:
        """A cell. crafts: candidates by name. handed: whether they were crafted on another model than that of the target."""
        minimal = attack.minimal_norm and not handed
        content = ScoreContent(
            matrix=matrix,
            target=target.key,
            clean=self._clean(target),
            crafts=tuple(crafts.values()),
            substitute=substitute,
            diagnosis=diagnosis,
            unit_test=unit_test,
            threat=self._threat(epsilon),
            minimal_norm=minimal,
            dataset=self.data.name,
            images=self._images(target.batch, target.seed),
            known_noise=known_noise,
        )
        facts = ScoreFacts(
            target=target.facts,
            source=source,
            attack=self._once(lambda: _facts_of(attack, minimal, self.config.budget), "facts", attack, minimal),
            candidates=tuple(self._candidate(name, craft) for name, craft in crafts.items()),
            precision=self.config.precision,
            known_draws=self.config.score_draws,
        )
        key, origin = self._keys.of(content), source.label if source else "itself"
        label = content.label(attack.label, origin, target.label)
        self.tasks.setdefault(key, ScoreTask(key, content, label, float(target.draws), facts))
        self.cells.append(key)

    def _candidate(self, name: str, craft: str) -> Candidate:
        content = self.crafts[craft]
        return Candidate(name, content.attacked.draws, content.calibration, content.attacked.preparation)

    def _forwards(self, attack: Attack, threat: ThreatModel) -> float:
        """The forwards of an attack for an example that withstands it."""
        return passes_of(attack, threat, self.data.n_classes).forwards

    def _effort(self, attack: PlannedAttack, threat: ThreatModel) -> float:
        """The forwards of an attack of the plan."""
        return self._once(lambda: self._forwards(attack.attack, threat), "forwards", attack, threat.epsilon)

    def _threat(self, epsilon: float | None) -> ThreatModel:
        named = type(epsilon), epsilon  # 1 and 1.0 are spelled differently
        if named not in self._threats:
            box = self.data.box if self.config.clip else None
            self._threats[named] = ThreatModel(self.config.norm, epsilon, box)
        return self._threats[named]

    def _images(self, batch: int, seed: int) -> Images:
        """The scored images."""
        if (batch, seed) not in self._scored:
            n = len(self.split)
            self._scored[batch, seed] = Images(seed, self.data.fingerprint, "test", n, batch, self.place.name)
        return self._scored[batch, seed]


def _facts_of(attack: PlannedAttack, minimal: bool, budget: int | None) -> AttackFacts:
    """What records show of an attack. minimal: whether its distances count."""
    return AttackFacts(attack.label, minimal, attack.by_gradients, family_of(attack.attack), attack.component, budget)
