"""ONNX files as torch modules through which gradients flow, converted by onnx2torch and compared with what ONNX says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_OPSET = 17
"""The newest version of ONNX's operators that onnx2torch knows throughout; newer files are converted down to it."""
_TOLERANCE = 1e-3


def convert(file: Path) -> nn.Module:
    """The graph of an ONNX file as a module: images -> logits. ValueError, in one line, where that cannot be."""
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
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{file} cannot be converted by onnx2torch: {type(error).__name__}: {reason}; "
            f"export it with opset_version={_OPSET}"
        ) from error
    return converted


def check(file: Path, model: nn.Module, x: Tensor) -> None:
    """Compare a converted model with the file's own answer to images x, by onnxruntime, else by ONNX's reference.

    Raises ValueError where they differ by more than rounding, or where the file takes no images of this shape.
    """
    try:
        expected = torch.from_numpy(np.asarray(_answer(file, x.cpu().numpy())))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"Expected an ONNX model that takes images {tuple(x.shape)} of any number: {reason}; "
            "export it with a free batch axis"
        ) from error
    with torch.no_grad():
        found = model(x).cpu()
    scale = expected.abs().max().clamp(min=1e-6)
    if found.shape != expected.shape or not bool((found - expected).abs().max() <= _TOLERANCE * scale):
        raise ValueError(f"{file} was not converted faithfully by onnx2torch: its logits differ from those of ONNX")


def _lowered(graph: Any) -> Any:
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


def _answer(file: Path, x: np.ndarray[Any, Any]) -> Any:
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        session: Any = ReferenceEvaluator(str(file))
        return session.run(None, {session.input_names[0]: x})[0]
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]
