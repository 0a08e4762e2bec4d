"""The folder of records: every cell is written whole or not at all.

A record lives in ``ROOT/records/<key>/`` as ``record.json``, ``examples.npz`` (if the cell was scored) and
``gallery.npz`` (if images were kept), with their hashes in ``SHA256SUMS``. It is prepared in ``ROOT/records/.writing/`` and
renamed into place once its bytes are on the disk, so that a reader sees all of it or nothing, even if the writer is killed.
Anyone may have written these files: a bad one is named and counts as missing.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from advbench.files import LEFTOVER_SECONDS, flush_folder, write_atomically
from advbench.reading import arrays_of, open_plain, text_of
from advbench.results.parts import check_key
from advbench.results.record import ADDED, Examples, Gallery, Record

_LOG = logging.getLogger("advbench")
FILES = ("record.json", "examples.npz", "gallery.npz")
"""What lies in the folder of a record."""
_SUMS = "SHA256SUMS"
"""Beside them, their hashes, so that a whole record is recognised without reading its arrays."""
_ATTEMPTS = 100
_Content = TypeVar("_Content", Examples, Gallery)
_Found = TypeVar("_Found")


class Store:
    """Records under `root`, by key.

    root: the folder of a run's output; made at the first write.
    """

    def __init__(self, root: Path) -> None:
        self.folder = Path(root) / "records"

    def path(self, key: str) -> Path:
        """The folder of a record. Raises ValueError if `key` is not 64 hex digits."""
        return self.folder / check_key(key)

    def keys(self) -> list[str]:
        """The keys of all records, sorted; unreadable ones among them."""
        if not self.folder.is_dir():
            return []
        return sorted(path.name for path in self.folder.iterdir() if _is_key(path.name))

    def status(self, key: str) -> str | None:
        """The record's status; None if there is none, or if its files are damaged (logged as one line).

        Arrays whose bytes are those that were written are not read for it.
        """
        if self._as_written(key):
            with suppress(OSError, ValueError):
                return self.read(key).status
        parts = self.load(key)
        return None if parts is None else parts[0].status

    def _as_written(self, key: str) -> bool:
        """Whether all files of a record are those that `write` put there, by their hashes; False if it left none."""
        folder = self.path(key)
        try:
            sums = dict(line.split("  ")[::-1] for line in (folder / _SUMS).read_text(encoding="ascii").splitlines())
            return FILES[0] in sums and sums == _sums(folder)
        except (OSError, ValueError):
            return False

    def load(self, key: str) -> tuple[Record, Examples | None, Gallery | None] | None:
        """All of a record; None if there is none, or if its files are damaged (logged as one line).

        Examples come with every scored record, and only with those, as many as it says.
        """
        return self._whole(key, lambda record, examples: (record, examples, self.gallery(key)))

    def outcomes(self, key: str) -> tuple[Record, Examples | None] | None:
        """A record without its images; None as in `load`. Images whose bytes are those that were written are not read."""

        def without_images(record: Record, examples: Examples | None) -> tuple[Record, Examples | None]:
            if not self._as_written(key):
                self.gallery(key)
            return record, examples

        return self._whole(key, without_images)

    def _whole(self, key: str, more: Callable[[Record, Examples | None], _Found]) -> _Found | None:
        """A record, its examples and `more` that raises ValueError for damage; None if there is none, or if damaged."""
        if not self.path(key).is_dir():
            return None
        try:
            record = self.read(key)
            examples = self.examples(key) if record.status == "ok" else None
            if examples is not None:
                check_count(record, examples)
            return more(record, examples)
        except (OSError, ValueError) as error:
            _LOG.warning("damaged record, treated as missing: %s", error)
            return None

    def digest(self, keys: Iterable[str]) -> str:
        """SHA-256 over the files of these records, that of a report's input."""
        digest = hashlib.sha256()
        for key in keys:
            digest.update(f"{key}\n".encode())
            for name in FILES:
                digest.update(f"{name} {_file_digest(self.path(key) / name)}\n".encode())
        return digest.hexdigest()

    def read(self, key: str) -> Record:
        """The record. Raises FileNotFoundError if there is none, ValueError if it is damaged."""
        path = self.path(key) / FILES[0]
        text = text_of(path)
        try:
            record = Record.from_json(text)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if record.key != key:
            raise ValueError(f"{path}: Expected the key of its folder, got {record.key}")
        return record

    def readable(self) -> Iterator[tuple[str, Record]]:
        """Every record that can be read, without its examples; the others are logged as one line each."""
        for key in self.keys():
            try:
                yield key, self.read(key)
            except (OSError, ValueError) as error:
                _LOG.warning("damaged record, left out: %s", error)

    def examples(self, key: str) -> Examples:
        """The outcome of every example. Raises FileNotFoundError if there is none, ValueError if it is damaged."""
        return _load(self.path(key) / FILES[1], Examples)

    def gallery(self, key: str) -> Gallery | None:
        """The images that were kept, None if there are none. Raises ValueError if the file is damaged."""
        path = self.path(key) / FILES[2]
        return _load(path, Gallery) if path.exists() else None

    def write(self, record: Record, examples: Examples | None = None, gallery: Gallery | None = None) -> bool:
        """Keep a record; True if it was stored, False if a readable ``ok`` record was there already and stays.

        A failed, skipped or damaged record of the same key is replaced. Raises ValueError if a scored record comes
        without its examples, or with another number of them than it says.
        """
        if record.status == "ok":
            if examples is None:
                raise ValueError("Expected a scored record with its `examples`, got None")
            check_count(record, examples)
        self.sweep()
        prepared = self._prepare(record, examples, gallery)
        try:
            return self._publish(record.key, prepared)
        finally:
            shutil.rmtree(prepared, ignore_errors=True)

    def sweep(self, older_than: float = LEFTOVER_SECONDS) -> None:
        """Remove what killed writers left behind, once it is `older_than` seconds old."""
        with suppress(FileNotFoundError):
            for leftover in (self.folder / ".writing").iterdir():
                with suppress(OSError):
                    if time.time() - leftover.stat().st_mtime >= older_than:
                        shutil.rmtree(leftover)

    def _prepare(self, record: Record, examples: Examples | None, gallery: Gallery | None) -> Path:
        """Write all files of a record into a fresh folder, down to the disk."""
        folder = self._workspace()
        try:
            if examples is not None:
                _save(folder / FILES[1], examples)
            if gallery is not None:
                _save(folder / FILES[2], gallery)
            write_atomically(folder / FILES[0], record.to_json() + "\n")
            sums = "".join(f"{digest}  {name}\n" for name, digest in _sums(folder).items())
            write_atomically(folder / _SUMS, sums)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder

    def _workspace(self) -> Path:
        """A fresh folder on the records' file system, swept when its writer is killed."""
        folder = self.folder / ".writing" / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder

    def _publish(self, key: str, prepared: Path) -> bool:
        """Rename a prepared folder into place, moving a record that may be replaced out of the way."""
        for _ in range(_ATTEMPTS):
            try:
                prepared.rename(self.path(key))
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
            else:
                flush_folder(self.folder)
                return True
            if self.status(key) == "ok":
                return False
            retired = self._workspace()
            with suppress(FileNotFoundError):
                self.path(key).rename(retired / "record")
            shutil.rmtree(retired, ignore_errors=True)
        raise OSError(f"Expected to replace {self.path(key)}, but other writers kept doing so")


def _sums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a record that is there, by name."""
    sums = {}
    for name in FILES:
        if (folder / name).is_file():
            with (folder / name).open("rb") as file:
                sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def _file_digest(path: Path) -> str:
    """SHA-256 of a plain file; of anything else, what is wrong with it."""
    try:
        with open_plain(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        return f"none: {error}"


def check_count(record: Record, examples: Examples) -> None:
    """Raise ValueError if a record speaks of another number of images than it has outcomes."""
    n, attacked = record.dataset["n"], record.counts["examples"]
    if not len(examples) == n >= attacked:
        raise ValueError(f"{record.key}: Expected outcomes of {n:,} images, {attacked:,} attacked, got {len(examples):,}")


def _is_key(name: str) -> bool:
    try:
        check_key(name)
    except ValueError:
        return False
    return True


def _load(path: Path, kind: type[_Content]) -> _Content:
    """Read an `Examples` or a `Gallery` from `path`, without pickle."""
    names = [field.name for field in fields(kind)]
    try:
        arrays: dict[str, Any] = arrays_of(path, [name for name in names if name not in ADDED], ADDED.intersection(names))
    except ValueError as error:
        raise ValueError(f"{path}: Expected an archive of the arrays {', '.join(names)}, got {error!s:.160}") from None
    try:
        return kind(**arrays)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _save(path: Path, content: Examples | Gallery) -> None:
    arrays: dict[str, Any] = {field.name: getattr(content, field.name) for field in fields(content)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, buffer.getvalue())
