"""Where a running attack stands, told to whoever listens; nobody by default, which costs nothing.

An attack tells which examples achieve their goal, `Search` does it for those that use one; an ensemble names the part that
runs. The listener belongs to the thread and the context that attacks.
"""

from __future__ import annotations

import math
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

    The steps times what repeats them (restarts, targets, search_steps, forwards_per_step), and the queries and points,
    summed over the parts of an ensemble; good for the time that is left and for running the longest attack first, not for
    accounts.
    """
    inner = getattr(attack, "attack", None)
    if inner is not None:
        return expected_forwards(inner, threat)
    parts = getattr(attack, "members", None) or getattr(attack, "components", None)
    if callable(parts):
        parts = parts(threat)
    if parts:
        return sum(expected_forwards(one, threat) for one in parts)
    repeats = ("restarts", "targets", "search_steps", "forwards_per_step")
    times = math.prod(max(1.0, _number(attack, name)) for name in repeats)
    return 1 + max(1.0, times * _number(attack, "steps") + _number(attack, "queries") + _number(attack, "points"))


def _number(attack: Any, name: str) -> float:
    """An argument that is a number, else 0: other people's attacks may mean something else by the name."""
    value = getattr(attack, name, 0)
    return float(value) if isinstance(value, int | float) else 0.0
