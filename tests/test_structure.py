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


def test_contents_of_tasks_are_never_read_by_name(structure: ModuleType) -> None:
    parsed = structure.trees(ROOT)
    rooms = {"tasks", "plan", "engine", "records", "reproduction", "cli", "benches", "user_models"}
    found = {
        name: structure.by_name(tree) for name, tree in parsed.items() if structure.room(name).rpartition("/")[2] in rooms
    }
    assert len(found) > 80
    assert not {name: count for name, count in found.items() if count}


def test_types_are_left_open_at_the_edge_only(structure: ModuleType) -> None:
    """Other libraries' attacks, ONNX graphs, JSON."""
    parsed = structure.trees(ROOT)
    found = {name: structure.untyped(tree) for name, tree in parsed.items() if structure.room(name).startswith("benchmark")}
    assert len(found) > 100
    assert sum(found.values()) < 40, {name: count for name, count in found.items() if count}
