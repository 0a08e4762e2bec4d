"""Configuration files that anyone may have written: settings, or one line within bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advbench.config import Config, make_config
from advbench.registry.specs import Spec

DEEP = {
    "arrays": "attack = " + "[" * 100_000,
    "closed arrays": "attack = " + "[" * 100_000 + "]" * 100_000,
    "tables": "attack = " + "{a = " * 100_000,
    "dotted": "a." * 100_000 + "b = 1",
    "quoted": '"a".' * 100_000 + "b = 1",
    "spaced": "a . " * 100_000 + "b = 1",
    "heading": f"[{'.'.join('a' * 100_000)}]",
    "large": "# " + "x" * 2**21,
}

WITHIN = """
import resource, sys
from pathlib import Path
from advbench.config import make_config
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20, used + 200 * 2**20))
for name in sys.argv[1:]:
    try:
        make_config(Path(name))
    except ValueError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_hundred_thousand_levels_are_one_line_within_bounded_memory(tmp_path):
    for name, text in DEEP.items():
        (tmp_path / f"{name}.toml").write_text(text)
    names = [tmp_path / f"{name}.toml" for name in DEEP]
    found = subprocess.run([sys.executable, "-c", WITHIN, *names], capture_output=True, text=True, check=False, timeout=100)
    assert found.stderr == ""
    for name, line in zip(names, found.stdout.splitlines(), strict=True):
        assert line.startswith(f"{name}: ")
        assert len(line) < 300


@pytest.mark.parametrize("name", ["arrays", "dotted"])
def test_the_command_line_ends_with_one_line_and_exit_code_2(tmp_path, name):
    (tmp_path / "run.toml").write_text(DEEP[name])
    found = subprocess.run(
        [sys.executable, "-m", "advbench", "run", "--dry-run", "run.toml"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=100,
    )
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == "advbench: run.toml: not valid TOML: nested too deeply\n"


@pytest.mark.parametrize(
    "text",
    [
        "epochs = 1" + "0" * 100,
        "epochs = " + "9" * 5000,
        "n-examples = 1000000000",
        "seed = 1" + "0" * 30,
        "learning-rate = inf",
        "learning-rate = nan",
        "attack = 2020-01-01T00:00:00Z",
        "attack = [{name = 'pgd', steps = 2020-01-01}]",
        "attack = [{name = 'pgd', steps = {a = 1}}]",
        f"attack = [{{name = 'pgd', steps = {'[' * 100}{']' * 100}}}]",
        "attack = 'pgd(steps={1})'",
        "attack = \"pgd(steps=b'1')\"",
        "attack = 'pgd(steps=1j)'",
        f"attack = 'pgd(steps={'(' * 50_000}'",
        f"attack = 'pgd(steps={'-' * 50_000}1)'",
        f"'{'k' * 100_000}' = 1",
        "\0",
    ],
)
def test_values_that_cannot_be_are_one_short_line(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"\A.+\Z") as caught:
        make_config(path)
    assert len(str(caught.value)) < 700


def test_long_lists_of_numbers_and_dotted_names_are_settings(tmp_path):
    path = tmp_path / "run.toml"
    numbers = [round(0.01 * number, 2) for number in range(1, 101)]
    path.write_text(f"epsilon = {numbers}\ndata-dir = '{'.'.join('a' * 100)}'\narchitecture = ['own:{'a.' * 50}b:make']\n")
    config = make_config(path)
    assert config.epsilon == tuple(numbers)
    assert config.architecture == (Spec(f"own:{'a.' * 50}b:make"),)


NAMES = [name.replace("_", "-") for name in Config.model_fields]
scalars = (
    st.booleans().map(lambda value: str(value).lower())
    | st.integers().map(str)
    | st.floats().map(str)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f"), max_size=10).map(json.dumps)
    | st.sampled_from(["2020-01-01", "12:30:00", "'a(b=[1,{}])'", '"pgd(steps=1e999)"', "'0.1,1/0'", "0x7f"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.lists(inner, max_size=2).map(
            lambda items: "{" + ", ".join(f"k{i} = {item}" for i, item in enumerate(items)) + "}"
        )
    ),
    max_leaves=5,
)


@given(settings=st.dictionaries(st.sampled_from([*NAMES, "name", "a.b"]), values, min_size=1, max_size=3))
def test_any_toml_is_settings_or_one_line(tmp_path_factory, settings):
    path = tmp_path_factory.mktemp("fuzz") / "run.toml"
    path.write_text("\n".join(f"{name} = {value}" for name, value in settings.items()), encoding="utf-8")
    try:
        lines = [repr(make_config(path).norm)]
    except ValueError as error:
        lines = [str(error)]
    assert lines[0].replace("\\n", "").count("\n") == 0


@given(text=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_settings_or_one_line(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("fuzz") / "run.toml"
    path.write_bytes(text)
    try:
        lines = [repr(make_config(path).norm)]
    except ValueError as error:
        lines = str(error).splitlines()
    assert len(lines) == 1


@given(text=st.text(max_size=40) | st.text("ab(=[{,1.'\"-)]}+*: ", max_size=40))
def test_any_text_is_a_component_or_one_line(text):
    try:
        spec = Spec.parse(text)
    except ValueError as error:
        assert str(error).startswith("Expected ")  # noqa: PT017 - both outcomes are right
    else:
        assert json.dumps(spec.keywords)
