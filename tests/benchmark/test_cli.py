import os
import subprocess
import sys
from importlib import metadata

import pytest
import typer
from typer.testing import CliRunner

from advbench import __version__
from advbench.cli.app import app


def advbench(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "advbench", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"ADVBENCH_CACHE": str(cwd / "cache"), "NO_COLOR": "1", "COLUMNS": "100"} | environment,
        timeout=300,
    )


SMALL = (
    "--defense=none",
    "--attack=fgsm",
    "--architecture=gu2014/n100-100-10",
    "--epochs=1",
    "--train-examples=200",
    "--n-examples=20",
    "--jobs=1",
    "--device=cpu",
)


HELP = """
import sys
sys.argv = ["advbench", "run", "--help"]
import advbench.cli.app
try:
    advbench.cli.app.main()
finally:
    print("heavy:", [name for name in ("torch", "pandas", "sklearn", "scipy", "matplotlib") if name in sys.modules])
"""

REPORT = """
import sys, advbench
try:
    advbench.report("nowhere")
except ValueError:
    raise SystemExit("torch" in sys.modules)
"""


def test_help_imports_nothing_heavy(tmp_path):
    result = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, cwd=tmp_path)
    assert result.stdout.rstrip().endswith("heavy: []")
    for flag in ("--matrix", "--epsilon", "--dry-run", "--fresh", "--data-dir", "--no-clip", "--compile"):
        assert flag in result.stdout


def test_version(tmp_path):
    result = advbench("--version", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, f"advbench {__version__}\n")
    assert __version__ == metadata.version("advbench")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--attack", "pdg"), "did you mean pgd"),
        (("run", "--norm", "l3"), "'linf', 'l2', 'l1' or 'none'"),
        (("run", "--epsilon", "-1"), "Expected `epsilon` > 0"),
        (("run", "--n-examples", "few"), "valid integer"),
        (("run", "--matrx", "all"), "No such option"),
        (("run", "nowhere.toml"), "Expected a TOML file at nowhere.toml"),
        (("run", "--dataset", "npz:nowhere.npz"), "nowhere.npz"),
        (("run", "--dataset", "mnist", "--data-dir", "."), "mnist"),
        (("report", "nowhere"), "Expected a folder with records"),
        (("list", "attack"), "attacks"),
        (("rum",), "No such command"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, arguments, message):
    result = advbench(*arguments, cwd=tmp_path, http_proxy="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9")
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.startswith("advbench: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "advbench-out").exists()


def test_a_small_run_from_an_empty_folder(tmp_path):
    plan = advbench("run", *SMALL, "--matrix=white-box", "--dry-run", cwd=tmp_path)
    assert plan.returncode == 0
    assert "cells to score" in plan.stdout
    assert not (tmp_path / "advbench-out").exists()
    result = advbench("run", *SMALL, "--matrix=white-box", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "Worst-case robust accuracy" in result.stdout
    assert "advbench-out/leaderboard.html" in result.stdout
    again = advbench("run", *SMALL, "--matrix=white-box", "--dry-run", cwd=tmp_path)
    assert all(line.rstrip().endswith(" 0") for line in again.stdout.splitlines())
    report = advbench("report", "advbench-out", cwd=tmp_path)
    assert report.returncode == 0
    assert report.stdout.split() == [
        f"advbench-out/{name}" for name in ("leaderboard.md", "leaderboard.html", "results.csv")
    ]


def test_a_failed_cell_is_exit_code_1_and_named(tmp_path):
    (tmp_path / "plugin.py").write_text(
        "from dataclasses import dataclass\nfrom advbench.attacks.access import WhiteBox\n\n\n"
        "@dataclass(frozen=True)\nclass Far:\n    '''Leaves the ball (nobody 2026).'''\n\n"
        "    norms = frozenset({'linf'})\n    minimal_norm = False\n    knowledge = WhiteBox\n\n"
        "    def __call__(self, access, x, goal, threat, rng):\n        return 1 - x\n"
    )
    information = tmp_path / "plugin-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[advbench.attacks]\nfar = plugin:Far\nlost = no_such_module:Lost\n")
    listed = advbench("list", "attacks", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert "Leaves the ball (nobody 2026)" in listed.stdout
    assert "unavailable: The attack 'lost' cannot be loaded" in listed.stdout
    arguments = [argument for argument in SMALL if not argument.startswith("--attack")]
    result = advbench("run", *arguments, "--attack=fgsm,far", "--matrix=white-box", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert "within linf 0.125" in result.stdout
    assert "incomplete" in result.stdout


def test_a_report_never_imports_torch(tmp_path):
    assert subprocess.run([sys.executable, "-c", REPORT], cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("command", ["run", "evaluate", "work", "list", "reproduce", "bench", "conformance", "check"])
def test_help_shows_every_default_that_it_speaks_of(command, monkeypatch):
    """Brackets are marks of style to rich, which leaves out those that it does not know."""
    monkeypatch.setenv("COLUMNS", "400")
    shown = " ".join(CliRunner().invoke(app, [command, "--help"]).stdout.split())
    texts = [option.help or "" for option in typer.main.get_command(app).commands[command].params if hasattr(option, "help")]
    spoken = [text[text.index("[default") :].replace("\\", "") for text in texts if "[default" in text]
    assert all("[" not in text.replace("\\[", "") for text in texts)
    assert [text for text in spoken if text not in shown] == []
    assert spoken or command in ("bench", "check", "list", "reproduce")
