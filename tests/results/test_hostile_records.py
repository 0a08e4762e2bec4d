"""Records that anyone may have written: one line for each bad one, and the rest of the folder is read all the same."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advbench.results.record import Record
from advbench.results.store import Store

OTHER = "b" * 64


@pytest.fixture
def content(make_record):
    return json.loads(make_record().to_json())


def _put(content, path, value):
    """`content` with `value` at a path such as ``details.crafts``."""
    *parents, last = path.split(".")
    place = content
    for name in parents:
        place = place.setdefault(name, {})
    place[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("threat.norm", "l99"),
        ("threat.epsilon", -1),
        ("threat.epsilon", 0),
        ("threat.epsilon", 10**400),
        ("threat.box", [1, 0]),
        ("threat.box", [0, 1, 2]),
        ("threat.box", ["0", "1"]),
        ("dataset.n", 10**9),
        ("dataset.n", -1),
        ("seed", -1),
        ("counts.forwards", -1),
        ("counts.queries", 2**63),
        ("target.stochastic", 1),
        ("target.defense", {"name": "none", "arguments": []}),
        ("attack.parts", {"pgd": 3}),
        ("attack.family", 3),
        ("attack.gradients", "yes"),
        ("details.compute_batch", "64"),
        ("details.crafts", "c" * 64),
        ("details.crafts", ["../../../../etc/passwd"]),
        ("details.model_key", "../model"),
        ("details.train", []),
        ("details.train_seconds", "long"),
        ("details.candidates", {"faithful": "all"}),
        ("details.candidates", [1]),
        ("details.draws", {"faithful": "10"}),
        ("details.draws", {"faithful": 0}),
        ("details.diagnosis", {"flat": 3}),
        ("details.diagnosis", [1, 2]),
        ("details.preparation", {"faithful": 3}),
        ("details.preparation", {"faithful": {"capped": True, "draws": "64", "cosines": []}}),
        ("details.calibration", {"c": 1}),
        ("details.unit_test", {"images": 3}),
        ("details.substitute", {"queries": "many"}),
        ("details.substitute", 3),
        ("measured.seconds", -1.0),
        ("measured.seconds", "2 s"),
        ("measured.peak_memory_bytes", 1.5),
        ("measured.device", 3),
        ("measured.environment", "laptop"),
        ("measured.environment", {"torch": [1]}),
        ("target.label", "a\x00b"),
        ("target.label", "\x1b[2Jnone"),
        ("attack.label", "pgd\x85"),
        ("attack.name", "p\u202egd"),
        ("dataset.name", "\ud800"),
        ("details.\udfff", 1),
    ],
)
def test_a_value_that_cannot_be_is_one_line(content, path, value):
    text = json.dumps(_put(content, path, value))
    with pytest.raises(ValueError, match=r"\A.*Expected.*\Z") as caught:
        Record.from_json(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "deep", ["[" * 100_000, '{"details":' * 100_000, "[" * 500 + "]" * 500, '{"a":' * 300 + "1" + "}" * 300]
)
def test_deep_nesting_is_one_line(content, deep):
    for text in (deep, json.dumps(content).replace('"details": {}', f'"details": {{"x": {deep}}}')):
        with pytest.raises(ValueError, match=r"\AExpected .*\Z"):
            Record.from_json(text)


def test_a_python_value_that_is_too_deep_is_refused_too(make_record):
    deep: list[object] = []
    for _ in range(10_000):
        deep = [deep]
    with pytest.raises(ValueError, match="at most 64 deep"):
        make_record(details={"x": deep})


def test_texts_of_our_own_are_cleaned_so_that_their_records_can_be_read(make_record):
    reason = "RuntimeError: \x1b[31mno\x1b[0m \ud800 file \udce9.pt"
    record = make_record(status="error", reason=reason, counts={}, details={"a\x00": ["\x07"]})
    assert record.reason == "RuntimeError: \ufffd[31mno\ufffd[0m \ufffd file \ufffd.pt"
    assert record.details == {"a\ufffd": ["\ufffd"]}
    assert Record.from_json(record.to_json()) == record


def test_old_reasons_with_control_characters_are_still_read(make_record):
    content = json.loads(make_record(status="error", counts={}).to_json()) | {"reason": "bad \x1b[31m thing"}
    assert Record.from_json(json.dumps(content)).reason == "bad \ufffd[31m thing"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PATHS = (
    *("key", "status", "reason", "matrix", "source", "weights_sha256", "seed", "schema_version", "dataset", "target"),
    *("attack", "threat", "counts", "details", "measured", "dataset.n", "dataset.name", "target.defense", "threat.box"),
    *("target.architecture.arguments", "attack.arguments", "attack.parts", "threat.epsilon", "counts.examples"),
    *(f"details.{name}" for name in ("crafts", "candidates", "draws", "diagnosis", "preparation", "unit_test")),
    *(f"measured.{name}" for name in ("seconds", "environment", "device", "threads")),
)


@given(changes=st.lists(st.tuples(st.sampled_from(PATHS), json_values), min_size=1, max_size=3))
def test_any_record_is_a_value_or_one_line(make_record, changes):
    content = json.loads(make_record().to_json())
    for path, value in changes:
        try:
            _put(content, path, value)
        except (AttributeError, TypeError):  # an earlier change took the place away
            continue
    try:
        record = Record.from_json(json.dumps(content))
    except ValueError as error:
        lines = str(error).splitlines()
    else:
        lines = ["a value"]
        assert Record.from_json(record.to_json()) == record
    assert len(lines) == 1


@given(text=st.text(st.sampled_from('[]{}":,0123456789.eE+-ntfalsrue\\u d8'), max_size=60))
def test_any_text_is_one_line(text):
    with pytest.raises(ValueError, match=r"\AExpected .*\Z"):
        Record.from_json(text)


# --- a folder with bad records


def _fifo(path):
    path.unlink()
    os.mkfifo(path)


def _loop(path):
    path.unlink()
    path.symlink_to(path)


def _folder(path):
    path.unlink()
    path.mkdir()


def _terabytes(path):
    """An archive whose index claims 8 TB, with a sane size in its directory."""
    header = (
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117)
        + b"\n"
    )
    _exchange(path, "index.npy", header)


def _bomb(path):
    _exchange(path, "index.npy", bytes(600 * 2**20))


def _exchange(path, member, content):
    with zipfile.ZipFile(path) as archive:
        rest = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, old in rest.items():
            archive.writestr(name, content if name == member else old)


@pytest.mark.parametrize("name", ["record.json", "examples.npz"])
@pytest.mark.parametrize("spoil", [_fifo, _loop, _folder])
def test_a_bad_file_of_a_record_is_named_and_the_record_counts_as_missing(
    tmp_path, make_record, make_examples, caplog, name, spoil
):
    store = Store(tmp_path)
    store.write(make_record(), make_examples())
    store.write(make_record(key=OTHER), make_examples())
    spoil(store.path(OTHER) / name)
    with caplog.at_level(logging.WARNING, logger="advbench"):
        found = [store.load(key) for key in store.keys()]  # noqa: SIM118 - a store is no mapping
    assert [parts is not None for parts in found] == [True, False]
    (line,) = caplog.messages
    assert str(store.path(OTHER) / name) in line
    assert "\n" not in line
    assert store.write(make_record(key=OTHER), make_examples()), "it can be done again"
    assert store.status(OTHER) == "ok"


@pytest.mark.parametrize("n", [3, 5, 0])
def test_outcomes_of_another_number_of_images_are_no_outcomes(tmp_path, make_record, make_examples, n):
    store = Store(tmp_path)
    store.write(make_record(), make_examples())
    path = store.path(make_record().key) / "record.json"
    content = json.loads(path.read_text())
    content["dataset"]["n"] = n
    path.write_text(json.dumps(content))
    assert store.load(make_record().key) is None
    with pytest.raises(ValueError, match=f"Expected outcomes of {n} images, 4 attacked, got 4"):
        store.write(make_record(key=OTHER, dataset=make_record().dataset | {"n": n}), make_examples())


WITHIN = """
import logging, resource, sys
from pathlib import Path
from advbench.results.store import Store
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
logging.basicConfig(format="%(message)s")
store = Store(Path(sys.argv[1]))
print([store.load(key) is not None for key in store.keys()])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("spoil", [_terabytes, _bomb])
def test_archives_that_claim_too_much_are_refused_within_bounded_memory(tmp_path, make_record, make_examples, spoil):
    store = Store(tmp_path)
    store.write(make_record(), make_examples())
    store.write(make_record(key=OTHER), make_examples())
    spoil(store.path(OTHER) / "examples.npz")
    found = subprocess.run([sys.executable, "-c", WITHIN, tmp_path], capture_output=True, text=True, check=False, timeout=60)
    assert found.stdout == "[True, False]\n", found.stderr
    (line,) = found.stderr.splitlines()
    assert line.startswith("damaged record, treated as missing: ")
    assert "MemoryError" not in line


def test_no_pickle_is_run(tmp_path, make_record, make_examples):
    store = Store(tmp_path)
    store.write(make_record(), make_examples())
    arrays = dict(np.load(store.path(make_record().key) / "examples.npz"))
    np.savez(store.path(make_record().key) / "examples.npz", **arrays | {"label": np.array([print], dtype=object)})
    with pytest.raises(ValueError, match="objects, which hold code"):
        store.examples(make_record().key)
