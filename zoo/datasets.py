"""The data sets by name, and how long to train on each."""

from __future__ import annotations

import importlib
from pathlib import Path

from advbench.zoo import DATASETS
from advbench.zoo.data import DataSet
from advbench.zoo.training import Budget
from advbench.zoo.whitened import whitened

_FILES = {"npz": "advbench.zoo.npz:npz", "folder": "advbench.zoo.image_folder:folder"}

_BUDGETS = {
    "digits": Budget(epochs=30, batch_size=64, learning_rate=3e-3),
    "mnist": Budget(epochs=5, learning_rate=2e-3),
    "fashion-mnist": Budget(epochs=10, learning_rate=2e-3),
    "kmnist": Budget(epochs=10, learning_rate=2e-3),
}
_OTHER = Budget(epochs=30)


def load(name: str, data_dir: Path | None = None) -> DataSet:
    """A data set by name, registered or ``npz:PATH`` or ``folder:PATH``, or ``zca:NAME`` for any of them whitened.

    data_dir: the folder with the files of a registered data set; None stands for $ADVBENCH_DATA, or else for the cache
    folder, to which they are downloaded.
    Raises ValueError for an unknown name or files of another form, FileNotFoundError for missing files.
    """
    kind, colon, path = name.partition(":")
    if colon and kind == "zca":
        return whitened(load(path, data_dir))
    if colon and kind in _FILES:
        if not path:
            raise ValueError(f"Expected a path after {name!r}, such as {kind}:data/mine, got none")
        reference, data_dir = _FILES[kind], Path(path).expanduser()
    elif name in DATASETS:
        reference = DATASETS[name]
    else:
        known = ", ".join([*DATASETS, *(f"{kind}:PATH" for kind in _FILES), "zca:NAME"])
        raise ValueError(f"Expected a data set among {known}, got {name!r}")
    module, _, attribute = reference.partition(":")
    dataset: DataSet = getattr(importlib.import_module(module), attribute)(data_dir)
    return dataset


def default_budget(name: str) -> Budget:
    """How long models train on a data set where the user does not say; `name` as in `load`, whitened or not."""
    return _BUDGETS.get(name.removeprefix("zca:"), _OTHER)
