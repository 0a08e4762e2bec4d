"""The registries: advbench's own components and those of plug-ins, by name, one `Registry` per kind."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar, cast, runtime_checkable

from advbench.attacks import ATTACKS
from advbench.defenses import DEFENSES, PARTS
from advbench.registry.schemes import Kind, Scheme, close_names, listed, scheme_of
from advbench.registry.sources import source_hash
from advbench.registry.specs import Spec
from advbench.zoo import ARCHITECTURES, DATASETS

if TYPE_CHECKING:
    from torch import nn

    from advbench.attacks.attack import Attack
    from advbench.defenses.defended import Defense
    from advbench.zoo.data import DataSet

T_co = TypeVar("T_co", covariant=True)


class UnknownNameError(ValueError):
    """A name that no component has; the message says which names are close."""


class Registry(Generic[T_co]):
    """The components of one kind by name: advbench's own, those of plug-ins, and those that a scheme resolves.

    kind: the kind, and the entry points' group ``advbench.KIND``. own: advbench's own, name -> ``module:factory``; a plug-in
    cannot take their names. T_co: what a factory of this kind returns.
    """

    def __init__(self, kind: Kind, own: Mapping[str, str]) -> None:
        self.kind = kind
        self.own = own

    @cached_property
    def _plugins(self) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for point in metadata.entry_points(group=f"advbench.{self.kind}"):
            if point.name in self.own or point.name in found:
                text = f"plug-in {point.value} was left out: {self.kind} already has the name {point.name!r}"
                warnings.warn(text, stacklevel=2)
            else:
                found[point.name] = point.value
        return found

    @property
    def table(self) -> Mapping[str, str]:
        """Every registered name with its ``module:factory`` reference, in the order of registration."""
        return {**self.own, **self._plugins}

    def names(self) -> list[str]:
        """The registered names, in the order of registration."""
        return list(self.table)

    def __contains__(self, name: str) -> bool:
        return name in self.table

    def check(self, name: str) -> None:
        """Raise UnknownNameError, with the closest names, unless a component has the name."""
        if name in self or scheme_of(self.kind, name) is not None:
            return
        close = close_names(self.kind, name, self.names())
        hint = f"did you mean {' or '.join(close)}?" if close else f"`advbench list {self.kind}` shows all"
        raise UnknownNameError(f"Expected one of the registered {self.kind}, got {name!r}: {hint}")

    def scheme(self, name: str) -> Scheme | None:
        """The scheme that resolves a name; None for a registered or an unknown one."""
        return None if name in self else scheme_of(self.kind, name)

    def reference(self, name: str) -> str:
        """The ``module:factory`` of a registered name, or the ``module:function`` that resolves it. UnknownNameError."""
        self.check(name)
        scheme = self.scheme(name)
        return self.table[name] if scheme is None else scheme.resolver

    def factory(self, name: str) -> Callable[..., T_co]:
        """The factory of a component. ValueError, in one line, for an unknown name and a plug-in that cannot be imported."""
        reference, scheme = self.reference(name), self.scheme(name)
        if scheme is not None:
            found = _loaded(reference)
            return cast("Callable[..., T_co]", found if scheme.exact else found(name))
        try:
            return cast("Callable[..., T_co]", _loaded(reference))
        except (Exception, SystemExit) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"The {self.kind[:-1]} {name!r} cannot be loaded: {reason}") from error

    def bind(self, spec: Spec) -> Callable[..., T_co]:
        """The factory of a spec with the spec's arguments set. ValueError names the first that it does not take."""
        make = self.factory(spec.name)
        if not spec.arguments:
            return make
        accepted = list(inspect.signature(make).parameters)
        for argument, _ in spec.arguments:
            if argument not in accepted:
                close = difflib.get_close_matches(argument, accepted, n=1)
                hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(accepted) or 'no arguments'}"
                raise ValueError(f"The {self.kind[:-1]} {spec.name!r} has no argument {argument!r}: {hint}")
        return partial(make, **spec.keywords)

    def create(self, spec: Spec) -> T_co:
        """The component of a spec, where the spec's arguments are all that its factory needs.

        ValueError, in one line, for an unknown name, an argument that the component lacks, or a value that it refuses.
        """
        make = self.bind(spec)
        try:
            made = make()
        except (TypeError, ValueError) as error:
            raise ValueError(f"{spec}: {error}") from error
        return self._completed(spec.name, made)

    def _completed(self, name: str, component: object) -> T_co:
        """A component of a plug-in with the defaults of its kind. ContractError for one that lacks what it must have."""
        if name not in self._plugins:
            return cast("T_co", component)
        from advbench.registry.contracts import completed

        return cast("T_co", completed(self.kind, name, component))

    def restored(self, name: str, arguments: Mapping[str, object]) -> T_co:
        """The component of a name with every argument as it was described."""
        make = self.factory(name)
        try:
            made = make()
        except TypeError:  # arguments without defaults
            made = make(**arguments)
        if not dataclasses.is_dataclass(made) or isinstance(made, type):
            return self._completed(name, make(**arguments))
        values = {field: tuple(value) if isinstance(value, list) else value for field, value in arguments.items()}
        return self._completed(name, dataclasses.replace(made, **values))

    def describe(self, name: str) -> str:
        """One line: the first line of the factory's docstring, without its full stop."""
        try:
            text = inspect.getdoc(self.factory(name)) or ""
            if name in self._plugins and self.kind in ("attacks", "defenses", "parts"):
                with suppress(TypeError):  # arguments without defaults
                    self._completed(name, self.factory(name)())
        except ValueError as error:
            return f"unavailable: {error}"
        return text.partition("\n")[0].removesuffix(".")

    def listing(self) -> list[tuple[str, str]]:
        """What people are shown: every registered name, then the form of every scheme, each with its description."""
        rows = [(name, self.describe(name)) for name in self.names()]
        return rows + [(scheme.form, scheme.description) for scheme in listed(self.kind)]


attacks: Registry[Attack] = Registry("attacks", ATTACKS)
defenses: Registry[Defense] = Registry("defenses", DEFENSES)
parts: Registry[Defense] = Registry("parts", PARTS)
architectures: Registry[nn.Module] = Registry("architectures", ARCHITECTURES)
datasets: Registry[DataSet] = Registry("datasets", DATASETS)

_BY_KIND: Mapping[Kind, Registry[object]] = {
    "attacks": attacks,
    "defenses": defenses,
    "parts": parts,
    "architectures": architectures,
    "datasets": datasets,
}


def of(kind: Kind) -> Registry[object]:
    """The registry of a kind."""
    return _BY_KIND[kind]


def of_defense(name: str) -> Registry[Defense]:
    """The registry of a defense's name: of parts, where it is one, else of defenses."""
    return parts if name in parts else defenses


def build_network(spec: Spec, shape: tuple[int, int, int], n_classes: int) -> nn.Module:
    """A fresh network of a spec: images (n, *shape) in [0, 1] -> logits (n, n_classes).

    Its weights come from torch's global generator: build inside `advbench.zoo.training.seeded`.
    Raises ValueError for an unknown name, an argument that the network lacks, or images that it cannot take.
    """
    from torch import nn

    made: object = architectures.bind(spec)(shape, n_classes)
    if not isinstance(made, nn.Module):
        raise ValueError(f"Expected an nn.Module from the architecture {spec.name!r}, got {type(made).__name__}")
    return made


def load_dataset(name: str, data_dir: Path | None = None) -> DataSet:
    """A data set by name.

    data_dir: the folder with the files of a registered data set; None stands for $ADVBENCH_DATA, or else for the cache
    folder, to which they are downloaded. Raises ValueError for an unknown name or files of another form, FileNotFoundError
    for missing files, each in one line.
    """
    from advbench.zoo.data import DataSet

    made: object = datasets.factory(name)(data_dir)
    if not isinstance(made, DataSet):
        raise ValueError(f"Expected an advbench.zoo.data.DataSet from the data set {name!r}, got {type(made).__name__}")
    return made


def resolve_whitened(name: str) -> Callable[[Path | None], DataSet]:
    """The factory of ``zca:NAME``: the data set of the rest of the name, whitened."""
    from advbench.zoo.whitened import PREFIX, whitened

    plain = datasets.factory(name.removeprefix(PREFIX))
    return lambda data_dir: whitened(plain(data_dir))


def _loaded(reference: str) -> Callable[..., object]:
    module, _, attribute = reference.partition(":")
    found: object = getattr(importlib.import_module(module), attribute)
    if not callable(found):
        raise TypeError(f"Expected a factory at {reference}, got {type(found).__name__}")
    return found


def factory(kind: Kind, name: str) -> Callable[..., Any]:
    """The factory of a component of a kind; see `Registry.factory`."""
    return of(kind).factory(name)


def _resolver(kind: Kind, name: str) -> str | None:
    """Who gives the factory of an open name; None for any other."""
    scheme = of(kind).scheme(name)
    return None if scheme is None or scheme.exact else scheme.resolver


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
    """The module that defines a component. UnknownNameError."""
    return of(kind).reference(name).partition(":")[0]


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def restore(kind: Literal["attacks", "defenses", "parts"], content: Mapping[str, Any]) -> Any:
    """The component that `content` described: the factory's, with every field set to the described value."""
    return of(kind).restored(content["name"], content["arguments"])
