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
    "digits": Budget(epochs=20, batch_size=64, learning_rate=3e-3),
    "mnist": Budget(epochs=5, learning_rate=2e-3),
    "fashion-mnist": Budget(epochs=10, learning_rate=2e-3),
    "kmnist": Budget(epochs=10, learning_rate=2e-3),
}
"""How long to train, by data set; `_OTHER` for the rest.

That of digits was chosen on its 143 validation images, for gu2014/n200-200-10 and batches of 64, from 10, 20, 30 and 50
epochs at rates of 1e-3, 3e-3 and 1e-2, with two training seeds. The score is the mean of two accuracies: that of `none` on
clean images, and that of `pgd-linf`, trained at 1/8, under PGD with 40 steps at 1/8. The rule: of the budgets whose score
is within a standard error (binomial, 0.021) of the best, the fewest epochs, then the smallest rate. The best score is
0.802, of 30 epochs at 1e-2; 20 epochs at 3e-3 have 0.788; the best of 10 epochs is 0.759.
"""
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
