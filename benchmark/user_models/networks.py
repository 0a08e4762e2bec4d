"""The user's own networks as architectures: ``own:TARGET``.

TARGET is ``file.py:factory`` or ``package.module:factory`` (or the name of a module in place of the factory), or
``torchvision/NAME``, ``torchvision/NAME:WEIGHTS`` for torchvision's own weights. For files in the ONNX format see
`advbench.user_models.onnx_files`, for live modules `advbench.user_models.held`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType

from torch import nn

from advbench.config import Outputs
from advbench.errors import reason
from advbench.process_state import restored
from advbench.registry.schemes import OWN, targets
from advbench.user_models.files import few
from advbench.user_models.handed import as_logits

_TORCHVISION = "torchvision/"


def resolve(name: str) -> CodeNetwork:
    """The network of a name ``own:file.py:factory`` or ``own:package.module:factory``."""
    return CodeNetwork(name.removeprefix(OWN))


def resolve_torchvision(name: str) -> TorchvisionNetwork:
    """The network of a name ``own:torchvision/NAME`` or ``own:torchvision/NAME:WEIGHTS``."""
    model, _, weights = name.removeprefix(OWN + _TORCHVISION).partition(":")
    return TorchvisionNetwork(model, weights)


@dataclass(frozen=True, slots=True)
class CodeNetwork:
    """A network that code of the user's returns, called as architectures are: (shape, n_classes) -> network.

    target: ``file.py:factory`` or ``package.module:factory``.
    """

    target: str

    def __call__(self, shape: tuple[int, int, int], n_classes: int, outputs: Outputs = "logits") -> nn.Module:  # noqa: ARG002
        """The network, as its factory made it. ValueError, in one line, if there is none.

        outputs: what it returns; behind probabilities stands their logarithm.
        """
        place, name = _halves(self.target)
        with _importable(place):
            factory = _attribute(_module(place), place, name)
            try:
                made = factory if isinstance(factory, nn.Module) else factory()
            except (Exception, SystemExit) as error:
                raise ValueError(f"The factory {self.target} failed: {reason(error)}") from error
        if not isinstance(made, nn.Module):
            raise ValueError(f"Expected an nn.Module from {self.target}, got {type(made).__name__}")
        return as_logits(made, outputs)

    @property
    def identity(self) -> str:
        """SHA-256 over the user's files that importing the target has brought in: those under its folder, or its package's.

        Installed packages and advbench itself do not count.
        """
        place, _ = _halves(self.target)
        with _importable(place):
            module = _module(place)
        own = Path(str(module.__file__)).resolve()
        folder = own.parent if place.endswith(".py") or "." not in place else own.parents[place.count(".")]
        digest = hashlib.sha256()
        for path in sorted({own, *_imported_from(folder)}):
            digest.update(f"{path.relative_to(folder) if path.is_relative_to(folder) else path.name}\n".encode())
            digest.update(path.read_bytes())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class TorchvisionNetwork:
    """A network of torchvision's, called as architectures are; bare where no weights are named.

    The normalisation that its weights expect is the user's to give; see `statistics`.
    """

    name: str
    weights: str = ""

    def __call__(self, shape: tuple[int, int, int], n_classes: int, outputs: Outputs = "logits") -> nn.Module:  # noqa: ARG002
        """The network. ValueError, in one line, for a name or weights that torchvision does not have."""
        from torchvision import models

        if self.name not in models.list_models(module=models):
            raise ValueError(
                f"Expected a classification model of torchvision such as torchvision/resnet18, got {self.name!r}"
            )
        try:
            with without_pickle():
                made: nn.Module = (
                    models.get_model(self.name, weights=self.weights)
                    if self.weights
                    else models.get_model(self.name, weights=None, num_classes=n_classes)
                )
        except Exception as error:
            target = f"torchvision/{self.name}" + (f":{self.weights}" if self.weights else "")
            raise ValueError(f"{target}: {reason(error)}") from error
        return as_logits(made, outputs)

    @property
    def identity(self) -> str:
        """The version of torchvision."""
        return f"torchvision {metadata.version('torchvision')}"

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation, by channel, that the weights expect. ValueError if torchvision has none."""
        from torchvision import models

        try:
            transforms = getattr(models.get_model_weights(self.name), self.weights).transforms()
        except (ValueError, AttributeError) as error:
            raise ValueError(
                f"Expected weights that torchvision has for {self.name}, got {self.weights!r}: {reason(error)}"
            ) from None
        return tuple(map(float, transforms.mean)), tuple(map(float, transforms.std))


@contextmanager
def without_pickle() -> Iterator[None]:
    """Let `torch.load` read weights and nothing else while the block runs, with any arguments.

    torchvision unpickles the files of its weights as they lie in the cache, compared with their hash only when downloaded.
    """
    wanted = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _halves(target: str) -> tuple[str, str]:
    place, colon, name = target.rpartition(":")
    if not (colon and place and name.isidentifier()):
        hint = ": give a file of weights with --weights, beside the code of its model" if _is_weights(target) else ""
        raise ValueError(f"Expected a model as {targets()}, got {target!r}{hint}")
    return place, name


def _is_weights(target: str) -> bool:
    return target.endswith((".pt", ".pth", ".ckpt", ".bin", ".safetensors"))


@contextmanager
def _importable(place: str) -> Iterator[None]:
    """The folder of a file, or the current one, where modules are looked for inside; global state is put back afterwards."""
    folder = str(Path(place).resolve().parent if place.endswith(".py") else Path.cwd())
    sys.path.insert(0, folder)
    try:
        with restored():
            yield
    finally:
        sys.path.remove(folder)


def _module(place: str) -> ModuleType:
    """The module of a file or of a dotted name. ValueError, in one line, if it cannot be imported."""
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        file = Path(place).resolve()
        name = f"_advbench_own_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None or not file.is_file():
            raise FileNotFoundError("no such file")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"The model's code {place} cannot be loaded: {reason(error)}") from error
    return module


def _attribute(module: ModuleType, place: str, name: str) -> Callable[[], object]:
    if not hasattr(module, name):
        known = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise ValueError(f"Expected {name!r} in {place}, which has {few(known) or 'nothing'}")
    found: object = getattr(module, name)
    if not callable(found):
        raise ValueError(f"Expected a factory {name!r} in {place}, got {type(found).__name__}")
    return found


def _imported_from(folder: Path) -> set[Path]:
    """The files under a folder whose modules are imported, except installed packages and advbench itself."""
    found = set()
    for name, module in list(sys.modules.items()):
        file = Path(str(getattr(module, "__file__", None)))
        if file.suffix == ".py" and file.is_absolute() and name.partition(".")[0] != "advbench":
            path = file.resolve()
            if path.is_file() and path.is_relative_to(folder) and "site-packages" not in path.relative_to(folder).parts:
                found.add(path)
    return found
