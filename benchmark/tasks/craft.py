"""Craft: adversarial images of one attack on one model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from advbench.attacks.access import Access, Ledger, NoGradientError
from advbench.attacks.ensemble import with_stop
from advbench.attacks.progress import expected_forwards
from advbench.attacks.transfer import for_transfer
from advbench.clocks import Measured
from advbench.registry import registry
from advbench.tasks import progress
from advbench.tasks.calibrate import NO_GRADIENT, prepared_for, read_values
from advbench.tasks.calibration import threat_of
from advbench.tasks.context import Context, data_of, save
from advbench.tasks.evaluation import Craft, craft
from advbench.tasks.progress import Reporter
from advbench.tasks.surrogates import attacked_model
from advbench.tasks.task import Task, artefact, scored_split


def run(task: Task, context: Context, device: torch.device) -> None:
    """Attack the scored images; where the model gives no gradient, the artefact says so."""
    content = task.content
    attack = registry.restore("attacks", content["attack"])
    threat = threat_of(content["threat"])
    if content["transfer"]:
        attack = with_stop(attack, "never")
    values = read_values(content["calibration"], context) if content["calibration"] else {}
    place = artefact("craft", task.key, context.out)
    if NO_GRADIENT in values:
        return save(place, blind=np.array(True))
    attack = attack.calibrated(values) if values else attack
    attack = for_transfer(attack) if content["transfer"] else attack
    source = attacked_model(content, context, device)
    prepared = prepared_for(content, context)
    with _followed(task, context, prepared["draws"] * expected_forwards(attack, threat)) as around:
        try:
            found = craft(
                attack,
                source,
                scored_split(data_of(context), content["n"]),
                threat,
                seed=content["seed"],
                batch=content["batch"],
                device=device,
                around=around,
                **prepared,
            )
        except NoGradientError:
            return save(place, blind=np.array(True))
    return save(
        place,
        x_adv=found.x_adv.numpy(),
        **{field: getattr(found.ledger, field).numpy() for field in ("forwards", "backwards", "queries")},
        seconds=np.array(found.measured.seconds),
        peak_memory_bytes=np.array(found.measured.peak_memory_bytes),
    )


@contextmanager
def _followed(task: Task, context: Context, forwards: float) -> Iterator[Callable[[Access], AbstractContextManager[object]]]:
    """What the batches of a craft are attacked in, so that it says where it stands, if anybody wants to know."""
    if context.progress is None:
        yield nullcontext
        return
    folder = context.progress
    images, every = task.content["n"], context.every
    reporter = Reporter(lambda standing: progress.write(folder, task.key, standing), task.label, images, forwards, every)
    try:
        yield reporter.block
    finally:
        progress.forget(folder, task.key)


def read_craft(path: Path) -> Craft | None:
    """A finished craft; None where there was no gradient to craft with."""
    with np.load(path, allow_pickle=False) as file:
        if "blind" in file.files:
            return None
        ledger = Ledger(*(torch.from_numpy(file[name]) for name in ("forwards", "backwards", "queries")))
        measured = Measured(float(file["seconds"]), int(file["peak_memory_bytes"]))
        return Craft(torch.from_numpy(file["x_adv"]), ledger, measured)


def read_images(key: str, out: Path) -> Tensor:
    """The adversarial images of a finished craft of an output folder, (n, c, h, w). ValueError where it had no gradient."""
    found = read_craft(artefact("craft", key, out))
    if found is None:
        raise ValueError(f"The attack of craft {key[:8]} had no gradient, so it has no images")
    return found.x_adv
