"""Where the results of tasks lie, how a result is written, and how one that is damaged is recognised."""

from __future__ import annotations

import hashlib
import io
import logging
import threading
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from advbench import files
from advbench.zoo import checkpoints

Kind = Literal["train", "substitute", "clean", "diagnose", "unit-test", "known-noise", "calibrate", "craft", "score"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MODELS: tuple[Kind, ...] = ("train", "substitute")
"""Kinds whose results are checkpoints."""

IF_SET: Mapping[str, object] = MappingProxyType({"if_set": True})
"""Metadata of a content's field that is part of the key only if it is not the default, as keys of before have none of it."""

Array: TypeAlias = NDArray[np.generic]

_LOG = logging.getLogger("advbench")
_DIGEST = "sha256"
"""The name of the array that holds the hash of the others."""


class DamagedError(ValueError):
    """A file of a finished task is not as it was written; the message names the file and what is wrong with it."""


def artefact(kind: Kind, key: str, out: Path) -> Path:
    """The file of a finished task: models in the user's cache, everything else under the output folder."""
    if kind in MODELS:
        return checkpoints.cache_dir() / "models" / f"{key}.safetensors"
    if kind == "score":
        return out / "records" / key
    return out / "store" / kind / f"{key}.npz"


def checkpoint(key: str) -> Path:
    """The file of the weights of a training task."""
    return artefact("train", key, Path())


def finished(kind: Kind, key: str, out: Path, rows: int | None = None) -> bool:
    """Whether the result of a task, any but a score, lies whole in its place.

    A damaged file counts as missing and is named in one line of the log, once in a process: the task is done again, which
    replaces it. rows: as for `read`.
    """
    return whole(artefact(kind, key, out), rows)


def whole(path: Path, rows: int | None = None) -> bool:
    """Whether a checkpoint, or a file that `save` wrote, lies there as it was written. Damage is logged once."""
    try:
        found = path.stat()
    except OSError:
        return False
    return _verified(path, rows, (found.st_ino, found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=65536)
def _verified(path: Path, rows: int | None, version: tuple[int, int, int]) -> bool:  # noqa: ARG001 - of the file
    try:
        if path.suffix == ".npz":
            read(path, rows=rows)
        else:
            checkpoints.verify(path)
    except (OSError, ValueError) as error:
        if not _told_by_parent.is_set():
            _LOG.warning("damaged file, its task is done again: %s", error)
        return False
    return True


_told_by_parent = threading.Event()


def leave_telling_to_parent() -> None:
    """Log no damage in this process, a worker: its parent has looked at the same files before."""
    _told_by_parent.set()


def sweep(out: Path) -> None:
    """Remove what killed writers left in the output folder and in the cache."""
    places = {artefact(kind, "", out).parent for kind in KINDS} | {out, checkpoints.cache_dir()}
    for folder in sorted(places):
        files.sweep(folder)


def save(path: Path, **arrays: Array) -> None:
    """Write arrays and their hash to an npz file, as a whole or not at all."""
    buffer = io.BytesIO()
    named: dict[str, Any] = {**arrays, _DIGEST: np.array(_digest(arrays))}
    np.savez(buffer, **named)
    files.write_atomically(path, buffer.getvalue())


def read(path: Path, *, rows: int | None = None, older: bool = False) -> dict[str, Array]:
    """The arrays that `save` wrote, by name.

    rows: the length of every array that is not a single number, where all have one. older: whether to take a file without a
    hash, as earlier versions wrote them.
    Raises FileNotFoundError for a missing file, DamagedError, in one line, for one that is truncated, changed, of another
    length or no such file at all.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays: dict[str, Array] = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, zlib and numpy answer damaged bytes with a dozen kinds of exceptions
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise DamagedError(f"{path}: Expected a whole npz file, got a damaged one ({said:.100})") from None
    recorded = arrays.pop(_DIGEST, None)
    if not (older and recorded is None) and str(recorded) != _digest(arrays):
        raise DamagedError(f"{path}: Expected the arrays whose hash the file holds, got others")
    lengths = {len(array) for array in arrays.values() if array.ndim}
    if rows is not None and lengths - {rows}:
        raise DamagedError(f"{path}: Expected results of {rows} images, got {', '.join(map(str, sorted(lengths)))}")
    return arrays


def _digest(arrays: Mapping[str, Array]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
