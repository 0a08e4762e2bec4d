"""Records in one small file, for publication: the same records give the same bytes.

A tape archive under xz. ``KEY/record.json`` is each record as it is on the disk. The arrays of all examples stand in one
``DTYPE.npy`` for each type of number, a row that several records share once, and ``examples.json`` says where a record's
rows begin there. Images are left out.

Two things are not kept bit by bit. What `Examples` fills in by itself is left out, and the root mean squares, where they are
the l2 distances over the root of a number of values. The distances of an attack with a fixed budget are kept in single
precision; those of a minimal-norm attack, which are its result, in double precision.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import lzma
import math
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from advbench.files import write_atomically
from advbench.reading import allowance, array_of, json_of, read_text, unseen
from advbench.results.parts import check_key
from advbench.results.record import ADDED, DISTANCES, EXAMPLE_DTYPES, Examples, Facts, Gallery, Record
from advbench.results.store import FILES, Store, check_count

_LOG = logging.getLogger("advbench")
SUFFIX = ".tar.xz"
_LARGEST = 2**30
"""Bytes that the examples of an archive may have."""
_DICTIONARY = 2**28
"""Bytes that xz may use; ours needs 65 MiB."""
_CHUNK = 2**18
_LARGEST_PLACES = 2**25
_PLACES = "examples.json"
_DAMAGE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What reading a bad record or bad tables raises."""


def pack(source: Source, path: Path, keys: Sequence[str] | None = None) -> int:
    """Write the records of `keys`, all of the source if None, to `path`; returns how many.

    Raises ValueError if a record is missing or damaged.
    """
    chosen = sorted(set(source.keys() if keys is None else keys))
    members: dict[str, bytes] = {}
    scored: dict[str, tuple[Record, Examples]] = {}
    for key in chosen:
        parts = source.outcomes(key)
        if parts is None:
            place = source.path(key) if isinstance(source, Store) else f"{key} in {source.path}"
            raise ValueError(f"Expected a readable record at {place}, got none")
        record, examples = parts
        members[f"{key}/{FILES[0]}"] = (record.to_json() + "\n").encode()
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


class Archive:
    """The records of an archive, read in place, by key. Raises as `unpack`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        members, self._digest = _members(path)
        self._cells = {record.key: (record, examples) for record, examples in _cells(path, members)}
        if not self._cells:
            raise ValueError(f"{path}: Expected an archive with records, got none")

    def keys(self) -> list[str]:
        """The keys of all readable records, sorted."""
        return list(self._cells)

    def outcomes(self, key: str) -> tuple[Record, Examples | None] | None:
        """A record and, if it was scored, its examples; None if there is none."""
        return self._cells.get(key)

    def gallery(self, key: str) -> Gallery | None:  # noqa: ARG002
        """None: an archive holds no images."""
        return None

    def digest(self, keys: Iterable[str]) -> str:
        """SHA-256 over what was read of the file, and these keys."""
        return hashlib.sha256("\n".join((self._digest, *keys)).encode()).hexdigest()


Source: TypeAlias = Store | Archive
"""Where records are read from."""


def is_archive(path: str | Path) -> bool:
    """Whether a path names an archive."""
    return str(path).endswith(SUFFIX)


def source_of(path: Path) -> Source:
    """The records of an output folder or of an archive. Raises as `unpack` for an archive."""
    return Archive(path) if is_archive(path) else Store(path)


def unpack(path: Path, store: Store) -> list[str]:
    """Write the records of an archive into `store`; readable ones of the same key stay. Returns their keys.

    Raises FileNotFoundError if there is no file, ValueError, in one line, if it is no whole archive of records. A bad record
    in a whole archive is logged in one line and left out, unless none is left.
    """
    keys = []
    for record, examples in read(path):
        store.write(record, examples)
        keys.append(record.key)
    return keys


def read(path: Path) -> list[tuple[Record, Examples | None]]:
    """Every record of an archive with its examples, in the order of keys. Raises as `unpack`."""
    return _cells(path, _members(path)[0])


def _cells(path: Path, members: dict[str, bytes]) -> list[tuple[Record, Examples | None]]:
    """The records of the files of an archive."""
    try:
        tables = {name: members.pop(name) for name in list(members) if "/" not in name}
        parts: dict[str, dict[str, bytes]] = {}
        for name, content in members.items():
            key, _, part = name.partition("/")
            parts.setdefault(key, {})[part] = content
        examples_of = _Tables(tables, len(parts)).examples if tables else lambda key: _by_parts(parts[key])
    except _DAMAGE as error:
        raise ValueError(f"{path}: Expected whole records, got {_said(error)}") from None
    found: list[tuple[Record, Examples | None]] = []
    problem = ""
    for key in sorted(parts):
        try:
            found.append(_cell(key, parts[key], examples_of))
        except _DAMAGE as error:
            problem = f"{key}: {_said(error)}"
            _LOG.warning("damaged record, left out: %s: %s", path, problem)
    if problem and not found:
        raise ValueError(f"{path}: Expected whole records, got {problem}")
    return found


def _cell(key: str, parts: Mapping[str, bytes], examples_of: Callable[[str], Examples]) -> tuple[Record, Examples | None]:
    """A record with its examples if it was scored. Raises one of `_DAMAGE` for a bad one."""
    with io.BytesIO(parts[FILES[0]]) as file:
        record = Record.from_json(read_text(file))
    if record.key != key:
        raise ValueError(f"Expected the key of its folder, got {record.key}")
    if record.status != "ok":
        return record, None
    examples = examples_of(key)
    check_count(record, examples)
    return record, examples


def _said(error: Exception) -> str:
    return f"no {error!s:.80}" if isinstance(error, KeyError) else f"{error!s:.160}"


def _members(path: Path) -> tuple[dict[str, bytes], str]:
    """The files of an archive by name, as `pack` writes them: plain files of short names, and nothing else; its SHA-256."""
    members: dict[str, bytes] = {}
    try:
        with path.open("rb") as file:
            stream = _Unpacked(file)
            while (block := stream.exactly(tarfile.BLOCKSIZE)).strip(b"\0"):
                entry = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                if "/" in entry.name:
                    check_key(entry.name.partition("/")[0])
                if not entry.isreg() or entry.size < 0 or unseen(entry.name):
                    raise ValueError(f"a plain file of a record, got {entry.name!r:.80}")
                members[entry.name] = stream.exactly(entry.size)
                stream.exactly(-entry.size % tarfile.BLOCKSIZE)
    except FileNotFoundError:
        raise FileNotFoundError(f"Expected an archive of records at {path}, found none") from None
    except (tarfile.TarError, lzma.LZMAError, EOFError, MemoryError, OSError, ValueError) as error:
        raise ValueError(f"{path}: Expected an archive of records ({SUFFIX}), got {error!s:.120}") from None
    return members, stream.digest.hexdigest()


class _Unpacked:
    """The bytes under xz, read from the front, no more than a file of its size may hold.

    The size of the packed file counts as far as it has been read, so that a pipe can be read too. digest: of these bytes.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = _decoder()
        self._packed = self._total = 0
        self._waiting = bytearray()
        self.digest = hashlib.sha256()

    def exactly(self, size: int) -> bytes:
        """The next `size` bytes. Raises EOFError if there are fewer, ValueError if there are too many in all."""
        while len(self._waiting) < size:
            self._waiting += self._more()
        found = bytes(self._waiting[:size])
        del self._waiting[:size]
        return found

    def _more(self) -> bytes:
        packed = b""
        if self._decoder.eof:  # another stream may follow, behind zeros
            packed = self._decoder.unused_data.lstrip(b"\0")
            self._decoder = _decoder()
        if self._decoder.needs_input and not packed:
            packed = self._file.read(_CHUNK)
            self._packed += len(packed)
            self.digest.update(packed)
            if not packed:
                raise EOFError("an archive that is cut off")
        unpacked = self._decoder.decompress(packed, _CHUNK)
        self._total += len(unpacked)
        if self._total > allowance(self._packed):
            raise ValueError(f"more than the {allowance(self._packed):,} bytes that an archive of its size may hold")
        return unpacked


def _decoder() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_DICTIONARY)


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


class _Tables:
    """The arrays of all examples, and where in them those of each record begin.

    Raises one of `_DAMAGE` for tables that cannot be. records: how many they are for.
    """

    def __init__(self, tables: Mapping[str, bytes], records: int) -> None:
        with io.BytesIO(tables[_PLACES]) as file:
            self._places = json_of(read_text(file, _LARGEST_PLACES), containers=50 * (records + 1))
        self._pools = {name.removesuffix(".npy"): array_of(content) for name, content in tables.items() if name != _PLACES}
        self._total = 0

    def examples(self, key: str) -> Examples:
        """The examples of a record."""
        place = self._places[key]
        n = int(place["n"])
        arrays: dict[str, Any] = {}
        for name, (kind, begin) in place["rows"].items():
            if not 0 <= begin <= begin + n <= len(self._pools[kind]):
                raise ValueError(f"Expected {n} examples from {begin} of {kind}.npy, got {len(self._pools[kind])} in all")
            arrays[name] = self._pools[kind][begin : begin + n]
        self._total += n * len(arrays) * 8
        if self._total > _LARGEST:
            raise ValueError(f"Expected at most {_LARGEST} bytes of examples, got more")
        if place["values"] is not None:
            if not place["values"] > 0:
                raise ValueError(f"Expected images of at least one value, got {place['values']}")
            arrays["rms"] = arrays["distance_l2"].astype(np.float64) / math.sqrt(place["values"])
        return Examples(draws=place["draws"], **arrays)


def _by_parts(parts: Mapping[str, bytes]) -> Examples:
    """The same in an archive of the first form, which has every array of every record: ``KEY/ARRAY.npy``."""
    wanted = [field.name for field in fields(Examples) if f"{field.name}.npy" in parts or field.name not in ADDED]
    arrays: dict[str, Any] = {name: array_of(parts[f"{name}.npy"]) for name in wanted}
    return Examples(**arrays)


def _npy(array: NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
