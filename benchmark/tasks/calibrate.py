"""Calibrate: what an attack or an attacker leaves open, found on held-out images (DESIGN, invariant 7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from advbench.attacks.access import NoGradientError
from advbench.attacks.calibration import HeldOut, open_values, score_scale
from advbench.attacks.draws import converged_draws
from advbench.attacks.threat import ThreatModel
from advbench.clocks import stopwatch
from advbench.defenses.defended import Surrogate
from advbench.tasks.artefacts import Kind, artefact, read, save
from advbench.tasks.components import Component, attack_of
from advbench.tasks.context import Context, data_of
from advbench.tasks.evaluation import detector_view
from advbench.tasks.images import Images, SplitName, copied, split_of
from advbench.tasks.surrogates import Attacked, attacked_model

Want = Literal["draws", "scale"]


@dataclass(frozen=True, slots=True)
class DataCalibration:
    """What the open values of an attack depend on if they follow from images alone.

    fingerprint: of the data set. split, n: the images.
    """

    kind: ClassVar[Kind] = "calibrate"

    attack: Component
    fingerprint: str
    split: SplitName
    n: int

    @property
    def needs(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def label(self, attack: str) -> str:
        """For people: the attack as the user names it."""
        return f"calibrate {attack}"


@dataclass(frozen=True, slots=True)
class ModelCalibration:
    """What the open values of an attack depend on if a model is attacked to find them.

    attacked: the model. threat: within which it is attacked. images: held out.
    """

    kind: ClassVar[Kind] = "calibrate"

    attack: Component
    attacked: Attacked
    threat: ThreatModel
    images: Images

    @property
    def needs(self) -> tuple[str, ...]:
        """The model, and the calibration of its surrogate."""
        return self.attacked.needs

    def label(self, attack: str, model: str) -> str:
        """For people: the attack and the model as the user names them."""
        return f"calibrate {attack} on {model}"


@dataclass(frozen=True, slots=True)
class Converged:
    """When the mean gradient of a stochastic model has converged (`advbench.attacks.draws.converged_draws`).

    level: the least cosine between two independent means. cap: the most draws. n: how many images decide.
    """

    level: float
    cap: int
    n: int


@dataclass(frozen=True, slots=True)
class SurrogateCalibration:
    """What the values depend on that every attack on a surrogate must know.

    wants: ``draws``, how many a gradient averages, ``scale``, what a detector's score is worth. attacked: the surrogate.
    converged: when draws suffice. threat: within which gradients must agree. images: held out.
    """

    kind: ClassVar[Kind] = "calibrate"

    wants: tuple[Want, ...]
    attacked: Attacked
    converged: Converged
    threat: ThreatModel
    images: Images

    @property
    def needs(self) -> tuple[str, ...]:
        """The model."""
        return self.attacked.needs

    def label(self, model: str) -> str:
        """For people: the model as the user names it."""
        return f"calibrate {' and '.join(self.wants)} on {model}"


CalibrateContent: TypeAlias = DataCalibration | ModelCalibration | SurrogateCalibration

NO_GRADIENT = "no_gradient"
"""The name under which a calibration says that the attacked model gave no gradient."""


def run(key: str, content: CalibrateContent, context: Context, device: torch.device) -> None:
    """Find the open values on held-out images; if the model gives no gradient, the artefact says so."""
    with stopwatch(device) as measured:
        try:
            values = _values(content, context, device)
        except NoGradientError:
            values = {NO_GRADIENT: torch.tensor(True)}
    save(
        artefact("calibrate", key, context.out),
        seconds=np.array(measured.seconds),
        **{f"value_{name}": value.cpu().numpy() for name, value in values.items()},
    )


def _values(content: CalibrateContent, context: Context, device: torch.device) -> Mapping[str, Tensor]:
    """The open values by name; those that follow from images alone are found on the CPU."""
    if isinstance(content, DataCalibration):
        few = copied(split_of(data_of(context), content.split).first(content.n))
        held_out = HeldOut(x=few.x, y=few.y, index=few.index, threat=ThreatModel("none", None))
        return open_values(attack_of(content.attack), held_out)
    source = attacked_model(content.attacked, context, device)
    if isinstance(content, SurrogateCalibration):
        return prepare(content, source, context, device)
    prepared = prepared_for(content.attacked, context)
    return open_values(attack_of(content.attack), _held_out(content, source, context, device, prepared))


@dataclass(frozen=True, slots=True)
class Prepared:
    """What every attack on a surrogate must know.

    draws: passes averaged per question. scale: the worth of a unit of the detector's score in logits.
    """

    draws: int = 1
    scale: float = 1.0


def prepare(content: SurrogateCalibration, source: Surrogate, context: Context, device: torch.device) -> dict[str, Tensor]:
    """What every attack on a surrogate must know, of what is wanted: `converged_draws` and `score_scale`.

    Returns ``scale`` of its detector's score; ``draws`` that a gradient averages, with ``cosines`` and whether it was
    ``capped``.
    """
    found: dict[str, Tensor] = {}
    scale = 1.0
    if "scale" in content.wants:
        scale = score_scale(_held_out(content, source, context, device, Prepared()))
        found["scale"] = torch.tensor(scale, dtype=torch.float64)
    if "draws" in content.wants:
        how = content.converged
        held_out = _held_out(content, source, context, device, Prepared(scale=scale)).first(how.n)
        converged = converged_draws(held_out, level=how.level, cap=how.cap)
        found["draws"] = torch.tensor(converged.draws)
        found["cosines"] = torch.tensor(converged.cosines, dtype=torch.float64)
        found["capped"] = torch.tensor(converged.capped)
    return found


def _held_out(
    content: ModelCalibration | SurrogateCalibration,
    source: Surrogate,
    context: Context,
    device: torch.device,
    prepared: Prepared,
) -> HeldOut:
    images = content.images
    few = copied(split_of(data_of(context), images.split).first(images.n).to(device))
    return HeldOut(
        x=few.x,
        y=few.y,
        index=few.index,
        threat=content.threat,
        model=source.model,
        stochastic=source.stochastic,
        draws=prepared.draws,
        seed=images.seed,
        batch=images.batch,
        detector=detector_view(source, few.y, prepared.scale),
    )


def prepared_for(attacked: Attacked, context: Context) -> Prepared:
    """What an attack on a model must know, as given or as found on held-out images."""
    values = {} if attacked.preparation is None else read_values(attacked.preparation, context)
    draws = attacked.draws or int(values.get("draws", torch.tensor(1)))
    return Prepared(draws, float(values.get("scale", torch.tensor(1.0))))


def read_values(key: str, context: Context) -> dict[str, Tensor]:
    """The values that a calibration found, by name. DamagedError."""
    found = read(artefact("calibrate", key, context.out))
    return {name.removeprefix("value_"): torch.from_numpy(value) for name, value in found.items() if name != "seconds"}
