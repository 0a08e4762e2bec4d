"""The user's own networks: where they come from, what they are made of, and whose weights they take."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from advbench.registry import registry
from advbench.registry.specs import Spec
from advbench.user_models.held import holding
from advbench.user_models.states import StateError, load_weights
from advbench.user_models.weights import Own, loaded
from advbench.zoo import checkpoints

SHAPE = (1, 28, 28)

NET = """
from torch import nn
from inner import head

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), head())

def broken():
    raise RuntimeError("no such\\nluck")

def nothing():
    return 3
"""
INNER = "from torch import nn\n\ndef head():\n    return nn.Linear(8, 10)\n"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder with a user's code."""
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "inner.py").write_text(INNER)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("inner", None)
    sys.modules.pop("net", None)


def make(target: str) -> nn.Module:
    return registry.architectures.factory(f"own:{target}")(SHAPE, 10)


def test_a_factory_is_found_in_a_file_and_in_a_module(folder):
    for target in ("net.py:make", str(folder / "net.py") + ":make", "net:make"):
        assert make(target)(torch.zeros(2, *SHAPE)).shape == (2, 10)


def test_whatever_the_factory_draws_is_the_same_every_time(folder):
    one, other = (loaded(lambda: make("net.py:make"), "", (), (), SHAPE).model for _ in range(2))
    assert checkpoints.fingerprint(one) == checkpoints.fingerprint(other)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("net.py:mak", "Expected 'mak' in net.py, which has .*make"),
        ("net.py:broken", "The factory net.py:broken failed: RuntimeError: no such luck"),
        ("net.py:nothing", "Expected an nn.Module from net.py:nothing, got int"),
        ("net.py", "file.py:factory"),
        ("gone.py:make", "gone.py cannot be loaded"),
        ("gone:make", "gone cannot be loaded: ModuleNotFoundError"),
        ("gone.onnx", "Expected an ONNX file, got none at gone.onnx"),
        ("torchvision/resnet1", "torchvision/resnet18, got 'resnet1'"),
    ],
)
def test_bad_targets_are_one_clear_line(folder, target, message):
    with pytest.raises(ValueError, match=message) as found:
        make(target)
    assert "\n" not in str(found.value)


def identity(target: str) -> str:
    return registry.content("architectures", Spec(f"own:{target}"), None)["identity"]


def test_an_edit_of_any_of_the_users_files_is_another_network(folder):
    first = identity("net.py:make")
    assert identity("net.py:make") == first
    (folder / "inner.py").write_text(INNER + "\n# another\n")
    second = identity("net.py:make")
    assert second != first
    (folder / "net.py").write_text(NET + "\n# another\n")
    assert identity("net.py:make") not in (first, second)


def saved(folder: Path, model: nn.Module, form: str) -> Path:
    state = model.state_dict()
    if form == "safetensors":
        safetensors.torch.save_file(state, folder / "model.safetensors")
        return folder / "model.safetensors"
    wrapped = {
        "plain": state,
        "wrapped": {"epoch": 3, "state_dict": state},
        "parallel": {f"module.{name}": value for name, value in state.items()},
    }
    torch.save(wrapped[form], folder / "model.pt")
    return folder / "model.pt"


@pytest.mark.parametrize("form", ["safetensors", "plain", "wrapped", "parallel"])
def test_weights_come_as_safetensors_or_as_a_state_dict(tmp_path, form):
    source, target = nn.Linear(4, 3), nn.Linear(4, 3)
    load_weights(target, saved(tmp_path, source, form))
    assert checkpoints.fingerprint(target) == checkpoints.fingerprint(source)


def test_weights_of_another_model_are_refused_by_name(tmp_path):
    file = saved(tmp_path, nn.Linear(4, 3), "plain")
    before = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(StateError, match=r"it lacks 0\.bias, 0\.weight"):
        load_weights(before, file)
    with pytest.raises(StateError, match="it has a surplus of bias"):
        load_weights(nn.Linear(4, 3, bias=False), file)
    with pytest.raises(StateError, match=re.escape("weight of shape (3, 5)")):
        load_weights(nn.Linear(5, 3), file)
    with pytest.raises(StateError, match="got none at"):
        load_weights(nn.Linear(4, 3), tmp_path / "gone.pt")


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil"),))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Evil()}, "model.pt")
    with pytest.raises(StateError, match="Expected safetensors, or a state dict"):
        load_weights(nn.Linear(4, 3), Path("model.pt"))
    assert not Path("evil").exists()
    Path("junk.safetensors").write_bytes(b"junk")
    with pytest.raises(StateError, match="Expected safetensors"):
        load_weights(nn.Linear(4, 3), Path("junk.safetensors"))


def test_mean_and_std_become_the_first_layer():
    inner = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    x = torch.rand(5, 3, 2, 2)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(1, 3, 1, 1)
    model = loaded(lambda: inner, "", (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), (3, 2, 2)).model
    torch.testing.assert_close(model(x), inner((x - mean) / std))
    with pytest.raises(ValueError, match="for each of 1 channels, got 3"):
        loaded(lambda: inner, "", (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), (1, 2, 2))


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="of the same length, got 1 and 0"):
        Own(mean=(0.1,))
    with pytest.raises(ValueError, match="`std` above 0"):
        Own(mean=(0.1,), std=(0.0,))


def digits():
    return registry.load_dataset("digits", None)


def test_a_model_that_changed_since_it_was_planned_is_refused(folder):
    architecture, data = (lambda: make("net.py:make")), digits()
    fingerprint = checkpoints.fingerprint(loaded(architecture, "", (), (), SHAPE).model)
    built = Own(weights_sha256=fingerprint).build(architecture, data, {})
    assert checkpoints.fingerprint(built.model) == fingerprint
    with pytest.raises(ValueError, match="got other weights"):
        Own(weights_sha256="0" * 64).build(architecture, data, {})
    with pytest.raises(ValueError, match="Expected `weights`, a file"):
        Own().build(architecture, data, {})


def test_no_copy_of_the_weights_is_kept(folder, tmp_path):
    fingerprint = checkpoints.fingerprint(loaded(lambda: make("net.py:make"), "", (), (), SHAPE).model)
    built = Own(weights_sha256=fingerprint).build(lambda: make("net.py:make"), digits(), {})
    checkpoints.save(tmp_path / "kept.safetensors", built.modules(), {"label": "x"})
    assert (tmp_path / "kept.safetensors").stat().st_size < 1000
    assert checkpoints.load(tmp_path / "kept.safetensors", built.modules()) == {"label": "x"}
    assert checkpoints.fingerprint(built.model) == fingerprint


def test_the_bytes_of_the_weights_are_part_of_the_key(tmp_path):
    file = saved(tmp_path, nn.Linear(4, 3), "plain")

    def key() -> str:
        spec = Spec.of("own", {"weights": str(file)})
        return registry.content("defenses", spec, registry.defenses.create(spec))["identity"]

    first = key()
    assert key() == first
    saved(tmp_path, nn.Linear(4, 3), "plain")
    assert key() != first


def test_live_models_have_names_only_while_they_are_held():
    model, data = nn.Flatten(), digits()
    with holding("mine", model, data) as name:
        assert name == "own:held:mine"
        assert registry.architectures.factory(name)(SHAPE, 10) is model
        assert registry.load_dataset(name, None) is data
    with pytest.raises(ValueError, match="registered datasets"):
        registry.load_dataset(name, None)


# --- ONNX


@pytest.fixture
def onnx_file(tmp_path) -> Path:
    """A small convolutional network in the ONNX format, built node by node."""
    onnx = pytest.importorskip("onnx", reason="ONNX is optional: pip install 'advbench[onnx]'")
    pytest.importorskip("onnx2torch", reason="ONNX is optional: pip install 'advbench[onnx]'")
    from onnx import TensorProto, helper, numpy_helper

    rng = torch.Generator().manual_seed(0)
    weights = {
        "kernel": torch.randn(4, 1, 3, 3, generator=rng),
        "matrix": 0.2 * torch.randn(4 * 26 * 26, 10, generator=rng),
        "bias": torch.randn(10, generator=rng),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "kernel"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Reshape", ["b", "sizes"], ["c"], allowzero=1),
            helper.make_node("Gemm", ["c", "matrix", "bias"], ["logits"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [
            *(numpy_helper.from_array(value.numpy(), name) for name, value in weights.items()),
            numpy_helper.from_array(torch.tensor([-1, 4 * 26 * 26]).numpy(), "sizes"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    file = tmp_path / "net.onnx"
    onnx.save(model, file)
    return file


@pytest.mark.filterwarnings("ignore")
def test_an_onnx_model_answers_as_onnx_says_and_has_gradients(onnx_file):
    from onnx.reference import ReferenceEvaluator

    x = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    model = make(str(onnx_file)).eval()
    (expected,) = ReferenceEvaluator(str(onnx_file)).run(None, {"x": x.numpy()})
    torch.testing.assert_close(model(x).detach(), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).sum(), x)
    step = 1e-2
    ahead = model(x.detach() + step * gradient / gradient.norm()).sum() - model(x.detach()).sum()
    assert float(ahead.detach()) == pytest.approx(step * float(gradient.norm()), rel=0.2)


@pytest.mark.filterwarnings("ignore")
def test_a_converted_model_is_compared_with_the_files_own_answer(onnx_file):
    from advbench.user_models import onnx_files

    x = torch.rand(2, 1, 28, 28)
    model = make(str(onnx_file)).eval()
    onnx_files.check(onnx_file, model, x)
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    with pytest.raises(ValueError, match="not converted faithfully"):
        onnx_files.check(onnx_file, model, x)


@pytest.mark.filterwarnings("ignore")
def test_onnxruntime_gives_the_same_logits(onnx_file):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    x = torch.rand(3, 1, 28, 28)
    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(make(str(onnx_file)).eval()(x), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


def test_a_file_that_is_no_onnx_model_is_refused(tmp_path):
    pytest.importorskip("onnx2torch", reason="ONNX is optional: pip install 'advbench[onnx]'")
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"junk\.onnx cannot be read as an ONNX model"):
        make(str(tmp_path / "junk.onnx"))
