"""The commands check and baseline on folders and files."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

import advbench
from advbench.records import gating
from advbench.reports.gate import FORMATS
from advbench.results.record import DISTANCES, Examples, Record
from advbench.results.store import Store

N = 400
ROOT = Path(__file__).resolve().parents[2]


def write_run(folder, accuracies, *, seeds=(0,), weights="w", attack="pgd", steps=40, failing=(), luck=0):
    """A run of white-box PGD: targets that are right on the first `accuracy` of the images, a share."""
    keys = []
    for label, accuracy in accuracies.items():
        for seed in seeds:
            key = hashlib.sha256(f"{label}{seed}{weights}{attack}{steps}".encode()).hexdigest()
            failed = label in failing
            record = Record(
                key=key,
                status="error" if failed else "ok",
                reason="ViolationError: pgd left the ball" if failed else "",
                matrix="white-box",
                dataset={"name": "digits", "split": "test", "fingerprint": "f" * 64, "n": N},
                target={
                    "label": label,
                    "defense": {"name": label, "arguments": {}},
                    "architecture": {"name": "mlp", "arguments": {}},
                    "stochastic": False,
                },
                source=None,
                attack={
                    "label": attack,
                    "name": attack,
                    "arguments": {"steps": steps},
                    "minimal_norm": False,
                    "source_hash": "a" * 64,
                },
                weights_sha256=f"{label}{seed}{weights}",
                threat={"norm": "linf", "epsilon": 0.125, "box": [0.0, 1.0]},
                seed=seed,
                counts={} if failed else {"examples": N, "forwards": 1, "backwards": 1, "queries": 0},
                details={},
                measured={"seconds": 0.4, "device": "CPU", "environment": {"advbench": "0.1.0"}},
            )
            shift = int(np.random.default_rng([luck, seed]).integers(-6, 7)) if luck else 0
            right = (np.arange(N) < round(accuracy * N) + shift).astype(int)
            Store(folder).write(record, None if failed else outcomes(right))
            keys.append(key)
    (folder / "run.json").write_text(json.dumps({"cells": keys}))
    return folder


def outcomes(right):
    same = dict.fromkeys(("select_correct", "report_correct"), right)
    labels = dict.fromkeys(("label", "clean_prediction"), np.arange(N) % 10)
    distances = dict.fromkeys(DISTANCES, np.full(N, 0.1))
    clean = np.ones(N, dtype=int)
    return Examples(index=np.arange(N), draws=1, clean_correct=clean, image_l2=np.ones(N), **labels, **same, **distances)


def cli(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "advbench", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name != "GITHUB_STEP_SUMMARY"} | environment,
        timeout=120,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A baseline of one seed, the same run, a weaker model, and an attack that became weaker."""
    place = tmp_path_factory.mktemp("gate")
    targets = {"none": 0.05, "pgd-linf": 0.6}
    write_run(place / "before", targets)
    write_run(place / "weaker", targets | {"pgd-linf": 0.5}, weights="new")
    write_run(place / "risen", targets | {"pgd-linf": 0.7})
    assert cli("baseline", "before", "-o", "base.json", cwd=place).stdout == "base.json\n"
    return place


def test_the_same_run_passes(place):
    found = cli("check", "before", "--baseline", "base.json", cwd=place)
    assert (found.returncode, found.stderr) == (0, "")
    assert "passed: nothing is worse than the baseline; 4 numbers tested" in found.stdout
    assert "exact McNemar, same weights" in found.stdout


def test_a_weaker_model_fails_once_the_claim_is_about_checkpoints(place):
    strict = cli("check", "weaker", "--baseline", "base.json", cwd=place)
    assert strict.returncode == 2
    first, *reasons = strict.stderr.splitlines()
    assert (strict.stdout, first) == ("", "advbench: not comparable, for 2 reasons:")
    assert len(reasons) == 2
    assert reasons[0].startswith("- none was re-trained, which takes 5 training seeds")
    found = cli("check", "weaker", "--baseline", "base.json", "--checkpoints-only", cwd=place)
    assert found.returncode == 1
    assert "worse, FAILS" in found.stdout
    assert "failed: pgd-linf (robust accuracy worse)" in found.stdout
    assert "Checkpoints only: the claim is about these checkpoints" in found.stdout


def test_a_rise_with_equal_weights_fails(place):
    found = cli("check", "risen", "--baseline", "base.json", cwd=place)
    assert found.returncode == 1
    assert "a rise with equal weights: the attack became weaker" in found.stdout


def test_retrainings_are_compared_over_their_seeds(tmp_path):
    before = write_run(tmp_path / "before", {"a": 0.6, "b": 0.4}, seeds=range(5), luck=1)
    same = write_run(tmp_path / "same", {"a": 0.6, "b": 0.4}, seeds=(10, 11, 12), weights="new", luck=2)
    worse = write_run(tmp_path / "worse", {"a": 0.6, "b": 0.3}, seeds=(10, 11, 12), weights="new", luck=2)
    path = advbench.write_baseline(before, tmp_path / "deep" / "base.json")
    assert advbench.check(same, path).exit_code == 0
    found = advbench.check(worse, path)
    assert [row.target for row in found.failures] == ["b"]
    assert found.failures[0].test == "t over training seeds"
    assert advbench.check(worse, before).exit_code == 1, "a folder serves as a baseline too"


def test_folders_of_one_seed_each_make_one_run(tmp_path):
    targets = {"a": 0.6, "b": 0.4}
    whole = write_run(tmp_path / "whole", targets, seeds=range(5), luck=1)
    parts = [write_run(tmp_path / f"part{seed}", targets, seeds=(seed,), luck=1) for seed in range(5)]
    for folders, name in ((whole, "whole.json"), (parts[::-1], "parts.json")):
        advbench.write_baseline(folders, tmp_path / name)
    assert (tmp_path / "whole.json").read_text() == (tmp_path / "parts.json").read_text()
    assert advbench.check(parts[:3], tmp_path / "whole.json").exit_code == 0
    with pytest.raises(ValueError, match="Expected one record of each attacker for a of seed 0"):
        advbench.check([parts[0], parts[0]], whole)


def test_the_reports_say_the_same_in_every_format(place):
    found = advbench.check(place / "weaker", place / "base.json", checkpoints_only=True)
    markdown = FORMATS["markdown"](found)
    assert markdown.startswith("## Robustness gate: failed")
    assert "| pgd-linf | robust accuracy" in " ".join(markdown.split())
    content = json.loads(FORMATS["json"](found))
    (row,) = [row for row in content["rows"] if row["fails"]]
    assert (row["target"], row["verdict"], row["difference"]) == ("pgd-linf", "worse", pytest.approx(-0.1))
    assert content["exit_code"] == 1
    assert {one["attacker"]["attack"] for one in content["cells"]} == {"pgd"}
    suite = ElementTree.fromstring(FORMATS["junit"](found))
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "1", "0")
    (case,) = [case for case in suite if case.find("failure") is not None]
    assert (case.get("classname"), case.get("name")) == ("linf 0.125 on digits.pgd-linf", "robust accuracy")


def test_what_is_not_comparable_is_said_in_every_format(place, tmp_path):
    renamed = write_run(tmp_path / "renamed", {"none": 0.05, "pgd-linf": 0.6}, attack="pdg")
    text = cli("check", renamed, "--baseline", "base.json", cwd=place)
    assert text.returncode == 2
    assert text.stderr == (
        "advbench: not comparable, for 2 reasons:\n"
        "- white-box pgd: only in the baseline\n- white-box pdg: only in the candidate\n"
    )
    found = advbench.check(renamed, place / "base.json")
    assert "not comparable:\n  white-box pgd: only" in FORMATS["text"](found)
    assert "Not comparable:\n\n- white-box pgd: only" in FORMATS["markdown"](found)
    assert json.loads(FORMATS["json"](found))["exit_code"] == 2
    suite = ElementTree.fromstring(FORMATS["junit"](found))
    assert (suite.get("errors"), suite[0].find("error").get("message")) == ("2", "white-box pgd: only in the baseline")


def test_the_summary_of_a_github_job_is_appended_to(place, tmp_path):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    cli("check", "before", "--baseline", "base.json", cwd=place, GITHUB_STEP_SUMMARY=str(summary))
    cli("check", "risen", "--baseline", "base.json", cwd=place, GITHUB_STEP_SUMMARY=str(summary))
    text = summary.read_text()
    assert text.startswith("before\n## Robustness gate: passed\n")
    assert "\n## Robustness gate: failed\n" in text
    assert "**better, FAILS**" in text


def test_a_failed_cell_fails_the_gate_and_makes_no_baseline(place, tmp_path):
    broken = write_run(tmp_path / "broken", {"none": 0.05, "pgd-linf": 0.6}, failing=("pgd-linf",))
    found = cli("check", broken, "--baseline", "base.json", cwd=place)
    assert found.returncode == 1
    assert "missing, FAILS" in found.stdout
    assert "white-box pgd: ViolationError: pgd left the ball" in found.stdout
    refused = cli("baseline", broken, "-o", tmp_path / "none.json", cwd=place)
    assert refused.returncode == 2
    assert "Expected a complete run for a baseline" in refused.stderr
    assert not (tmp_path / "none.json").exists()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "Expected a baseline at {path}, got no such file: `advbench baseline OUT -o {path}` writes one"),
        ("truncated", "{path}: Expected a baseline as JSON, got a cut off or damaged file"),
        ("version", "{path}: Expected a baseline of schema version 1, got 7: use a matching advbench"),
        ("edited", "{path}: Expected a baseline as it was written, got one that was changed"),
        ("binary", "{path}: Expected a baseline as JSON, got a bad file: Expected UTF-8 text, got other bytes"),
    ],
)
def test_a_bad_baseline_is_one_line_and_exit_code_2(place, tmp_path, case, message):
    path, text = tmp_path / "base.json", (place / "base.json").read_text()
    if case == "truncated":
        path.write_text(text[: len(text) // 2])
    elif case == "version":
        path.write_text(json.dumps(json.loads(text) | {"schema_version": 7}))
    elif case == "edited":
        path.write_text(text.replace('"label": "none"', '"label": "enon"'))
    elif case == "binary":
        path.write_bytes(b"\x80\xff" * 50)
    found = cli("check", "before", "--baseline", path, cwd=place)
    assert found.returncode == 2
    assert found.stderr.startswith("advbench: " + message.format(path=path))
    assert (found.stderr.count("\n"), found.stdout) == (1, "")


def test_bad_folders_and_terms_are_one_line_and_exit_code_2(place, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"cells": ["0" * 64]}))
    cases = {
        ("check", "nowhere", "--baseline", "base.json"): "Expected a folder with records",
        ("check", tmp_path, "--baseline", "base.json"): "got 1 of 1 cells without a readable record",
        ("check", "before", "--baseline", "base.json", "--alpha", "2"): "Expected `alpha` in (0, 1)",
        ("check", "before"): "Missing option '--baseline'",
        ("baseline", "nowhere", "-o", "x.json"): "Expected a folder with records",
    }
    for arguments, message in cases.items():
        found = cli(*arguments, cwd=place)
        assert found.returncode == 2
        assert message in found.stderr
        assert found.stderr.count("\n") == 1


IMPORTED = """
import sys
sys.argv = ["advbench", "check", "before", "--baseline", "base.json"]
import advbench.cli.app
try:
    advbench.cli.app.main()
finally:
    print("heavy:", [name for name in ("torch", "pandas", "sklearn", "scipy.stats", "matplotlib") if name in sys.modules])
"""


def test_the_gate_imports_nothing_heavy(place):
    found = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, cwd=place)
    assert found.stdout.rstrip().endswith("heavy: []"), found.stderr


def test_a_shipped_baseline_is_found_by_its_name(tmp_path, monkeypatch):
    names = [path.stem for path in (ROOT / "results" / "baselines").glob("*.json")]
    monkeypatch.chdir(tmp_path)
    for name in names:
        found = gating.read_baseline(Path(name))
        assert all(len(target.models) >= 5 for board in found.boards for target in board.targets)
        assert gating.compare_runs(found, found).exit_code == 0
    assert "digits" in names
    (tmp_path / "digits").write_text("{}")
    with pytest.raises(ValueError, match="Expected a baseline"):
        gating.read_baseline(Path("digits"))


# --- the composite action


@pytest.fixture(scope="module")
def action():
    path = ROOT / ".github" / "actions" / "robustness-gate" / "action.yml"
    if not path.is_file():
        pytest.skip("not a checkout")
    return yaml.safe_load(path.read_text())


def run_step(action, step, place, tmp_path, **inputs):
    """Run a shell step as GitHub does: inputs with their defaults, through the environment, under `bash -eo pipefail`."""
    values = {name: str(one.get("default", "")) for name, one in action["inputs"].items()} | inputs
    environment = {}
    for name, text in step.get("env", {}).items():
        for key, value in values.items():
            text = text.replace("${{ inputs." + key + " }}", value)
        assert "${{" not in text, f"{name} holds an expression that this test does not know"
        environment[name] = text
    files = {"GITHUB_STEP_SUMMARY": tmp_path / "summary.md", "GITHUB_OUTPUT": tmp_path / "output"}
    for file in files.values():
        file.touch()
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir(exist_ok=True)
    program = bin_folder / "advbench"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m advbench "$@"\n')
    program.chmod(0o755)
    path = f"{bin_folder}:{os.environ['PATH']}"
    script = tmp_path / "step.sh"
    script.write_text(step["run"])
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
        capture_output=True,
        text=True,
        cwd=place,
        env=os.environ | environment | {name: str(file) for name, file in files.items()} | {"PATH": path},
    )


def test_the_action_is_composite_and_puts_no_input_into_a_script(action):
    assert action["runs"]["using"] == "composite"
    for step in action["runs"]["steps"]:
        assert step["shell"] == "bash"
        assert "${{" not in step["run"], "an input inside a script could run code; inputs go through the environment"
    assert all(one["description"] for one in action["inputs"].values())
    assert [name for name, one in action["inputs"].items() if one.get("required")] == ["baseline"]


def gate_step(action):
    (step,) = [step for step in action["runs"]["steps"] if step.get("id") == "gate"]
    return step


@pytest.mark.parametrize(("out", "code"), [("before", 0), ("weaker", 1), ("nowhere", 2)])
def test_the_action_passes_and_fails_as_the_command_does(action, place, tmp_path, out, code):
    inputs = {"out": out, "baseline": "base.json", "checkpoints-only": "true", "junit": str(tmp_path / "gate.xml")}
    found = run_step(action, gate_step(action), place, tmp_path, **inputs)
    assert found.returncode == code, found.stderr
    assert (tmp_path / "output").read_text() == f"exit-code={code}\n"
    assert (tmp_path / "summary.md").read_text().count("## Robustness gate") == 1
    suite = ElementTree.parse(tmp_path / "gate.xml").getroot()
    assert (suite.get("failures"), suite.get("errors")) == (str(int(code == 1)), str(int(code == 2)))


def test_the_actions_terms_reach_the_command(action, place, tmp_path):
    inputs = {"out": "weaker", "baseline": "base.json", "checkpoints-only": "true", "tolerance": "0.2"}
    assert run_step(action, gate_step(action), place, tmp_path, **inputs).returncode == 0
    assert run_step(action, gate_step(action), place, tmp_path, **(inputs | {"alpha": "7"})).returncode == 2
    hostile = inputs | {"out": "$(touch owned); before"}
    assert run_step(action, gate_step(action), place, tmp_path, **hostile).returncode == 2
    assert not (place / "owned").exists()


def test_the_action_installs_what_it_is_told(action, place, tmp_path):
    step = action["runs"]["steps"][0]
    (tmp_path / "bin").mkdir()
    for name in ("python", "python3", "pip"):
        program = tmp_path / "bin" / name
        program.write_text('#!/bin/sh\nprintf "%s\\n" "$*" >>installed\n')
        program.chmod(0o755)
    found = run_step(action, step, tmp_path, tmp_path, package="advbench==0.1.0")
    assert found.returncode == 0, found.stderr
    assert (tmp_path / "installed").read_text() == "-m pip install advbench==0.1.0\n"
