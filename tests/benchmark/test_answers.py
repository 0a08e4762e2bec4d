"""The identity of a user's network: what it answers, beside the files that it is made of."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch
from torch import nn

from advbench.engine.scheduler import run_plan
from advbench.registry import registry
from advbench.tasks.answers import alike, answers
from advbench.user_models.target import plan_target

FACTORIES = """
import json, os
from pathlib import Path

import torch
from torch import nn


class Power(nn.Module):
    def __init__(self, gamma):
        super().__init__()
        self.gamma = gamma
        self.linear = nn.Linear(784, 10)

    def forward(self, x):
        return self.linear(x.flatten(1) ** self.gamma)


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(context, x, slope):
        context.slope = slope
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return context.slope * gradient, None


class Sloped(Power):
    def forward(self, x):
        return super().forward(Straight.apply(x, self.slope))


def from_file():
    return Power(json.loads(Path("cfg.json").read_text()))


def from_environment():
    return Power(float(os.environ.get("GAMMA", "1")))


def from_library():
    import advbench_test_library
    return Power(advbench_test_library.GAMMA)


def slope_from_file():
    model = Sloped(1.0)
    model.slope = json.loads(Path("cfg.json").read_text())
    return model


def noisy():
    class Noisy(Power):
        def forward(self, x):
            return super().forward(x + 0.05 * torch.rand_like(x))

    return Noisy(json.loads(Path("cfg.json").read_text()))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch, cache):
    (tmp_path / "net.py").write_text(FACTORIES)
    (tmp_path / "site").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path


def setting(folder, monkeypatch, target: str, gamma: float) -> None:
    """Change the behaviour of a factory from outside its hashed files."""
    if target == "from_environment":
        monkeypatch.setenv("GAMMA", str(gamma))
    elif target == "from_library":  # in a folder of installed packages, as pip has it
        (folder / "site-packages").mkdir(exist_ok=True)
        (folder / "site-packages" / "advbench_test_library.py").write_text(f"GAMMA = {gamma}\n")
        monkeypatch.syspath_prepend(str(folder / "site-packages"))
        sys.modules.pop("advbench_test_library", None)
    else:
        (folder / "cfg.json").write_text(str(gamma))


def plan(target: str, **settings):
    given = {
        "dataset": "digits",
        "attack": "fgsm",
        "n_examples": 8,
        "batch": 8,
        "device": "cpu",
        "epsilon": "0.1",
    } | settings
    return plan_target(f"net.py:{target}", **given)


@pytest.mark.parametrize("target", ["from_file", "from_environment", "from_library", "slope_from_file", "noisy"])
def test_what_a_factory_reads_is_part_of_its_models_keys(folder, monkeypatch, target):
    settings = {"stochastic": True} if target == "noisy" else {}
    setting(folder, monkeypatch, target, 1.0)
    first, again = plan(target, **settings), plan(target, **settings)
    assert set(again.tasks) == set(first.tasks)
    setting(folder, monkeypatch, target, 1.25)
    changed = plan(target, **settings)
    assert not set(changed.tasks) & set(first.tasks)
    one, other = _weights(first), _weights(changed)
    assert one == other, "the weights are the same, and boards and the gate say so"


def _weights(found) -> str:
    (spec,) = found.config.defense
    return str(spec.keywords["weights_sha256"])


def test_a_network_that_a_run_trains_is_known_by_its_answers_too(folder, monkeypatch):
    from advbench.config import make_config
    from advbench.plan.plan import make_plan

    def keys() -> set[str]:
        config = make_config(
            architecture="own:net.py:from_file,gu2014/n100-100-10",
            defense="none",
            attack="fgsm",
            matrix="white-box",
            batch=8,
        )
        found = make_plan(config)
        return {key for key, content in found.trainings.items()}

    setting(folder, monkeypatch, "from_file", 1.0)
    first = keys()
    setting(folder, monkeypatch, "from_file", 2.0)
    assert len(keys() & first) == 1, "that of the registered architecture"


def test_a_factory_that_changes_while_a_run_is_under_way_gives_error_rows(folder, monkeypatch):
    setting(folder, monkeypatch, "from_file", 1.0)
    found = plan("from_file", jobs=1, out=folder / "out")
    setting(folder, monkeypatch, "from_file", 2.0)
    result = run_plan(found)
    assert set(result.failures) == set(found.cells)
    assert all("answers otherwise" in reason for reason in result.failures.values())


def digits():
    return registry.load_dataset("digits", None)


def test_the_same_model_answers_alike_in_another_process_and_on_any_number_of_threads(folder):
    code = (
        "import torch; torch.set_num_threads({threads})\n"
        "from torch import nn\n"
        "from advbench.registry import registry\n"
        "from advbench.tasks.answers import answers\n"
        "torch.manual_seed(3)\n"
        "model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(5408, 10))\n"
        "print(answers(model, registry.load_dataset('digits', None)))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code.format(threads=threads)], capture_output=True, text=True, check=True
        ).stdout
        for threads in (1, 2)
    }
    assert len(found) == 1


def test_answers_are_alike_up_to_rounding_and_leave_the_model_as_it_came():
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Dropout(0.5)).train()
    before = torch.get_rng_state()
    first = answers(model, digits())
    assert model.training
    assert model[2].training
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        model[1].weight.mul_(1 + 1e-6)
    second = answers(model, digits())
    assert second != first
    assert alike(first, second)
    with torch.no_grad():
        model[1].weight.mul_(1.02)
    assert not alike(first, answers(model, digits()))


class Broken(nn.Module):
    def forward(self, x):
        raise KeyError("no such layer")


def test_a_model_that_cannot_answer_is_known_by_that():
    found = answers(Broken(), digits())
    assert alike(found, found)
    assert not alike(found, answers(Leaving(), digits()))
    assert not alike(found, answers(nn.Flatten(), digits()))


class Leaving(nn.Module):
    def forward(self, x):
        raise SystemExit(0)


class Refusing(nn.Sequential):
    """Refuses images without a black pixel, as noise is."""

    def forward(self, x):
        if (x.flatten(1).amin(dim=1) > 0).any():
            raise ValueError("no such images here")
        return super().forward(x)


def test_a_model_that_refuses_noise_is_known_by_its_other_answers():
    torch.manual_seed(0)
    one, other = (Refusing(nn.Flatten(), nn.Linear(784, 10)) for _ in range(2))
    found = answers(one, digits())
    assert len(found.split()) == 5
    assert alike(found, answers(one, digits()))
    assert not alike(found, answers(other, digits()))


def test_a_content_holds_the_answers(folder, monkeypatch):
    setting(folder, monkeypatch, "from_file", 1.0)
    (content,) = plan("from_file").trainings.values()
    assert len(content.answers.split()) == 9
    assert dataclasses.replace(content, answers="") != content
