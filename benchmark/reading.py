"""Files that anyone may have written, read within bounded memory and without pickle; never imports torch.

What a small file can claim is no measure of what is read: sizes are compared with what the file can hold before anything is
allocated. Whatever is wrong is a ValueError of one line.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import stat
import zipfile
from collections.abc import Collection
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

LARGEST_TEXT = 2**20
"""Bytes that a text file, such as a record or a configuration, may have; the longest that was ever written has 4,000."""
SMALL = 2**28
"""Bytes that any compressed file may have unpacked."""
_RATIO = 100
"""How many times its own size a larger file may have unpacked; images and outcomes reach 30."""
_CONTAINERS = 10_000
"""The lists and objects of a JSON text, each of which takes many times its bytes in memory."""
_HARDEST = 1100
"""The highest ratio that deflate reaches is 1,032."""
_HEADER = 10_000
_PREFIX = 8
"""Bytes in front of the header of an array: its magic number and version."""
_LENGTHS = {(1, 0): 2, (2, 0): 4}
"""Bytes of a header's length, by version."""

_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_KINDS = (
    (stat.S_ISDIR, "folder"),
    (stat.S_ISFIFO, "FIFO"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)


def unseen(text: str) -> bool:
    """Whether `text` has characters that no reader sees or no file holds.

    These are control characters other than tabs and line breaks, marks that turn the direction of writing, and lone
    surrogates.

    >>> unseen("8/255"), unseen("\\x1b[2J")
    (False, True)
    """
    return _UNSEEN.search(text) is not None


def seen(text: str) -> str:
    """`text` with U+FFFD in place of each character that `unseen` finds.

    >>> seen("a\\x00b").encode("ascii", "backslashreplace")
    b'a\\\\ufffdb'
    """
    return _UNSEEN.sub("\ufffd", text)


def open_plain(path: Path) -> BufferedReader:
    """Open a plain file for reading; a FIFO, on which opening would wait for ever, is refused.

    Links are followed. Raises OSError as `open` does, and ValueError for anything but a plain file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = next((name for test, name in _KINDS if test(mode)), "special file")
        raise ValueError(f"Expected a plain file, got a {kind}")
    return os.fdopen(descriptor, "rb")


def read_text(file: IO[bytes], largest: int = LARGEST_TEXT) -> str:
    """The UTF-8 text of an open file. Raises ValueError for more than `largest` bytes or for no text."""
    content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"Expected at most {largest:,} bytes of text, got more")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("Expected UTF-8 text, got other bytes") from None


def text_of(path: Path, largest: int = LARGEST_TEXT) -> str:
    """The text of a plain file. Raises as `open_plain` and `read_text`, with the path."""
    try:
        with open_plain(path) as file:
            return read_text(file, largest)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def json_of(text: str, containers: int = _CONTAINERS) -> Any:
    """The value of a JSON text. Raises ValueError for no JSON, deep nesting, or more than so many lists and objects."""
    if text.count("[") + text.count("{") > containers:
        raise ValueError(f"more than {containers:,} lists and objects")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("values that are nested too deeply") from None


def allowance(packed: int) -> int:
    """Bytes that a compressed file of `packed` bytes may have unpacked; never more than the machine's memory."""
    return min(max(SMALL, _RATIO * packed), _memory())


def check_memory(size: int, what: str) -> None:
    """Raise ValueError if `size` bytes do not fit the machine's memory. what: of which they are, for the message."""
    if size > _memory():
        raise ValueError(f"Expected {what} that fit the memory ({_memory():,} bytes), got {size:,} bytes")


def _memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 2**35


def arrays_of(
    path: Path, required: Collection[str], optional: Collection[str] = (), *, largest: int | None = None
) -> dict[str, NDArray[Any]]:
    """The arrays of a NumPy archive by name, without pickle.

    largest: bytes that they may have together; by default what `allowance` gives for the file.
    Raises OSError as `open` does, and ValueError for a damaged file, a missing array, objects, or sizes that the file cannot
    hold or that are too large.
    """
    with open_plain(path) as file:
        allowed = allowance(os.fstat(file.fileno()).st_size) if largest is None else largest
        try:
            if file.read(6) == b"\x93NUMPY":
                raise ValueError("it is a single array")
            with zipfile.ZipFile(file) as archive:
                members = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
                missing = [name for name in required if name not in members]
                if missing:
                    raise ValueError(f"it lacks {', '.join(missing)}")
                wanted = {name: members[name] for name in (*required, *optional) if name in members}
                _check_sizes(wanted.values(), allowed)
                return {name: _member(archive, entry) for name, entry in wanted.items()}
        except (OSError, ValueError):
            raise
        except Exception as error:  # zipfile and zlib answer damaged bytes with a dozen kinds of exceptions
            raise ValueError(f"it is damaged ({error!s:.80})") from None


def array_of(content: bytes | bytearray) -> NDArray[Any]:
    """The array of an ``npy`` file's bytes, without pickle and without a copy. Raises ValueError for anything else."""
    shape, fortran, dtype, begin = _header(content)
    flat = np.frombuffer(content, dtype, math.prod(shape), begin)
    return flat.reshape(shape, order="F" if fortran else "C")


def _check_sizes(entries: Collection[zipfile.ZipInfo], allowed: int) -> None:
    for entry in entries:
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{entry.filename:.80} is compressed by another method than deflate")
        ratio = 1 if entry.compress_type == zipfile.ZIP_STORED else _HARDEST
        if entry.file_size > ratio * entry.compress_size:
            raise ValueError(f"{entry.filename:.80} claims {entry.file_size:,} bytes, more than the file can hold")
    total = sum(entry.file_size for entry in entries)
    if total > allowed:
        raise ValueError(f"its arrays have {total:,} bytes, more than the {allowed:,} that a file of this size may have")


def _member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray[Any]:
    with cast(zipfile.ZipExtFile, archive.open(entry)) as file:
        content = bytearray(entry.file_size)
        room, filled = memoryview(content), 0
        while filled < len(content):
            count = file.readinto(room[filled:])
            if not count:
                raise ValueError(f"{entry.filename:.80} is cut off")
            filled += count
        file.read(1)  # the end, where the checksum is compared
    return array_of(content)


def _header(content: bytes | bytearray) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, order, type and place of the values of an ``npy`` file, which they must fill exactly."""
    version = np.lib.format.read_magic(io.BytesIO(content[:_PREFIX]))
    if version not in _LENGTHS:
        raise ValueError(f"Expected an array of format 1.0 or 2.0, got {version}")
    begin = _PREFIX + _LENGTHS[version]
    begin += min(int.from_bytes(content[_PREFIX:begin], "little"), _HEADER + 1)
    shape, fortran, dtype = _described(version, bytes(content[_PREFIX:begin]))
    if dtype.hasobject:
        raise ValueError("Expected numbers, got an array of objects, which hold code")
    if dtype.kind not in "biufc":
        raise ValueError(f"Expected numbers, got an array of {dtype!s:.60}")
    size = len(content) - begin
    if any(not 0 <= length < 2**62 for length in shape) or math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"Expected an array of {size:,} bytes, got one that claims {dtype} of shape {shape!s:.60}")
    return shape, fortran, dtype, begin


@lru_cache(maxsize=256)
def _described(version: tuple[int, int], header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type in a header, its length first; those of the records of a run are few."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        return readers[version](io.BytesIO(header), max_header_size=_HEADER)
    except Exception as error:  # a header is a Python literal, whose parser has its own errors
        raise ValueError(f"Expected an array, got a damaged header ({error!s:.60})") from None
