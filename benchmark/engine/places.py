"""The slots of an engine of this machine: how many tasks run side by side, and on which device each."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from advbench.tasks.task import Task


@dataclass(slots=True)
class Slots:
    """Slots, each on a device. free: the devices of those that are free; taken: of the others, by the key of their task."""

    count: int
    free: deque[str]
    taken: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(count: int, devices: Sequence[str]) -> Slots:
        """`count` slots, spread over the devices in turn."""
        return Slots(count, deque(devices[slot % len(devices)] for slot in range(count)))

    def take(self, task: Task) -> str:
        """A device with a free slot, which the task takes: the one with the fewest tasks. RuntimeError if none is free."""
        if not self.free:
            raise RuntimeError(f"Expected at most {self.count} tasks at a time, got another one: {task.label}")
        busy = Counter(self.taken.values())
        device = self.taken[task.key] = min(self.free, key=busy.__getitem__)
        self.free.remove(device)
        return device

    def give_back(self, key: str) -> None:
        """Free the slot of a task."""
        self.free.append(self.taken.pop(key))

    def check(self) -> None:
        """Raise RuntimeError if no task has a slot, so that none can be waited for."""
        if not self.taken:
            raise RuntimeError("Expected a submitted task to wait for, got none")
