"""The README's two commands are those that `.ci/run` takes from it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / ".ci" / "readme_command.py"
COMMANDS = {
    "Install it and run the main job": "pip install -c constraints.txt . && advbench run",
    "Install it and run the tests": 'pip install -c constraints.txt -e ".[test]" && pytest',
}

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="not a checkout")


@pytest.mark.parametrize("words", COMMANDS)
def test_the_readme_holds_the_command(words):
    found = subprocess.run([sys.executable, SCRIPT, words], capture_output=True, text=True, check=True)
    assert found.stdout == COMMANDS[words] + "\n"


@pytest.mark.parametrize("words", COMMANDS)
def test_ci_runs_what_the_readme_says(words):
    run = (SCRIPT.parent / "run").read_text()
    assert f'readme "{words}"' in run
    assert COMMANDS[words] not in run


def test_only_a_block_after_the_words_is_taken():
    spec = importlib.util.spec_from_file_location("readme_command", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = "```sh\nearlier\n```\n\nRun it at once:\n\n```toml\nno = 1\n```\n\n"
    text += "```sh\nfirst &&\n  second\n```\n\n```sh\nlater\n```\n"
    assert script.command(text, "Run it") == "first &&\n  second"
    for words in ("it at once", "Walk"):
        with pytest.raises(ValueError, match="Expected a line"):
            script.command(text, words)
    with pytest.raises(ValueError, match="an `sh` block"):
        script.command("Run it:\n\n```toml\nno = 1\n```\n", "Run it")
