"""Baselines that anyone may have written: a run, or one line."""

from __future__ import annotations

import copy
import json
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advbench.results.gate import baseline

PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=6)
    | st.just([])
    | st.just({})
)


@pytest.fixture(scope="module")
def content():
    return json.loads((resources.files("advbench.results.baselines") / "digits.json").read_text(encoding="utf-8"))


def _signed(content):
    """The file of a content, with the checksum that belongs to it."""
    rest = {name: value for name, value in content.items() if name not in ("format", "schema_version", "checksum")}
    return json.dumps(content | {"checksum": baseline._checksum(rest)})


def _places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield from _places(inner, (*path, name))


def _exchanged(content, path, value):
    changed = place = copy.deepcopy(content)
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("boards",), [[]]),
        (("boards", 0, "dataset", "n"), 10**9),
        (("boards", 0, "dataset", "n"), -8),
        (("boards", 0, "threat", "norm"), "l99"),
        (("boards", 0, "threat", "epsilon"), -1),
        (("boards", 0, "targets", 0, "label"), 3),
        (("boards", 0, "targets", 0, "label"), "\x1b[2Jnone"),
        (("boards", 0, "targets", 0, "label"), "\ud800"),
        (("boards", 0, "targets", 0, "flags"), [1]),
        (("boards", 0, "targets", 0, "models", 0, "draws"), float("inf")),
        (("boards", 0, "targets", 0, "models", 0, "draws"), 0),
        (("boards", 0, "targets", 0, "models", 0, "clean"), "not base64"),
        (("boards", 0, "targets", 0, "models", 0, "answers", 0, "seconds"), "1 s"),
        (("boards", 0, "attacks"), {"pgd": []}),
        (("advbench",), 1),
    ],
)
def test_a_value_that_cannot_be_is_one_line(content, path, value):
    with pytest.raises(ValueError, match=r"\AExpected a baseline.*\Z") as caught:
        baseline.from_text(_signed(_exchanged(content, path, value)))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"boards":' * 100_000, '{"format": "advbench baseline", "boards": ' + "[" * 900]
)
def test_deep_nesting_is_one_line(text):
    with pytest.raises(ValueError, match=r"\AExpected a baseline as JSON.*\Z"):
        baseline.from_text(text)


@given(where=st.integers(0, 10**6), value=PLAIN)
def test_any_baseline_is_a_run_or_one_line(content, where, value):
    paths = [path for path in _places(content) if path]
    changed = _exchanged(content, paths[where % len(paths)], value)
    try:
        lines = [baseline.from_text(_signed(changed)).version]
    except ValueError as error:
        lines = str(error).splitlines()
    assert len(lines) == 1
