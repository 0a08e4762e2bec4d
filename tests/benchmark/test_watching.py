"""Trainings watched: the same weights again, what happened on the way, and what cannot be watched."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from advbench.config import make_config
from advbench.engine.scheduler import run_plan
from advbench.plan.plan import make_plan
from advbench.reproduction import watching
from advbench.reproduction.engine import _findings
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
