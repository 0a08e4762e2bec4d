"""Weights on disk: safetensors written atomically, read back strictly, and fingerprints that name them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import platformdirs
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from advbench.files import write_atomically

_ALIASES = "advbench.aliases"
_DIGEST = "advbench.weights_sha256"


def cache_dir() -> Path:
    """The folder for trained models and downloads: $ADVBENCH_CACHE, else the user's cache folder. It may not exist yet."""
    chosen = os.environ.get("ADVBENCH_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("advbench")


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of a module's state: names, shapes, dtypes and bytes of all its tensors, on any device."""
    return _digest(module.state_dict())


def save(path: Path, module: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write a module's state to `path` (safetensors), as a whole or not at all.

    Tensors that occur under several names are stored once. metadata: texts that `load` hands back.
    """
    state = module.state_dict()
    first: dict[tuple[object, ...], str] = {}
    aliases = {}
    for name, tensor in state.items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and first.setdefault(place, name) != name:
            aliases[name] = first[place]
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in state.items() if name not in aliases}
    own = {_ALIASES: json.dumps(aliases), _DIGEST: _digest(state)}
    write_atomically(path, safetensors.torch.save(_contiguous(tensors), {**metadata, **own}))


def load(path: Path, module: nn.Module) -> dict[str, str]:
    """Read the state that `save` wrote into `module`, and return the metadata.

    Strict: names, shapes and dtypes must be those of `module`, which is left as it was when anything is wrong.
    Raises FileNotFoundError for a missing file and ValueError for a damaged file or one of another structure.
    """
    tensors, metadata = _read(path)
    try:
        tensors |= {name: tensors[original] for name, original in json.loads(metadata.pop(_ALIASES)).items()}
        recorded = metadata.pop(_DIGEST)
    except (KeyError, ValueError, AttributeError):
        raise ValueError(f"Expected a checkpoint written by advbench, got another safetensors file: {path}") from None
    _check_structure(path, tensors, module)
    if _digest(tensors) != recorded:
        raise ValueError(f"Expected the weights that the checkpoint's hash names, got a damaged file: delete {path}")
    module.load_state_dict(tensors)
    return metadata


def metadata(path: Path) -> dict[str, str]:
    """The texts that `save` was given, without the weights. Raises FileNotFoundError or ValueError as `load` does."""
    if not path.is_file():
        raise FileNotFoundError(f"Expected a checkpoint, got no file at {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            found = dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise ValueError(f"Expected a whole safetensors file, got a damaged one ({error}): delete {path}") from None
    return {name: text for name, text in found.items() if name not in (_ALIASES, _DIGEST)}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"Expected a checkpoint, got no file at {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"Expected a whole safetensors file, got a damaged one ({error}): delete {path}") from None


def _check_structure(path: Path, tensors: Mapping[str, Tensor], module: nn.Module) -> None:
    def structure(state: Mapping[str, Tensor]) -> dict[str, str]:
        return {name: f"{tuple(tensor.shape)} {tensor.dtype}" for name, tensor in state.items()}

    found, expected = structure(tensors), structure(module.state_dict())
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            want, got = expected.get(name, "no such tensor"), found.get(name, "no such tensor")
            raise ValueError(f"Expected {want} for {name!r}, got {got} in {path}: it belongs to another model")


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
