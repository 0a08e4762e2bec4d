"""What is said about files and code of the user's: their hash, and names in few words."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def file_hash(file: Path) -> str:
    """SHA-256 of a file's bytes. ValueError, in one line, if there is none."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"Expected a file at {file}: {error.strerror or error}") from None


def few(names: Iterable[str]) -> str:
    """The first three names, and how many more there are."""
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")
