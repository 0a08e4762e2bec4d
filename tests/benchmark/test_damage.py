"""Files of finished tasks that are damaged: recognised, named in one line, and their tasks done again."""

from __future__ import annotations

import dataclasses
import random
import shutil

import numpy as np
import pytest

import advbench
from advbench.config import make_config
from advbench.plan.plan import make_plan
from advbench.results.store import Store
from advbench.tasks import artefacts
from advbench.tasks.artefacts import DamagedError, artefact
from advbench.tasks.craft import read_craft, read_images
from advbench.tasks.score import ScoreContent

ARRAYS = {
    "x_adv": np.linspace(0, 1, 5 * 12, dtype=np.float32).reshape(5, 1, 3, 4),
    "forwards": np.arange(5),
    "seconds": np.array(1.5),
    "name": np.array("ünï"),
    "names": np.array(["a", "bcd", "", "é", "f"]),
}


def truncated(content):
    return content[: len(content) // 2]


def empty(content):
    return b""


def flipped(content):
    """A bit in every hundredth byte from the middle on: some bytes of a zip file mean nothing, such as dates."""
    found = bytearray(content)
    for place in range(len(found) // 2, len(found), 100):
        found[place] ^= 0x10
    return bytes(found)


def foreign(content):
    return b"<html>no such file</html>"


DAMAGES = [truncated, empty, flipped, foreign]


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "craft" / "a.npz"
    artefacts.save(path, **ARRAYS)
    return path


def equal(one, other):
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert values.dtype == other[name].dtype
        np.testing.assert_array_equal(values, other[name])


def test_arrays_come_back_as_they_were(saved):
    equal(artefacts.read(saved), ARRAYS)
    equal(artefacts.read(saved, rows=5), ARRAYS)
    with pytest.raises(FileNotFoundError):
        artefacts.read(saved.with_name("b.npz"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_line_that_names_it(saved, damage):
    saved.write_bytes(damage(saved.read_bytes()))
    with pytest.raises(DamagedError) as caught:
        artefacts.read(saved)
    assert str(caught.value).startswith(f"{saved}: Expected ")
    assert "\n" not in str(caught.value)


def test_no_flipped_bit_gives_other_arrays(saved):
    """Some bytes of a zip file mean nothing, such as dates: there the arrays are right."""
    content, chance, refused = saved.read_bytes(), random.Random(0), 0
    for place in range(len(content)):
        saved.write_bytes(content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :])
        try:
            equal(artefacts.read(saved), ARRAYS)
        except DamagedError:
            refused += 1
    assert refused > sum(values.nbytes for values in ARRAYS.values())


@pytest.mark.parametrize("name", ["x_adv", "forwards"])
def test_one_image_short_is_no_craft(saved, name):
    artefacts.save(saved, **ARRAYS | {name: ARRAYS[name][:-1]})
    with pytest.raises(DamagedError, match="Expected results of 5 images, got 4, 5"):
        artefacts.read(saved, rows=5)


def test_other_arrays_under_the_old_hash_are_refused(saved):
    with np.load(saved) as file:
        digest = file["sha256"]
    for changes in ({"x_adv": ARRAYS["x_adv"] * 0.5}, {"more": np.arange(5)}, {"forwards": np.arange(5, dtype=np.int32)}):
        np.savez(saved, **ARRAYS | changes, sha256=digest)
        with pytest.raises(DamagedError, match="got others"):
            artefacts.read(saved)


def test_a_file_without_a_hash_is_read_only_as_one_of_an_earlier_version(saved):
    np.savez(saved, **ARRAYS)
    with pytest.raises(DamagedError):
        artefacts.read(saved)
    equal(artefacts.read(saved, older=True), ARRAYS)


def test_a_damaged_file_is_said_once_and_counts_as_missing(tmp_path, caplog):
    path = artefact("craft", "k", tmp_path)
    artefacts.save(path, **ARRAYS)
    assert artefacts.finished("craft", "k", tmp_path, 5)
    assert not artefacts.finished("craft", "k", tmp_path, 6)
    assert not artefacts.finished("craft", "other", tmp_path)
    caplog.clear()
    path.write_bytes(b"")
    for _ in range(3):
        assert not artefacts.finished("craft", "k", tmp_path, 5)
    (line,) = caplog.messages
    assert str(path) in line
    artefacts.save(path, **ARRAYS)
    assert artefacts.finished("craft", "k", tmp_path, 5)


# --- whole runs


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with every kind of task, and its cache."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVBENCH_CACHE", str(root / "cache"))
        result = advbench.run(**settings(root / "out"))
    assert result.exit_code == 0
    assert {path.name for path in (root / "out" / "store").iterdir()} == {
        "clean",
        "diagnose",
        "unit-test",
        "calibrate",
        "craft",
        "leases",
    }
    return root


def settings(out):
    return {
        "out": out,
        "matrix": "white-box,black-box",
        "defense": "input-noise(passes=2)",
        "attack": "fgsm",
        "architecture": "gu2014/n100-100-10",
        "substitute": "gu2014/n100-100-10",
        "substitute_rounds": 1,
        "substitute_seeds": 20,
        "score_draws": 2,
        "n_examples": 12,
        "train_examples": 200,
        "epochs": 1,
        "batch": 16,
        "device": "cpu",
        "jobs": 1,
        "unit_test": True,
        "unit_test_images": 4,
    }


@pytest.fixture
def copied(whole, tmp_path, monkeypatch):
    """A copy of that run without its records, as if it had been killed before it scored."""
    shutil.copytree(whole, tmp_path / "whole")
    shutil.rmtree(tmp_path / "whole" / "out" / "records")
    monkeypatch.setenv("ADVBENCH_CACHE", str(tmp_path / "whole" / "cache"))
    return tmp_path / "whole"


def same_records(one, other):
    stores = [Store(root / "out") for root in (one, other)]
    assert stores[0].keys() == stores[1].keys()
    for key in stores[0].keys():  # noqa: SIM118 - not a mapping
        facts = [{**dataclasses.asdict(store.read(key)), "measured": None, "details": None} for store in stores]
        arrays = [dataclasses.asdict(store.examples(key)) for store in stores]
        assert facts[0] == facts[1]
        for name, values in arrays[0].items():
            np.testing.assert_array_equal(values, arrays[1][name], err_msg=name)


def files(root):
    return sorted([*root.glob("out/store/*/*.npz"), *root.glob("cache/models/*.safetensors")])


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damaged_file_is_named_and_its_task_done_again(copied, whole, damage, caplog):
    damaged = files(copied)
    for path in damaged:
        path.write_bytes(damage(path.read_bytes()))
    result = advbench.run(**settings(copied / "out"))
    assert result.failures == {}
    assert result.ran == len(damaged) + len(result.cells)
    assert all("\n" not in line for line in caplog.messages)
    assert [sum(str(path) in line for line in caplog.messages) for path in damaged] == [1] * len(damaged)
    same_records(copied, whole)


@pytest.mark.parametrize("signed", [False, True])
def test_crafts_one_image_short_are_done_again(copied, whole, signed, caplog):
    crafts = sorted(copied.glob("out/store/craft/*.npz"))
    for path in crafts:
        arrays = artefacts.read(path)
        short = {name: values[:-1] if values.ndim else values for name, values in arrays.items()}
        artefacts.save(path, **short) if signed else np.savez(path, **short)
    result = advbench.run(**settings(copied / "out"))
    assert result.failures == {}
    assert result.ran == len(crafts) + len(result.cells)
    assert [sum(str(path) in line for line in caplog.messages) for path in crafts] == [1] * len(crafts)
    same_records(copied, whole)


def test_a_craft_that_is_damaged_while_the_run_goes_on_is_named_in_the_row_and_done_again(copied, whole, monkeypatch):
    plan = make_plan(make_config(**settings(copied / "out")), measure=False)
    contents = [plan.tasks[key].content for key in plan.cells]
    craft = next(content.crafts[0] for content in contents if isinstance(content, ScoreContent))
    path = artefact("craft", craft, copied / "out")
    monkeypatch.setattr("advbench.plan.plan.Listing.finished", lambda _, task: task.kind != "score")  # when the run began
    path.write_bytes(truncated(path.read_bytes()))
    reasons = advbench.run(**settings(copied / "out")).failures.values()
    assert reasons
    assert all(reason.startswith(f"DamagedError: {path}: Expected a whole npz file") for reason in reasons)
    monkeypatch.undo()
    monkeypatch.setenv("ADVBENCH_CACHE", str(copied / "cache"))
    assert advbench.run(**settings(copied / "out")).failures == {}
    same_records(copied, whole)


def test_crafts_of_earlier_versions_are_read_for_those_who_want_their_images(tmp_path):
    path = artefact("craft", "k", tmp_path)
    arrays = {"x_adv": ARRAYS["x_adv"], "seconds": np.array(1.0), "peak_memory_bytes": np.array(2)}
    path.parent.mkdir(parents=True)
    np.savez(path, **arrays, **dict.fromkeys(("forwards", "backwards", "queries"), np.arange(5)))
    np.testing.assert_array_equal(read_images("k", tmp_path).numpy(), ARRAYS["x_adv"])
    with pytest.raises(DamagedError):
        read_craft(path, 5)
