"""Craft: adversarial images of one attack on one model."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
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
from advbench.attacks.watch import WatchSettings
from advbench.clocks import Measured
from advbench.defenses.defended import Surrogate
from advbench.tasks import progress, time_limit
from advbench.tasks.artefacts import IF_SET, Kind, artefact, read, save, whole
from advbench.tasks.blocks import Block, blocks_of, forget, missing, place_of
from advbench.tasks.calibrate import NO_GRADIENT, prepared_for, read_values
from advbench.tasks.components import Component, attack_of
from advbench.tasks.context import Context, data_of
from advbench.tasks.evaluation import Craft, craft
from advbench.tasks.images import Images, scored_split
from advbench.tasks.precision import answers, products
from advbench.tasks.progress import CraftProgress, Reporter
from advbench.tasks.surrogates import Attacked, attacked_model
from advbench.tasks.time_limit import TimeIsUp
from advbench.zoo.data import Split


@dataclass(frozen=True, slots=True)
class CraftContent:
    """What adversarial images depend on.

    attacked: the model, and how it is asked. transfer: whether the images are meant for another model, so that no example
    is left as soon as it fools this one. calibration: key of the calibration of the attack's open values; None if it has
    none. images: the scored ones. passes: for each image, without end if None. visited: whether the best image that
    the attack asked about is kept beside what it returns (`advbench.attacks.watch`).
    """

    kind: ClassVar[Kind] = "craft"

    attacked: Attacked
    attack: Component
    threat: ThreatModel
    transfer: bool
    calibration: str | None
    images: Images
    passes: int | None = field(default=None, metadata=IF_SET)
    visited: bool = field(default=False, metadata=IF_SET)

    @property
    def needs(self) -> tuple[str, ...]:
        """The model, and the calibrations of its surrogate and of the attack."""
        return self.attacked.needs + (() if self.calibration is None else (self.calibration,))

    @property
    def watching(self) -> WatchSettings:
        """How the attack is watched."""
        return WatchSettings(self.visited, self.passes, ends=not self.transfer)

    def label(self, attack: str, model: str) -> str:
        """For people: the attack and the model as the user names them."""
        return f"{attack} on {model}"


class BlockError(RuntimeError):
    """A block of a craft failed; the message names its images and the reason."""


def run(key: str, content: CraftContent, label: str, context: Context, device: torch.device) -> None:
    """Attack the scored images, but for the blocks that lie there already, and pack all of them into one artefact.

    If the model gives no gradient, the artefact says so. BlockError if one of several blocks fails.
    """
    place, cut = artefact("craft", key, context.out), blocks_of(content.images)
    attack = ready_attack(content, context)
    if attack is None:
        _save(place, None)
        return
    crafting = _Crafting(key, content, label, context, device, attack)
    try:
        found = crafting.whole(cut[0]) if len(cut) == 1 else crafting.divided(cut)
    except FileNotFoundError:
        if whole(place, content.images.n):  # another start of the run has packed the blocks meanwhile
            return
        raise
    finally:
        release()
    _save(place, found)
    forget(key, context.out)


def run_block(key: str, content: CraftContent, block: Block, label: str, context: Context, device: torch.device) -> None:
    """Attack one of a craft's several blocks, and write it to its own file. BlockError if it fails."""
    attack = ready_attack(content, context)
    if attack is None:
        _save(place_of(key, block, context.out), None)
        return
    crafting = _Crafting(key, content, label, context, device, attack)
    try:
        with crafting.followed(len(block), block):
            crafting.save(block)
    except BaseException:  # an attack that did not end may have left the model in any state
        release()
        raise


_KEPT = threading.local()


def release() -> None:
    """Let go of the model that this thread keeps for the next block of its last craft."""
    _KEPT.asked = _KEPT.model = None


class _Crafting:
    """A craft at work. attack: as it must run here."""

    def __init__(
        self, key: str, content: CraftContent, label: str, context: Context, device: torch.device, attack: Attack
    ) -> None:
        self.key, self.content, self.label, self.context, self.device = key, content, label, context, device
        self.attack = attack
        self.prepared = prepared_for(content.attacked, context)
        self._around: Callable[[Access], AbstractContextManager[object]] = nullcontext

    def whole(self, block: Block) -> Craft | None:
        """The adversarial images of a craft's only block; None if the model gives no gradient."""
        with self.followed(len(block)):
            return self.attacked(block)

    def divided(self, cut: Sequence[Block]) -> Craft | None:
        """All blocks of a craft together, those that are missing attacked first; None if one of them had no gradient."""
        waiting = missing(self.key, self.content.images, self.context.out)
        with self.followed(sum(len(block) for block in waiting)):
            for block in waiting:
                time_limit.begin_again()
                self.save(block)
        return _joined([read_craft(place_of(self.key, block, self.context.out), len(block)) for block in cut])

    def save(self, block: Block) -> None:
        """Attack one of several blocks, and write it to its file."""
        try:
            found = self.attacked(block)
        except Exception as error:
            raise BlockError(f"{block}: {type(error).__name__}: {error}") from error
        except TimeIsUp as error:
            error.part = str(block)
            raise
        _save(place_of(self.key, block, self.context.out), found)

    def attacked(self, block: Block) -> Craft | None:
        """The adversarial images of a block; None if the model gives no gradient."""
        split = scored_split(data_of(self.context), self.content.images.n)
        part = split if len(block) == len(split) else split.select(slice(block.start, block.stop))
        try:
            with products(self.content.attacked.precision):
                found = self._crafted(self._model(), part)
            return found if self.content.attacked.precision == "float32" else self._confirmed(found, part)
        except NoGradientError:
            return None

    def _crafted(self, surrogate: Surrogate, part: Split, *, again: bool = False) -> Craft:
        """The attack of some images; `again` is not followed, as their progress has been told."""
        images = self.content.images
        return craft(
            self.attack,
            surrogate,
            part,
            self.content.threat,
            seed=images.seed,
            draws=self.prepared.draws,
            batch=images.batch,
            device=self.device,
            scale=self.prepared.scale,
            around=nullcontext if again else self._around,
            watching=self.content.watching,
        )

    def _confirmed(self, found: Craft, part: Split) -> Craft:
        """The craft with those images attacked again in float32 that fool the model in the lower precision alone."""
        attacked = dataclasses.replace(self.content.attacked, precision="float32", compile=False)
        exact, batch = attacked_model(attacked, self.context, self.device), self.content.images.batch
        if exact.stochastic:  # one draw decides nothing
            return found
        claimed = part.y != answers(self._model(), found.x_adv, batch, self.device, self.content.attacked.precision)
        withstood = part.y == answers(exact, found.x_adv, batch, self.device, "float32")
        rows = (claimed & withstood).nonzero().squeeze(1)
        return found if not len(rows) else _replaced(found, self._crafted(exact, part.select(rows), again=True), rows)

    def _model(self) -> Surrogate:
        """The attacked model, which a thread keeps for the next block of the same craft.

        Another craft gets a fresh one, as an attack may have changed it; no two threads ever share a module.
        """
        asked = self.key, self.context.out, str(self.device)
        if getattr(_KEPT, "asked", None) != asked:
            release()
            _KEPT.model, _KEPT.asked = attacked_model(self.content.attacked, self.context, self.device), asked
        found: Surrogate = _KEPT.model
        return found

    @contextmanager
    def followed(self, images: int, block: Block | None = None) -> Iterator[None]:
        """Say where the attack of so many images stands, in a file of the craft or block, and in a TimeIsUp."""
        if self.context.progress is None and self.context.time_limit is None:
            yield
            return
        name = self.key if block is None else f"{self.key}-{block.start}"
        classes = data_of(self.context).n_classes
        forwards = self.prepared.draws * passes_of(self.attack, self.content.threat, classes).forwards
        forwards = min(forwards, self.content.passes or forwards)
        reporter = Reporter(lambda standing: self._say(name, standing), self.label, images, forwards, self.context.every)
        self._around = reporter.block
        try:
            yield
        except TimeIsUp as error:
            error.stood = reporter.standing().so_far + self._kept()
            raise
        finally:
            if self.context.progress is not None:
                progress.forget(self.context.progress, name)

    def _say(self, name: str, standing: CraftProgress) -> None:
        if self.context.progress is not None:
            progress.write(self.context.progress, name, standing)

    def _kept(self) -> str:
        """What is finished of a craft that is divided."""
        images = self.content.images
        count = len(blocks_of(images))
        there = count - len(missing(self.key, images, self.context.out))
        return f"; {there} of {count} blocks are finished and kept" if count > 1 else ""


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


def _replaced(found: Craft, again: Craft, rows: Tensor) -> Craft:
    """A craft with the images `rows` of a second one, and what both cost."""
    added = {name: getattr(found.ledger, name).index_add(0, rows, getattr(again.ledger, name)) for name in _COUNTS}
    seconds = found.measured.seconds + again.measured.seconds
    peak = max(found.measured.peak_memory_bytes, again.measured.peak_memory_bytes)
    return Craft(found.x_adv.index_copy(0, rows, again.x_adv), Ledger(**added), Measured(seconds, peak))


_COUNTS = ("forwards", "backwards", "queries")


def _joined(parts: Sequence[Craft | None]) -> Craft | None:
    """Blocks in order as one craft: all seconds, the largest peak of memory; None if one of them had no gradient."""
    there = [part for part in parts if part is not None]
    if len(there) < len(parts):
        return None
    ledger = Ledger(*(torch.cat([getattr(part.ledger, field) for part in there]) for field in _COUNTS))
    seconds, peak = sum(part.measured.seconds for part in there), max(part.measured.peak_memory_bytes for part in there)
    visited = [part.visited for part in there if part.visited is not None]
    return Craft(
        torch.cat([part.x_adv for part in there]),
        ledger,
        Measured(seconds, peak),
        torch.cat(visited) if len(visited) == len(there) else None,
        sum(part.watch_seconds for part in there),
    )


def _save(path: Path, found: Craft | None) -> None:
    """Write adversarial images; if there are none, that there was no gradient to craft with."""
    if found is None:
        save(path, blind=np.array(True))
        return
    save(
        path,
        x_adv=found.x_adv.numpy(),
        **{field: getattr(found.ledger, field).numpy() for field in _COUNTS},
        seconds=np.array(found.measured.seconds),
        peak_memory_bytes=np.array(found.measured.peak_memory_bytes),
        **({} if found.visited is None else {"visited": found.visited.numpy()}),
        watch_seconds=np.array(found.watch_seconds),
    )


def read_craft(path: Path, images: int | None = None) -> Craft | None:
    """A finished craft; None if there was no gradient to craft with.

    images: how many it must have; where None, any number, and files of earlier versions are read. DamagedError if the file
    is not as it was written.
    """
    found = read(path, rows=images, older=images is None)
    if "blind" in found:
        return None
    ledger = Ledger(*(torch.from_numpy(found[name]) for name in _COUNTS))
    measured = Measured(float(found["seconds"]), int(found["peak_memory_bytes"]))
    visited = torch.from_numpy(found["visited"]) if "visited" in found else None
    watched = float(found["watch_seconds"]) if "watch_seconds" in found else 0.0
    return Craft(torch.from_numpy(found["x_adv"]), ledger, measured, visited, watched)


def read_images(key: str, out: Path) -> Tensor:
    """The adversarial images of a finished craft of an output folder, (n, c, h, w).

    ValueError if it had no gradient, or if the file is damaged.
    """
    found = read_craft(artefact("craft", key, out))
    if found is None:
        raise ValueError(f"The attack of craft {key[:8]} had no gradient, so it has no images")
    return found.x_adv
