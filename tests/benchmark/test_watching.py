"""Trainings watched: the same weights again, what happened on the way, and what cannot be watched."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from advbench.config import make_config
from advbench.defenses.training.plain import Plain
from advbench.engine.scheduler import run_plan
from advbench.plan.plan import make_plan
from advbench.reproduction import watching
from advbench.reproduction.engine import _findings
from advbench.tasks import epochs
from advbench.tasks.time_limit import TimeIsUp
from advbench.zoo.training import History


def _run(out, **changes):
    settings = {
        "dataset": "digits",
        "architecture": ["gu2014/n100-100-10"],
        "defense": "none,smooth-gradient",
        "attack": "fgsm",
        "matrix": ["white-box"],
        "epsilon": 0.1,
        "epochs": 3,
        "train_examples": 300,
        "n_examples": 60,
        "batch": 25,
        "device": "cpu",
        "jobs": 1,
    }
    plan = make_plan(make_config(**settings | {"out": out} | changes))
    assert not run_plan(plan).failures
    return _findings(plan)


def test_a_course_ends_with_the_cell_and_is_kept(tmp_path, cache, monkeypatch):
    run = _run(tmp_path)
    cells = [run.one(seed=0, defense=name) for name in ("none", "smooth-gradient")]
    found = watching.courses(run, cells)
    for cell, course in zip(cells, found, strict=True):
        assert (len(course.clean), len(course.attacked)) == (3, 3)
        assert course.clean[-1] == pytest.approx(cell.clean_accuracy)
        assert course.attacked[-1] == pytest.approx(cell.accuracy)
        assert course.clean[0] < course.clean[-1]
        assert all(attacked <= clean for clean, attacked in zip(course.clean, course.attacked, strict=True))
    kept = sorted(tmp_path.glob("store/watched/*"))
    kept[0].write_bytes(kept[0].read_bytes()[:-9])
    whole = kept[1].stat()
    assert watching.courses(run, cells) == found
    assert kept[1].stat() == whole
    monkeypatch.setattr(watching, "_watch", lambda _: pytest.fail("watched twice"))
    assert watching.courses(run, cells) == found


def test_what_a_training_kept_after_every_epoch_is_what_a_repeated_one_is(tmp_path, cache, monkeypatch):
    run = _run(tmp_path / "a", keep_epochs=True)
    cells = [run.one(seed=0, defense=name) for name in ("none", "smooth-gradient")]
    with monkeypatch.context() as patch:
        patch.setattr(watching, "_of_training", lambda *_: pytest.fail("trained again"))
        found = watching.courses(run, cells)
    assert not set(tmp_path.glob("a/store/watched/*")) & set(tmp_path.glob("b/store/watched/*"))
    kept = sorted((cache / "models").glob("*.epochs/*"))
    assert [path.name for path in kept] == [f"{epoch}.safetensors" for epoch in (1, 2, 3)] * 2
    for path in kept:
        path.unlink()
    again = _run(tmp_path / "b")  # the same trainings: what is kept is no part of a key
    assert [cell.record.key for cell in again.cells] == [cell.record.key for cell in run.cells]
    assert watching.courses(again, [again.one(seed=0, defense=name) for name in ("none", "smooth-gradient")]) == found


def test_a_training_of_several_networks_or_stages_keeps_no_epochs(tmp_path, cache):
    standing = epochs.TrainingWatch("key", 2, keep=True)
    make = standing.watched(lambda: torch.nn.Linear(2, 2))
    make()
    standing.note(1, 4)
    assert standing.so_far == "in epoch 1 of 2, 25% of the training done"
    standing.note(2, 4)
    assert epochs.weights_after("key", 1)
    standing.note(1, 4)  # another stage begins
    assert epochs.weights_after("key", 1) is None
    several = epochs.TrainingWatch("other", 1, keep=True)
    several.watched(lambda: torch.nn.Linear(2, 2))()
    several.watched(lambda: torch.nn.Linear(2, 2))()
    several.note(1, 1)
    assert epochs.weights_after("other", 1) is None


def test_weights_of_epochs_are_all_there_and_whole_or_not_there(tmp_path, cache):
    standing = epochs.TrainingWatch("key", 2, keep=True)
    standing.watched(lambda: torch.nn.Linear(2, 2))()
    standing.note(1, 2)
    assert epochs.weights_after("key", 2) is None
    standing.note(2, 2)
    first, second = epochs.weights_after("key", 2)
    assert epochs.weights_after("key", 1) is None  # of a longer training
    second.write_bytes(second.read_bytes()[:-4])
    assert epochs.weights_after("key", 2) is None
    assert first.is_file()


def test_a_training_says_in_which_epoch_its_time_was_up(tmp_path, cache, monkeypatch):
    def fit(self, architecture, data, *, progress=None, **others):
        progress(30, 40)
        raise TimeIsUp

    monkeypatch.setattr(Plain, "fit", fit)
    config = make_config(
        dataset="digits", architecture="gu2014/n100-100-10", defense="none", attack="fgsm", matrix="white-box",
        epochs=4, train_examples=100, n_examples=10, batch=10, device="cpu", jobs=1, time_limit=60, out=tmp_path,
    )  # fmt: skip
    failures = run_plan(make_plan(config)).failures
    assert any("time limit of 60 s: in epoch 4 of 4, 75% of the training done" in reason for reason in failures.values())


def test_the_history_of_a_training_is_read_from_its_checkpoint(tmp_path, cache):
    run = _run(tmp_path, defense="none,input-noise(passes=2)")
    history = run.history(run.one(seed=0, defense="none"))
    assert isinstance(history, History)
    assert len(history.validation_accuracy) == len(history.terms) == 3
    assert history.terms[2]["cross_entropy"] < history.terms[0]["cross_entropy"]
    with pytest.raises(ValueError, match="Expected a training with epochs, got input-noise"):
        run.history(run.first(seed=0, defense="input-noise"))
    with pytest.raises(ValueError, match="Expected a cell with seed=0, defense=pgd-linf; got none"):
        run.first(seed=0, defense="pgd-linf")


def test_a_stochastic_model_is_not_watched(tmp_path, cache):
    run = _run(tmp_path, defense="input-noise(passes=2)")
    with pytest.raises(ValueError, match="Expected one training from scratch and a plain attack to watch, got input-noise"):
        watching.courses(run, list(run.cells))


def test_another_training_is_not_taken_for_the_models(tmp_path, cache):
    run = _run(tmp_path, defense="none")
    (cell,) = run.cells
    other = replace(cell, record=replace(cell.record, weights_sha256="0" * 64))
    with pytest.raises(ValueError, match="Expected the training to give the same weights again"):
        watching.courses(run, [other])


def test_the_updates_of_images_are_those_of_the_cells_network(tmp_path, cache):
    run = _run(tmp_path)
    found = watching.input_updates(run, run.one(seed=0, defense="smooth-gradient"), torch.tensor([4, 0]))
    assert found.updates.shape == (3, 2, *run.plan.data.shape)
    assert (found.updates[1:] != found.updates[:-1]).any(dim=(1, 2, 3, 4)).all()
    assert all(earlier < later for earlier, later in zip(found.rms, found.rms[1:], strict=False))
    with pytest.raises(ValueError, match="Expected a cell of smooth-gradient, got none"):
        watching.input_updates(run, run.one(seed=0, defense="none"), torch.tensor([0]))
