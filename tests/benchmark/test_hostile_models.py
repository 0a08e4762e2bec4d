"""Models as people hand them in, from Python and from the command line: the right number, or one clear line."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from advbench.cli.app import app
from advbench.user_models.target import evaluate

pytestmark = pytest.mark.filterwarnings("ignore")  # of TorchScript and of eager quantisation, which are being retired

FILE = Path(__file__).with_name("hostile_models.py")
N, EPSILON = 24, 0.06


def _module():
    spec = importlib.util.spec_from_file_location("hostile_models", FILE)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


hostile = _module()


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """Images that lie farther than epsilon from the borders, and labels, two of which the classifier gets wrong."""
    x = 0.1 + 0.8 * torch.rand(N, *hostile.SHAPE, generator=torch.Generator().manual_seed(5))
    y = ((x.flatten(1) - hostile.CENTRE) @ hostile.WEIGHT.T + hostile.BIAS).argmax(dim=1)
    y[[3, 8]] = (y[[3, 8]] + 1) % hostile.CLASSES
    return x, y


def robust_by_hand(weight=hostile.WEIGHT, scale: float = 1.0) -> list[bool]:
    """Which images no perturbation of linf norm epsilon breaks: the margin to every class is above epsilon times the l1 norm
    of the difference of the weights (the box is out of reach)."""
    x, y = problem()
    weight = weight.double() * scale
    logits = (x.double().flatten(1) - hostile.CENTRE) @ weight.T + hostile.BIAS.double()
    found = []
    for row, label in zip(logits, y.tolist(), strict=True):
        others = [k for k in range(hostile.CLASSES) if k != label]
        spare = [row[label] - row[k] - EPSILON * (weight[label] - weight[k]).abs().sum() for k in others]
        assert all(abs(one) > 1e-3 for one in spare), "an image lies on the edge"
        found.append(min(spare) > 0)
    return found


@dataclass(frozen=True)
class Case:
    """A model that must work. attack: that reaches the exact number. notes: what the result must say of it."""

    attack: str = "apgd-t(steps=10)"
    outputs: str | None = None
    notes: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    settings: dict[str, object] = field(default_factory=dict)


SAID = "The model returns probabilities"
BLIND = "square(queries=400)"
"""An attack by scores, of which the twin's number is compared, for exactness is not to be had."""

AUTO = "auto(steps=5,long_steps=10,queries=40,survey=20,all_queries=40)"

CASES = {
    "plain": Case(),
    "softmax": Case(notes=(SAID,)),
    "softmax_layer": Case(notes=(SAID,)),
    "softmax_copied": Case(notes=(SAID,)),
    "mean_of_softmaxes": Case(outputs="probabilities"),
    "half_softmax": Case(notes=(SAID,)),
    "log_softmax": Case(outputs="log-probabilities"),
    "log_of_softmax": Case(notes=("log-probabilities, some of them minus infinity",)),
    "float64_logits": Case(f"{AUTO},fmn(steps=20),fab(steps=10),deepfool(steps=10)"),
    "float64_model": Case(),
    "half_logits": Case("apgd-t(steps=10),fmn(steps=20)"),
    "bfloat16_model": Case(),
    "eval_returns_nothing": Case(),
    "eval_raises": Case(),
    "scripted": Case(),
    "frozen_script": Case(),
    "traced": Case(),
    "exported": Case(),
    "built_in_inference_mode": Case(),
    "constant_of_inference_mode": Case(),
    "keeps_a_tensor": Case(),
    "called_in_inference_mode": Case(BLIND),
    "numpy_inside": Case(BLIND),
    "quantised": Case(BLIND),
}
COMMAND = [
    *("softmax", "float64_logits", "bfloat16_model", "eval_raises", "frozen_script", "exported"),
    *("built_in_inference_mode", "keeps_a_tensor", "quantised", "numpy_inside"),
]
"""Those that are run from the command line too, one of each kind."""


@pytest.fixture(scope="module", autouse=True)
def _home(tmp_path_factory):
    """A cache of this file's own, in which compute batches are remembered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """The images as a file that the command line takes."""
    x, y = problem()
    place = tmp_path_factory.mktemp("data") / "images.npz"
    pixels, labels = x.permute(0, 2, 3, 1).numpy(), y.numpy()
    np.savez(place, x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    return place


def in_python(model: nn.Module, case: Case):
    x, y = problem()
    return evaluate(model, x, y, epsilon=EPSILON, attack=case.attack, outputs=case.outputs, batch=N, **case.settings)


def on_the_command_line(name: str, images: Path, out: Path, *options: str, attack: str = "apgd-t(steps=10)"):
    return CliRunner().invoke(
        app,
        [
            *("evaluate", f"{FILE}:{name}", "--dataset", f"npz:{images}", "--epsilon", str(EPSILON), "--attack", attack),
            *("--device", "cpu", "--jobs", "1", "--out", str(out), "--json", str(out / "found.json"), *options),
        ],
    )


def check(summary, name: str, case: Case) -> None:
    """The right number for every image, and what is said."""
    if case.attack != BLIND:
        assert summary["examples"]["robust"] == [float(one) for one in robust_by_hand()], name
        assert [flag["name"] for flag in summary["flags"]] == list(case.flags)
        assert summary["clean"]["value"] == pytest.approx((N - 2) / N)
    assert summary["robust"]["complete"]
    assert len(summary["notes"]) == len(case.notes), summary["notes"]
    assert all(expected in note for expected, note in zip(case.notes, summary["notes"], strict=True))


def test_the_right_number_is_neither_all_nor_nothing():
    assert 6 < sum(robust_by_hand()) < N - 6


@pytest.mark.parametrize("name", CASES)
def test_from_python(name):
    model = getattr(hostile, name)()
    found = in_python(model, CASES[name]).summary()
    check(found, name, CASES[name])
    if CASES[name].attack == BLIND:
        twin = in_python(Detached(model) if name == "quantised" else hostile.plain(), CASES[name]).summary()
        assert found["examples"]["robust"] == twin["examples"]["robust"]


class Detached(nn.Module):
    """A model that keeps no module of another, whose state therefore nobody sees."""

    def __init__(self, inner):
        super().__init__()
        self.answer = lambda x: inner(x)

    def forward(self, x):
        return self.answer(x.detach())


@pytest.mark.parametrize("name", COMMAND)
def test_from_the_command_line(name, images, tmp_path):
    case = CASES[name]
    done = on_the_command_line(name, images, tmp_path, attack=case.attack)
    assert done.exit_code == 0, done.output
    summary = json.loads((tmp_path / "found.json").read_text())
    summary["examples"]["robust"] = summary["examples"]["robust"][:N]
    check(summary, name, case)
    assert all(note in done.output for note in case.notes)
