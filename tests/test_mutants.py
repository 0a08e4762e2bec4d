"""The mutants of `tests/mutants.py` still fit the code: each changes one place, and the result is Python."""

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def mutants() -> ModuleType:
    """The script as a module: `tests` is no package, so that it is found by its path."""
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "tests" / "mutants.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutants"] = module
    spec.loader.exec_module(module)
    return module


def test_every_mutant_changes_the_code(mutants: ModuleType) -> None:
    for mutant in (*mutants.MUTANTS, *mutants.sampled(50, 1)):
        text = (ROOT / mutant.file).read_text(encoding="utf-8")
        assert ast.dump(ast.parse(mutants.weakened(mutant, text))) != ast.dump(ast.parse(text)), mutant.name
        assert all((ROOT / one.partition(" -k ")[0]).is_file() for one in mutant.tests)


def test_names_are_unique(mutants: ModuleType) -> None:
    names = [one.name for one in mutants.MUTANTS]
    assert len(set(names)) == len(names) >= 25


def test_a_mutant_without_a_place_is_named(mutants: ModuleType) -> None:
    with pytest.raises(ValueError, match="Expected one place for 'x'"):
        mutants.weakened(mutants.Mutant("x", "attacks/fgm.py", "not there", "", ()), "text")
