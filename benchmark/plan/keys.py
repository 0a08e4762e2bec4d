"""Keys: tasks named by what they compute.

A key is the SHA-256 of the canonical JSON of a task's content together with the code that runs it and, if numbers depend on
them, the versions of libraries, so that a changed hyper-parameter, seed, data set or source file is another task (DESIGN,
sections 2 and 3).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from json.encoder import encode_basestring_ascii
from operator import attrgetter
from typing import get_args

from advbench.attacks.threat import ThreatModel
from advbench.registry.sources import source_hash
from advbench.registry.specs import canonical
from advbench.results.record import Plain
from advbench.tasks.artefacts import Kind
from advbench.tasks.components import Component
from advbench.tasks.images import Images
from advbench.tasks.score import ScoreContent
from advbench.tasks.surrogates import Attacked
from advbench.tasks.task import TaskContent
from advbench.zoo.training import Budget

MODULES: Mapping[Kind, str] = {content.kind: content.__module__ for content in (*get_args(TaskContent), ScoreContent)}
"""The module that runs each kind of task, that of its content; its code and all of advbench that it imports is part of the
key."""

VERSIONED: frozenset[Kind] = frozenset(MODULES) - {"train", "substitute"}
"""Kinds whose keys depend on the versions of torch and torchvision. Trained weights stay what they are without them."""


def key_of(content: TaskContent | ScoreContent) -> str:
    """The key of a task, 64 hex digits."""
    return hashlib.sha256(canonical(keyed(content)).encode()).hexdigest()


class Keys:
    """The keys of many contents; what several of them share, as one object, is spelled once.

    A part is known by its identity: equal ones may be spelled differently, as 1 and 1.0 are.
    """

    def __init__(self) -> None:
        self._spelled: dict[int, tuple[object, str]] = {}
        self._around: dict[Kind, tuple[str, str]] = {}

    def of(self, content: TaskContent | ScoreContent) -> str:
        """The key of a task, as `key_of` finds it."""
        begin, end = self._frame(content.kind)
        return hashlib.sha256(f"{begin}{self._members(content)}{end}".encode()).hexdigest()

    def _frame(self, kind: Kind) -> tuple[str, str]:
        """What stands before and behind a content in the text of its key, the members of which are sorted by name."""
        if kind not in self._around:
            behind = {"task": kind, **({"versions": versions()} if kind in VERSIONED else {})}
            self._around[kind] = f'{{"code":"{source_hash(MODULES[kind])}","content":', f",{canonical(behind)[1:]}"
        return self._around[kind]

    def _text(self, value: object) -> str:
        """`canonical` of `plain`."""
        if isinstance(value, str):  # most members are
            return encode_basestring_ascii(value)
        if value is None or isinstance(value, bool):
            return _WORDS[value]
        if type(value) in _SHARED:
            known = self._spelled.get(id(value))
            if known is None:
                text = canonical(value.described()) if isinstance(value, Component) else self._members(value)
                known = self._spelled[id(value)] = value, text  # an object that is kept keeps its identity
            return known[1]
        if isinstance(value, float | int):
            return _encoded(value)
        if isinstance(value, tuple):
            return f"[{','.join(map(self._text, value))}]"
        return self._members(value)

    def _members(self, value: object) -> str:
        spelling, text = _spelling(type(value)), self._text  # type: ignore[arg-type]
        members = zip(spelling.names, spelling.values(value), spelling.left_out, strict=True)
        return f"{{{','.join([name + text(one) for name, one, out in members if one != out])}}}"


_SHARED = frozenset({Component, Images, ThreatModel, Budget, Attacked})
"""Parts of contents that a planner hands to many of them."""
_WORDS = {None: "null", False: "false", True: "true"}
_encoded = json.JSONEncoder(allow_nan=False).encode


_NEVER = object()
"""Equal to no value."""


@dataclass(frozen=True, slots=True, eq=False)
class _Spelling:
    """How a kind of content is spelled. All by member, sorted by name.

    names: as the text of each begins. values: all of a content. left_out: the value that is no part of a key.
    """

    names: tuple[str, ...]
    values: Callable[[object], tuple[object, ...]]
    left_out: tuple[object, ...]


@cache
def _spelling(kind: type) -> _Spelling:
    """How a kind of content is spelled. TypeError for another kind."""
    if not dataclasses.is_dataclass(kind):
        raise TypeError(f"Expected a value that a content holds, got one of {kind.__name__}")
    fields = sorted(dataclasses.fields(kind), key=lambda field: field.name)
    names = [field.name for field in fields]
    return _Spelling(
        names=tuple(f'"{name}":' for name in names),
        values=attrgetter(*names) if len(names) > 1 else lambda value: (getattr(value, names[0]),),
        left_out=tuple(field.default if field.metadata.get("if_set") else _NEVER for field in fields),
    )


def _counts(field: dataclasses.Field[object], value: object) -> bool:
    """Whether a field is part of the key; see `IF_SET`."""
    return not field.metadata.get("if_set") or value != field.default


def keyed(content: TaskContent | ScoreContent) -> dict[str, Plain]:
    """All that a key depends on: every field of the content, its kind, the code that runs it, and versions."""
    found: dict[str, Plain] = {
        "task": content.kind,
        "content": plain(content),
        "code": source_hash(MODULES[content.kind]),
    }
    return found | {"versions": versions()} if content.kind in VERSIONED else found


def plain(value: object) -> Plain:
    """A content, or a part of one, in values that JSON knows: every field by its name, tuples as lists.

    Raises TypeError for a value that no content holds.
    """
    if isinstance(value, Component):
        return value.described()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        members = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {field.name: plain(member) for field, member in members if _counts(field, member)}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"Expected a value that a content holds, got {value!r:.80}")


@cache
def versions() -> dict[str, str]:
    """The installed versions of what computes the numbers."""
    return {name: metadata.version(name) for name in ("torch", "torchvision")}
