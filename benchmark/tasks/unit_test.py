"""Unit test: whether the attacks of a cell find adversarial images that are known to exist."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from advbench.attacks.threat import ThreatModel
from advbench.defenses.defended import Defended
from advbench.results.unit_tests import UnitTestOutcome
from advbench.tasks.artefacts import Kind, artefact, read, save
from advbench.tasks.calibrate import prepared_for
from advbench.tasks.context import Context, data_of, defended_of
from advbench.tasks.craft import CraftContent, ready_attack
from advbench.tasks.images import Images, scored_split
from advbench.tasks.probing import Probe, UnitTest, unit_test
from advbench.tasks.surrogates import surrogate_of

_NONE = -1
"""In the file, the count of a candidate whose surrogate gives no gradient."""


@dataclass(frozen=True, slots=True)
class UnitTestContent:
    """What the unit test of a cell depends on.

    target: key of the training of the model. crafts: the cell's candidates by name, which are crafted again, on the model
    with planted adversarial images. threat: of the cell. points: random points per image of the control. draws: on which a
    stochastic model is judged. images: the scored ones for which an image is planted.
    """

    kind: ClassVar[Kind] = "unit-test"

    target: str
    crafts: tuple[tuple[str, CraftContent], ...]
    threat: ThreatModel
    points: int
    draws: int
    images: Images

    @property
    def needs(self) -> tuple[str, ...]:
        """The model, and the calibrations of the attacks and of its surrogates."""
        return tuple(dict.fromkeys((self.target, *(need for _, craft in self.crafts for need in craft.needs))))

    def label(self, attack: str, target: str) -> str:
        """For people: the attack and the model as the user names them."""
        return f"unit test of {attack} on {target}"


def run(key: str, content: UnitTestContent, context: Context, device: torch.device) -> None:
    """Test the attacks; if that fails, the artefact says why, and the cell keeps its number."""
    place, images = artefact("unit-test", key, context.out), content.images
    try:
        defended = defended_of(content.target, context, device)
        found = unit_test(
            defended,
            _probes(content, defended, context),
            scored_split(data_of(context), images.n),
            content.threat,
            points=content.points,
            seed=images.seed,
            draws=content.draws,
            batch=images.batch,
            device=device,
        )
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        return _save(place, UnitTestOutcome(images.n, 0, (), 0, content.points, {}, "", {}, reason))
    return _save(place, _outcome(found))


def _probes(content: UnitTestContent, defended: Defended, context: Context) -> dict[str, Probe | None]:
    """The candidates by name, as the cell crafts them; None for one whose calibration found no gradient."""
    probes: dict[str, Probe | None] = {}
    for name, craft in content.crafts:
        attack, prepared = ready_attack(craft, context), prepared_for(craft.attacked, context)
        surrogate = surrogate_of(defended, craft.attacked.surrogate)
        probes[name] = (
            None
            if attack is None
            else Probe(attack, surrogate, craft.threat, prepared.draws, prepared.scale, craft.watching)
        )
    return probes


def _outcome(found: UnitTest) -> UnitTestOutcome:
    return UnitTestOutcome(
        images=found.images,
        built=len(found.index),
        missed=tuple(found.index[~found.found].tolist()),
        control=int(found.control.sum()),
        points=found.points,
        probes=found.probes,
        features=found.features,
        unbuilt=found.unbuilt,
    )


def _save(path: Path, found: UnitTestOutcome) -> None:
    probes, unbuilt = found.probes, found.unbuilt
    save(
        path,
        **{name: np.array(getattr(found, name)) for name in _NUMBERS},
        **{name: np.array(getattr(found, name), dtype=np.str_) for name in _TEXTS},
        missed=np.array(found.missed, dtype=np.int64),
        probe_names=np.array(list(probes), dtype=np.str_),
        probe_counts=np.array([_NONE if count is None else count for count in probes.values()], dtype=np.int64),
        unbuilt_names=np.array(list(unbuilt), dtype=np.str_),
        unbuilt_counts=np.array(list(unbuilt.values()), dtype=np.int64),
    )


_NUMBERS = ("images", "built", "control", "points")
_TEXTS = ("features", "reason")


def read_unit_test(path: Path) -> UnitTestOutcome:
    """The outcome of a finished unit test. DamagedError."""
    found = read(path)
    counts = dict(zip(found["probe_names"].tolist(), found["probe_counts"].tolist(), strict=True))
    images, built, control, points = (int(found[name]) for name in _NUMBERS)
    features, reason = (str(found[name]) for name in _TEXTS)
    return UnitTestOutcome(
        images=images,
        built=built,
        control=control,
        points=points,
        features=features,
        reason=reason,
        missed=tuple(found["missed"].tolist()),
        probes={name: None if count == _NONE else count for name, count in counts.items()},
        unbuilt=dict(zip(found["unbuilt_names"].tolist(), found["unbuilt_counts"].tolist(), strict=True)),
    )
