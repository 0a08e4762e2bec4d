"""Files that are written whole or not at all, whenever the writer is killed, and what killed writers leave.

Never imports torch.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LEFTOVER_SECONDS = 3600.0
"""The age from which a temporary file belongs to a writer that was killed."""
_FOLDER_SECONDS = 60.0
"""The age from which a temporary folder that no process holds belongs to one that was killed."""
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{32}\.tmp", re.DOTALL)
_FOLDER = "advbench-temporary-"

NO_ROOM = frozenset(getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS") if hasattr(errno, name))
"""What a disk answers that is full or read-only."""


def write_atomically(path: Path, content: str | bytes, *, make_folder: bool = True) -> Path:
    """Write to a temporary file in the same folder, flush it to the disk, and rename it to `path`, which is returned.

    A reader sees the old file or the new one, never a part. After an exception the old file stays, and no temporary file is
    left; what a killed writer left is removed when a file of the folder is written an hour later. The file has the
    permissions of any new file. content: text is written as UTF-8 with its newlines as they are. make_folder: whether to
    make a missing folder. Raises OSError if the disk is full, the folder may not be written, or does not exist and is not
    made.
    """
    if make_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            with suppress(OSError):  # some file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)
    return path


def names_in(folder: Path) -> set[str]:
    """The names in a folder that are no hidden ones; none if there is no such folder."""
    try:
        return {name for name in os.listdir(folder) if not name.startswith(".")}  # noqa: PTH208 - names are enough
    except OSError:
        return set()


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


def sweep(folder: Path) -> None:
    """Remove the temporary files that killed writers left in a folder: an hour old, and held by no living process."""
    oldest = time.time() - LEFTOVER_SECONDS
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _LEFTOVER.fullmatch(entry.name):
                with suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime < oldest and not _held(entry.path):
                        os.unlink(entry.path)  # noqa: PTH108


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that goes when the block is left; that of a killed process goes when a later one makes its own."""
    _sweep_folders(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=_FOLDER, ignore_cleanup_errors=True) as name, locked(Path(name)):
        yield Path(name)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against every other block that locks it, in this process or another; one that dies lets it go.

    Where the file system has no locks, nothing is held. Raises OSError if there is no such folder.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sweep_folders(place: Path) -> None:
    """Remove the temporary folders of this user that no living process holds."""
    oldest = time.time() - _FOLDER_SECONDS
    for folder in place.glob(f"{_FOLDER}????????"):
        with suppress(OSError):
            found = folder.lstat()
            if found.st_uid == os.geteuid() and found.st_mtime < oldest and not _held(folder):
                shutil.rmtree(folder)


def _held(path: str | Path) -> bool:
    """Whether a living process holds a file or folder; False where nothing can be held. OSError if it may not be opened."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    finally:
        os.close(descriptor)
    return False
