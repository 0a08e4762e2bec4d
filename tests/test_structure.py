"""The structure of the package, as `tests/structure.py` measures it: what must not come back."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def structure() -> ModuleType:
    """The script as a module: `tests` is no package, so that it is found by its path."""
    spec = importlib.util.spec_from_file_location("structure", ROOT / "tests" / "structure.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_two_public_classes_share_a_name(structure: ModuleType) -> None:
    assert structure.shared_names(ROOT) == {}


def test_no_rooms_import_each_other_in_a_circle(structure: ModuleType) -> None:
    assert structure.room_cycles(ROOT) == []


def test_every_module_has_a_layer(structure: ModuleType) -> None:
    assert structure.without_layer(ROOT) == []
