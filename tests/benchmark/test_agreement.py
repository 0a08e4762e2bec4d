"""A worker whose device, data or networks are not the plan's refuses its task in one line, and writes nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from advbench.config import make_config
from advbench.engine.scheduler import run_plan
from advbench.plan.plan import make_plan
from advbench.tasks import agreement
from advbench.tasks.artefacts import artefact
from advbench.tasks.blocks import blocks_of
from advbench.tasks.context import Context
from advbench.tasks.execution import execute
from advbench.tasks.task import BlockTask

pytestmark = pytest.mark.usefixtures("cache")
SMALL = {"defense": "none", "attack": "fgsm", "matrix": "white-box", "jobs": 1, "epochs": 1, "train_examples": 100}


def context_of(plan):
    return Context(plan.config.out, plan.config.dataset, None, plan.trainings, plan.substitutes, 0)


def refused(reason):
    """What was told of a run whose every row is refused."""
    assert "\n" not in reason
    return reason.partition("failed: ")[2]


def test_a_worker_on_another_device_than_the_plans_takes_no_task_that_depends_on_it(settings, monkeypatch):
    plan = make_plan(make_config(**settings | {"defense": "none", "attack": "fgsm,fmn", "batch": 8}), measure=False)
    context = context_of(plan)
    monkeypatch.setattr(agreement, "device_name", lambda device: f"a {device.type} of another kind")
    kinds = set()
    for task in plan.tasks.values():
        if task.kind in ("train", "substitute"):  # models are the same on any device
            continue
        kinds.add(task.kind)
        blocks = [BlockTask.of(task, block) for block in blocks_of(task.content.images)] if task.kind == "craft" else []
        for each in (task, *blocks):
            outcome = execute(each, context, "cpu")
            assert outcome.refused
            assert outcome.reason == (
                f"Expected a worker on {task.content.images.device}, for which the run was planned, "
                "got one on a cpu of another kind: plan a run of its own there"
            )
        assert not artefact(task.kind, task.key, plan.config.out).exists()
    assert kinds == {"clean", "diagnose", "craft", "score"}


def test_a_worker_with_other_images_under_the_same_name_takes_no_task(tmp_path):
    def write(seed):
        x, y = np.random.default_rng(seed).random((60, 8, 8), dtype=np.float32), np.arange(60) % 3
        np.savez(tmp_path / "mine.npz", x_train=x[:50], y_train=y[:50], x_test=x[50:], y_test=y[50:])

    write(0)
    name = f"npz:{tmp_path / 'mine.npz'}"
    config = make_config(**SMALL, dataset=name, out=tmp_path / "out", norm="linf", epsilon=0.1)
    plan = make_plan(config, measure=False)
    write(1)
    result = run_plan(plan)
    assert set(result.failures) == set(plan.cells)
    for reason in result.failures.values():
        assert refused(reason).startswith(
            f"Expected the images of npz:{tmp_path / 'mine.npz'} that the run was planned with"
        )
        assert f"fingerprint {plan.data.fingerprint[:8]}" in reason
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


NETWORK = """
import json
from pathlib import Path
from torch import nn

class Power(nn.Module):
    def __init__(self, gamma):
        super().__init__()
        self.gamma, self.linear = gamma, nn.Linear(784, 10)

    def forward(self, x):
        return self.linear(x.flatten(1) ** self.gamma)

def from_file():
    return Power(json.loads(Path("cfg.json").read_text()))
"""


@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("matrix", ["white-box", "black-box"])
def test_a_network_that_is_trained_is_the_one_that_was_planned(settings, tmp_path, monkeypatch, matrix, changed):
    """In the white-box matrix the network is a target's, in the black-box matrix the attacker's substitute's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "cfg.json").write_text("1.0")
    own = {"architecture": "own:net.py:from_file"} if matrix == "white-box" else {"substitute": "own:net.py:from_file"}
    given = settings | SMALL | {"matrix": matrix, "dataset": "digits", "batch": 8} | own
    plan = make_plan(make_config(**given), measure=False)
    if changed:
        (tmp_path / "cfg.json").write_text("2.0")
    result = run_plan(plan)
    assert set(result.failures) == (set(plan.cells) if changed else set())
    for reason in result.failures.values():
        assert refused(reason).startswith("Expected the model that the run was planned for, got one that answers otherwise")
    trained = {task.kind for task in plan.tasks.values() if artefact(task.kind, task.key, plan.config.out).exists()}
    assert ("substitute" in trained) is (matrix == "black-box" and not changed)
    assert ("train" in trained) is (matrix == "black-box" or not changed)


def test_a_training_is_refused_with_other_images_alone(settings):
    plan = make_plan(make_config(**settings | {"defense": "none", "attack": "fgsm", "matrix": "white-box"}), measure=False)
    task = next(task for task in plan.tasks.values() if task.kind == "train")
    other = dataclasses.replace(task, content=dataclasses.replace(task.content, fingerprint="0" * 64))
    with pytest.raises(agreement.RefusedError, match=r"fingerprint 0{8}\)"):
        agreement.check(other, context_of(plan), torch.device("cpu"))
    agreement.check(task, context_of(plan), torch.device("cpu"))
