"""Registered components as tasks hold them: by name, with every argument, and with what identifies their code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from torch import nn

from advbench.defenses.defended import Defense
from advbench.registry import registry
from advbench.registry.schemes import Kind
from advbench.registry.specs import Spec
from advbench.zoo.data import DataSet

if TYPE_CHECKING:  # a training is keyed by no code that attacks or keeps records
    from advbench.attacks.attack import Attack
    from advbench.results.record import ComponentPart, Plain

Argument: TypeAlias = "bool | int | float | str | tuple[Argument, ...] | None"
"""What the arguments of a component are made of."""


@dataclass(frozen=True, slots=True)
class Component:
    """An attack, a defense, a part or an architecture, as a key and a record name it.

    name: as registered. arguments: every one, defaults among them, as (name, value) pairs, which are sorted by name.
    source_hash: of the module that defines it (`advbench.registry.sources`). parts: (name, source hash) of the components
    that it is made of, sorted too. identity: what else its results depend on, such as the fingerprint of a file; empty if
    nothing.
    """

    name: str
    arguments: tuple[tuple[str, Argument], ...]
    source_hash: str
    parts: tuple[tuple[str, str], ...] = ()
    identity: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", tuple(sorted(self.arguments, key=lambda pair: pair[0])))
        object.__setattr__(self, "parts", tuple(sorted(self.parts)))

    @staticmethod
    def read(described: Mapping[str, object]) -> Component:
        """The component that `described`, such as the attack of a record, is about. ValueError for another form."""
        name, source_hash = described.get("name"), described.get("source_hash")
        arguments, parts = described.get("arguments"), described.get("parts", {})
        if not isinstance(name, str) or not isinstance(source_hash, str):
            raise ValueError(f"Expected a component with `name` and `source_hash`, got {described!r:.80}")
        if not isinstance(arguments, Mapping) or not isinstance(parts, Mapping):
            raise ValueError(f"Expected a component with `arguments`, got {described!r:.80}")
        return Component(
            name=name,
            arguments=tuple((str(each), _frozen(value)) for each, value in arguments.items()),
            source_hash=source_hash,
            parts=tuple((str(each), str(value)) for each, value in parts.items()),
            identity=str(described.get("identity", "")),
        )

    @staticmethod
    def of(kind: Kind, spec: Spec, component: object = None) -> Component:
        """What names the component of a spec. component: made of that spec; None for an architecture."""
        return Component.read(registry.content(kind, spec, component))

    @property
    def keywords(self) -> dict[str, Argument]:
        """The arguments by name."""
        return dict(self.arguments)

    def named(self) -> ComponentPart:
        """Name and arguments, as a record shows a defense or an architecture."""
        return {"name": self.name, "arguments": self.keywords}

    def described(self) -> dict[str, Plain]:
        """All of it, as keys hold it and a record shows an attack; parts and identity only if there are any."""
        found: dict[str, Plain] = {"name": self.name, "arguments": self.keywords, "source_hash": self.source_hash}
        if self.parts:
            found["parts"] = dict(self.parts)
        return found | ({"identity": self.identity} if self.identity else {})


def attack_of(component: Component) -> Attack:
    """The attack, with every argument as described."""
    attack: Attack = registry.restore("attacks", component.described())
    return attack


def defense_of(component: Component) -> Defense:
    """The defense or part, with every argument as described."""
    kind: Literal["parts", "defenses"] = "parts" if component.name in registry.parts else "defenses"
    defense: Defense = registry.restore(kind, component.described())
    return defense


def architecture_of(component: Component, data: DataSet) -> nn.Module:
    """A fresh network of a registered architecture for the images of `data`."""
    return registry.build_network(Spec(component.name, component.arguments), data.shape, data.n_classes)


def _frozen(value: object) -> Argument:
    """An argument with its lists as tuples. ValueError for a value that cannot be an argument."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Iterable):
        return tuple(_frozen(item) for item in value)
    raise ValueError(f"Expected an argument of numbers, texts and lists of these, got {value!r:.80}")
