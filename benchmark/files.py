"""Files that are written whole or not at all, whenever the writer is killed; never imports torch."""

from __future__ import annotations

import os
import time
import uuid
from contextlib import suppress
from pathlib import Path

LEFTOVER_SECONDS = 3600.0
"""The age from which a temporary file belongs to a writer that was killed."""


def write_atomically(path: Path, content: str | bytes, *, make_folder: bool = True) -> Path:
    """Write to a temporary file in the same folder, flush it to the disk, and rename it to `path`, which is returned.

    A reader sees the old file or the new one, never a part. After an exception the old file stays, and no temporary file is
    left; what a killed writer left is removed when the same file is written an hour later. content: text is written as UTF-8
    with its newlines as they are. make_folder: whether to make a missing folder. Raises OSError if the disk is full, the
    folder may not be written, or does not exist and is not made.
    """
    if make_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    temporary = path.with_name(f"{_prefix(path)}{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)
    return path


def flush_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk if the platform and the file system can."""
    if os.name != "posix":
        return
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _prefix(path: Path) -> str:
    return f".{path.name}."


def _sweep(path: Path) -> None:
    """Remove the temporary files of `path` that killed writers left."""
    oldest = time.time() - LEFTOVER_SECONDS
    with os.scandir(path.parent) as entries:
        leftovers = [entry for entry in entries if entry.name.startswith(_prefix(path)) and entry.name.endswith(".tmp")]
    for entry in leftovers:
        with suppress(OSError):
            if entry.stat().st_mtime < oldest:
                Path(entry.path).unlink()
