"""How long the front door takes: ``pytest tests/benches --benchmark-enable`` on an otherwise idle machine.

Each figure is the median of three rounds of the whole command in a process of its own.
"""

import os
import subprocess
import sys

import pytest


@pytest.fixture
def measured(request):
    if not request.config.getoption("benchmark_enable"):
        pytest.skip("a measurement: run with --benchmark-enable")
    return request.getfixturevalue("benchmark")


@pytest.fixture
def command(tmp_path):
    """Run advbench in an empty folder; a number of the caller's choice names the cache and the output."""

    def run(number, *arguments):
        environment = os.environ | {"ADVBENCH_CACHE": str(tmp_path / f"cache-{number}")}
        out = ("--out", str(tmp_path / f"out-{number}")) if arguments[0] == "run" else ()
        command = [sys.executable, "-m", "advbench", *arguments, *out]
        subprocess.run(command, check=True, capture_output=True, env=environment, cwd=tmp_path)

    return run


def test_the_default_run_from_an_empty_cache(measured, command):
    numbers = iter(range(3))
    measured.pedantic(lambda: command(next(numbers), "run"), rounds=3, iterations=1)


def test_the_default_run_repeated(measured, command):
    command(0, "run")
    measured.pedantic(lambda: command(0, "run"), rounds=3, iterations=1)


def test_the_report_of_the_default_run(measured, command, tmp_path):
    command(0, "run")

    def rebuild():
        (tmp_path / "out-0" / "leaderboard.html").unlink()
        command(0, "report", str(tmp_path / "out-0"))

    measured.pedantic(rebuild, rounds=3, iterations=1)


def test_help(measured, command):
    measured.pedantic(lambda: command(0, "--help"), rounds=3, iterations=1)
