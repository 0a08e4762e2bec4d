"""Keys: tasks named by what they compute.

A key is the SHA-256 of the canonical JSON of a task's content together with the code that runs it and, if numbers depend on
them, the versions of libraries, so that a changed hyper-parameter, seed, data set or source file is another task (DESIGN,
sections 2 and 3).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import get_args

from advbench.registry.sources import source_hash
from advbench.registry.specs import canonical
from advbench.results.record import Plain
from advbench.tasks.artefacts import Kind
from advbench.tasks.components import Component
from advbench.tasks.score import ScoreContent
from advbench.tasks.task import TaskContent

MODULES: Mapping[Kind, str] = {content.kind: content.__module__ for content in (*get_args(TaskContent), ScoreContent)}
"""The module that runs each kind of task, that of its content; its code and all of advbench that it imports is part of the
key."""

VERSIONED: frozenset[Kind] = frozenset(MODULES) - {"train", "substitute"}
"""Kinds whose keys depend on the versions of torch and torchvision. Trained weights stay what they are without them."""


def key_of(content: TaskContent | ScoreContent) -> str:
    """The key of a task, 64 hex digits."""
    return hashlib.sha256(canonical(keyed(content)).encode()).hexdigest()


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
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"Expected a value that a content holds, got {value!r:.80}")


@cache
def versions() -> dict[str, str]:
    """The installed versions of what computes the numbers."""
    return {name: metadata.version(name) for name in ("torch", "torchvision")}
