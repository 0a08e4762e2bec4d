"""Records in one file: they come back as they were, and damaged files say so in one line."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest

from advbench.results.archive import pack, unpack
from advbench.results.record import EXAMPLE_DTYPES
from advbench.results.store import Store

KEYS = ["0123456789abcdef" * 4, "f" * 64, "a" * 64]


@pytest.fixture
def store(tmp_path, make_record, make_examples):
    store = Store(tmp_path / "out")
    store.write(make_record(key=KEYS[0]), make_examples(draws=7, distance_linf=np.array([0.0, 0.25, np.nan, np.inf])))
    store.write(make_record(key=KEYS[1]), make_examples())
    store.write(make_record(key=KEYS[2], status="error", reason="it broke", counts={}))
    return store


def test_records_come_back_as_they_were(store, tmp_path):
    assert pack(store, tmp_path / "a.tar.xz") == 3
    back = Store(tmp_path / "back")
    assert unpack(tmp_path / "a.tar.xz", back) == sorted(KEYS)
    assert back.keys() == store.keys()
    for key in KEYS:
        assert back.read(key) == store.read(key)
    for key in KEYS[:2]:
        for name in EXAMPLE_DTYPES:
            np.testing.assert_array_equal(getattr(back.examples(key), name), getattr(store.examples(key), name))
        assert back.examples(key).draws == store.examples(key).draws


def test_the_same_records_give_the_same_bytes(store, tmp_path):
    pack(store, tmp_path / "a.tar.xz")
    back = Store(tmp_path / "back")
    unpack(tmp_path / "a.tar.xz", back)
    pack(back, tmp_path / "b.tar.xz")
    assert (tmp_path / "a.tar.xz").read_bytes() == (tmp_path / "b.tar.xz").read_bytes()


def test_a_missing_record_cannot_be_packed(store, tmp_path):
    with pytest.raises(ValueError, match="Expected a readable record at"):
        pack(store, tmp_path / "a.tar.xz", [KEYS[0], "b" * 64])


def test_some_records_can_be_packed_alone(store, tmp_path):
    assert pack(store, tmp_path / "a.tar.xz", KEYS[:1]) == 1
    assert unpack(tmp_path / "a.tar.xz", Store(tmp_path / "back")) == KEYS[:1]


def _archive(path, entries):
    with tarfile.open(path, mode="w:xz") as archive:
        for name, content in entries.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize("name", ["../" * 21 + "x/record.json", "/etc/passwd", "a/record.json", "A" * 64 + "/record.json"])
def test_a_name_that_is_no_key_never_becomes_a_path(tmp_path, name):
    _archive(tmp_path / "a.tar.xz", {name: b"{}"})
    with pytest.raises(ValueError, match="Expected an archive of records"):
        unpack(tmp_path / "a.tar.xz", Store(tmp_path / "back"))
    assert not (tmp_path / "back").exists()


def test_a_truncated_archive_and_one_without_a_record_say_so_in_one_line(store, tmp_path):
    whole = tmp_path / "a.tar.xz"
    pack(store, whole)
    whole.write_bytes(whole.read_bytes()[:-200])
    _archive(tmp_path / "b.tar.xz", {f"{KEYS[0]}/index.npy": b""})
    (tmp_path / "c.tar.xz").write_bytes(b"not an archive")
    for name in "abc":
        with pytest.raises(ValueError, match="Expected") as caught:
            unpack(tmp_path / f"{name}.tar.xz", Store(tmp_path / "back"))
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="Expected an archive of records at"):
        unpack(tmp_path / "none.tar.xz", Store(tmp_path / "back"))
