"""When the processor waits for an accelerator, and how to let it wait once where several things are to be known.

On a GPU every question that steers the program, whether any gradient is infinite, which examples are left, empties the queue
of what the device has to do. So an accelerator is asked once in a step: what can be decided by masks there is, and a `Doubt`
about a batch is settled together with the next question that has to be asked anyway (`positions`). On the processor a
question costs nothing, and saves work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from advbench.devices import traits

_SPARING: ContextVar[bool] = ContextVar("_SPARING", default=False)


def on_host(tensor: Tensor) -> bool:
    """Whether a question about the tensor costs nothing: it lies on the processor.

    >>> on_host(torch.zeros(1))
    True
    """
    return traits(tensor.device).host and not _SPARING.get()


@contextmanager
def sparing() -> Iterator[None]:
    """Inside, the processor's tensors are asked as rarely as an accelerator's: what is done there can be looked at here.

    >>> with sparing():
    ...     on_host(torch.zeros(1))
    False
    """
    token = _SPARING.set(True)
    try:
        yield
    finally:
        _SPARING.reset(token)


class Doubt:
    """Questions about a batch that are not answered yet: flags (k,), bool, on the device."""

    __slots__ = ("_answers", "flags")

    def __init__(self, flags: Tensor) -> None:
        self.flags = flags
        self._answers: list[bool] | None = None

    @property
    def open(self) -> bool:
        """Whether nobody has asked the device yet."""
        return self._answers is None

    def settle(self, answers: list[bool]) -> None:
        """Take the answers that came with others."""
        self._answers = answers

    @property
    def answers(self) -> list[bool]:
        """The flags as the processor knows them; it waits for them if nobody has asked yet."""
        if self._answers is None:
            self._answers = self.flags.tolist()
        return self._answers


def positions(mask: Tensor, doubts: list[Doubt]) -> Tensor | None:
    """Where a mask (n,) is true, int64 on its device; None if it is everywhere. All doubts are settled along with it.

    >>> positions(torch.tensor([True, False, True]), []), positions(torch.tensor([True]), [])
    (tensor([0, 2]), None)
    """
    if on_host(mask):
        return None if mask.all() else mask.nonzero().squeeze(1)
    waiting = [doubt for doubt in doubts if doubt.open]
    doubts.clear()
    known: list[bool] = torch.cat([mask, *(doubt.flags for doubt in waiting)]).tolist()
    start = len(mask)
    for doubt in waiting:
        doubt.settle(known[start : start + len(doubt.flags)])
        start += len(doubt.flags)
    found = [row for row, true in enumerate(known[: len(mask)]) if true]
    return None if len(found) == len(mask) else torch.tensor(found, dtype=torch.int64).to(mask.device, non_blocking=True)
