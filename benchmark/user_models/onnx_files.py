"""ONNX files as torch modules through which gradients flow, converted by onnx2torch and compared with what ONNX says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from advbench.config import Outputs
from advbench.errors import reason
from advbench.registry.schemes import OWN
from advbench.user_models.files import file_hash
from advbench.user_models.handed import as_logits

if TYPE_CHECKING:
    from onnx import ModelProto

_OPSET = 17
"""The newest version of ONNX's operators that onnx2torch knows throughout; newer files are converted down to it."""
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class OnnxNetwork:
    """The graph of an ONNX file, called as architectures are: (shape, n_classes) -> network."""

    file: Path

    def __call__(self, shape: tuple[int, int, int], n_classes: int, outputs: Outputs = "logits") -> nn.Module:  # noqa: ARG002
        """The network. ValueError, in one line, if the file cannot be converted."""
        return as_logits(convert(self.file), outputs)

    @property
    def identity(self) -> str:
        """The hash of the file."""
        return file_hash(self.file)


def resolve(name: str) -> OnnxNetwork:
    """The network of a name ``own:FILE.onnx``."""
    return OnnxNetwork(Path(name.removeprefix(OWN)))


def convert(file: Path) -> nn.Module:
    """The graph of an ONNX file as a module: images -> logits. ValueError, in one line, if it cannot be converted."""
    if not file.is_file():
        raise ValueError(f"Expected an ONNX file, got none at {file}")
    try:
        import onnx
        import onnx2torch
    except ImportError:
        raise ValueError("Expected onnx and onnx2torch for ONNX models, got none: pip install 'advbench[onnx]'") from None
    try:
        graph = onnx.load(file)
        onnx.checker.check_model(graph)
        converted: nn.Module = onnx2torch.convert(_lowered(graph))
    except Exception as error:
        raise ValueError(
            f"{file} cannot be converted by onnx2torch: {reason(error, 200)}; export it with opset_version={_OPSET}"
        ) from error
    return converted


def check(file: Path, model: nn.Module, x: Tensor) -> None:
    """Compare a converted model with the file's own answer to images x, by onnxruntime, else by ONNX's reference.

    Raises ValueError if they differ by more than rounding, or if the file takes no images of this shape.
    """
    try:
        expected = torch.from_numpy(_answer(file, x.cpu().numpy()))
    except Exception as error:
        raise ValueError(
            f"Expected an ONNX model that takes images {tuple(x.shape)} of any number: {reason(error, 200)}; "
            "export it with a free batch axis"
        ) from error
    with torch.no_grad():
        found = model(x).cpu()
    scale = expected.abs().max().clamp(min=1e-6)
    if found.shape != expected.shape or not bool((found - expected).abs().max() <= _TOLERANCE * scale):
        raise ValueError(f"{file} was not converted faithfully by onnx2torch: its logits differ from those of ONNX")


def _lowered(graph: ModelProto) -> ModelProto:
    """The graph in operators that onnx2torch knows, where ONNX can say it so."""
    from onnx import version_converter

    version = next((each.version for each in graph.opset_import if each.domain == ""), 0)
    if version > _OPSET:
        try:
            graph = version_converter.convert_version(graph, _OPSET)
        except RuntimeError:  # there is no way down for some operator; onnx2torch may know it all the same
            return graph
    for node in graph.graph.node:
        # With `allowzero` a 0 among the sizes is meant; without, it stands for the size before. Images have neither.
        if node.op_type == "Reshape":
            kept = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)
    return graph


def _answer(file: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        reference = ReferenceEvaluator(str(file))
        first, *_ = reference.run(None, {reference.input_names[0]: x})
        return np.asarray(first)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])
