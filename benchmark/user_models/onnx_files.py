"""ONNX files as torch modules: converted by onnx2torch, so that gradients flow, and compared with what ONNX says.

What cannot be converted is asked through onnxruntime, and attacked by its scores and labels alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from advbench.config import Outputs
from advbench.errors import reason
from advbench.registry.schemes import OWN
from advbench.user_models.batches import in_batches
from advbench.user_models.files import file_hash
from advbench.user_models.handed import as_logits
from advbench.user_models.onnx_graphs import OPSET, Intake, intake, prepared, scores_of

if TYPE_CHECKING:
    from onnx import ModelProto

_TOLERANCE = 1e-3
_LOOKS = 3
"""On how many random images a converted model is compared with its file."""


@dataclass(frozen=True, slots=True)
class OnnxNetwork:
    """The graph of an ONNX file, called as architectures are: (shape, n_classes) -> network."""

    file: Path

    def __call__(self, shape: tuple[int, int, int], n_classes: int, outputs: Outputs = "logits") -> nn.Module:  # noqa: ARG002
        """The network. ValueError, in one line, if the file can neither be converted nor run."""
        return as_logits(network_of(self.file, shape), outputs)

    @property
    def identity(self) -> str:
        """The hash of the file."""
        return file_hash(self.file)


class Session(Protocol):
    """What runs a graph: onnxruntime's."""

    def run(self, names: list[str], given: dict[str, NDArray[np.generic]]) -> Sequence[object]:
        """The outputs of these names."""
        ...


class OnnxModule(nn.Module):
    """What an ONNX file becomes: images (n, c, h, w) in [0, 1] -> scores (n, classes), laid out as the file takes them.

    said: lines that the user should know.
    """

    def __init__(self, takes: Intake, said: tuple[str, ...]) -> None:
        super().__init__()
        self.takes = takes
        self.said = said

    def forward(self, x: Tensor) -> Tensor:
        """Scores. A file for a fixed number of images gets so many at a time, the last ones filled up."""
        return in_batches(self.answer, self.takes.laid_out(x), self.takes.batch)

    def answer(self, x: Tensor) -> Tensor:
        """The scores of images as the file takes them."""
        raise NotImplementedError


class Converted(OnnxModule):
    """A graph that onnx2torch has made a torch module of."""

    def __init__(self, graph: nn.Module, takes: Intake, said: tuple[str, ...]) -> None:
        super().__init__(takes, said)
        self.graph = graph

    def answer(self, x: Tensor) -> Tensor:
        """As the module answers."""
        scores: Tensor = self.graph(x)
        return scores


class Runtime(OnnxModule):
    """A graph that onnxruntime runs, on the processor and without gradients."""

    file_hash: Tensor

    def __init__(self, model: bytes, output: str, takes: Intake, said: tuple[str, ...]) -> None:
        super().__init__(takes, said)
        self.model = model
        self.output = output
        self._session: Session | None = None
        self.register_buffer("file_hash", torch.frombuffer(bytearray(hashlib.sha256(model).digest()), dtype=torch.uint8))

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_session": None}

    def __deepcopy__(self, memo: dict[int, object]) -> Runtime:
        return Runtime(self.model, self.output, self.takes, self.said)

    def answer(self, x: Tensor) -> Tensor:
        """As onnxruntime answers, on the device of the images."""
        if self._session is None:
            self._session = _session(self.model)
        given = x.detach().cpu().contiguous().numpy().astype(self.takes.dtype)
        [scores] = self._session.run([self.output], {self.takes.name: given})
        return torch.from_numpy(np.asarray(scores)).to(x)


def resolve(name: str) -> OnnxNetwork:
    """The network of a name ``own:FILE.onnx``."""
    return OnnxNetwork(Path(name.removeprefix(OWN)))


def network_of(file: Path, shape: tuple[int, int, int]) -> OnnxModule:
    """The graph of an ONNX file for images (c, h, w). ValueError, in one line, if it can neither be converted nor run."""
    graph = _load(file)
    try:
        takes = intake(graph, shape)
        output = scores_of(graph.graph)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    said = tuple(filter(None, (takes.said,)))
    try:
        module = _converted(file, graph, takes, said, shape)
    except ValueError as error:
        return _runtime(file, output, takes, said, error)
    return module


def _converted(
    file: Path, graph: ModelProto, takes: Intake, said: tuple[str, ...], shape: tuple[int, int, int]
) -> OnnxModule:
    """The graph in torch, in batches of any size where that gives the file's answers. ValueError if it does not convert."""
    import onnx2torch

    try:
        converted: nn.Module = onnx2torch.convert(prepared(graph)).eval()
    except Exception as error:
        raise ValueError(f"{file} cannot be converted by onnx2torch: {reason(error, 200)}") from error
    x = torch.rand(_LOOKS, *shape, generator=torch.Generator().manual_seed(0))
    any_number = Intake(takes.name, takes.layout, None, takes.dtype)
    problem = ValueError(f"{file} cannot be converted")
    for each in dict.fromkeys((any_number, takes)):
        module = Converted(converted, each, said)
        try:
            check(file, module, x)
        except ValueError as error:
            problem = error
        else:
            return module
    raise problem


def _runtime(file: Path, output: str, takes: Intake, said: tuple[str, ...], why: ValueError) -> Runtime:
    """The graph as onnxruntime runs it. ValueError, which says why, if there is no onnxruntime, or it does not run."""
    hint = f"export it with opset_version={OPSET} and a free batch axis"
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        raise ValueError(f"{why}; {hint}, or attack its scores alone: pip install onnxruntime") from None
    line = f"No gradients, black-box attacks only: {why}. The file is run by onnxruntime; for gradients {hint}"
    module = Runtime(_exposed(file, output), output, takes, (*said, line))
    try:
        module._session = _session(module.model)
    except Exception as error:
        raise ValueError(f"{why}; nor does onnxruntime run it: {reason(error, 200)}; {hint}") from error
    return module


def _load(file: Path) -> ModelProto:
    """The checked graph of a file."""
    if not file.is_file():
        raise ValueError(f"Expected an ONNX file, got none at {file}")
    try:
        import onnx
        import onnx2torch  # noqa: F401
    except ImportError:
        raise ValueError("Expected onnx and onnx2torch for ONNX models, got none: pip install 'advbench[onnx]'") from None
    try:
        graph = onnx.load(file)
        onnx.checker.check_model(graph)
    except Exception as error:
        raise ValueError(f"{file} cannot be read as an ONNX model: {reason(error, 200)}") from error
    return graph


def said_of(model: nn.Module) -> tuple[str, ...]:
    """What the user should know of the ONNX file in a model; nothing if there is none."""
    return tuple(line for module in model.modules() if isinstance(module, OnnxModule) for line in module.said)


def runs_it(model: nn.Module) -> bool:
    """Whether onnxruntime answers in a model, so that it has no gradients."""
    return any(isinstance(module, Runtime) for module in model.modules())


def check(file: Path, model: nn.Module, x: Tensor) -> None:
    """Compare a model with the answer of the file that it was made of to images x, by onnxruntime, else by ONNX's reference.

    Raises ValueError if they differ by more than rounding, or if the file takes no images of this shape.
    """
    graph = _load(file)
    takes, output = intake(graph, (x.shape[1], x.shape[2], x.shape[3])), scores_of(graph.graph)
    try:
        asked = _Asked(_exposed(file, output), output, takes)
        expected = asked(x)
    except Exception as error:
        raise ValueError(
            f"Expected an ONNX model that takes images {tuple(x.shape)} of any number: {reason(error, 200)}; "
            "export it with a free batch axis"
        ) from error
    try:
        with torch.no_grad():
            found = model(x).cpu()
    except Exception as error:
        raise ValueError(f"{file} was converted by onnx2torch, and fails: {reason(error, 200)}") from error
    scale = expected.abs().max().clamp(min=1e-6)
    if found.shape != expected.shape or not bool((found - expected).abs().max() <= _TOLERANCE * scale):
        raise ValueError(f"{file} was not converted faithfully by onnx2torch: its logits differ from those of ONNX")


class _Asked(OnnxModule):
    """The file's own answers, by onnxruntime where it is installed, else by ONNX's reference."""

    def __init__(self, model: bytes, output: str, takes: Intake) -> None:
        super().__init__(takes, ())
        self.model, self.output = model, output

    def answer(self, x: Tensor) -> Tensor:
        """As ONNX says."""
        given = x.detach().cpu().contiguous().numpy().astype(self.takes.dtype)
        named = {self.takes.name: given}
        try:
            [scores] = _session(self.model).run([self.output], named)
        except ImportError:
            from onnx import load_from_string
            from onnx.reference import ReferenceEvaluator

            [scores] = ReferenceEvaluator(load_from_string(self.model)).run([self.output], named)
        return torch.from_numpy(np.asarray(scores)).float()


def _session(model: bytes) -> Session:
    """An onnxruntime session on as many threads as torch has, which only errors speak of."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    session: Session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session


def _exposed(file: Path, output: str) -> bytes:
    """The file, with the scores among its outputs where a map of labels hides them."""
    import onnx

    graph = onnx.load(file)
    if output not in {one.name for one in graph.graph.output}:
        graph.graph.output.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    found: bytes = graph.SerializeToString()
    return found
