"""Files of weights, in the forms that training scripts leave them in."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from advbench.errors import reason
from advbench.user_models.files import few

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights", "params", "ema")
"""Under which names training scripts put a state dict into a dictionary of their own, the likeliest first."""
_WRAPPED = frozenset({"module", "_orig_mod", "model", ""})
"""What torch's wrappers of modules, and habit, put before the names of weights."""
_DEPTH = 3
_COUNTERS = frozenset({"n_averaged"})
"""What wrappers such as averaged models keep beside the weights."""


class StateError(ValueError):
    """A file of weights that cannot be read, or that belongs to another model."""


@dataclass(frozen=True, slots=True)
class _State:
    """A state dict of a file. place: under which names of the file's dictionaries it lies."""

    place: tuple[str, ...]
    values: Mapping[str, object]

    def __str__(self) -> str:
        return " of ".join(f"`{name}`" for name in reversed(self.place))


def load_weights(network: nn.Module, file: Path) -> tuple[str, ...]:
    """Put a file of weights into a network: safetensors, or a state dict that torch.load reads with ``weights_only``.

    A state dict may lie in dictionaries under ``state_dict``, ``model``, ``net``, ``weights``, ``params`` or ``ema``. One
    common prefix of its names, such as ``module.`` of DataParallel or ``_orig_mod.`` of torch.compile, is taken off if the
    names then are those of the network; where the network has such a prefix and the file none, it is put on. Returns, a
    line each, what was done of this.

    Raises StateError, in one line, for a file that cannot be read, or that belongs to another network.
    """
    expected = network.state_dict()
    states = list(_states(_read(file), ()))
    fitting = [(state, fitted) for state in states if (fitted := _fitted(state, expected)) is not None]
    if not fitting:
        raise StateError(_difference(file, states, expected.keys()))
    (state, (values, said)), *others = fitting
    for name, value in values.items():
        want, got = expected[name], value
        if isinstance(want, Tensor) and isinstance(got, Tensor) and want.shape != got.shape:
            shapes = tuple(want.shape), tuple(got.shape)
            raise StateError(f"Expected {name} of shape {shapes[0]} in {file}, got {shapes[1]}: it belongs to another model")
    try:
        network.load_state_dict(values)
    except Exception as error:
        raise StateError(f"Expected the weights of this model in {file}: {reason(error)}") from error
    return tuple(
        f"{file}: {line}"
        for line in (
            *said,
            *(f"took the weights of {state}, not those of {other}, which would fit too" for other, _ in others),
        )
    )


def _states(found: Mapping[str, object], place: tuple[str, ...]) -> Iterator[_State]:
    """The state dicts in a file's dictionaries, the likeliest first."""
    if len(place) < _DEPTH:
        for name in _WRAPPERS:
            inner = found.get(name)
            if isinstance(inner, Mapping):
                yield from _states(inner, (*place, name))
    if not place or any(isinstance(value, Tensor) for value in found.values()):
        yield _State(place, found)


def _fitted(state: _State, expected: Mapping[str, object]) -> tuple[dict[str, object], list[str]] | None:
    """The values by the network's names, and what was done to the names; None if they are those of another network."""
    names = _names(state, expected.keys())
    off, on = _prefix(names, expected.keys()), _prefix(expected.keys(), names)
    if not set(on.split(".")) <= _WRAPPED:
        on = ""
    if names != expected.keys() and not off and not on:
        return None
    values = OrderedDict((on + name.removeprefix(off), state.values[name]) for name in sorted(names))
    versions = getattr(state.values, "_metadata", None)
    if isinstance(versions, Mapping) and not on:  # of the modules' states, which quantised ones look at
        renamed = {f"{name}.".removeprefix(off).rstrip("."): version for name, version in versions.items()}
        values._metadata = renamed  # type: ignore[attr-defined]
    if off:
        return values, [f"took the prefix {off!r} off the names of the weights"]
    return values, [f"put the prefix {on!r} of this model before the names of the weights"] if on else []


def _names(state: _State, expected: Set[str]) -> set[str]:
    """The names of a state that count: those of tensors, but for counters, and those that are expected."""
    tensors = {name for name, value in state.values.items() if isinstance(value, Tensor)} - _COUNTERS
    return tensors | (state.values.keys() & expected)


def _prefix(longer: Set[str], shorter: Set[str]) -> str:
    """The common prefix of the longer names, ending with a dot, without which they are the shorter ones; else empty."""
    if not shorter or len(longer) != len(shorter):
        return ""
    first = min(shorter)
    prefixes = {name.removesuffix(first) for name in longer if name.endswith(f".{first}")}
    return next((prefix for prefix in sorted(prefixes) if {prefix + name for name in shorter} == longer), "")


def _difference(file: Path, states: list[_State], expected: Set[str]) -> str:
    """What is missing and what is surplus, of the state that comes nearest."""
    names = [
        {name for name, value in state.values.items() if isinstance(value, Tensor) or name in expected} for state in states
    ]
    nearest = min(range(len(states)), key=lambda position: (not names[position], len(names[position] ^ expected)))
    parts = [
        f"{problem} {few(those)}"
        for problem, those in (
            ("lacks", expected - names[nearest]),
            ("has a surplus of", names[nearest] - expected),
        )
        if those
    ]
    under = f" under {states[nearest]}" if states[nearest].place else ""
    return f"Expected the weights of this model in {file}, but it {' and '.join(parts)}{under}"


def _read(file: Path) -> Mapping[str, object]:
    if not file.is_file():
        raise StateError(f"Expected a file of weights, got none at {file}")
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        safetensors.SafetensorError,
    ) as error:
        first = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise StateError(
            f"Expected safetensors, or a state dict as torch.save(model.state_dict(), FILE) writes it, at {file}: {first}"
        ) from None
    if not isinstance(found, Mapping):
        raise StateError(f"Expected a state dict at {file}, got {type(found).__name__}: save model.state_dict()")
    return found
