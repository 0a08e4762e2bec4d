"""One model of the user's, evaluated: `advbench.evaluate` and the command ``advbench evaluate``.

It becomes the only target of a plan, so that the same harness verifies its attacks and writes the same reports.
"""

from __future__ import annotations

import hashlib
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from advbench.attacks.access import frozen
from advbench.attacks.capabilities import need_of
from advbench.clocks import resolve_devices
from advbench.config import Config, make_config
from advbench.engine.scheduler import Watcher, run_plan
from advbench.plan.compute_batch import DEFAULT_BATCH
from advbench.plan.plan import Plan, make_plan
from advbench.registry import registry
from advbench.registry.specs import Spec
from advbench.reports.evaluation_result import EvaluationResult
from advbench.results.store import Store
from advbench.tasks.task import artefact, scored_split
from advbench.user_models import onnx_files
from advbench.user_models.networks import PREFIX, Shown, holding, loaded, torchvision_statistics
from advbench.user_models.preflight import LOOKS, check_model
from advbench.zoo import checkpoints
from advbench.zoo.data import DataSet, Split

DEFAULT_ATTACK = "auto"
CURVE = "fmn"
"""The minimal-norm attack whose distances draw the curve of accuracy against epsilon, where none is named."""
_DRAWS = 16


def evaluate(
    model: nn.Module,
    x: Tensor | ArrayLike,
    y: Tensor | ArrayLike,
    *,
    norm: str = "linf",
    epsilon: float | str | None = None,
    attack: str | Sequence[Any] | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    stochastic: bool = False,
    draws: int | None = None,
    held_out: tuple[Tensor | ArrayLike, Tensor | ArrayLike] | None = None,
    name: str = "model",
    seed: int = 0,
    batch: int | None = None,
    out: str | Path | None = None,
    watch: Watcher | None = None,
) -> EvaluationResult:
    """Attack a model on labelled images and say what it withstands; the result shows itself as a table in a notebook.

    model: images (n, c, h, w) in [0, 1] -> logits (n, classes); it is evaluated on the device where it is, in evaluation
    mode, and left as it came. x, y: images (n, c, h, w) in [0, 1] and their labels (n,), tensors on any device or arrays.
    norm: ``linf``, ``l2`` or ``l1``, or ``none`` for corruptions. epsilon: the radius in pixel units of [0, 1], such as
    ``8 / 255`` or ``"8/255"``. attack: specs such as ``"auto"`` (the default) or ``["pgd(steps=100)", "square"]``; a
    minimal-norm attack, `fmn`, runs beside them where none is named. mean, std: of a normalisation that the model expects
    and does not do itself, by channel. stochastic: whether it draws random numbers (by torch's global generators); a model
    that does and is not declared is refused. draws: passes that a gradient of a stochastic model averages; where None they
    are found on `held_out`, or are sixteen without it. held_out: images and labels that nothing is scored on, for attacks
    that are calibrated on such. name: what the model is called in the result. batch: images at a time, measured where
    None. out: a folder for the records and reports; where None nothing is left behind. watch: called with the scheduler's
    `Status`.

    Nothing is reused from earlier evaluations, since a live model's code has no name. Raises ValueError, in one line, for
    images, labels, models or settings that do not fit. An attack that fails is a row that says so.
    """
    started = time.monotonic()
    test, validation = _split(x, y), _split(*held_out) if held_out is not None else None
    device = _device_of(model)
    resolve_devices(str(device))
    statistics = {"mean": tuple(map(float, mean)), "std": tuple(map(float, std))}
    shape = _shape(test)
    with _as_it_came(model):
        whole = loaded(lambda: model, "", statistics["mean"], statistics["std"], shape).to(device)
        differentiable = check_model(whole, test.x[:LOOKS].to(device), int(test.y.max()) + 1, stochastic=stochastic)
        data = _data_set(test, validation)
        settings: dict[str, Any] = {
            "norm": norm,
            "epsilon": epsilon,
            "attack": _attacks(attack, norm, differentiable=differentiable),
            "seed": seed,
            "draws": draws or (None if validation is not None else _DRAWS),
            "batch": batch if batch or differentiable else DEFAULT_BATCH,
            "device": str(device),
            "jobs": 1,
            "fresh": True,
        }
        fingerprint = checkpoints.fingerprint(whole)
        place = f"{name}-{hashlib.sha256(f'{fingerprint}/{data.fingerprint}'.encode()).hexdigest()[:8]}"
        own = {**statistics, "stochastic": stochastic, "weights_sha256": fingerprint}
        with holding(place, model, data) as held, _folder(out) as folder:
            config = _config(held, own, name, dataset=held, out=folder, **settings)
            _check_held_out(config, validation)
            plan = make_plan(config)
            result = _run(plan, name, started, watch, reports=out is not None)
            for key in (task.key for task in plan.tasks.values() if task.kind == "train"):
                artefact("train", key, folder).unlink(missing_ok=True)
    return result


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
    stochastic: bool = False,
    device: str | None = None,
    batch: int | None = None,
    **settings: Any,
) -> Plan:
    """The plan of ``advbench evaluate``: TARGET (see `advbench.user_models.networks`) on a registered data set.

    mean, std: numbers by channel, such as ``"0.49,0.48,0.45"``. The rest as `advbench.config.Config` has it.
    Raises ValueError, in one line, for anything that does not fit.
    """
    registry.check_name("datasets", dataset)
    data = registry.load_dataset(dataset, data_dir)
    place = resolve_devices(device or "auto")[0]
    target, file, statistics = _completed(target, weights, mean, std)
    network = registry.factory("architectures", PREFIX + target)
    few = scored_split(data, n_examples).first(LOOKS).x.to(place)
    model = loaded(lambda: network(data.shape, data.n_classes), file, *statistics, data.shape)
    own = {
        **{"weights": file, "mean": statistics[0], "std": statistics[1], "stochastic": stochastic},
        **{"weights_sha256": checkpoints.fingerprint(model), "n_examples": n_examples if stochastic else None},
    }
    differentiable = check_model(model.to(place), few, data.n_classes, stochastic=stochastic)
    if target.endswith(".onnx"):
        onnx_files.check(Path(target), model[1] if isinstance(model, nn.Sequential) else model, few[:2])
    return make_plan(
        _config(
            PREFIX + target,
            own,
            f"{target} ({Path(file).name})" if file else target,
            dataset=dataset,
            data_dir=data_dir,
            norm=norm,
            attack=_attacks(attack, norm or "linf", differentiable=differentiable),
            n_examples=n_examples,
            device=device,
            batch=batch if batch or differentiable else DEFAULT_BATCH,
            **settings,
        )
    )


def run_target(plan: Plan, watch: Watcher | None = None) -> EvaluationResult:
    """Run the plan of one target, and write its reports."""
    label = str(plan.config.defense[0]) if plan.config.defense else ""
    return _run(plan, label, time.monotonic(), watch, reports=True)


def _config(architecture: str, own: dict[str, Any], label: str, **settings: Any) -> Config:
    """The configuration whose only target is the model `own` of an `architecture`."""
    defense = Shown("own", Spec.of("own", {name: value for name, value in own.items() if value}).arguments, label)
    config = make_config(matrix="white-box", architecture=(Spec(architecture),), defense=(defense,), **settings)
    if config.epsilon is not None and len(config.epsilon) > 1:
        raise ValueError(f"Expected one `epsilon`, got {len(config.epsilon)}: the curve shows the others")
    return config


def _run(plan: Plan, label: str, started: float, watch: Watcher | None, *, reports: bool) -> EvaluationResult:
    from advbench.api import finish, forget

    store = Store(plan.config.out)
    written: tuple[Path, ...] = ()
    if reports:
        found = finish(plan, watch)
        interrupted, written = found.interrupted, tuple(found.reports)
    else:
        forget(plan)
        interrupted = run_plan(plan, watch).interrupted
    cells = {key: store.load(key) for key in plan.cells}
    return EvaluationResult(
        label=label,
        cells=tuple((found[0], found[1]) for found in cells.values() if found is not None),
        missing=tuple(plan.tasks[key].label for key, found in cells.items() if found is None),
        seconds=time.monotonic() - started,
        reports=written,
        interrupted=interrupted,
    )


def _attacks(attack: str | Sequence[Any] | None, norm: str, *, differentiable: bool) -> Any:
    """The attacks that were named, or the default, and one of minimal norm."""
    if not differentiable:
        if attack is None:
            raise ValueError(
                "Expected a model that gives gradients, got one that does not: name attacks that need none, such as "
                "square,hop-skip-jump, and read the result as an upper bound"
            )
        return attack
    if norm == "none":
        return attack
    chosen = make_config(attack=attack if attack is not None else DEFAULT_ATTACK).attack or ()
    if any(registry.create("attacks", spec).minimal_norm for spec in chosen):
        return chosen
    return (*chosen, Spec(CURVE))


def _completed(
    target: str, weights: str | None, mean: str | None, std: str | None
) -> tuple[str, str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """The target with torchvision's weights where these are meant, the file of weights or "", and mean and deviation."""
    statistics = _numbers("mean", mean), _numbers("std", std)
    if not target.startswith("torchvision/"):
        return target, weights or "", statistics
    if weights is not None and not Path(weights).is_file() and weights.replace("_", "").isalnum():
        target, weights = f"{target}:{weights}", None
    if ":" in target:
        return target, "", statistics if statistics[0] else torchvision_statistics(target)
    if not weights:
        raise ValueError(f"Expected --weights for {target}, a file or torchvision's own such as DEFAULT, got none")
    return target, weights, statistics


def _numbers(name: str, text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise ValueError(f"Expected `{name}` as numbers such as 0.49,0.48,0.45, got {text!r}") from None


# --- live models and arrays


def _split(x: Tensor | ArrayLike, y: Tensor | ArrayLike) -> Split:
    """Images and labels as a split on the CPU. ValueError, in one line, where they are none."""
    images, labels = _tensor("x", x), _tensor("y", y)
    if images.ndim != 4 or not len(images):
        raise ValueError(f"Expected `x` as images (n, c, h, w), got shape {tuple(images.shape)}")
    if not images.dtype.is_floating_point:
        raise ValueError(f"Expected `x` as floats in [0, 1], got {images.dtype}: divide bytes by 255")
    images = images.to(torch.float32)
    if torch.isnan(images).any():
        raise ValueError(f"Expected `x` in [0, 1], got NaN in {int(torch.isnan(images).flatten(1).any(dim=1).sum())} images")
    low, high = float(images.min()), float(images.max())
    if low < 0 or high > 1:
        raise ValueError(
            f"Expected `x` in [0, 1], got [{low:g}, {high:g}]: undo the normalisation, and give it as `mean` and `std`"
        )
    if labels.shape != (len(images),) or labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise ValueError(f"Expected `y` as whole numbers ({len(images)},), got {labels.dtype} {tuple(labels.shape)}")
    if int(labels.min()) < 0:
        raise ValueError(f"Expected `y` >= 0, got {int(labels.min())}")
    return Split.of(images.contiguous(), labels.to(torch.int64))


def _tensor(name: str, values: Tensor | ArrayLike) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu().clone()
    try:
        return torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:
        raise ValueError(f"Expected `{name}` as a tensor or an array of numbers, got {error}") from None


def _shape(split: Split) -> tuple[int, int, int]:
    c, h, w = split.x.shape[1:]
    return c, h, w


def _data_set(test: Split, validation: Split | None) -> DataSet:
    nothing = test.select(slice(0))
    classes = int(test.y.max()) + 1
    return DataSet("images", nothing, validation if validation is not None else nothing, test, classes, {})


def _check_held_out(config: Config, validation: Split | None) -> None:
    """Refuse attacks that are calibrated on held-out images where there are none."""
    for spec in config.attack or ():
        attack = registry.create("attacks", spec)
        need = need_of(attack)
        if validation is None and need is not None and not need.optional:
            raise ValueError(f"Expected `held_out`, images and labels that {spec} is calibrated on, got none")


def _device_of(model: nn.Module) -> torch.device:
    if not isinstance(model, nn.Module):
        raise ValueError(f"Expected an nn.Module, got {type(model).__name__}")
    state: Tensor | None = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if state is None else state.device


@contextmanager
def _as_it_came(model: nn.Module) -> Iterator[None]:
    """Give the model its modes, its flags and its buffers back, whatever happens."""
    buffers = {name: (buffer, buffer.detach().clone()) for name, buffer in model.named_buffers()}
    try:
        with frozen(model):
            yield
    finally:
        for buffer, before in buffers.values():
            if not torch.equal(buffer, before):
                buffer.copy_(before)


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    if out is not None:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory(prefix="advbench-", ignore_cleanup_errors=True) as name:
        yield Path(name)
