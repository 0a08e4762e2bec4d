"""Where a running attack stands, told to whoever listens; nobody by default, which costs nothing.

An attack tells which examples achieve their goal, `Search` does it for those that use one; an ensemble names the part that
runs. The listener belongs to the thread and the context that attacks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

from torch import Tensor

from advbench.attacks.threat import ThreatModel

Listener: TypeAlias = Callable[[str, Tensor, Tensor], None]
"""(part of an ensemble or empty, rows of the outermost access (m,) int64, which of them achieve their goal (m,) bool)."""

_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)
_PART: ContextVar[str] = ContextVar("part", default="")


def tell(rows: Tensor, achieved: Tensor) -> None:
    """Say which of the examples `rows`, as `Access.rows` names them, achieve their goal at their present iterates."""
    listener = _LISTENER.get()
    if listener is not None:
        listener(_PART.get(), rows, achieved)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Have `listener` told what attacks tell inside."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


@contextmanager
def part(name: str) -> Iterator[None]:
    """Name the part of an ensemble that runs inside."""
    token = _PART.set(name)
    try:
        yield
    finally:
        _PART.reset(token)


def expected_forwards(attack: Any, threat: ThreatModel) -> float:
    """Roughly how many forwards an attack takes for an example that withstands it, by the names of its arguments.

    The product of those that count repetitions (steps, queries, points, restarts, targets, search_steps), summed over the
    parts of an ensemble; good for the time that is left and for running the longest attack first, not for accounts.
    """
    inner = getattr(attack, "attack", None)
    if inner is not None:
        return expected_forwards(inner, threat)
    parts = getattr(attack, "members", None) or getattr(attack, "components", None)
    if callable(parts):
        parts = parts(threat)
    if parts:
        return sum(expected_forwards(one, threat) for one in parts)
    names = {field.name for field in dataclasses.fields(attack)} if dataclasses.is_dataclass(attack) else set()
    found = 1.0
    for name in names & {"steps", "queries", "points", "restarts", "targets", "search_steps"}:
        found *= max(1, getattr(attack, name) or 1)
    return 1 + found
