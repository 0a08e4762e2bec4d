from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True, database=None, max_examples=25)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the campaign of faults out unless ``-m`` names it."""
    if "faults" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("faults")]
        items[:] = [item for item in items if not item.get_closest_marker("faults")]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with MNIST and cifar10-small.npz: $ADVBENCH_DATA, else shared/data beside the repository."""
    chosen = os.environ.get("ADVBENCH_DATA")
    folder = Path(chosen) if chosen else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}: set ADVBENCH_DATA to a folder that has them")
    return folder
