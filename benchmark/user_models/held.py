"""Live modules and images as names, ``own:held:NAME``, while a block of this process runs, and in its worker processes."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from advbench.config import Outputs
from advbench.engine.processes import executor
from advbench.engine.sharing import pickled
from advbench.errors import reason
from advbench.registry.schemes import HELD, OWN
from advbench.tasks.answers import alike, answers
from advbench.user_models.handed import as_logits
from advbench.user_models.networks import CodeNetwork
from advbench.zoo.data import DataSet

_MODELS: dict[str, nn.Module] = {}
_DATA: dict[str, DataSet] = {}


@contextmanager
def holding(name: str, model: nn.Module, data: DataSet) -> Iterator[str]:
    """Make a live model and its images known as ``own:held:NAME`` in this process while the block runs.

    Yields that name, of the architecture as of the data set. Workers in other processes see them by `HandedOver` alone.
    """
    whole = f"{HELD}{name}"
    _MODELS[whole], _DATA[whole] = model, data
    try:
        yield whole
    finally:
        del _MODELS[whole], _DATA[whole]


@dataclass(frozen=True, slots=True, eq=False)
class HandedOver:
    """A live module and its images on their way to worker processes, which know them by their name once they call it."""

    name: str
    model: nn.Module
    data: DataSet

    def __call__(self) -> None:
        """Make them known, and let go of what was handed over before."""
        if _MODELS.get(self.name) is not self.model:
            _MODELS.clear()
            _DATA.clear()
            _MODELS[self.name], _DATA[self.name] = self.model, self.data

    def loss(self, workers: int) -> str:
        """Why so many processes cannot have the model, in a few words; empty if a copy there answers as it does here."""
        try:
            there = executor(workers).submit(_answers, pickled((self.model, self.data))).result()
        except Exception as error:
            return reason(error)
        return "" if alike(answers(self.model, self.data), there) else "a copy of it answers otherwise"


def _answers(content: bytes) -> str:
    """What a model answers in a process that it was sent to."""
    model, data = pickle.loads(content)  # noqa: S301 - from the process that has started this one
    return answers(model, data)


@dataclass(frozen=True, slots=True)
class HeldNetwork:
    """A live module, called as architectures are: (shape, n_classes) -> the module itself."""

    name: str

    def __call__(self, shape: tuple[int, int, int], n_classes: int, outputs: Outputs = "logits") -> nn.Module:  # noqa: ARG002
        """The module; behind one that returns probabilities stands their logarithm."""
        return as_logits(_MODELS[self.name], outputs)

    @property
    def identity(self) -> str:
        """The name, which the fingerprint of its weights is part of."""
        return self.name.removeprefix(OWN)


def resolve(name: str) -> HeldNetwork | CodeNetwork:
    """The live module of a name that `holding` gave; any other is of a module of the user's that is called ``held``."""
    return HeldNetwork(name) if name in _MODELS else CodeNetwork(name.removeprefix(OWN))


def resolve_data(name: str) -> Callable[[Path | None], DataSet]:
    """The data set of a name that `holding` gave. Raises ValueError for any other."""
    if name not in _DATA:
        raise ValueError(f"Expected one of the registered datasets, got {name!r}: `advbench list datasets` shows all")
    return lambda data_dir: _DATA[name]  # noqa: ARG005
