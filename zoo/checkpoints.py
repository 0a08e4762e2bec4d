"""Weights on disk: safetensors written atomically, read back strictly, and fingerprints that name them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from advbench.files import write_atomically

_ALIASES = "advbench.aliases"
_DIGEST = "advbench.weights_sha256"
_TEXTS_DIGEST = "advbench.texts_sha256"
_OWN = (_ALIASES, _DIGEST, _TEXTS_DIGEST)


def cache_dir() -> Path:
    """The folder for trained models and downloads: $ADVBENCH_CACHE, else the user's cache folder. It may not exist yet."""
    chosen = os.environ.get("ADVBENCH_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("advbench")


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of a module's state: names, shapes, dtypes and bytes of all its tensors, on any device."""
    return state_hash(module.state_dict())


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
    texts = {**metadata, _ALIASES: json.dumps(aliases), _DIGEST: state_hash(state)}
    write_atomically(path, safetensors.torch.save(_contiguous(tensors), texts | {_TEXTS_DIGEST: _digest_of_texts(texts)}))


def load(path: Path, module: nn.Module) -> dict[str, str]:
    """Read the state that `save` wrote into `module`, and return the metadata.

    Strict: names, shapes and dtypes must be those of `module`, which is left as it was when anything is wrong.
    Raises FileNotFoundError for a missing file and ValueError for a damaged file or one of another structure.
    """
    tensors, texts = _state(path)
    _check_structure(path, tensors, module)
    _check_weights(path, tensors, texts)
    module.load_state_dict(tensors)
    return _given(texts)


def verify(path: Path) -> None:
    """Check that a file is a checkpoint as `save` wrote it, weights and texts. Needs no module.

    Raises FileNotFoundError for a missing file and ValueError, in one line, for a damaged one.
    """
    tensors, texts = _state(path)
    _check_weights(path, tensors, texts)
    if texts.pop(_TEXTS_DIGEST, "") != _digest_of_texts(texts):
        raise ValueError(f"Expected the texts that the checkpoint's hash names, got a damaged file: delete {path}")


def metadata(path: Path) -> dict[str, str]:
    """The texts that `save` was given, without the weights. Raises FileNotFoundError or ValueError as `load` does."""
    with _opened(path) as file:
        return _given(dict(file.metadata() or {}))


def _state(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state under all its names, and all texts."""
    with _opened(path) as file:
        tensors, texts = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    try:
        tensors |= {name: tensors[original] for name, original in json.loads(texts[_ALIASES]).items()}
    except (KeyError, ValueError, AttributeError):
        raise ValueError(f"Expected a checkpoint written by advbench, got another safetensors file: {path}") from None
    return tensors, texts


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file to read from; what it answers to damaged bytes becomes a ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"Expected a checkpoint, got no file at {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except Exception as error:  # SafetensorError, and torch's own errors for types and shapes that do not fit the bytes
        said = " ".join(str(error).split())
        raise ValueError(f"Expected a whole safetensors file, got a damaged one ({said:.100}): delete {path}") from None


def _given(texts: Mapping[str, str]) -> dict[str, str]:
    """The texts that `save` was given."""
    return {name: text for name, text in texts.items() if name not in _OWN}


def _check_weights(path: Path, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
    if state_hash(tensors) != texts.get(_DIGEST):
        raise ValueError(f"Expected the weights that the checkpoint's hash names, got a damaged file: delete {path}")


def _digest_of_texts(texts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()


def _check_structure(path: Path, tensors: Mapping[str, Tensor], module: nn.Module) -> None:
    def structure(state: Mapping[str, Tensor]) -> dict[str, str]:
        return {name: f"{tuple(tensor.shape)} {tensor.dtype}" for name, tensor in state.items()}

    found, expected = structure(tensors), structure(module.state_dict())
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            want, got = expected.get(name, "no such tensor"), found.get(name, "no such tensor")
            raise ValueError(f"Expected {want} for {name!r}, got {got} in {path}: it belongs to another model")


def state_hash(state: Mapping[str, object]) -> str:
    """SHA-256 of a state dict: of tensors names, shapes, dtypes and bytes, of quantised ones scales and zero points too.

    Tuples and dictionaries, as quantised layers keep them, count with all that they hold; of other objects than numbers and
    texts the type.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        for part in _parts(name, state[name]):
            digest.update(part)
    return digest.hexdigest()


def _parts(name: str, value: object) -> Iterator[bytes]:
    """What counts of a value of a state dict."""
    if isinstance(value, Tensor):
        yield from _tensor_parts(name, value.detach().cpu())
    elif isinstance(value, Mapping | list | tuple):
        items = sorted(value.items(), key=str) if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from _parts(f"{name}[{key}]", item)
    else:
        plain = value is None or isinstance(value, bool | int | float | str | bytes | torch.dtype)
        yield f"{name} {type(value).__name__} {value if plain else ''!r}\n".encode()


def _tensor_parts(name: str, tensor: Tensor) -> Iterator[bytes]:
    if tensor.is_quantized:
        by_channel = tensor.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric)
        yield from _tensor_parts(f"{name} {tensor.qscheme()}", tensor.int_repr())
        yield from _parts(f"{name} scale", tensor.q_per_channel_scales() if by_channel else tensor.q_scale())
        yield from _parts(f"{name} zero", tensor.q_per_channel_zero_points() if by_channel else tensor.q_zero_point())
        return
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    yield f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode()
    yield tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
