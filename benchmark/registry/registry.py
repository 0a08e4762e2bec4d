"""The registry: advbench's own components and those of plug-ins, by name."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from advbench.attacks import ATTACKS
from advbench.defenses import DEFENSES, PARTS
from advbench.registry.sources import source_hash
from advbench.registry.specs import Spec
from advbench.zoo import ARCHITECTURES, DATASETS

if TYPE_CHECKING:
    from advbench.zoo.data import DataSet

Kind = Literal["attacks", "defenses", "parts", "architectures", "datasets"]
KINDS: tuple[Kind, ...] = ("attacks", "defenses", "parts", "architectures", "datasets")

_OWN: Mapping[Kind, Mapping[str, str]] = {
    "attacks": ATTACKS,
    "defenses": DEFENSES,
    "parts": PARTS,
    "architectures": ARCHITECTURES,
    "datasets": DATASETS,
}
_UNLISTED: Mapping[Kind, Mapping[str, str]] = {"defenses": {"own": "advbench.user_models.networks:Own"}}
"""Components that mean nothing without arguments, such as a file of weights."""

OPEN_NAMES: Mapping[Kind, str] = {
    "attacks": "foolbox/NAME, torchattacks/NAME and adv-lib/NAME for the attacks of these libraries, where installed",
    "defenses": "own(weights='FILE') for a trained model of yours, of an architecture own:TARGET",
    "architectures": "torchvision/NAME for every classifier of torchvision, on 3-channel images, and own:TARGET for yours "
    "(file.py:factory, package.module:factory or file.onnx)",
    "datasets": "npz:PATH (Keras: x_train, y_train, x_test, y_test), folder:PATH (ImageFolder) and zca:NAME (whitened)",
}
"""Kinds with names beyond the table, described in a line."""

_OPEN_PREFIXES: Mapping[Kind, tuple[str, ...]] = {
    "attacks": ("foolbox/", "torchattacks/", "adv-lib/"),
    "architectures": ("torchvision/", "own:"),
    "datasets": ("npz:", "folder:", "zca:", "own:"),
}

_RESOLVERS: Mapping[tuple[Kind, str], str] = {
    ("attacks", "foolbox/"): "advbench.user_models.library_attacks:resolve",
    ("attacks", "torchattacks/"): "advbench.user_models.library_attacks:resolve",
    ("attacks", "adv-lib/"): "advbench.user_models.library_attacks:resolve",
    ("architectures", "own:"): "advbench.user_models.networks:resolve",
    ("datasets", "own:"): "advbench.user_models.networks:held",
}
"""Who gives the factory of an open name: the reference of a function of the name. A factory's `identity`, a text, says
what its results depend on beside advbench's sources: a file of the user's, the version of a library."""


class UnknownNameError(ValueError):
    """A name that no component has; the message says which names are close."""


@cache
def table(kind: Kind) -> Mapping[str, str]:
    """Every registered name of a kind with its ``module:factory`` reference; advbench's own names cannot be replaced."""
    found = dict(_OWN[kind])
    for point in metadata.entry_points(group=f"advbench.{kind}"):
        if point.name in found:
            warnings.warn(f"plug-in {point.value} was left out: {kind} already has the name {point.name!r}", stacklevel=2)
        else:
            found[point.name] = point.value
    return found


def names(kind: Kind) -> list[str]:
    """The registered names of a kind, in the order of registration."""
    return list(table(kind))


def check_name(kind: Kind, name: str) -> None:
    """Raise UnknownNameError, with the closest names, unless a component of this kind has the name."""
    if name in _references(kind) or name.startswith(_OPEN_PREFIXES.get(kind, ())):
        return
    close = difflib.get_close_matches(name, table(kind), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"`advbench list {kind}` shows all"
    raise UnknownNameError(f"Expected one of the registered {kind}, got {name!r}: {hint}")


def factory(kind: Kind, name: str) -> Callable[..., Any]:
    """The factory of a registered component. ValueError, in one line, where a plug-in cannot be imported."""
    check_name(kind, name)
    resolver = _resolver(kind, name)
    if resolver is not None:
        return _loaded(resolver)(name)  # type: ignore[no-any-return]
    try:
        return _loaded(_references(kind)[name])  # type: ignore[no-any-return]
    except Exception as error:
        raise ValueError(f"The {kind[:-1]} {name!r} cannot be loaded: {type(error).__name__}: {error}") from error


def _references(kind: Kind) -> Mapping[str, str]:
    return {**table(kind), **_UNLISTED.get(kind, {})}


def _resolver(kind: Kind, name: str) -> str | None:
    """Who gives the factory of an open name; None for any other."""
    if name in table(kind):
        return None
    found = (reference for (each, prefix), reference in _RESOLVERS.items() if each == kind and name.startswith(prefix))
    return next(found, None)


def _loaded(reference: str) -> Any:
    module, _, attribute = reference.partition(":")
    return getattr(importlib.import_module(module), attribute)


def create(kind: Literal["attacks", "defenses", "parts"], spec: Spec) -> Any:
    """The component of a spec. ValueError names the argument that does not fit."""
    make = factory(kind, spec.name)
    accepted = list(inspect.signature(make).parameters)
    for argument, _ in spec.arguments:
        if argument not in accepted:
            close = difflib.get_close_matches(argument, accepted, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(accepted) or 'no arguments'}"
            raise ValueError(f"The {kind[:-1]} {spec.name!r} has no argument {argument!r}: {hint}")
    try:
        return make(**spec.keywords)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{spec}: {error}") from error


def load_dataset(name: str, data_dir: Path | None) -> DataSet:
    """A data set, advbench's own or a plug-in's. ValueError or FileNotFoundError, in one line, where it is not there."""
    from advbench.zoo import datasets

    if _resolver("datasets", name):
        mine: DataSet = factory("datasets", name)()
        return mine
    if name in DATASETS or name not in table("datasets"):
        return datasets.load(name, data_dir)
    data: DataSet = factory("datasets", name)(data_dir)
    return data


def describe(kind: Kind, name: str) -> str:
    """One line: the first line of the factory's docstring, without its full stop."""
    try:
        text = inspect.getdoc(factory(kind, name)) or ""
    except ValueError as error:
        return f"unavailable: {error}"
    return text.partition("\n")[0].removesuffix(".")


def content(kind: Kind, spec: Spec, component: Any) -> dict[str, Any]:
    """What names a component in a key: name, every argument with its default expanded, and the hash of its source.

    A component that is made of others by name says which in `parts`; their sources count too.
    """
    if dataclasses.is_dataclass(component):
        arguments = {field.name: _plain(getattr(component, field.name)) for field in dataclasses.fields(component)}
    else:
        arguments = {key: _plain(value) for key, value in spec.arguments}
    found = {"name": spec.name, "arguments": arguments, "source_hash": source_hash(module_of(kind, spec.name))}
    parts = {name: source_hash(module_of(kind, name)) for name in component.parts} if isinstance(component, Composed) else {}
    named = factory(kind, spec.name) if _resolver(kind, spec.name) else component
    identity = named.identity if isinstance(named, Identified) else ""
    return found | ({"parts": parts} if parts else {}) | ({"identity": identity} if identity else {})


@runtime_checkable
class Composed(Protocol):
    """A component that is made of registered ones."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Their names."""
        ...


@runtime_checkable
class Identified(Protocol):
    """A component, or the factory of an open name, whose results depend on more than advbench's sources."""

    @property
    def identity(self) -> str:
        """What they depend on: the answers of a user's model, the version of a library."""
        ...


def module_of(kind: Kind, name: str) -> str:
    """The module that defines a component."""
    reference = _references(kind).get(name) or _resolver(kind, name)
    if reference is not None:
        return reference.partition(":")[0]
    return "advbench.zoo.architectures" if kind == "architectures" else "advbench.zoo.datasets"


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def restore(kind: Literal["attacks", "defenses", "parts"], content: Mapping[str, Any]) -> Any:
    """The component that `content` described: the factory's, with every field set to the described value."""
    component = factory(kind, content["name"])()
    if not dataclasses.is_dataclass(component) or isinstance(component, type):
        return factory(kind, content["name"])(**content["arguments"])
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in content["arguments"].items()}
    return dataclasses.replace(component, **values)
