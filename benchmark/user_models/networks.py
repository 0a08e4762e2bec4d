"""The user's own models as targets of a plan: ``own:TARGET`` names a network, the defense ``own`` gives it its weights.

TARGET is ``file.py:factory`` or ``package.module:factory`` (or the name of a module in place of the factory), a file in
the ONNX format, or ``torchvision/NAME``, ``torchvision/NAME:WEIGHTS`` for torchvision's own weights. Nothing is trained, and
no copy of the weights is kept: every task builds the model anew and compares its fingerprint with that of the plan.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import math
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from advbench.defenses.defended import Architecture, Defended
from advbench.registry.specs import Spec
from advbench.tasks.task import scored_split
from advbench.user_models import onnx_files
from advbench.user_models.blockwise import Blockwise
from advbench.zoo import checkpoints
from advbench.zoo.data import DataSet
from advbench.zoo.preprocessing import Standardise
from advbench.zoo.training import Budget, Progress, seeded

PREFIX = "own:"
_HELD = "held:"
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Under which names training scripts put a state dict into a dictionary of their own."""

_MODELS: dict[str, nn.Module] = {}
_DATA: dict[str, DataSet] = {}


class StateError(ValueError):
    """A file of weights that cannot be read, or that belongs to another model."""


@contextmanager
def holding(name: str, model: nn.Module, data: DataSet) -> Iterator[str]:
    """Make a live model and its images known as ``own:held:NAME`` in this process while the block runs.

    Yields that name, of the architecture as of the data set. Workers in other processes cannot see them.
    """
    key = f"{_HELD}{name}"
    _MODELS[key], _DATA[key] = model, data
    try:
        yield PREFIX + key
    finally:
        del _MODELS[key], _DATA[key]


def held(name: str) -> Callable[[], DataSet]:
    """The data set of a name that `holding` gave. Raises ValueError for any other."""
    key = name.removeprefix(PREFIX)
    if key not in _DATA:
        raise ValueError(f"Expected one of the registered datasets, got {name!r}: `advbench list datasets` shows all")
    return partial(_DATA.__getitem__, key)


def resolve(name: str) -> Network:
    """The network of a name ``own:TARGET``."""
    return Network(name.removeprefix(PREFIX))


@dataclass(frozen=True, slots=True)
class Network:
    """A network of the user's, called as architectures are: (shape, n_classes) -> network. See the module for `target`."""

    target: str

    def __call__(self, shape: tuple[int, int, int], n_classes: int) -> nn.Module:  # noqa: ARG002
        """The network, as its factory made it. ValueError, in one line, where there is none."""
        if self.target in _MODELS:
            return _MODELS[self.target]
        if self.target.startswith("torchvision/"):
            return _torchvision(self.target, n_classes)
        if self.target.endswith(".onnx"):
            return onnx_files.convert(Path(self.target))
        return _made(self.target)

    @property
    def identity(self) -> str:
        """What the network is made of: a hash of the files of the user's that were read, or the version of a library."""
        if self.target in _MODELS:
            return self.target
        if self.target.startswith("torchvision/"):
            return f"torchvision {importlib.import_module('torchvision').__version__}"
        if self.target.endswith(".onnx"):
            return _file_hash(Path(self.target))
        return _sources_hash(self.target)


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """A trained model of the user's; nothing is trained here.

    weights: a file of safetensors, or of a state dict that torch.load reads with ``weights_only``; empty where the factory
    of the network loads its own. weights_sha256: the fingerprint of the whole model (`zoo.checkpoints.fingerprint`), with
    which every build is compared; needed where `weights` is empty. mean, std: of the normalisation that the model expects,
    by channel, which becomes its first layer; none where empty. stochastic: whether it draws random numbers by torch's own
    generators, in blocks of `block` images (see `Blockwise`). n_examples: how many images are scored, all where None.
    """

    weights: str = ""
    weights_sha256: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    stochastic: bool = False
    block: int = 32
    n_examples: int | None = None

    inputs: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ValueError(f"Expected `mean` and `std` of the same length, got {len(self.mean)} and {len(self.std)}")
        if not all(math.isfinite(value) for value in self.mean) or not all(
            math.isfinite(value) and value > 0 for value in self.std
        ):
            raise ValueError(f"Expected a finite `mean` and a `std` above 0, got {self.mean} and {self.std}")

    @property
    def identity(self) -> str:
        """The hash of the file of weights, where there is one."""
        return _file_hash(Path(self.weights)) if self.weights else ""

    def build(self, architecture: Architecture, data: DataSet, inputs: Mapping[str, Defended]) -> Defended:  # noqa: ARG002
        """The finished model. ValueError where it is not the one that the plan was made for."""
        if not (self.weights or self.weights_sha256):
            raise ValueError("Expected `weights`, a file, got none: own(weights='model.safetensors')")
        model = loaded(architecture, self.weights, self.mean, self.std, data.shape)
        if self.weights_sha256 and checkpoints.fingerprint(model) != self.weights_sha256:
            raise ValueError(
                "Expected the model that the run was planned for, got other weights: do not change it meanwhile"
            )
        if not self.stochastic:
            return _Finished(model)
        index = scored_split(data, self.n_examples).index if self.n_examples is not None else None
        return _Finished(Blockwise(model, block=self.block, index=index), stochastic=True)

    def fit(
        self,
        architecture: Architecture,
        data: DataSet,
        *,
        inputs: Mapping[str, Defended],
        seed: int,  # noqa: ARG002
        device: torch.device,  # noqa: ARG002
        budget: Budget,  # noqa: ARG002
        progress: Progress | None = None,  # noqa: ARG002
    ) -> Defended:
        """The same as `build`: it is trained already."""
        return self.build(architecture, data, inputs)


@dataclass(frozen=True, slots=True)
class Shown(Spec):
    """A spec that people read as a text of its own, where that of its arguments says little."""

    shown: str = field(default="", compare=False)

    def __str__(self) -> str:
        return self.shown


@dataclass(frozen=True, slots=True, eq=False)
class _Finished(Defended):
    """A model whose weights lie elsewhere, so that a checkpoint of it is empty."""

    def modules(self) -> nn.ModuleDict:
        """The model, with nothing to keep."""
        return _Stateless({"model": self.model})


class _Stateless(nn.ModuleDict):
    """Modules of which no checkpoint keeps anything."""

    def state_dict(self, *arguments: Any, **keywords: Any) -> Any:  # noqa: ARG002
        """Nothing."""
        return {}

    def load_state_dict(self, *arguments: Any, **keywords: Any) -> Any:  # noqa: ARG002
        """Nothing to do."""
        return None


def loaded(
    architecture: Architecture,
    weights: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    shape: tuple[int, int, int],
) -> nn.Module:
    """A network with its weights and its normalisation, in evaluation mode; what the factory draws is the same every time.

    shape: of an image. Raises ValueError, in one line, for anything that does not fit.
    """
    if mean and len(mean) not in (1, shape[0]):
        raise ValueError(f"Expected a `mean` and a `std` for each of {shape[0]} channels, got {len(mean)}")
    with seeded(0):
        network = architecture()
    if weights:
        load_weights(network, Path(weights))
    return (_normalised(network, mean, std) if mean else network).eval()


def load_weights(network: nn.Module, file: Path) -> None:
    """Put a file of weights into a network: safetensors, or a state dict that torch.load reads with ``weights_only``.

    A state dict may lie in a dictionary under ``state_dict`` or ``model``, and have the prefix ``module.`` of DataParallel.
    Raises StateError, in one line, for a file that cannot be read, or that belongs to another network.
    """
    state = {name: value for name, value in _state(file).items() if isinstance(value, Tensor)}
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    expected = network.state_dict()
    for problem, names in (("lacks", expected.keys() - state.keys()), ("has a surplus of", state.keys() - expected.keys())):
        if names:
            raise StateError(f"Expected the weights of this model in {file}, but it {problem} {_few(names)}")
    for name, value in state.items():
        if value.shape != expected[name].shape:
            want, got = tuple(expected[name].shape), tuple(value.shape)
            raise StateError(f"Expected {name} of shape {want} in {file}, got {got}: it belongs to another model")
    network.load_state_dict(state)


def _state(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise StateError(f"Expected a file of weights, got none at {file}")
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, safetensors.SafetensorError) as error:
        first = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise StateError(
            f"Expected safetensors, or a state dict as torch.save(model.state_dict(), FILE) writes it, at {file}: {first}"
        ) from None
    for name in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping):
        raise StateError(f"Expected a state dict at {file}, got {type(found).__name__}: save model.state_dict()")
    return found


def _few(names: Any) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")


def _normalised(network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> nn.Module:
    first = Standardise(len(mean))
    first.mean.copy_(torch.tensor(mean).view(first.mean.shape))
    first.std.copy_(torch.tensor(std).view(first.std.shape))
    return nn.Sequential(first, network)


# --- where networks come from


def _made(target: str) -> nn.Module:
    """What the factory of ``file.py:factory`` or ``package.module:factory`` returns."""
    place, name = _halves(target)
    with _importable(place):
        factory = _attribute(_module(place), place, name)
        try:
            made = factory if isinstance(factory, nn.Module) else factory()
        except Exception as error:
            raise ValueError(f"The factory {target} failed: {type(error).__name__}: {_one_line(error)}") from error
    if not isinstance(made, nn.Module):
        raise ValueError(f"Expected an nn.Module from {target}, got {type(made).__name__}")
    return made


def _halves(target: str) -> tuple[str, str]:
    place, colon, name = target.rpartition(":")
    if not (colon and place and name.isidentifier()):
        raise ValueError(
            f"Expected a model as file.py:factory, package.module:factory, file.onnx or torchvision/NAME, got {target!r}"
        )
    return place, name


@contextmanager
def _importable(place: str) -> Iterator[None]:
    """The folder of a file, or the current one, where modules are looked for inside."""
    folder = str(Path(place).resolve().parent if place.endswith(".py") else Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _module(place: str) -> Any:
    """The module of a file or of a dotted name. ValueError, in one line, where it cannot be imported."""
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
    except Exception as error:
        raise ValueError(f"The model's code {place} cannot be loaded: {type(error).__name__}: {_one_line(error)}") from error
    return module


def _attribute(module: Any, place: str, name: str) -> Any:
    if not hasattr(module, name):
        known = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise ValueError(f"Expected {name!r} in {place}, which has {_few(known) or 'nothing'}")
    found = getattr(module, name)
    if not callable(found):
        raise ValueError(f"Expected a factory {name!r} in {place}, got {type(found).__name__}")
    return found


def _torchvision(target: str, n_classes: int) -> nn.Module:
    """A network of torchvision's, bare where no weights are named: its normalisation is then the user's."""
    from torchvision import models

    name, _, weights = target.removeprefix("torchvision/").partition(":")
    if name not in models.list_models(module=models):
        raise ValueError(f"Expected a classification model of torchvision such as torchvision/resnet18, got {name!r}")
    try:
        if weights:
            made: nn.Module = models.get_model(name, weights=weights)
        else:
            made = models.get_model(name, weights=None, num_classes=n_classes)
    except Exception as error:
        raise ValueError(f"{target}: {type(error).__name__}: {_one_line(error)}") from error
    return made


def torchvision_statistics(target: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that torchvision's weights of ``torchvision/NAME:WEIGHTS`` expect."""
    from torchvision import models

    name, _, weights = target.removeprefix("torchvision/").partition(":")
    try:
        transforms = getattr(models.get_model_weights(name), weights).transforms()
    except (ValueError, AttributeError) as error:
        raise ValueError(f"Expected weights that torchvision has for {name}, got {weights!r}: {_one_line(error)}") from None
    return tuple(map(float, transforms.mean)), tuple(map(float, transforms.std))


# --- what they are made of


def _file_hash(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"Expected a file at {file}: {error.strerror or error}") from None


def _sources_hash(target: str) -> str:
    """SHA-256 over the user's files that importing `target` has brought in: those under its folder, or its package's.

    Installed packages and advbench itself do not count.
    """
    place, _ = _halves(target)
    with _importable(place):
        module = _module(place)
    own = Path(str(module.__file__)).resolve()
    folder = own.parent if place.endswith(".py") or "." not in place else own.parents[place.count(".")]
    files = {own}
    for name, each in list(sys.modules.items()):
        file = Path(str(getattr(each, "__file__", None)))
        if file.suffix == ".py" and file.is_absolute() and name.partition(".")[0] != "advbench":
            path = file.resolve()
            if path.is_file() and path.is_relative_to(folder) and "site-packages" not in path.relative_to(folder).parts:
                files.add(path)
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(folder) if path.is_relative_to(folder) else path.name}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
