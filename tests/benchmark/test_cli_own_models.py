"""`advbench evaluate` as a new user meets it: a file of code and a file of weights in an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import torch
from torch import nn

NET = "from torch import nn\n\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"


def advbench(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "advbench", "evaluate", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"ADVBENCH_CACHE": str(cwd / "cache"), "NO_COLOR": "1", "COLUMNS": "120"},
        timeout=300,
    )


def test_a_model_in_a_file_is_attacked_and_published(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).state_dict(), tmp_path / "model.pt")
    asked = ["net.py:make", "--dataset=digits", "--weights=model.pt", "--attack=fgsm", "--n-examples=20", "--epsilon=0.01"]
    asked += ["--json=found.json", "--jobs=1", "--device=cpu"]
    first = advbench(*asked, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "net.py:make (model.pt) on 20 images of digits, linf 0.01" in first.stdout
    assert "worst case" in first.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["examples"]["robust"]) == 20
    assert found["robust"]["value"] <= found["clean"]["value"]
    assert {path.name for path in (tmp_path / "advbench-out").iterdir()} >= {
        "leaderboard.md",
        "leaderboard.html",
        "results.csv",
    }
    again = advbench(*asked, cwd=tmp_path)
    assert again.returncode == 0
    assert "tasks done" not in again.stdout, "finished work was done twice"
    assert json.loads((tmp_path / "found.json").read_text())["examples"] == found["examples"]


def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    for target, message in (
        ("net.py:mak", "Expected 'mak' in net.py, which has make"),
        ("gone.py:make", "cannot be loaded"),
    ):
        found = advbench(target, "--dataset=digits", cwd=tmp_path)
        assert found.returncode == 2
        assert message in found.stderr
        assert found.stderr.strip().count("\n") == 0
    assert not (tmp_path / "advbench-out").exists()
