"""Programs that torch has saved: ``own:FILE.pt2`` of torch.export, ``own:FILE.ts`` of TorchScript.

Such a file holds a network's code and weights, and torch runs it: it is trusted as a Python file is. What a file can hold
beside its program is not unpickled.
"""

from __future__ import annotations

import inspect
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from advbench.config import Outputs
from advbench.errors import reason
from advbench.registry.schemes import OWN
from advbench.user_models.batches import in_batches
from advbench.user_models.files import file_hash
from advbench.user_models.handed import as_logits
from advbench.user_models.networks import without_pickle
from advbench.user_models.outputs import tensor_in

_PICKLED = ("custom_obj_", "opaque_obj_")
"""How the names of pickled objects begin in an archive of torch.export."""


def resolve(name: str) -> ProgramNetwork:
    """The network of a name ``own:FILE.pt2`` or ``own:FILE.ts``."""
    return ProgramNetwork(Path(name.removeprefix(OWN)))


@dataclass(frozen=True, slots=True)
class ProgramNetwork:
    """The program of a file, called as architectures are: (shape, n_classes) -> network."""

    file: Path

    def __call__(self, shape: tuple[int, int, int], n_classes: int, outputs: Outputs = "logits") -> nn.Module:  # noqa: ARG002
        """The network. ValueError, in one line, if the file cannot be loaded."""
        if not self.file.is_file():
            raise ValueError(f"Expected a model at {self.file}, got no such file")
        load = _exported if self.file.suffix == ".pt2" else _scripted
        try:
            with without_pickle(), _quiet():
                made = load(self.file)
        except Exception as error:
            by = "torch.export.save" if self.file.suffix == ".pt2" else "torch.jit.save"
            raise ValueError(f"Expected a model that {by} has written at {self.file}, got {reason(error)}") from error
        return as_logits(made, outputs)

    @property
    def identity(self) -> str:
        """The hash of the file."""
        return file_hash(self.file)


class FixedBatch(nn.Module):
    """A program for a fixed number of images, asked about any number of them.

    program: (size, c, h, w) -> logits (size, classes), or an object that holds them.
    """

    def __init__(self, program: nn.Module, size: int) -> None:
        super().__init__()
        self.program = program
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, c, h, w)."""
        return in_batches(self._logits, x, self.size)

    def _logits(self, x: Tensor) -> Tensor:
        found, _ = tensor_in(self.program(x), len(x))
        if not isinstance(found, Tensor):
            raise TypeError(f"Expected logits ({len(x)}, classes) from the program, got {type(found).__name__}")
        return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of how a file was written, which is no error."""
    log = logging.getLogger("torch.export")
    before = log.disabled
    log.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before


def _scripted(file: Path) -> nn.Module:
    made: nn.Module = torch.jit.load(str(file), map_location="cpu")  # type: ignore[no-untyped-call]
    return made


def _exported(file: Path) -> nn.Module:
    with zipfile.ZipFile(file) as archive:
        pickled = [name for name in archive.namelist() if any(f"/{prefix}" in f"/{name}" for prefix in _PICKLED)]
    if pickled:
        raise ValueError(f"a pickled object, {Path(pickled[0]).name}, which is not loaded")
    program = torch.export.load(file)
    module: Callable[..., nn.Module] = program.module
    unguarded = {"check_guards": False} if "check_guards" in inspect.signature(module).parameters else {}
    made, size = module(**unguarded), _batch(program)
    return made if size is None else FixedBatch(made, size)


def _batch(program: torch.export.ExportedProgram) -> int | None:
    """The number of images that a program was exported for; None if any will do, or if its input is no batch of images."""
    taken = [node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs]
    shape = list(getattr(taken[0].meta.get("val"), "shape", ())) if len(taken) == 1 else []
    return shape[0] if shape and isinstance(shape[0], int) else None
