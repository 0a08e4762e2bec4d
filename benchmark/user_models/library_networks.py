"""Networks of other libraries: ``own:timm/NAME`` of timm, ``own:robustbench/DATASET/THREAT/NAME`` of RobustBench's zoo.

Neither library is needed before such a name asks for it.
"""

from __future__ import annotations

import hashlib
import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import cast

from torch import nn

from advbench.config import Outputs
from advbench.errors import reason
from advbench.registry.schemes import OWN
from advbench.user_models.files import file_hash
from advbench.user_models.handed import as_logits
from advbench.user_models.networks import without_pickle

_TIMM, _ROBUSTBENCH = "timm/", "robustbench/"
_DEFAULT = "DEFAULT"
_FOLDER = Path("models")
"""Where RobustBench keeps its checkpoints if nothing else is said."""


def resolve_timm(name: str) -> TimmNetwork:
    """The network of a name ``own:timm/NAME`` or ``own:timm/NAME:WEIGHTS``."""
    model, _, weights = name.removeprefix(OWN + _TIMM).partition(":")
    return TimmNetwork(model, weights)


def resolve_robustbench(name: str) -> RobustBenchNetwork:
    """The network of a name ``own:robustbench/DATASET/THREAT/NAME``, behind a folder where it is not ``models``."""
    path = Path(name.removeprefix(OWN + _ROBUSTBENCH).removesuffix(".pt"))
    if len(path.parts) < 3:
        raise ValueError(
            "Expected a model of RobustBench as robustbench/DATASET/THREAT/NAME, such as "
            f"robustbench/cifar10/Linf/Carmon2019Unlabeled, got {name.removeprefix(OWN)!r}"
        )
    return RobustBenchNetwork(path if len(path.parts) > 3 else _FOLDER / path)


@dataclass(frozen=True, slots=True)
class TimmNetwork:
    """A network of timm's, called as architectures are; bare where no weights are named.

    name: as timm has it, such as ``resnet18`` or ``vit_tiny_patch16_224``. weights: ``DEFAULT``, or a tag such as
    ``a1_in1k``, for timm's own weights, which timm downloads or has in its cache. The normalisation that they expect is the
    user's to give; see `statistics`.
    """

    name: str
    weights: str = ""

    def __call__(self, shape: tuple[int, int, int], n_classes: int, outputs: Outputs = "logits") -> nn.Module:
        """The network. ValueError, in one line, without timm, and for a name or weights that it does not have."""
        timm = _library("timm", f"timm/{self.name}")
        if not timm.is_model(self.name):
            raise ValueError(f"Expected a model of timm such as timm/resnet18, got {self.name!r}")
        try:
            with without_pickle():
                made: nn.Module = (
                    timm.create_model(self._tagged(), pretrained=True)
                    if self.weights
                    else timm.create_model(self.name, pretrained=False, num_classes=n_classes, in_chans=shape[0])
                )
        except Exception as error:
            raise ValueError(f"{self._target()}: {reason(error)}") from error
        return as_logits(made, outputs)

    @property
    def identity(self) -> str:
        """The version of timm."""
        return _version("timm")

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation, by channel, that the weights expect. ValueError if timm has no such weights."""
        timm = _library("timm", f"timm/{self.name}")
        try:
            found = timm.get_pretrained_cfg(self._tagged())
        except Exception as error:
            raise ValueError(f"{self._target()}: {reason(error)}") from error
        if found is None or not getattr(found, "has_weights", True):
            raise ValueError(f"Expected weights that timm has for {self.name}, got {self.weights or 'none'!r}")
        return tuple(map(float, found.mean)), tuple(map(float, found.std))

    def _tagged(self) -> str:
        """The name with the tag of its weights."""
        return self.name if self.weights in ("", _DEFAULT) else f"{self.name.partition('.')[0]}.{self.weights}"

    def _target(self) -> str:
        return f"timm/{self.name}" + (f":{self.weights}" if self.weights else "")


@dataclass(frozen=True, slots=True)
class RobustBenchNetwork:
    """A network of RobustBench's zoo (Croce et al. 2021, arXiv:2010.09670) with its checkpoint, called as architectures are.

    path: FOLDER/DATASET/THREAT/NAME, where the checkpoint lies as FOLDER/DATASET/THREAT/NAME.pt. Nothing is downloaded, and
    the file is read by torch.load with ``weights_only``.
    """

    path: Path

    def __call__(self, shape: tuple[int, int, int], n_classes: int, outputs: Outputs = "logits") -> nn.Module:  # noqa: ARG002
        """The network. ValueError, in one line, without robustbench or the file, or for a file of more than weights."""
        files = self._files()
        dataset, threat, name = self.path.parts[-3:]
        load = cast(Callable[..., nn.Module], self._module("robustbench.utils").load_model)
        try:
            with without_pickle(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = load(name, str(self.path.parents[2]), dataset, threat)
        except Exception as error:
            raise ValueError(f"Expected the weights of robustbench/{name} in {files[0]}, got {reason(error)}") from error
        return as_logits(made, outputs)

    @property
    def identity(self) -> str:
        """The version of robustbench and the hashes of the checkpoint's files."""
        digest = hashlib.sha256("".join(file_hash(file) for file in self._files()).encode()).hexdigest()
        return f"{_version('robustbench')} {digest}"

    def _files(self) -> list[Path]:
        """The files of the checkpoint, several for an ensemble, all of which are there."""
        known = self._known()
        if not known:
            raise ValueError(
                f"Expected a model of RobustBench with a checkpoint, got {self.path.name}, whose weights are another "
                "library's: try timm/NAME or torchvision/NAME"
            )
        file = self.path.with_name(f"{self.path.name}.pt")
        files = [file] if isinstance(known, str) else [Path(f"{file}_m{place}.pt") for place in range(len(known))]
        missing = [each for each in files if not each.is_file()]
        if missing:
            raise ValueError(f"Expected RobustBench's checkpoint at {missing[0]}, got no such file: download it there first")
        return files

    def _known(self) -> str | list[str] | None:
        """What RobustBench knows of the checkpoint of a model: an id, several for an ensemble."""
        dataset, threat, name = self.path.parts[-3:]
        zoo: Mapping[object, Mapping[object, Mapping[str, Mapping[str, object]]]]
        zoo = self._module("robustbench.model_zoo").model_dicts
        boards = {
            (str(getattr(each, "value", each)), str(getattr(norm, "value", norm))): models
            for each, by_threat in zoo.items()
            for norm, models in by_threat.items()
        }
        models = boards.get((dataset, threat))
        if models is None:
            known = ", ".join("/".join(board) for board in boards)
            raise ValueError(f"Expected DATASET/THREAT of RobustBench, one of {known}, got {dataset}/{threat}")
        if name not in models:
            raise ValueError(f"Expected a model of RobustBench's {dataset}/{threat}, got {name!r}")
        return cast("str | list[str] | None", models[name].get("gdrive_id"))

    def _module(self, name: str) -> ModuleType:
        return _library(name, f"robustbench/{self.path.name}")


def _library(module: str, target: str) -> ModuleType:
    """A module of an optional library. ValueError, in one line, if it is not installed or fails."""
    package = module.partition(".")[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(package)
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == package:
            raise ValueError(f"Expected {package} for {target}, got no such package: pip install {package}") from None
        raise ValueError(f"{package} cannot be imported: {reason(error)}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"{package} cannot be imported: {reason(error)}") from error


def _version(package: str) -> str:
    """The version of a library; none where it is not a distribution."""
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return package
