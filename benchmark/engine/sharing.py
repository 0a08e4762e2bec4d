"""What all tasks of a run share, sent to each worker once: a pickle in a file, and a small handle beside every task.

The file lies in a folder that only this user can read, as private as the pipe to a worker. Never imports torch.
"""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joblib.externals.loky.backend.reduction import dumps


@dataclass(frozen=True, slots=True)
class Handle:
    """What is shared, by name. path: the file of the pickle. digest: the SHA-256 of its bytes."""

    path: Path
    digest: str


def pickled(value: object) -> bytes:
    """A value as bytes; what was defined where a worker cannot import it goes along as code."""
    return bytes(dumps(value))


def share(value: object, folder: Path) -> Handle:
    """Pickle a value into a file of a private folder."""
    content = pickled(value)
    digest = hashlib.sha256(content).hexdigest()
    path = folder / f"{digest}.pickle"
    path.write_bytes(content)
    return Handle(path, digest)


_kept: tuple[str, Any] | None = None


def shared(handle: Handle) -> Any:
    """The value of a handle; a process keeps the last one, so that it reads the file once in a run.

    Raises OSError if the file is gone, and ValueError if it is not as it was written.
    """
    global _kept
    if _kept is None or _kept[0] != handle.digest:
        content = handle.path.read_bytes()
        if hashlib.sha256(content).hexdigest() != handle.digest:
            raise ValueError(f"Expected {handle.path} as it was written, got another content")
        _kept = handle.digest, pickle.loads(content)  # noqa: S301 - written by the process that started this one
    return _kept[1]
