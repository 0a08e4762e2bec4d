"""The blocks of a craft: ranges of whole compute batches, each an artefact of its own until all of them are there.

Where blocks begin and end follows from the number of images and the compute batch alone, so that any worker, and any later
start, cuts an attack at the same places. They are part of no key.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from advbench import files
from advbench.tasks.artefacts import artefact, whole
from advbench.tasks.images import Images

MOST = 32
"""Blocks of a craft at most, so that of ten thousand images each is still worth a file."""


@dataclass(frozen=True, slots=True)
class Block:
    """The images of a craft from `start` up to, not including, `stop`, by their places among the scored ones."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"images {self.start} to {self.stop - 1}"


def blocks_of(images: Images) -> tuple[Block, ...]:
    """The blocks of a craft of these images, in order."""
    batches = math.ceil(images.n / images.batch)
    size = images.batch * math.ceil(batches / MOST)
    return tuple(Block(start, min(start + size, images.n)) for start in range(0, images.n, size))


def place_of(key: str, block: Block, out: Path) -> Path:
    """The file of a finished block of the craft `key`."""
    return _folder(key, out) / f"{block.start}-{block.stop}.npz"


def missing(key: str, images: Images, out: Path) -> tuple[Block, ...]:
    """The blocks of the craft `key` that do not lie whole in their places, in order."""
    return tuple(block for block in blocks_of(images) if not whole(place_of(key, block, out), len(block)))


def forget(key: str, out: Path) -> None:
    """Remove the blocks of the craft `key`, if it has any."""
    shutil.rmtree(_folder(key, out), ignore_errors=True)


def sweep(out: Path) -> None:
    """Remove what killed writers left among the blocks, and the blocks of finished crafts."""
    folders = [folder for folder in (out / "store" / "blocks").glob("*") if folder.is_dir()]
    for folder in folders:
        files.sweep(folder)
        if artefact("craft", folder.name, out).is_file():
            forget(folder.name, out)


def _folder(key: str, out: Path) -> Path:
    return out / "store" / "blocks" / key
