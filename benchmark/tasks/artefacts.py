"""Where the results of tasks lie, and how a result is written."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from advbench.files import write_atomically
from advbench.zoo import checkpoints

Kind = Literal["train", "substitute", "clean", "diagnose", "unit-test", "calibrate", "craft", "score"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Array: TypeAlias = NDArray[np.generic]


def artefact(kind: Kind, key: str, out: Path) -> Path:
    """The file of a finished task: models in the user's cache, everything else under the output folder."""
    if kind in ("train", "substitute"):
        return checkpoints.cache_dir() / "models" / f"{key}.safetensors"
    if kind == "score":
        return out / "records" / key
    return out / "store" / kind / f"{key}.npz"


def checkpoint(key: str) -> Path:
    """The file of the weights of a training task."""
    return artefact("train", key, Path())


def save(path: Path, **arrays: Array) -> None:
    """Write an npz file as a whole or not at all."""
    buffer = io.BytesIO()
    named: dict[str, Any] = {**arrays}
    np.savez(buffer, **named)
    write_atomically(path, buffer.getvalue())
