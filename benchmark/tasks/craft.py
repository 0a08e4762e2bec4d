"""Craft: adversarial images of one attack on one model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from advbench.attacks.access import Access, Ledger, NoGradientError
from advbench.attacks.attack import Attack
from advbench.attacks.capabilities import calibrated, passes_of, with_stop
from advbench.attacks.threat import ThreatModel
from advbench.attacks.transfer import for_transfer
from advbench.clocks import Measured
from advbench.tasks import progress
from advbench.tasks.artefacts import Kind, artefact, read, save
from advbench.tasks.calibrate import NO_GRADIENT, prepared_for, read_values
from advbench.tasks.components import Component, attack_of
from advbench.tasks.context import Context, data_of
from advbench.tasks.evaluation import Craft, craft
from advbench.tasks.images import Images, scored_split
from advbench.tasks.progress import Reporter
from advbench.tasks.surrogates import Attacked, attacked_model


@dataclass(frozen=True, slots=True)
class CraftContent:
    """What adversarial images depend on.

    attacked: the model, and how it is asked. transfer: whether the images are meant for another model, so that no example
    is left as soon as it fools this one. calibration: key of the calibration of the attack's open values; None if it has
    none. images: the scored ones.
    """

    kind: ClassVar[Kind] = "craft"

    attacked: Attacked
    attack: Component
    threat: ThreatModel
    transfer: bool
    calibration: str | None
    images: Images

    @property
    def needs(self) -> tuple[str, ...]:
        """The model, and the calibrations of its surrogate and of the attack."""
        return self.attacked.needs + (() if self.calibration is None else (self.calibration,))

    def label(self, attack: str, model: str) -> str:
        """For people: the attack and the model as the user names them."""
        return f"{attack} on {model}"


def run(key: str, content: CraftContent, label: str, context: Context, device: torch.device) -> None:
    """Attack the scored images; if the model gives no gradient, the artefact says so."""
    place = artefact("craft", key, context.out)
    attack = ready_attack(content, context)
    if attack is None:
        return _save_blind(place)
    source, images = attacked_model(content.attacked, context, device), content.images
    prepared = prepared_for(content.attacked, context)
    forwards = prepared.draws * passes_of(attack, content.threat, data_of(context).n_classes).forwards
    with _followed(key, label, images.n, forwards, context) as around:
        try:
            found = craft(
                attack,
                source,
                scored_split(data_of(context), images.n),
                content.threat,
                seed=images.seed,
                draws=prepared.draws,
                batch=images.batch,
                device=device,
                scale=prepared.scale,
                around=around,
            )
        except NoGradientError:
            return _save_blind(place)
    return _save(place, found)


def ready_attack(content: CraftContent, context: Context) -> Attack | None:
    """The attack with its open values found, as it must run here; None if there was no gradient to find them with."""
    attack = attack_of(content.attack)
    if content.transfer:
        attack = with_stop(attack, "never")
    values = {} if content.calibration is None else read_values(content.calibration, context)
    if NO_GRADIENT in values:
        return None
    attack = calibrated(attack, values)
    return for_transfer(attack) if content.transfer else attack


@contextmanager
def _followed(
    key: str, label: str, images: int, forwards: float, context: Context
) -> Iterator[Callable[[Access], AbstractContextManager[object]]]:
    """What the batches of a craft are attacked in, so that it says where it stands, if anybody wants to know."""
    if context.progress is None:
        yield nullcontext
        return
    folder = context.progress
    reporter = Reporter(lambda standing: progress.write(folder, key, standing), label, images, forwards, context.every)
    try:
        yield reporter.block
    finally:
        progress.forget(folder, key)


def _save(path: Path, found: Craft) -> None:
    save(
        path,
        x_adv=found.x_adv.numpy(),
        **{field: getattr(found.ledger, field).numpy() for field in ("forwards", "backwards", "queries")},
        seconds=np.array(found.measured.seconds),
        peak_memory_bytes=np.array(found.measured.peak_memory_bytes),
    )


def _save_blind(path: Path) -> None:
    """Say that there was no gradient to craft with."""
    save(path, blind=np.array(True))


def read_craft(path: Path, images: int | None = None) -> Craft | None:
    """A finished craft; None if there was no gradient to craft with.

    images: how many it must have; where None, any number, and files of earlier versions are read. DamagedError if the file
    is not as it was written.
    """
    found = read(path, rows=images, older=images is None)
    if "blind" in found:
        return None
    ledger = Ledger(*(torch.from_numpy(found[name]) for name in ("forwards", "backwards", "queries")))
    measured = Measured(float(found["seconds"]), int(found["peak_memory_bytes"]))
    return Craft(torch.from_numpy(found["x_adv"]), ledger, measured)


def read_images(key: str, out: Path) -> Tensor:
    """The adversarial images of a finished craft of an output folder, (n, c, h, w).

    ValueError if it had no gradient, or if the file is damaged.
    """
    found = read_craft(artefact("craft", key, out))
    if found is None:
        raise ValueError(f"The attack of craft {key[:8]} had no gradient, so it has no images")
    return found.x_adv
