"""One model of the user's, evaluated: `advbench.evaluate` and the command ``advbench evaluate``.

It becomes the only target of a plan, so that the same harness verifies its attacks and writes the same reports.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeAlias

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from advbench.attacks.access import WhiteBox
from advbench.attacks.capabilities import need_of
from advbench.clocks import resolve_devices
from advbench.config import Config, Outputs, make_config
from advbench.defenses.defended import Architecture
from advbench.engine.scheduler import Watcher, run_plan
from advbench.plan.compute_batch import DEFAULT_BATCH
from advbench.plan.plan import Plan, make_plan
from advbench.registry import registry
from advbench.registry.schemes import OWN
from advbench.registry.specs import Shown, Spec
from advbench.reports.evaluation_result import EvaluationResult
from advbench.results.store import Store
from advbench.tasks.artefacts import artefact
from advbench.tasks.images import scored_split
from advbench.user_models import onnx_files
from advbench.user_models.arrays import as_it_came, data_set_of, device_of, folder_of, split_of
from advbench.user_models.files import few
from advbench.user_models.handed import Handed
from advbench.user_models.held import HandedOver, holding
from advbench.user_models.library_networks import TimmNetwork
from advbench.user_models.looks import Look, look_at
from advbench.user_models.networks import CodeNetwork, TorchvisionNetwork
from advbench.user_models.onnx_files import OnnxNetwork
from advbench.user_models.preflight import LOOKS
from advbench.user_models.weights import Own
from advbench.zoo import checkpoints
from advbench.zoo.data import DataSet, Split
from advbench.zoo.training import seeded

DEFAULT_ATTACK = "auto"
CURVE = "fmn"
"""The minimal-norm attack whose distances draw the curve of accuracy against epsilon, if none is named."""
WITHOUT_GRADIENTS = "square"
"""The attack that runs beside all others where gradients are no numbers, if none that asks without gradients is named."""
BLACK_BOX = ("square", "hop-skip-jump")
"""The attacks on an ONNX file that cannot be converted, if none is named."""
_WITH_QUERIES = frozenset({"auto", "autoattack"})
"""Ensembles that have such an attack among their parts."""
_DRAWS = 16
LibraryNetwork: TypeAlias = TorchvisionNetwork | TimmNetwork
"""Networks of libraries that have weights of their own, and know the normalisation that these expect."""
AttackChoice: TypeAlias = str | Sequence[str | Spec | Mapping[str, object]] | None
"""Attacks as settings name them: a comma-separated text, or specs, texts and mappings with a `name`; None: the default."""


def evaluate(
    model: nn.Module,
    x: Tensor | ArrayLike,
    y: Tensor | ArrayLike,
    *,
    norm: str = "linf",
    epsilon: float | str | None = None,
    attack: AttackChoice = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    outputs: Outputs | None = None,
    stochastic: bool = False,
    draws: int | None = None,
    held_out: tuple[Tensor | ArrayLike, Tensor | ArrayLike] | None = None,
    name: str = "model",
    seed: int = 0,
    batch: int | None = None,
    unit_test: bool = False,
    unit_test_images: int = 64,
    budget: int | None = None,
    visited: bool = False,
    known_noise: bool = False,
    jobs: int = 1,
    curve: bool = True,
    out: str | Path | None = None,
    watch: Watcher | None = None,
) -> EvaluationResult:
    """Measure a model's clean and robust accuracy on labelled images; the result shows itself as a table in a notebook.

    model: images (n, c, h, w) in [0, 1] -> logits (n, classes); it is evaluated on the device where it is, in evaluation
    mode, and left unchanged.
    x, y: images (n, c, h, w) in [0, 1] and their labels (n,), tensors on any device or arrays.
    norm: ``linf``, ``l2`` or ``l1``, or ``none`` for corruptions.
    epsilon: in pixel units of [0, 1], such as ``8 / 255`` or ``"8/255"``.
    attack: specs such as ``"auto"`` (the default) or ``["pgd(steps=100)", "square"]``; a minimal-norm attack, `fmn`, runs
    beside them if none is named.
    mean, std: of a normalisation that the model expects and does not do itself, by channel.
    outputs: what the model returns, ``logits``, ``probabilities`` or ``log-probabilities``; attacks follow probabilities
    through their logarithm. If None, rows that are non-negative and sum to 1 are taken for probabilities, and the result's
    `notes` say so.
    stochastic: whether it draws random numbers (by torch's global generators); a model that does and is not declared is
    refused.
    draws: passes that a gradient of a stochastic model averages; if None they are found on `held_out`, or are sixteen
    without it.
    held_out: images and labels that nothing is scored on, for attacks that are calibrated on such.
    name: what the model is called in the result.
    seed: of all random draws.
    batch: images at a time, measured if None.
    unit_test: whether every attack is also tested on models with a planted adversarial image
    (`advbench.tasks.planting`); attacks that find less than 95% of them are too weak. unit_test_images: on how many images.
    budget: passes through the model for each image in each attack, forwards and backwards together; then the best image
    that was asked about counts (`advbench.attacks.watch`).
    known_noise: whether a stochastic model is also attacked by one who knows the draws that it is scored under, a diagnostic
    (`EvaluationResult.known_noise`).
    visited: whether the best image that an attack asked about stands in the records beside what it returned.
    jobs: worker processes, to each of which the model is sent once; the numbers are those of one. If it cannot be pickled,
    one worker does everything and the result's `notes` say so.
    curve: whether the minimal-norm attack runs beside attacks of which none is one; without it there is no curve of accuracy
    against epsilon and no median distance.
    out: a folder for the records and reports; if None nothing is left behind.
    watch: called with the scheduler's `Status`.

    Nothing is reused from earlier evaluations, since a live model's code has no name. Raises ValueError, in one line, for
    images, labels, models or settings that do not fit. An attack that fails is a row that says so.

    A model that compares two pixels is broken if they differ by less than twice epsilon:

    >>> import torch
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    >>> model[1].weight.data = torch.eye(2)
    >>> x = torch.tensor([[0.9, 0.1], [0.45, 0.55], [0.6, 0.45], [0.2, 0.7]]).view(4, 1, 1, 2)
    >>> result = evaluate(model, x, [0, 1, 0, 1], attack="fgm,fmn", epsilon=0.1, batch=4)
    >>> result.clean.value, result.robust.value
    (1.0, 0.5)
    """
    own = Own(mean=tuple(map(float, mean)), std=tuple(map(float, std)), stochastic=stochastic)
    test, validation = split_of(x, y), split_of(*held_out) if held_out is not None else None
    live = Live(model, test, own, name, validation, outputs, draws, batch)
    with folder_of(out) as folder:
        return evaluate_live(
            live,
            folder,
            attack,
            curve=curve,
            reports=out is not None,
            watch=watch,
            jobs=jobs,
            norm=norm,
            epsilon=epsilon,
            seed=seed,
            unit_test=unit_test,
            unit_test_images=unit_test_images,
            budget=budget,
            visited=visited,
            known_noise=known_noise,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """A live model with the images that it is attacked on.

    own: its normalisation, and whether it is random. validation: images that nothing is scored on, if there are any.
    outputs: what it returns, looked for if None. draws: passes that a gradient of a random model averages. batch: images at
    a time, measured if None. dataset: what the images are called.
    """

    model: nn.Module
    test: Split
    own: Own = Own()  # noqa: RUF009 - frozen
    name: str = "model"
    validation: Split | None = None
    outputs: Outputs | None = None
    draws: int | None = None
    batch: int | None = None
    dataset: str = "images"

    def looked_at(self) -> Look:
        """The model as it is evaluated. ValueError, in one line, for one that cannot be."""
        classes = int(self.test.y.max()) + 1
        return look_at(lambda: self.model, self.own, self.test, classes, self.outputs, device_of(self.model))


def evaluate_live(
    live: Live,
    folder: Path,
    attack: AttackChoice,
    *,
    curve: bool = True,
    alone: bool = False,
    resume: bool = False,
    reports: bool = False,
    watch: Watcher | None = None,
    jobs: int = 1,
    **given: object,
) -> EvaluationResult:
    """Attack a live model, and leave records and adversarial images in a folder.

    curve: as in `evaluate`. alone: whether nothing but what is named runs. resume: whether finished attacks and blocks of
    attacks in the folder count, of a model with the same weights and answers on the same images. reports: whether reports
    are written. given: other settings of a run.
    """
    started, device = time.monotonic(), device_of(live.model)
    resolve_devices(str(device))
    with torch.inference_mode(False), as_it_came(live.model):
        look = live.looked_at()
        own = replace(live.own, weights_sha256=look.weights_sha256)
        data = data_set_of(live.test, live.validation, live.dataset)
        given["attack"] = attack if alone else _attacks(attack, str(given.get("norm") or "linf"), look, curve=curve)
        given["outputs"] = live.outputs or look.returned
        given["draws"] = live.draws or (None if live.validation is not None else _DRAWS)
        given["batch"] = live.batch if live.batch or look.differentiable else DEFAULT_BATCH
        with holding(_place(live.name, own, data), live.model, data) as held:
            handed, said = _handed_over(HandedOver(held, live.model, data), jobs)
            given |= {"jobs": 1 if said else jobs, "device": str(device)}
            config = _config(held, own, live.name, dataset=held, out=folder, fresh=not resume, **given)
            notes = (*look.said, *said)
            return _evaluated(config, live.name, started, watch, live.validation, notes, handed, reports=reports)


def _handed_over(handed: HandedOver, jobs: int) -> tuple[HandedOver | None, tuple[str, ...]]:
    """What worker processes are given; None, and a note if there should be several, where this process does it all."""
    if jobs <= 1:
        return None, ()
    loss = handed.loss(jobs)
    if not loss:
        return handed, ()
    return None, (f"The model cannot be sent to other processes ({loss}): one worker has done everything",)


def plan_target(
    target: str,
    *,
    dataset: str,
    data_dir: Path | None = None,
    norm: str | None = None,
    attack: str | None = None,
    n_examples: int | None = None,
    weights: str | None = None,
    mean: str | None = None,
    std: str | None = None,
    outputs: Outputs | None = None,
    stochastic: bool = False,
    curve: bool = True,
    say: Callable[[str], None] | None = None,
    device: str | None = None,
    batch: int | None = None,
    **settings: object,
) -> Plan:
    """The plan of ``advbench evaluate``: TARGET (see `advbench.user_models.networks`) on a registered data set.

    mean, std: numbers by channel, such as ``"0.49,0.48,0.45"``. outputs, curve: as in `evaluate`. say: called with each
    line that the user should know before the run. The rest as `advbench.config.Config` has it.
    Raises ValueError, in one line, for anything that does not fit.
    """
    registry.datasets.check(dataset)
    data = registry.load_dataset(dataset, data_dir)
    place = resolve_devices(device or "auto")[0]
    target, own = _completed(target, weights, mean, std)
    network = registry.architectures.factory(OWN + target)
    own = replace(own, stochastic=stochastic)
    first = scored_split(data, n_examples).first(LOOKS)
    look = look_at(lambda: network(data.shape, data.n_classes), own, first, data.n_classes, outputs, place)
    own = replace(own, weights_sha256=look.weights_sha256)
    if isinstance(network, OnnxNetwork):
        onnx_files.check(network.file, look.network, first.x[:2].to(place))
    said = (*onnx_files.said_of(look.network), *look.said, *_drawn(network, own, data, look.network))
    for line in (*said, *_not_normalised(network, own)):
        (say or _unheard)(line)
    settings |= {"dataset": dataset, "data_dir": data_dir, "norm": norm, "n_examples": n_examples, "device": device}
    settings["attack"] = _attacks(attack, norm or "linf", look, curve=curve)
    if not len(data.validation):
        settings["draws"] = _DRAWS
    settings["batch"] = batch if batch or look.differentiable else DEFAULT_BATCH
    settings["outputs"] = outputs or look.returned
    label = f"{target} ({Path(own.weights).name})" if own.weights else target
    config = _config(OWN + target, replace(own, n_examples=n_examples if stochastic else None), label, **settings)
    _check_held_out(config, data.validation if len(data.validation) else None)
    return make_plan(config)


def run_target(plan: Plan, watch: Watcher | None = None, notes: Sequence[str] = ()) -> EvaluationResult:
    """Run the plan of one target, and write its reports. notes: lines that the result shows."""
    label = str(plan.config.defense[0]) if plan.config.defense else ""
    return _run(plan, label, time.monotonic(), watch, notes, reports=True)


def _drawn(network: Architecture | CodeNetwork, own: Own, data: DataSet, first: nn.Module) -> tuple[str, ...]:
    """A line if the weights of a network without a file of weights are drawn at random, at least some.

    first: the network as it is made from the usual seed.
    """
    if own.weights or not isinstance(network, CodeNetwork):
        return ()
    with seeded(1):
        other = network(data.shape, data.n_classes)
    hashes = [
        {name: checkpoints.state_hash({name: value}) for name, value in Handed(model).state_dict().items()}
        for model in (first, other)
    ]
    drawn = [name for name, hashed in hashes[0].items() if hashed != hashes[1].get(name)]
    if not drawn:
        return ()
    return (f"{network.target} draws weights at random ({few(drawn)}): give a trained model's with --weights",)


def _not_normalised(network: Architecture | LibraryNetwork, own: Own) -> tuple[str, ...]:
    """A line if a library's network with a file of weights gets pixels as they are, which such weights seldom expect."""
    if not isinstance(network, LibraryNetwork) or own.mean or network.weights:
        return ()
    return ("The model gets pixels in [0, 1] as they are: give --mean and --std if its weights expect a normalisation",)


def _unheard(line: str) -> None:
    """Say nothing."""


def _place(name: str, own: Own, data: DataSet) -> str:
    """The name of a live model: of what it was called and of what it and its images are."""
    return f"{name}-{hashlib.sha256(f'{own.weights_sha256}/{data.fingerprint}'.encode()).hexdigest()[:8]}"


def _config(architecture: str, own: Own, label: str, **settings: object) -> Config:
    """The configuration whose only target is the model `own` of an `architecture`."""
    given = {each.name: getattr(own, each.name) for each in fields(own) if getattr(own, each.name) != each.default}
    defense = Shown("own", Spec.of("own", given).arguments, label)
    config = make_config(matrix="white-box", architecture=(Spec(architecture),), defense=(defense,), **settings)
    if config.epsilon is not None and len(config.epsilon) > 1:
        raise ValueError(f"Expected one `epsilon`, got {len(config.epsilon)}: the curve shows the others")
    return config


def _evaluated(
    config: Config,
    name: str,
    started: float,
    watch: Watcher | None,
    validation: Split | None,
    notes: Sequence[str],
    handed: HandedOver | None,
    *,
    reports: bool,
) -> EvaluationResult:
    """The result of a live model, which leaves no checkpoint behind: a later run cannot build it again."""
    _check_held_out(config, validation)
    plan = replace(make_plan(config), prepare=handed)
    result = _run(plan, name, started, watch, notes, reports=reports)
    for task in plan.tasks.values():
        if task.kind == "train":
            artefact("train", task.key, config.out).unlink(missing_ok=True)
    return result


def _run(
    plan: Plan, label: str, started: float, watch: Watcher | None, notes: Sequence[str], *, reports: bool
) -> EvaluationResult:
    from advbench.api import finish

    store = Store(plan.config.out)
    written: tuple[Path, ...] = ()
    if reports:
        found = finish(plan, watch=watch)
        interrupted, written = found.interrupted, tuple(found.reports)
    else:
        if plan.config.fresh:
            plan.forget()
        interrupted = run_plan(plan, watch).interrupted
    cells = {key: store.load(key) for key in plan.cells}
    return EvaluationResult(
        label=label,
        cells=tuple((found[0], found[1]) for found in cells.values() if found is not None),
        missing=tuple(plan.tasks[key].label for key, found in cells.items() if found is None),
        seconds=time.monotonic() - started,
        reports=written,
        interrupted=interrupted,
        notes=tuple(notes),
    )


def _attacks(attack: AttackChoice, norm: str, look: Look, *, curve: bool) -> AttackChoice:
    """The attacks that were named, or the default, one of minimal norm, and one without gradients if they are not finite."""
    if not look.differentiable:
        if attack is None and onnx_files.runs_it(look.network):
            return [name for name in BLACK_BOX if norm in registry.attacks.create(Spec(name)).norms]
        if attack is None:
            raise ValueError(
                "Expected a model that gives gradients, got one that does not: name attacks that need none, such as "
                "square,hop-skip-jump, and read the result as an upper bound"
            )
        return attack
    if norm == "none":
        return attack
    chosen = make_config(attack=attack if attack is not None else DEFAULT_ATTACK).attack or ()
    made = [registry.attacks.create(spec) for spec in chosen]
    asked = [
        spec.name in _WITH_QUERIES or not issubclass(each.knowledge, WhiteBox)
        for spec, each in zip(chosen, made, strict=True)
    ]
    if curve and not any(each.minimal_norm for each in made):
        chosen = (*chosen, Spec(CURVE))
    return chosen if look.finite or any(asked) else (*chosen, Spec(WITHOUT_GRADIENTS))


def _completed(target: str, weights: str | None, mean: str | None, std: str | None) -> tuple[str, Own]:
    """The target with its library's weights where these are meant, and its file of weights, mean and deviation."""
    own = Own(weights=weights or "", mean=_numbers("mean", mean), std=_numbers("std", std))
    network = registry.architectures.factory(OWN + target)
    if not isinstance(network, LibraryNetwork):
        return target, own
    if weights is not None and not Path(weights).is_file() and weights.replace("_", "").isalnum():
        target = f"{target}:{weights}"
        network = registry.architectures.factory(OWN + target)
    if isinstance(network, LibraryNetwork) and network.weights:
        statistics = (own.mean, own.std) if own.mean else network.statistics()
        return target, Own(mean=statistics[0], std=statistics[1])
    if not weights:
        library = target.partition("/")[0]
        raise ValueError(f"Expected --weights for {target}, a file or {library}'s own such as DEFAULT, got none")
    return target, own


def _numbers(name: str, text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise ValueError(f"Expected `{name}` as numbers such as 0.49,0.48,0.45, got {text!r}") from None


def _check_held_out(config: Config, validation: Split | None) -> None:
    """Refuse attacks that are calibrated on held-out images if there are none."""
    for spec in config.attack or ():
        need = need_of(registry.attacks.create(spec))
        if validation is None and need is not None and not need.optional:
            raise ValueError(f"Expected `held_out`, images and labels that {spec} is calibrated on, got none")
