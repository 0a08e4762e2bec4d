"""Progress of a running attack, reported to a listener; without one it costs nothing.

An attack tells which examples achieve their goal, `Search` does it for those that use one; an ensemble names the part that
runs. The listener belongs to the thread and the context that attacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

from torch import Tensor

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
    """Report the progress of attacks inside the block to `listener`."""
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
