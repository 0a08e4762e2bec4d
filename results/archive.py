"""Records in one small file, for publication: the same records give the same bytes.

A tape archive under xz: ``KEY/record.json`` and an ``KEY/ARRAY.npy`` for each array of the examples. Compressed together,
records of one run, which share most of what they say, take a few per cent of their folders. Images are left out.
"""

from __future__ import annotations

import io
import lzma
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from advbench.results.record import ADDED, Examples, Record, check_key
from advbench.results.store import Store

SUFFIX = ".tar.xz"
_LARGEST = 2**30
"""Bytes that the parts of an archive may have in all, so that a small file cannot fill the memory."""


def pack(store: Store, path: Path, keys: Sequence[str] | None = None) -> int:
    """Write the records of `keys`, all of the store where None, to `path`; returns how many.

    Raises ValueError where a record is missing or damaged.
    """
    chosen = sorted(set(store.keys() if keys is None else keys))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for key in chosen:
            found = store.load(key)
            if found is None:
                raise ValueError(f"Expected a readable record at {store.path(key)}, got none")
            for name, content in _members(found[0], found[1]):
                entry = tarfile.TarInfo(f"{key}/{name}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    path.write_bytes(lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME))
    return len(chosen)


def unpack(path: Path, store: Store) -> list[str]:
    """Write the records of an archive into `store`, where readable ones of the same key stay; returns their keys.

    Raises FileNotFoundError where there is no file, ValueError, in one line, where it is no whole archive of records.
    """
    keys = []
    for record, examples in _read(path):
        store.write(record, examples)
        keys.append(record.key)
    return keys


def _members(record: Record, examples: Examples | None) -> Iterator[tuple[str, bytes]]:
    yield "record.json", (record.to_json() + "\n").encode()
    for one in fields(examples) if examples is not None else ():
        value = getattr(examples, one.name)
        if value is not None:
            buffer = io.BytesIO()
            np.save(buffer, np.asarray(value), allow_pickle=False)
            yield f"{one.name}.npy", buffer.getvalue()


def _read(path: Path) -> list[tuple[Record, Examples | None]]:
    """Every record of an archive with its examples, in the order of keys."""
    parts: dict[str, dict[str, bytes]] = {}
    try:
        with tarfile.open(path, mode="r:xz") as archive:
            total = 0
            for entry in archive:
                key, _, name = entry.name.partition("/")
                total += entry.size
                content = archive.extractfile(entry) if entry.isfile() else None
                if content is None or total > _LARGEST:
                    raise ValueError(f"a plain file of a record, got {entry.name!r:.80}")
                parts.setdefault(check_key(key), {})[name] = content.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"Expected an archive of records at {path}, found none") from None
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path}: Expected an archive of records ({SUFFIX}), got {error!s:.120}") from None
    try:
        return [_restored(parts[key]) for key in sorted(parts)]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: Expected whole records, got {error!s:.160}") from None


def _restored(part: dict[str, bytes]) -> tuple[Record, Examples | None]:
    record = Record.from_json(part["record.json"].decode())
    if record.status != "ok":
        return record, None
    arrays: dict[str, Any] = {
        one.name: np.load(io.BytesIO(part[f"{one.name}.npy"]), allow_pickle=False)
        for one in fields(Examples)
        if f"{one.name}.npy" in part or one.name not in ADDED
    }
    return record, Examples(**arrays)
