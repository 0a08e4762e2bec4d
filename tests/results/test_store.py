from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from advbench.results import store as store_module
from advbench.results.record import EXAMPLE_DTYPES, Gallery
from advbench.results.store import Store

KEY = "0123456789abcdef" * 4


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "out")


def gallery(m=2):
    labels = {name: np.arange(m) for name in ("index", "label", "prediction")}
    images = np.random.default_rng(0).random((2, m, 1, 3, 3), dtype=np.float32)
    return Gallery(clean=images[0], adversarial=images[1], **labels)


def test_a_record_comes_back_as_it_was_written(store, make_record, make_examples):
    examples = make_examples(draws=7, distance_linf=np.array([0.0, 0.25, np.nan, np.inf]))
    assert store.keys() == []
    assert store.status(KEY) is None
    assert store.write(make_record(), examples, gallery())
    assert store.keys() == [KEY]
    assert store.status(KEY) == "ok"
    assert store.read(KEY) == make_record()
    back = store.examples(KEY)
    assert back.draws == 7
    for name in EXAMPLE_DTYPES:
        np.testing.assert_array_equal(getattr(back, name), getattr(examples, name))
        assert getattr(back, name).dtype == getattr(examples, name).dtype
    np.testing.assert_array_equal(store.gallery(KEY).adversarial, gallery().adversarial)
    assert not list((store.folder / ".writing").iterdir())


def test_records_from_before_rejected_errors_were_counted_are_read(store, make_record, make_examples):
    one = np.array([1, 0, 1, 0], np.int16)
    record = make_record()
    store.write(record, make_examples(report_wrong=one, report_rejected=one))
    path = store.path(record.key) / "examples.npz"
    with np.load(path) as file:
        kept = {name: file[name] for name in file.files if name != "fooled_rejected"}
    assert len(kept) > 10
    np.savez_compressed(path, **kept)
    assert store.examples(record.key).fooled_rejected.tolist() == one.tolist()


def test_a_record_without_images_has_no_gallery(store, make_record, make_examples):
    store.write(make_record(), make_examples())
    assert store.gallery(KEY) is None


def test_a_scored_record_without_examples_is_refused(store, make_record):
    with pytest.raises(ValueError, match="with its `examples`, got None"):
        store.write(make_record())
    assert store.keys() == []


@pytest.mark.parametrize("key", ["", "../" * 21 + "x", "A" * 64, "0" * 63, "0" * 65, "0" * 63 + "\n", None])
def test_a_key_is_checked_before_it_becomes_a_path(store, key):
    for question in (store.status, store.read, store.examples, store.gallery, store.path):
        with pytest.raises(ValueError, match="Expected a key of 64 hex digits"):
            question(key)


def test_an_error_is_replaced_and_a_finished_record_stays(store, make_record, make_examples):
    assert store.write(make_record(status="error", reason="first", counts={}))
    assert store.write(make_record(status="error", reason="second", counts={}))
    assert store.read(KEY).reason == "second"
    assert store.write(make_record(seed=1), make_examples())
    assert not store.write(make_record(seed=2), make_examples())
    assert not store.write(make_record(status="error", reason="late", counts={}))
    assert store.status(KEY) == "ok"
    assert store.read(KEY).seed == 1


@pytest.mark.parametrize("name", ["record.json", "examples.npz", "gallery.npz"])
@pytest.mark.parametrize("damage", ["truncated", "emptied", "wiped"])
def test_a_damaged_record_is_one_line_and_counts_as_missing(store, make_record, make_examples, caplog, name, damage):
    store.write(make_record(), make_examples(), gallery())
    path = store.path(KEY) / name
    content = path.read_bytes()
    middle = len(content) // 2
    wiped = content[:middle] + bytes(64) + content[middle + 64 :]
    path.write_bytes({"truncated": content[:middle], "emptied": b"", "wiped": wiped}[damage])
    with caplog.at_level(logging.WARNING, logger="advbench"):
        assert store.status(KEY) is None
    (message,) = caplog.messages
    assert str(path) in message
    assert "\n" not in message
    assert store.keys() == [KEY]
    assert store.write(make_record(), make_examples(), gallery()), "a damaged record can be written again"
    assert store.status(KEY) == "ok"


def test_a_whole_record_is_recognised_without_reading_its_arrays(store, make_record, make_examples, monkeypatch):
    record = make_record()
    store.write(record, make_examples())
    read = []
    honest = store_module.arrays_of
    monkeypatch.setattr(store_module, "arrays_of", lambda *given: read.append(given[0].name) or honest(*given))
    assert store.status(record.key) == "ok"
    assert read == []
    (store.path(record.key) / "SHA256SUMS").unlink()  # as earlier versions wrote records
    assert store.status(record.key) == "ok"
    assert read == ["examples.npz"]


@pytest.mark.parametrize("name", ["record.json", "examples.npz"])
def test_one_flipped_bit_in_any_file_of_a_record_is_noticed(store, make_record, make_examples, name):
    record = make_record()
    store.write(record, make_examples())
    path = store.path(record.key) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert not store._as_written(record.key)


@pytest.mark.parametrize("sums", ["", "nonsense", "0" * 64 + "  record.json\n", "\xff", "a  b  c\n"])
def test_hashes_that_do_not_fit_are_no_proof(store, make_record, make_examples, sums):
    record = make_record()
    store.write(record, make_examples())
    (store.path(record.key) / "SHA256SUMS").write_text(sums, encoding="utf-8")
    assert not store._as_written(record.key)
    assert store.status(record.key) == "ok"


def test_a_scored_record_that_lost_its_examples_counts_as_missing(store, make_record, make_examples):
    store.write(make_record(), make_examples())
    (store.path(KEY) / "examples.npz").unlink()
    assert store.status(KEY) is None


def test_a_record_under_a_foreign_key_is_damaged(store, make_record, make_examples):
    store.write(make_record(), make_examples())
    store.path(KEY).rename(store.folder / ("b" * 64))
    assert store.status("b" * 64) is None
    with pytest.raises(ValueError, match="Expected the key of its folder"):
        store.read("b" * 64)


def test_pickled_arrays_are_not_loaded(store, make_record, make_examples):
    store.write(make_record(), make_examples())
    arrays = {name: np.zeros(4) for name in (*EXAMPLE_DTYPES, "draws")}
    arrays["label"] = np.array([print], dtype=object)
    np.savez(store.path(KEY) / "examples.npz", allow_pickle=True, **arrays)
    with pytest.raises(ValueError, match="Expected an archive of the arrays"):
        store.examples(KEY)


def test_leftovers_are_ignored_and_swept_once_they_are_old(store, make_record, make_examples):
    leftover = store.folder / ".writing" / "deadbeef"
    leftover.mkdir(parents=True)
    (leftover / "record.json").write_text("{")
    store.write(make_record(), make_examples())
    assert store.keys() == [KEY]
    assert leftover.exists(), "a leftover this young may belong to a living writer"
    os.utime(leftover, (0, 0))
    store.write(make_record(), make_examples())
    assert not leftover.exists()


WRITER = """
import itertools, os, sys
from pathlib import Path
import numpy as np
from advbench.results.record import DISTANCES, Examples, Record
from advbench.results import store as store_module
from advbench.results.store import Store

store, template = Store(Path(sys.argv[1])), Record.from_json(sys.stdin.read())
n = 500
print("ready", flush=True)
for round in itertools.count():
    values = np.random.default_rng().random(n)
    arrays = dict.fromkeys(("index", "label", "clean_prediction", "clean_correct", "select_correct", "report_correct"))
    arrays = {name: np.arange(n) if name == "index" else np.full(n, round % 2) for name in arrays}
    examples = Examples(draws=1, **arrays, **dict.fromkeys(DISTANCES, values), image_l2=values)
    content = {name: getattr(template, name) for name in template.__slots__}
    for key in ("a" * 64, f"{os.getpid():032x}{round:032x}"):
        status = "error" if key.startswith("a") else "ok"
        store.write(Record(**content | {"key": key, "status": status, "details": {"parity": round % 2}}), examples)
"""


def test_a_reader_never_sees_half_a_record_whenever_the_writer_is_killed(tmp_path, make_record):
    """Writers are killed at random moments while a reader checks every record that it finds."""
    store, halves, done = Store(tmp_path), [], threading.Event()

    def read():
        while not done.is_set():
            halves.extend(_unreadable(store))

    reader = threading.Thread(target=read)
    reader.start()
    rng = np.random.default_rng(0)
    for _ in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        writer.stdin.write(make_record(dataset=make_record().dataset | {"n": 500}).to_json())
        writer.stdin.close()
        assert writer.stdout.readline() == "ready\n"
        already, patience = len(store.keys()), time.monotonic() + 90
        while len(store.keys()) < already + 2 and time.monotonic() < patience:
            time.sleep(0.01)
        time.sleep(0.1 * rng.random())
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
    done.set()
    reader.join()
    assert halves == []
    assert len(store.keys()) >= 10
    assert _unreadable(store) == []
    store.sweep(older_than=0)
    assert not list((store.folder / ".writing").iterdir())


def _unreadable(store):
    """Keys of the finished records, written once each, that do not come back whole."""
    return [key for key in set(store.keys()) - {"a" * 64} if store.status(key) != "ok"]
