"""Archives that anyone may have made: one line within bounded memory, and nothing outside the store is written."""

from __future__ import annotations

import io
import json
import lzma
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advbench.results.archive import pack, read, unpack
from advbench.results.store import Store

KEYS = ["c" * 64, "a" * 64, "b" * 64]


@pytest.fixture(scope="module")
def packed(tmp_path_factory, make_record, make_examples):
    """The unpacked bytes of a good archive of three records."""
    place = tmp_path_factory.mktemp("packed")
    for key in KEYS:
        Store(place).write(make_record(key=key), make_examples())
    pack(Store(place), place / "a.tar.xz")
    return lzma.decompress((place / "a.tar.xz").read_bytes())


def _entries(packed):
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        return {entry.name: archive.extractfile(entry).read() for entry in archive}


def _archive(path, entries, **forms):
    """A tape archive under xz of plain files, and of entries (a TarInfo and its content)."""
    with tarfile.open(path, mode="w:xz", preset=0, **forms) as archive:
        for name, content in entries.items():
            entry = tarfile.TarInfo(name) if isinstance(content, bytes) else content
            content = content if isinstance(content, bytes) else b""
            if content:
                entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def _link(kind):
    entry = tarfile.TarInfo(f"{KEYS[0]}/examples.npz")
    entry.type, entry.linkname = kind, "/etc/passwd"
    return {"link": entry}


def _special(kind):
    entry = tarfile.TarInfo(f"{KEYS[0]}/record.json")
    entry.type = kind
    return {"special": entry}


@pytest.mark.parametrize(
    "entries",
    [
        {"/etc/passwd": b"x"},
        {f"../{KEYS[0]}/record.json": b"{}"},
        {"a/../../x": b"{}"},
        {f"{KEYS[0]}\x1b/record.json": b"{}"},
        _link(tarfile.SYMTYPE),
        _link(tarfile.LNKTYPE),
        _special(tarfile.FIFOTYPE),
        _special(tarfile.CHRTYPE),
        _special(tarfile.DIRTYPE),
        {f"{KEYS[0]}/{'long' * 100}": b"x"},
    ],
)
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_is_no_plain_file_of_a_record_is_refused(tmp_path, packed, entries, form):
    path = tmp_path / "a.tar.xz"
    _archive(path, _entries(packed) | entries, format=form)
    with pytest.raises(ValueError, match=r"\A.*Expected an archive of records.*\Z") as caught:
        unpack(path, Store(tmp_path / "back"))
    assert str(path) in str(caught.value)
    assert not (tmp_path / "back").exists()


def _header(kind, size):
    entry = tarfile.TarInfo("././@LongLink")
    entry.type, entry.size = kind, size
    return entry.tobuf(tarfile.GNU_FORMAT)


def _bombs():
    record = tarfile.TarInfo(f"{KEYS[0]}/record.json")
    record.size = 3 * 2**30
    return {
        "long name": _header(tarfile.GNUTYPE_LONGNAME, 3 * 2**30),
        "long link": _header(tarfile.GNUTYPE_LONGLINK, 3 * 2**30),
        "pax": _header(tarfile.XHDTYPE, 3 * 2**30),
        "global pax": _header(tarfile.XGLTYPE, 3 * 2**30),
        "record": record.tobuf(tarfile.USTAR_FORMAT),
        "nothing": b"",
    }


WITHIN = """
import resource, sys
from pathlib import Path
from advbench.results.archive import read
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20, used + 400 * 2**20))
try:
    read(Path(sys.argv[1]))
except ValueError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", list(_bombs()))
def test_a_small_archive_never_fills_the_memory(tmp_path, kind, packed):
    files = packed.rstrip(b"\0")
    head, byte = (_bombs()[kind], b"\0") if kind != "nothing" else (files + bytes(-len(files) % 512), b"\1")
    path = tmp_path / "bomb.tar.xz"
    path.write_bytes(lzma.compress(head) + 40 * lzma.compress(byte * 2**24))
    assert path.stat().st_size < 2**18
    found = subprocess.run([sys.executable, "-c", WITHIN, path], capture_output=True, text=True, check=False, timeout=100)
    assert found.stderr == ""
    (line,) = found.stdout.splitlines()
    assert line.startswith(f"{path}: Expected an archive of records (.tar.xz), got ")
    assert "MemoryError" not in line


@pytest.mark.parametrize(
    "content",
    [b"{", b"[" * 100_000, b'{"schema_version": 2}', b"\xff", b"x" * (2**20 + 1)],
)
def test_one_bad_record_is_named_and_left_out(tmp_path, packed, caplog, content):
    path = tmp_path / "a.tar.xz"
    _archive(path, _entries(packed) | {f"{KEYS[0]}/record.json": content})
    assert unpack(path, Store(tmp_path / "back")) == sorted(KEYS[1:])
    (line,) = caplog.messages
    assert KEYS[0] in line
    assert str(path) in line
    assert "\n" not in line


def test_a_record_under_another_key_and_one_of_other_images_are_left_out(tmp_path, packed, caplog):
    entries = _entries(packed)
    record = json.loads(entries[f"{KEYS[1]}/record.json"])
    entries[f"{KEYS[0]}/record.json"] = json.dumps(record).encode()
    record["dataset"]["n"] = 5
    entries[f"{KEYS[1]}/record.json"] = json.dumps(record).encode()
    _archive(tmp_path / "a.tar.xz", entries)
    assert [record.key for record, _ in read(tmp_path / "a.tar.xz")] == [KEYS[2]]
    assert ["Expected the key of its folder" in line for line in sorted(caplog.messages)] == [False, True]


@pytest.mark.parametrize(
    "places",
    [
        [],
        {},
        {KEYS[0]: 3},
        {KEYS[0]: {"n": 4, "draws": 1, "values": None, "rows": []}},
        {KEYS[0]: {"n": -4, "draws": 1, "values": None, "rows": {"index": ["int64", 0]}}},
        {KEYS[0]: {"n": 4, "draws": 1, "values": None, "rows": {"index": ["int64", -4]}}},
        {KEYS[0]: {"n": 4, "draws": 1, "values": None, "rows": {"index": ["int64", "0"]}}},
        {KEYS[0]: {"n": 4, "draws": 1, "values": 0, "rows": {"distance_l2": ["float32", 0]}}},
        {KEYS[0]: {"n": 4, "draws": 1, "values": 10**400, "rows": {"distance_l2": ["float32", 0]}}},
        {KEYS[0]: {"n": 4, "draws": 1, "values": "x", "rows": {"distance_l2": ["float32", 0]}}},
        {KEYS[0]: {"n": 4, "draws": 1, "values": None, "rows": {"key": ["int64", 0]}}},
    ],
)
def test_places_that_cannot_be_are_one_line(tmp_path, packed, places):
    path = tmp_path / "a.tar.xz"
    _archive(path, _entries(packed) | {"examples.json": json.dumps(places).encode()})
    with pytest.raises(ValueError, match=r"\A.*Expected whole records.*\Z"):
        read(path)


def _claims(shape, descr="<i8"):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00v\x00" + header


@pytest.mark.parametrize(
    "table",
    [
        b"",
        _claims("(1000000000000,)"),
        _claims("(-1,)"),
        _claims("(0, 1" + "0" * 30 + ")"),
        _claims("(1,)", "|O") + bytes(8),
        _claims("(1,)", "|V8") + bytes(8),
        _claims("((" * 20),
        _claims("[1]"),
    ],
)
def test_tables_that_cannot_be_are_one_line(tmp_path, packed, table):
    path = tmp_path / "a.tar.xz"
    _archive(path, _entries(packed) | {"int64.npy": table})
    with pytest.raises(ValueError, match=r"\A.*Expected whole records.*\Z"):
        read(path)


def test_nothing_in_an_archive_is_unpickled(tmp_path, packed):
    buffer = io.BytesIO()
    np.save(buffer, np.array([print], dtype=object), allow_pickle=True)
    _archive(tmp_path / "a.tar.xz", _entries(packed) | {"int64.npy": buffer.getvalue()})
    with pytest.raises(ValueError, match="objects, which hold code"):
        read(tmp_path / "a.tar.xz")


@given(
    place=st.integers(0, 10**6),
    what=st.binary(min_size=1, max_size=20),
    length=st.none() | st.integers(0, 10**4),
    outside=st.booleans(),
)
def test_any_archive_is_records_or_one_line(tmp_path_factory, packed, place, what, length, outside):
    """Bytes are exchanged and cut off, in the packed file or in what it holds."""

    def spoilt(content):
        begin = place % len(content)
        changed = content[:begin] + what + content[begin + len(what) :]
        return changed if length is None else changed[: length % len(changed)]

    path = tmp_path_factory.mktemp("fuzz") / "a.tar.xz"
    path.write_bytes(spoilt(lzma.compress(packed)) if outside else lzma.compress(spoilt(packed), preset=0))
    try:
        found = [record.key for record, _ in read(path)]
        lines = ["a value"]
    except ValueError as error:
        found, lines = [], str(error).splitlines()
    assert set(found) <= set(KEYS)
    assert len(lines) == 1
