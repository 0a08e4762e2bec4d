"""ONNX files as exporters write them: weights in constants, channels last, fixed batches, flat inputs, maps of labels.

Every file is built node by node here; the right answer is that of the same arithmetic in torch, or of onnxruntime.
"""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx", reason="ONNX is optional: pip install 'advbench[onnx]'")
pytest.importorskip("onnx2torch", reason="ONNX is optional: pip install 'advbench[onnx]'")
pytest.importorskip("onnxruntime", reason="ONNX is optional: pip install 'advbench[onnx]'")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from advbench.user_models.onnx_files import Converted, Runtime, network_of, said_of  # noqa: E402
from advbench.user_models.onnx_graphs import intake, prepared  # noqa: E402
from advbench.user_models.target import plan_target  # noqa: E402

SHAPE, CLASSES = (1, 8, 8), 10
pytestmark = pytest.mark.filterwarnings("ignore")


def draw(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


KERNEL, MATRIX, BIAS = draw(4, 1, 3, 3), 0.2 * draw(4 * 36, CLASSES, seed=1), draw(CLASSES, seed=2)
X = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(3))


def right(x):
    """The network in torch."""
    return torch.relu(torch.nn.functional.conv2d(x, KERNEL)).flatten(1) @ MATRIX + BIAS


def constant(name, tensor):
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(tensor.numpy(), name))


def save(
    tmp_path, nodes, weights=None, *, takes=("n", *SHAPE), gives=(("scores", TensorProto.FLOAT, ("n", CLASSES)),), opset=17
):
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, takes)],
        [value if not isinstance(value, tuple) else helper.make_tensor_value_info(*value) for value in gives],
        [numpy_helper.from_array(value.numpy(), name) for name, value in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    file = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), file)
    return file


def body(images="x", sizes="sizes"):
    return [
        helper.make_node("Conv", [images, "kernel"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Reshape", ["b", sizes], ["c"]),
        helper.make_node("Gemm", ["c", "matrix", "bias"], ["scores"]),
    ]


WEIGHTS = {"kernel": KERNEL, "matrix": MATRIX, "bias": BIAS, "sizes": torch.tensor([-1, 4 * 36])}


def answers(file, x=X):
    network = network_of(file, SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(network(x), right(x), rtol=1e-4, atol=1e-4)
    return network


def test_weights_in_constant_nodes(tmp_path):
    """As paddle2onnx writes them, and torch's exporter its sizes."""
    constants = [constant(name, tensor) for name, tensor in WEIGHTS.items()]
    network = answers(save(tmp_path, [*constants, *body()]))
    assert isinstance(network, Converted)
    assert said_of(network) == ()
    x = X.clone().requires_grad_()
    [found] = torch.autograd.grad(network(x).square().sum(), x)
    [wanted] = torch.autograd.grad(right(x).square().sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_numbers_and_lists_in_constant_nodes(tmp_path):
    numbers = [
        helper.make_node("Constant", [], ["sizes"], value_ints=[-1, 4 * 36]),
        helper.make_node("Constant", [], ["half"], value_float=0.5),
    ]
    nodes = [*numbers, helper.make_node("Mul", ["x", "half"], ["dark"]), *body("dark")]
    file = save(tmp_path, nodes, {name: WEIGHTS[name] for name in ("kernel", "matrix", "bias")})
    network = network_of(file, SHAPE)
    assert isinstance(network, Converted)
    torch.testing.assert_close(network(X).detach(), right(X / 2), rtol=1e-4, atol=1e-4)


def test_weights_behind_identities(tmp_path):
    """As torch's exporter shares one weight among several places."""
    nodes = [helper.make_node("Identity", ["shared"], ["kernel"]), *body()]
    weights = {**WEIGHTS, "shared": KERNEL}
    del weights["kernel"]
    assert isinstance(answers(save(tmp_path, nodes, weights)), Converted)


def test_channels_last(tmp_path):
    """As tf2onnx writes images."""
    nodes = [helper.make_node("Transpose", ["x"], ["first"], perm=[0, 3, 1, 2]), *body("first")]
    network = answers(save(tmp_path, nodes, WEIGHTS, takes=("n", 8, 8, 1)))
    assert isinstance(network, Converted)
    assert said_of(network) == ("The ONNX file takes images as (n, h, w, c), channels last: they are handed over so",)


def test_a_batch_of_fixed_size(tmp_path):
    """As many exporters leave it: some graphs are still right for any number, others only for that one."""
    any_number = save(tmp_path, body(), WEIGHTS, takes=(1, *SHAPE), gives=(("scores", TensorProto.FLOAT, (1, CLASSES)),))
    assert answers(any_number).takes.batch is None
    sizes = {**WEIGHTS, "sizes": torch.tensor([2, 4 * 36])}
    fixed = save(tmp_path, body(), sizes, takes=(2, *SHAPE), gives=(("scores", TensorProto.FLOAT, (2, CLASSES)),))
    network = answers(fixed)
    assert isinstance(network, Converted)
    assert network.takes.batch == 2


def linear(tmp_path, pixels=64):
    """A linear classifier as skl2onnx writes it: flat images, labels first, then a map from labels to probabilities."""
    classifier = helper.make_node(
        "LinearClassifier",
        ["x"],
        ["label", "raw"],
        domain="ai.onnx.ml",
        coefficients=draw(CLASSES * pixels, seed=4).tolist(),
        intercepts=draw(CLASSES, seed=5).tolist(),
        classlabels_ints=list(range(CLASSES)),
        post_transform="NONE",
        multi_class=0,
    )
    nodes = [
        classifier,
        helper.make_node("Softmax", ["raw"], ["probabilities"], axis=1),
        helper.make_node("ZipMap", ["probabilities"], ["map"], domain="ai.onnx.ml", classlabels_int64s=list(range(CLASSES))),
    ]
    pairs = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, ()))
    maps = helper.make_value_info("map", helper.make_sequence_type_proto(pairs))
    return save(tmp_path, nodes, takes=("n", pixels), gives=(("label", TensorProto.INT64, ("n",)), maps))


def test_a_file_that_cannot_be_converted_is_asked_for_scores(tmp_path):
    network = network_of(linear(tmp_path), SHAPE)
    assert isinstance(network, Runtime)
    weights, bias = draw(CLASSES * 64, seed=4).view(CLASSES, 64), draw(CLASSES, seed=5)
    torch.testing.assert_close(network(X), (X.flatten(1) @ weights.T + bias).softmax(dim=1), rtol=1e-4, atol=1e-5)
    flat, why = said_of(network)
    assert "flat" in flat
    assert why.startswith("No gradients, black-box attacks only:")
    assert not network(X.clone().requires_grad_()).requires_grad


def test_what_onnxruntime_runs_can_be_copied_and_sent_and_is_told_by_its_bytes(tmp_path):
    network = network_of(linear(tmp_path), SHAPE)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):  # noqa: S301
        torch.testing.assert_close(other(X), network(X))
        assert torch.equal(other.state_dict()["file_hash"], network.state_dict()["file_hash"])


@pytest.mark.parametrize(
    ("takes", "message"),
    [
        (("n", 3, 32, 32), r"takes images \(1, 8, 8\), got one that declares \(any, 3, 32, 32\)"),
        (("n", 63), r"takes images \(1, 8, 8\), got one that declares \(any, 63\)"),
    ],
)
def test_images_that_a_file_does_not_take_are_one_line(tmp_path, takes, message):
    nodes = [helper.make_node("Flatten", ["x"], ["scores"])]
    with pytest.raises(ValueError, match=message) as found:
        network_of(save(tmp_path, nodes, takes=takes), SHAPE)
    assert "\n" not in str(found.value)


def test_a_file_of_labels_alone_is_one_line(tmp_path):
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("ArgMax", ["flat"], ["label"], axis=1)]
    file = save(tmp_path, nodes, gives=(("label", TensorProto.INT64, ("n", 1)),))
    with pytest.raises(ValueError, match="output of scores, got only labels"):
        network_of(file, SHAPE)


def test_preparing_leaves_the_file_alone_and_drops_what_no_score_needs(tmp_path):
    nodes = [*body(), helper.make_node("ArgMax", ["scores"], ["label"], axis=1), constant("unused", BIAS)]
    gives = (("label", TensorProto.INT64, ("n", 1)), ("scores", TensorProto.FLOAT, ("n", CLASSES)))
    file = save(tmp_path, nodes, {**WEIGHTS, "more": BIAS}, gives=gives)
    model = onnx.load(file)
    before = model.SerializeToString()
    made = prepared(model)
    assert model.SerializeToString() == before
    assert [one.name for one in made.graph.output] == ["scores"]
    assert [node.op_type for node in made.graph.node] == ["Conv", "Relu", "Reshape", "Gemm"]
    assert {one.name for one in made.graph.initializer} == set(WEIGHTS)
    assert isinstance(answers(file), Converted)


def test_a_file_without_gradients_is_attacked_by_scores_and_labels_where_no_attack_is_named(tmp_path):
    file, lines = linear(tmp_path, pixels=784), []
    for norm, chosen in {"linf": ["square", "hop-skip-jump"], "l1": ["square"]}.items():
        plan = plan_target(
            str(file), dataset="digits", norm=norm, n_examples=20, epsilon="0.1", say=lines.append, out=tmp_path
        )
        assert [spec.name for spec in plan.config.attack] == chosen
    assert any(line.startswith("No gradients, black-box attacks only") for line in lines)


def test_free_sizes_are_read_as_channels_first(tmp_path):
    file = save(tmp_path, body(), WEIGHTS, takes=("n", "c", "h", "w"))
    assert intake(onnx.load(file), SHAPE).layout == "channels first"
    assert np.dtype(intake(onnx.load(file), SHAPE).dtype) == np.float32
