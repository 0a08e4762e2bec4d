"""Garbage: files of a run's folder that no record and no task of its present settings needs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from advbench.engine.leases import Leases, Owner
from advbench.plan.plan import Plan, make_plan
from advbench.plan.saved import NAME, Saved
from advbench.results.store import Store
from advbench.tasks.artefacts import KINDS, MODELS, artefact


@dataclass(frozen=True, slots=True)
class Garbage:
    """What can go. files: finished results, and folders of blocks. bytes: what they take together."""

    files: tuple[Path, ...]
    bytes: int


def garbage(out: Path) -> Garbage:
    """What no record and no task of the run's present settings needs in its folder.

    Adversarial images that a record names are needed, as they can be read again; so is whatever the last run's settings
    would use, finished or not. Models lie in the cache, which other runs share, and are not looked at.
    Raises ValueError, in one line, if somebody works in the folder, or if its settings cannot be planned any more.
    """
    out = out.absolute()
    at_work = Leases(out, Owner.here()).others()
    if at_work:
        raise ValueError(
            f"Expected nobody at work in {out}, got {len(at_work)} tasks that are: try again when they are done"
        )
    needed = {task.key for task in _plan(out).tasks.values()}
    for _, record in Store(out).readable():
        crafts = record.details.get("crafts")
        needed |= set(map(str, crafts)) if isinstance(crafts, list) else set()
    found = tuple(path for path in _stored(out) if path.stem not in needed)
    return Garbage(found, sum(_size(path) for path in found))


def remove(found: Garbage) -> None:
    """Remove garbage; what is gone by now is no error."""
    for path in found.files:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _plan(out: Path) -> Plan:
    """The plan of the last run in the folder, which nothing is measured for."""
    try:
        saved = Saved.read(out)
    except FileNotFoundError:
        raise ValueError(f"Expected the folder of a run, got no {NAME} in {out}: run its command once more") from None
    plan = make_plan(saved.config(out), measure=False, place=saved.place)
    saved.check(plan)
    return plan


def _stored(out: Path) -> Iterator[Path]:
    """Every result of a task in a folder, but for records, and every folder of blocks."""
    folders = {artefact(kind, "", out).parent for kind in KINDS if kind not in MODELS and kind != "score"}
    for folder in sorted(folders | {out / "store" / "blocks"}):
        if folder.is_dir():
            yield from sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
