"""ONNX graphs as common exporters write them, brought into the form that a conversion to torch takes.

Weights in `Constant` nodes become initializers, aliases of weights disappear, and of several outputs the scores stay. What
the file says of its input tells whether images come with channels first, last, or flat, and in batches of a fixed size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

Layout: TypeAlias = Literal["channels first", "channels last", "flat"]

OPSET = 17
"""The newest version of ONNX's operators that onnx2torch knows throughout; newer files are converted down to it."""
_SCALARS = {"value_float": np.float32, "value_int": np.int64, "value_floats": np.float32, "value_ints": np.int64}


@dataclass(frozen=True, slots=True)
class Intake:
    """What a graph takes.

    name: of its one input. layout: of images. batch: how many at a time, None for any number. dtype: NumPy's name of the
    numbers.
    """

    name: str
    layout: Layout
    batch: int | None
    dtype: str

    def laid_out(self, x: Tensor) -> Tensor:
        """Images (n, c, h, w) as the graph takes them."""
        if self.layout == "channels last":
            return x.permute(0, 2, 3, 1)
        return x.flatten(1) if self.layout == "flat" else x

    @property
    def said(self) -> str:
        """A line if images are not handed over as they come."""
        shape = {"channels last": "(n, h, w, c), channels last", "flat": "(n, pixels), flat", "channels first": ""}[
            self.layout
        ]
        return f"The ONNX file takes images as {shape}: they are handed over so" if shape else ""


def prepared(model: ModelProto) -> ModelProto:
    """The model with weights as initializers, of its outputs only the scores, in operators that conversions know."""
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(model)
    _lower_constants(made.graph)
    _drop_aliases(made.graph)
    _keep_scores(made.graph)
    return _lowered(made)


def intake(model: ModelProto, shape: tuple[int, int, int]) -> Intake:
    """What a model declares to take, for images (c, h, w). ValueError, in one line, if it takes none such."""
    from onnx import helper

    weights = {one.name for one in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(one.name for one in inputs) or "none"
        raise ValueError(f"Expected an ONNX model of one input, images, got {names}")
    sizes = _sizes(inputs[0])
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(inputs[0].type.tensor_type.elem_type))
    if dtype.kind != "f":
        raise ValueError(f"Expected an ONNX model of images as floating-point numbers, got {dtype}")
    layout = _layout(sizes, shape)
    if layout is None:
        raise ValueError(f"Expected an ONNX model that takes images {shape}, got one that declares {_told(sizes)}")
    return Intake(inputs[0].name, layout, sizes[0] if sizes else None, dtype.name)


def scores_of(graph: GraphProto) -> str:
    """The name of the output that attacks follow: the first of floating-point numbers that is no map of labels."""
    from onnx import TensorProto

    numbers = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.UNDEFINED}
    maps = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "ZipMap"}
    for output in graph.output:
        if output.name in maps:
            return str(maps[output.name])
        if output.type.HasField("tensor_type") and output.type.tensor_type.elem_type in numbers:
            return str(output.name)
    raise ValueError("Expected an ONNX model with an output of scores, got only labels")


def _sizes(value: ValueInfoProto) -> list[int | None]:
    """The declared sizes, None for free ones."""
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in dims]


def _layout(sizes: list[int | None], shape: tuple[int, int, int]) -> Layout | None:
    """The layout that declared sizes allow, channels first where both do; a model that declares none takes what comes."""
    channels, height, width = shape
    if not sizes:
        return "channels first"
    layouts: dict[Layout, tuple[int, ...]] = {
        "channels first": shape,
        "channels last": (height, width, channels),
        "flat": (channels * height * width,),
    }
    for layout, wanted in layouts.items():
        declared = sizes[1:]
        if len(declared) == len(wanted) and all(a is None or a == b for a, b in zip(declared, wanted, strict=True)):
            return layout
    return None


def _told(sizes: Iterable[int | None]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in sizes) + ")"


def _lower_constants(graph: GraphProto) -> None:
    """Turn `Constant` nodes, in which some exporters keep their weights, into initializers."""
    from onnx import numpy_helper

    kept: list[NodeProto] = []
    for node in graph.node:
        tensor = _constant(node)
        if tensor is None:
            kept.append(node)
            continue
        made = graph.initializer.add()
        made.CopyFrom(numpy_helper.from_array(tensor, node.output[0]))
    _replace(graph, kept)


def _constant(node: NodeProto) -> NDArray[np.generic] | None:
    """The value of a `Constant` node; None for any other node, and for texts and sparse values."""
    from onnx import numpy_helper

    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.attribute) != 1:
        return None
    [attribute] = node.attribute
    if attribute.name == "value":
        tensor: NDArray[np.generic] = numpy_helper.to_array(attribute.t)
        return tensor
    if attribute.name not in _SCALARS:
        return None
    found = {"value_float": attribute.f, "value_int": attribute.i}.get(attribute.name)
    values = list(attribute.floats or attribute.ints) if found is None else found
    return np.array(values, dtype=_SCALARS[attribute.name])


def _drop_aliases(graph: GraphProto) -> None:
    """Let nodes read a weight itself, not the copy of it that an `Identity` makes."""
    weights = {one.name for one in graph.initializer}
    outputs = {one.name for one in graph.output}
    alias: dict[str, str] = {}
    kept: list[NodeProto] = []
    for node in graph.node:
        source = node.input[0] if len(node.input) == 1 else ""
        source = alias.get(source, source)
        if node.op_type == "Identity" and source in weights and node.output[0] not in outputs:
            alias[node.output[0]] = source
        else:
            kept.append(node)
    for node in kept:
        for i, name in enumerate(node.input):
            node.input[i] = alias.get(name, name)
    _replace(graph, kept)


def _keep_scores(graph: GraphProto) -> None:
    """Leave the scores as the only output, and drop what nothing of them comes from."""
    from onnx import TensorProto, helper

    name = scores_of(graph)
    given = [one for one in graph.output if one.name == name]
    value = given[0] if given else helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    outputs = [value]
    del graph.output[:]
    graph.output.extend(outputs)
    wanted = {name}
    kept: list[NodeProto] = []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            kept.append(node)
            wanted.update(node.input)
            wanted.update(_read_inside(node))
    _replace(graph, kept[::-1])
    weights = [one for one in graph.initializer if one.name in wanted]
    del graph.initializer[:]
    graph.initializer.extend(weights)


def _read_inside(node: NodeProto) -> set[str]:
    """The names that the branches of a node read."""
    graphs = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return {name for graph in graphs for one in graph.node for name in (*one.input, *_read_inside(one))}


def _replace(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    found = list(nodes)
    del graph.node[:]
    graph.node.extend(found)


def _lowered(model: ModelProto) -> ModelProto:
    """The model in operators that onnx2torch knows, where ONNX can say it so."""
    from onnx import version_converter

    version = next((each.version for each in model.opset_import if each.domain == ""), 0)
    if version > OPSET:
        try:
            model = version_converter.convert_version(model, OPSET)
        except RuntimeError:  # there is no way down for some operator; onnx2torch may know it all the same
            return model
    for node in model.graph.node:
        # With `allowzero` a 0 among the sizes is meant; without, it stands for the size before. Images have neither.
        if node.op_type == "Reshape":
            kept = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)
    return model
