"""Records in one small file, for publication: the same records give the same bytes.

A tape archive under xz. ``KEY/record.json`` is each record as it is on the disk. The arrays of all examples stand in one
``DTYPE.npy`` for each type of number, a row that several records share once, and ``examples.json`` says where a record's
rows begin there. Images are left out.

Two things are not kept bit by bit. What `Examples` fills in by itself is left out, and the root mean squares, where they are
the l2 distances over the root of a number of values. The distances of an attack with a fixed budget are kept in single
precision; those of a minimal-norm attack, which are its result, in double precision.
"""

from __future__ import annotations

import io
import json
import lzma
import math
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from advbench.files import write_atomically
from advbench.results.record import ADDED, DISTANCES, EXAMPLE_DTYPES, Examples, Facts, Record, check_key
from advbench.results.store import Store

SUFFIX = ".tar.xz"
_LARGEST = 2**30
"""Bytes that an archive may have unpacked, so that a small file cannot fill the memory."""
_PLACES = "examples.json"


def pack(store: Store, path: Path, keys: Sequence[str] | None = None) -> int:
    """Write the records of `keys`, all of the store if None, to `path`; returns how many.

    Raises ValueError if a record is missing or damaged.
    """
    chosen = sorted(set(store.keys() if keys is None else keys))
    members: dict[str, bytes] = {}
    scored: dict[str, tuple[Record, Examples]] = {}
    for key in chosen:
        parts = store.load(key)
        if parts is None:
            raise ValueError(f"Expected a readable record at {store.path(key)}, got none")
        record, examples, _ = parts
        members[f"{key}/record.json"] = (record.to_json() + "\n").encode()
        if examples is not None:
            scored[key] = record, examples
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in (members | _tables(scored)).items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    write_atomically(path, lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME))
    return len(chosen)


def unpack(path: Path, store: Store) -> list[str]:
    """Write the records of an archive into `store`; readable ones of the same key stay. Returns their keys.

    Raises FileNotFoundError if there is no file, ValueError, in one line, if it is no whole archive of records.
    """
    keys = []
    for record, examples in read(path):
        store.write(record, examples)
        keys.append(record.key)
    return keys


def read(path: Path) -> list[tuple[Record, Examples | None]]:
    """Every record of an archive with its examples, in the order of keys. Raises as `unpack`."""
    members = _members(path)
    try:
        tables = {name: members.pop(name) for name in list(members) if "/" not in name}
        parts: dict[str, dict[str, bytes]] = {}
        for name, content in members.items():
            key, _, part = name.partition("/")
            parts.setdefault(key, {})[part] = content
        records = {key: Record.from_json(parts[key]["record.json"].decode()) for key in sorted(parts)}
        scored = _by_tables(records, tables) if tables else _by_parts(records, parts)
        return [(record, scored.get(key)) for key, record in records.items()]
    except (AttributeError, EOFError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: Expected whole records, got {error!s:.160}") from None


def _members(path: Path) -> dict[str, bytes]:
    """The files of an archive by name."""
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(path, mode="r:xz") as archive:
            total = 0
            for entry in archive:
                if "/" in entry.name:
                    check_key(entry.name.partition("/")[0])
                total += entry.size
                content = archive.extractfile(entry) if entry.isfile() else None
                if content is None or total > _LARGEST:
                    raise ValueError(f"a plain file of a record, got {entry.name!r:.80}")
                members[entry.name] = content.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"Expected an archive of records at {path}, found none") from None
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path}: Expected an archive of records ({SUFFIX}), got {error!s:.120}") from None
    return members


# --- the arrays of all examples, each row once


class _Pool:
    """Rows of one type of number, one behind another, equal ones once."""

    def __init__(self) -> None:
        self.rows: list[NDArray[np.generic]] = []
        self._begins: dict[bytes, int] = {}
        self._end = 0

    def begin(self, row: NDArray[np.generic]) -> int:
        """Where the row begins, behind all others where it is new."""
        place = self._begins.setdefault(row.tobytes(), self._end)
        if place == self._end:
            self.rows.append(row)
            self._end += len(row)
        return place


def _tables(scored: Mapping[str, tuple[Record, Examples]]) -> dict[str, bytes]:
    """An array for each type of number, and where in it the rows of every record begin."""
    kept = {key: _kept(record, examples) for key, (record, examples) in scored.items()}
    places: dict[str, Facts] = {
        key: {"n": len(examples), "draws": examples.draws, "values": _values(examples), "rows": {}}
        for key, (_, examples) in scored.items()
    }
    pools: dict[str, _Pool] = {}
    for name in EXAMPLE_DTYPES:  # rows of one kind stand side by side, which compresses best
        for key, rows in kept.items():
            if name in rows:
                kind = rows[name].dtype.name
                places[key]["rows"][name] = [kind, pools.setdefault(kind, _Pool()).begin(rows[name])]
    arrays = {f"{kind}.npy": _npy(np.concatenate(pools[kind].rows)) for kind in sorted(pools)}
    return {_PLACES: json.dumps(places, sort_keys=True, indent=0).encode(), **arrays}


def _kept(record: Record, examples: Examples) -> dict[str, NDArray[Any]]:
    """The arrays that the others do not tell, in the precision that is kept."""
    rows: dict[str, NDArray[Any]] = {name: getattr(examples, name) for name in EXAMPLE_DTYPES}
    for name in sorted(ADDED):
        others = {other: row for other, row in rows.items() if other != name}
        filled_in = getattr(Examples(draws=examples.draws, **others), name)
        if np.array_equal(rows[name], filled_in, equal_nan=filled_in.dtype.kind == "f"):
            rows = others
    if _values(examples) is not None:
        del rows["rms"]
    if not record.attack["minimal_norm"]:
        rows |= {name: rows[name].astype(np.float32) for name in DISTANCES if name in rows}
    return rows


def _values(examples: Examples) -> int | None:
    """The number of values of an image, if the root mean squares are the l2 distances over its root, else None."""
    distance, rms = examples.distance_l2, examples.rms
    moved = np.isfinite(distance) & (distance > 0) & (rms > 0)
    count = round(float(distance[moved][0] / rms[moved][0]) ** 2) if moved.any() else 1
    return count if count and np.array_equal(distance / math.sqrt(count), rms, equal_nan=True) else None


def _by_tables(records: Mapping[str, Record], tables: Mapping[str, bytes]) -> dict[str, Examples]:
    """The examples of the records that were scored."""
    places = json.loads(tables[_PLACES])
    pools = {name.removesuffix(".npy"): _array(content) for name, content in tables.items() if name != _PLACES}
    scored: dict[str, Examples] = {}
    total = 0
    for key, record in records.items():
        if record.status != "ok":
            continue
        n, rows = places[key]["n"], places[key]["rows"]
        total += n * len(rows) * 8
        if total > _LARGEST:
            raise ValueError(f"at most {_LARGEST} bytes of examples, got more")
        arrays: dict[str, Any] = {name: pools[kind][begin : begin + n] for name, (kind, begin) in rows.items()}
        if places[key]["values"] is not None:
            arrays["rms"] = arrays["distance_l2"].astype(np.float64) / math.sqrt(places[key]["values"])
        scored[key] = Examples(draws=places[key]["draws"], **arrays)
    return scored


def _by_parts(records: Mapping[str, Record], parts: Mapping[str, Mapping[str, bytes]]) -> dict[str, Examples]:
    """The same for an archive of the first form, which has every array of every record: ``KEY/ARRAY.npy``."""
    wanted = [field.name for field in fields(Examples)]
    return {
        key: Examples(
            **{
                name: _array(parts[key][f"{name}.npy"])
                for name in wanted
                if f"{name}.npy" in parts[key] or name not in ADDED
            }
        )
        for key, record in records.items()
        if record.status == "ok"
    }


def _npy(array: NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _array(content: bytes) -> Any:
    return np.load(io.BytesIO(content), allow_pickle=False)
