"""Models as people hand them in, from Python and from the command line: the right number, or one clear line."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from advbench.cli.app import app
from advbench.user_models.states import StateError, load_weights
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
        found.append(bool(min(spare) > 0))
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
    "writes_in_place": Case(),
    "writes_into_data": Case(),
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
    *("writes_into_data", "softmax", "float64_logits", "bfloat16_model", "eval_raises", "frozen_script", "exported"),
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


def test_what_changes_a_softmax_afterwards_is_not_overlooked():
    """The first class is doubled in place: the label is that of the changed numbers, and not of the softmax."""
    from advbench.user_models.outputs import log_probabilities

    def doubled(z):
        shares = z.softmax(dim=1)
        shares[:, 0] *= 2
        return shares / shares.sum(dim=1, keepdim=True)

    def emptied(z):
        shares = z.softmax(dim=1)
        shares.data[:, 0] = 0
        return shares

    x, _ = problem()
    for change in (doubled, emptied):
        with torch.no_grad():
            model = hostile.Behind(change)
            found, shares = log_probabilities(model, x, "probabilities"), model(x)
        torch.testing.assert_close(found, shares.clamp_min(torch.finfo(torch.float32).tiny).log())


# --- what is refused, in one line

REFUSED = {
    "raises": "got RuntimeError: the model is not complete (KeyError: 'head')",
    "leaves": "got SystemExit: 0",
    "script_raises": "got RuntimeError: mat1 and mat2 shapes cannot be multiplied (16x16 and 5x4)",
    "returns_a_tuple": "Expected logits, a tensor (n, classes), from the model, got tuple",
    "called_in_inference_mode": "name attacks that need none, such as square,hop-skip-jump",
    "quantised": "name attacks that need none, such as square,hop-skip-jump",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_one_line_with_the_innermost_reason(name, images, tmp_path):
    x, y = problem()
    with pytest.raises(ValueError, match=re.escape(REFUSED[name])) as found:
        evaluate(getattr(hostile, name)(), x, y, epsilon=EPSILON, batch=N)
    assert "\n" not in str(found.value)
    done = CliRunner().invoke(app, ["evaluate", f"{FILE}:{name}", "--dataset", f"npz:{images}", "--epsilon", "0.1"])
    assert done.exit_code == 2
    assert REFUSED[name] in done.stderr
    assert done.stderr.startswith("advbench: ")
    assert done.stderr.count("\n") == 1
    assert not done.stdout


def test_a_factory_that_ends_the_program_is_refused_and_the_traceback_is_shown_on_demand(images, tmp_path):
    command = [sys.executable, "-m", "advbench", "evaluate", f"{FILE}:factory_leaves", "--dataset", f"npz:{images}"]
    quiet, loud = (
        subprocess.run([*command, "--epsilon=0.1", *more], capture_output=True, text=True, cwd=tmp_path, timeout=300)
        for more in ([], ["--debug"])
    )
    line = f"advbench: The factory {FILE}:factory_leaves failed: SystemExit: 0\n"
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (2, "", line)
    assert (loud.returncode, loud.stdout) == (2, "")
    assert loud.stderr.endswith(line)
    assert "in factory_leaves\n    sys.exit(0)" in loud.stderr


@pytest.mark.parametrize(
    ("outputs", "name", "message"),
    [
        ("probabilities", "plain", "Expected probabilities as declared, rows that are >= 0 and sum to 1"),
        ("log-probabilities", "softmax", "Expected log-probabilities as declared, rows whose exponentials"),
        ("scores", "plain", "scores"),
    ],
)
def test_outputs_that_are_not_what_was_declared_are_refused(outputs, name, message):
    x, y = problem()
    with pytest.raises(ValueError, match=message):
        evaluate(getattr(hostile, name)(), x, y, epsilon=EPSILON, outputs=outputs, attack="fgsm", batch=N)


def test_what_was_declared_or_recognised_stands_in_the_record_and_in_a_runs_architectures(images, tmp_path):
    from advbench.config import make_config
    from advbench.plan.plan import make_plan

    def recorded(outputs: str | None) -> object:
        (cell, *_) = in_python(hostile.softmax(), Case("fgsm", outputs=outputs)).cells
        return cell[0].target["architecture"]["arguments"]

    assert recorded(None) == recorded("probabilities") == {"outputs": "probabilities"}
    assert recorded("logits") == {"outputs": "logits"}
    (tmp_path / "run.toml").write_text('outputs = "probabilities"\n')
    given = {"dataset": f"npz:{images}", "epsilon": 0.1, "attack": "fgsm", "matrix": "white-box", "defense": "none"}
    config = make_config(tmp_path / "run.toml", architecture=f"own:{FILE}:softmax,gu2014/n100-100-10", batch=8, **given)
    own, ours = (content.architecture.keywords for content in make_plan(config).trainings.values())
    assert (own, ours) == ({"outputs": "probabilities"}, {})
    with pytest.raises(ValueError, match="Expected an architecture of yours, own:TARGET, with `outputs`"):
        make_plan(make_config(tmp_path / "run.toml", **given))


def test_an_epsilon_beyond_the_box_is_refused_in_every_norm(images):
    x, y = problem()
    for norm, epsilon, widest in (("linf", 8, "1"), ("l2", 4.1, "4"), ("l1", 17, "16")):
        with pytest.raises(ValueError, match=f"Expected `epsilon` at most {widest} in {norm}.*such as 8/255"):
            evaluate(hostile.plain(), x, y, norm=norm, epsilon=epsilon, attack="fgm", batch=N)
    done = CliRunner().invoke(
        app, ["run", "--dataset", f"npz:{images}", "--epsilon", "8", "--architecture", f"own:{FILE}:random_weights"]
    )
    assert done.exit_code == 2
    assert "Expected `epsilon` at most 1 in linf" in done.stderr


def test_images_in_0_to_255_are_refused_with_the_remedy():
    x, y = problem()
    with pytest.raises(ValueError, match="divide by 255, or undo the normalisation"):
        evaluate(hostile.plain(), 255 * x, y, epsilon=EPSILON)


# --- what is said, not run in silence


def test_sure_probabilities_attacked_as_they_are_give_too_high_a_number_which_is_flagged_by_name():
    sure = hostile.Behind(lambda z: (1000 * z).softmax(dim=1).clone())
    found = in_python(sure, Case(outputs="logits")).summary()
    assert sum(found["examples"]["robust"]) > sum(robust_by_hand())
    assert "probabilities as outputs" in {flag["name"] for flag in found["flags"]}
    assert found["robust"]["upper_bound"]
    right = in_python(sure, Case()).summary()
    assert right["examples"]["robust"] == [float(one) for one in robust_by_hand()]
    assert "probabilities as outputs" not in {flag["name"] for flag in right["flags"]}


def test_a_factory_without_weights_is_named(images, tmp_path):
    done = on_the_command_line("random_weights", images, tmp_path / "one", attack="fgsm")
    assert done.exit_code == 0
    (note,) = json.loads((tmp_path / "one" / "found.json").read_text())["notes"]
    assert "draws weights at random (linear.bias, linear.weight): give a trained model's with --weights" in note
    assert f"advbench: note: {note}" in done.stderr
    torch.save(hostile.random_weights().state_dict(), tmp_path / "model.pt")
    done = on_the_command_line(
        "random_weights", images, tmp_path / "two", "--weights", str(tmp_path / "model.pt"), attack="fgsm"
    )
    assert json.loads((tmp_path / "two" / "found.json").read_text())["notes"] == []


def test_a_model_that_expects_bytes_is_named():
    found = in_python(hostile.expects_bytes(), Case("fgsm"))
    (note,) = found.notes
    assert "with pixels in 0..255" in note
    assert f"note: {note}" in str(found)
    assert note in found._repr_html_()


def test_the_same_command_gives_other_numbers_when_what_the_factory_reads_has_changed(images, tmp_path, monkeypatch):
    for factor in (1.0, 3.0):
        monkeypatch.setenv("ADVBENCH_TEST_FACTOR", str(factor))
        done = on_the_command_line("by_environment", images, tmp_path)
        assert done.exit_code == 0, done.output
        found = json.loads((tmp_path / "found.json").read_text())
        assert found["examples"]["robust"] == [float(one) for one in robust_by_hand(scale=factor)]


# --- a live model and the caller's own modes


def test_a_caller_in_inference_mode_gets_the_same_number_and_the_model_back():
    x, y = problem()
    with torch.inference_mode():
        model = hostile.plain()
        weight = model.weight
        found = evaluate(model, x.clone(), y.clone(), epsilon=EPSILON, attack="apgd-t(steps=10)", batch=N)
        assert torch.is_inference_mode_enabled()
    assert found.summary()["examples"]["robust"] == [float(one) for one in robust_by_hand()]
    assert model.weight is weight
    assert weight.is_inference()


# --- files of weights

PREFIXES = ("module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module.", "backbone.")


def file_of(folder: Path, state: object) -> Path:
    torch.save(state, folder / "model.pt")
    return folder / "model.pt"


@pytest.mark.parametrize("prefix", PREFIXES)
def test_one_common_prefix_is_taken_off_and_said(tmp_path, prefix):
    source, target = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    file = file_of(tmp_path, {prefix + name: value for name, value in source.state_dict().items()})
    (line,) = load_weights(target, file)
    assert line == f"{file}: took the prefix {prefix!r} off the names of the weights"
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in source.state_dict().items())


@pytest.mark.parametrize("place", ["state_dict", "model", "net", "weights", "params", "ema", "model.state_dict"])
def test_wrappers_are_looked_into(tmp_path, place):
    source, target = nn.Linear(4, 3), nn.Linear(4, 3)
    state: object = {f"module.{name}": value for name, value in source.state_dict().items()}
    for name in reversed(place.split(".")):
        state = {"epoch": 3, name: state}
    assert len(load_weights(target, file_of(tmp_path, state))) == 1
    assert torch.equal(target.weight, source.weight)


def test_of_two_states_that_fit_the_likelier_is_taken_and_said(tmp_path):
    source, average, target = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 3)
    file = file_of(tmp_path, {"ema": average.state_dict(), "model": source.state_dict()})
    (line,) = load_weights(target, file)
    assert line.endswith("took the weights of `model`, not those of `ema`, which would fit too")
    assert torch.equal(target.weight, source.weight)


def test_an_averaged_model_and_one_that_is_wrapped_itself(tmp_path):
    source = nn.Linear(4, 3)
    averaged = torch.optim.swa_utils.AveragedModel(source)
    target = nn.Linear(4, 3)
    load_weights(target, file_of(tmp_path, averaged.state_dict()))
    assert torch.equal(target.weight, source.weight)
    wrapped = nn.ModuleDict({"module": nn.Linear(4, 3)})
    (line,) = load_weights(wrapped, file_of(tmp_path, source.state_dict()))
    assert "put the prefix 'module.' of this model" in line
    assert torch.equal(wrapped["module"].weight, source.weight)


def test_otherwise_missing_and_surplus_names_stand_side_by_side(tmp_path):
    file = file_of(tmp_path, {"model": {"head.weight": torch.zeros(3, 4), "head.scale": torch.zeros(3)}})
    with pytest.raises(StateError) as found:
        load_weights(nn.Linear(4, 3), file)
    assert str(found.value) == (
        f"Expected the weights of this model in {file}, but it lacks bias, weight and has a surplus of head.scale, "
        "head.weight under `model`"
    )


def test_weights_of_a_quantised_model_are_told_apart_and_loaded(tmp_path):
    from advbench.zoo import checkpoints

    source, target = hostile.quantised(), hostile.quantised()
    with torch.no_grad():
        changed = nn.Linear(16, hostile.CLASSES)
    assert checkpoints.fingerprint(source) == checkpoints.fingerprint(target)
    packed = torch.ao.nn.quantized.Linear(16, hostile.CLASSES)
    packed.set_weight_bias(torch.quantize_per_tensor(changed.weight.detach(), 0.05, 0, torch.qint8), changed.bias.detach())
    source[2] = packed
    assert checkpoints.fingerprint(source) != checkpoints.fingerprint(target)
    assert load_weights(target, file_of(tmp_path, source.state_dict())) == ()
    assert checkpoints.fingerprint(source) == checkpoints.fingerprint(target)


def test_two_frozen_scripts_are_two_models_by_their_constants():
    from advbench.user_models.handed import Handed
    from advbench.zoo import checkpoints

    one, again = Handed(hostile.frozen_script()), Handed(hostile.frozen_script())
    other = hostile.Layers().eval()
    with torch.no_grad():
        other.linear.bias[0] += 1
    changed = Handed(torch.jit.freeze(torch.jit.script(other)))
    assert checkpoints.fingerprint(one) == checkpoints.fingerprint(again)
    assert checkpoints.fingerprint(one) != checkpoints.fingerprint(changed)


def test_a_model_that_cannot_be_moved_is_refused_in_one_line():
    class Stuck(hostile.Plain):
        def _apply(self, fn, recurse=True):
            raise NotImplementedError("not\nmovable")

    x, y = problem()
    with pytest.raises(ValueError, match=r"got NotImplementedError: not movable$"):
        evaluate(Stuck(), x, y, epsilon=EPSILON, attack="fgsm", batch=N)
