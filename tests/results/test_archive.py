"""Records in one file: they come back as they were, and damaged files say so in one line."""

from __future__ import annotations

import dataclasses
import io
import json
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
    minimal = {**make_record().attack, "minimal_norm": True}
    distance = np.array([0.0, 0.25, np.nan, np.inf])
    store.write(make_record(key=KEYS[0], attack=minimal), make_examples(draws=7, distance_linf=distance))
    store.write(make_record(key=KEYS[1], attack=minimal), make_examples())
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


def _write_first_form(store, path):
    """An archive as it was before rows were shared: every array of every record, in double precision."""
    entries = {}
    for key in KEYS:
        entries[f"{key}/record.json"] = store.read(key).to_json().encode()
        if store.status(key) == "ok":
            examples = store.examples(key)
            for name in (*EXAMPLE_DTYPES, "draws"):
                buffer = io.BytesIO()
                np.save(buffer, np.asarray(getattr(examples, name)))
                entries[f"{key}/{name}.npy"] = buffer.getvalue()
    _archive(path, entries)


def test_archives_of_the_first_form_are_read(store, tmp_path):
    _write_first_form(store, tmp_path / "old.tar.xz")
    back = Store(tmp_path / "back")
    assert unpack(tmp_path / "old.tar.xz", back) == sorted(KEYS)
    pack(back, tmp_path / "a.tar.xz")
    pack(store, tmp_path / "b.tar.xz")
    assert (tmp_path / "a.tar.xz").read_bytes() == (tmp_path / "b.tar.xz").read_bytes()


@pytest.mark.parametrize("minimal_norm", [True, False])
def test_distances_are_exact_where_they_are_the_result_else_of_single_precision(
    minimal_norm, tmp_path, make_record, make_examples
):
    store, back = Store(tmp_path / "out"), Store(tmp_path / "back")
    record = make_record(key=KEYS[0])
    attack = {**record.attack, "minimal_norm": minimal_norm}
    distance = np.array([1 / 3, np.pi, np.nan, np.inf])
    lengths = {"distance_l2": distance, "distance_l1": 2 * distance, "rms": distance / 784**0.5}
    detected = {
        "clean_score": distance[[0, 1, 0, 1]],
        "clean_rejected": np.array([0, 1, 0, 0]),
        "report_rejected": np.array([0, 1, 1, 0]),
        "report_wrong": np.array([1, 1, 0, 0]),
    }
    store.write(dataclasses.replace(record, attack=attack), make_examples(**lengths, **detected))
    pack(store, tmp_path / "a.tar.xz")
    unpack(tmp_path / "a.tar.xz", back)
    found = back.examples(KEYS[0])
    for name, wanted in lengths.items():
        np.testing.assert_allclose(getattr(found, name), wanted, rtol=0 if minimal_norm else 2**-23)
        assert np.array_equal(getattr(found, name), wanted, equal_nan=True) == minimal_norm
    for name, wanted in detected.items():
        np.testing.assert_array_equal(getattr(found, name), wanted)


def test_what_many_records_share_is_kept_once(tmp_path, make_record, make_examples):
    distances = {name: np.random.default_rng(0).uniform(size=500) for name in ("distance_l1", "distance_l2")}
    sizes = []
    for count in (1, 8):
        store = Store(tmp_path / str(count))
        for i in range(count):
            dataset = make_record().dataset | {"n": 500}
            store.write(make_record(key=f"{i:064x}", dataset=dataset), make_examples(500, **distances))
        pack(store, tmp_path / "a.tar.xz")
        sizes.append((tmp_path / "a.tar.xz").stat().st_size)
    assert sizes[1] < sizes[0] + 7 * 100


@pytest.mark.parametrize("spoilt", ["places", "short", "huge"])
def test_a_record_that_the_tables_do_not_fit_is_named_and_left_out(spoilt, store, tmp_path, caplog):
    pack(store, tmp_path / "a.tar.xz")
    with tarfile.open(tmp_path / "a.tar.xz") as archive:
        entries = {entry.name: archive.extractfile(entry).read() for entry in archive}
    places = json.loads(entries["examples.json"])
    if spoilt == "places":
        del places[KEYS[0]]
    elif spoilt == "short":
        places[KEYS[0]]["rows"]["label"] = ["int64", 7]
    else:
        places[KEYS[0]]["n"] = 2**40
    entries["examples.json"] = json.dumps(places).encode()
    _archive(tmp_path / "b.tar.xz", entries)
    assert unpack(tmp_path / "b.tar.xz", Store(tmp_path / "back")) == sorted(KEYS[1:])
    (line,) = caplog.messages
    assert line.startswith(f"damaged record, left out: {tmp_path / 'b.tar.xz'}: {KEYS[0]}: ")
    assert "\n" not in line


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
