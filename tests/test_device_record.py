"""The device's record (`tests/cuda/run.sh`): parts stand alone, each within its time; all are rehearsed on the processor."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda import parts, record

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_part_that_fails_or_hangs_leaves_the_others(tmp_path, monkeypatch):
    """Parts of our own, in processes as the real ones: one breaks after a row, one hangs after a row, one is well."""
    (tmp_path / "stand_in.py").write_text(
        "import sys, time, types\n"
        "def breaks(device, rehearsed):\n    yield {'row': 1}\n    raise OverflowError('too much')\n"
        "def hangs(device, rehearsed):\n    yield {'row': 2}\n    time.sleep(600)\n"
        "def works(device, rehearsed):\n    yield {'row': 3, 'device': device, 'rehearsed': rehearsed}\n"
        "PARTS = {each.__name__: (each, 1.0) for each in (breaks, hangs, works)}\n"
        "sys.modules['tests.cuda.parts'] = sys.modules['stand_in']\n"
    )
    (tmp_path / "sitecustomize.py").write_text("import stand_in\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.setattr(record, "LEAST", 0.5)
    found = record.measure({"breaks": 1, "hangs": 0.15, "works": 1, "late": 0}, "cpu", tmp_path, 300, rehearsed=True)
    assert found["breaks"]["rows"] == [{"row": 1}]
    assert found["breaks"]["error"] == "OverflowError: too much"
    assert found["hangs"]["rows"] == [{"row": 2}]
    assert found["hangs"]["cut off"] == "after 45 s"
    assert found["hangs"]["seconds"] < 100
    assert found["works"]["rows"] == [{"row": 3, "device": "cpu", "rehearsed": True}]
    assert "error" not in found["works"]
    assert found["late"]["left out"] == "no time left"
    assert json.loads((tmp_path / "record.json").read_text())["works"]["rows"] == found["works"]["rows"]
    text = (tmp_path / "record.md").read_text()
    assert "## works" in text
    assert "error: OverflowError: too much" in text
    assert "cut off: after 45 s" in text


def test_what_is_absent_is_said(monkeypatch):
    monkeypatch.setattr(parts.importlib.util, "find_spec", lambda module: None if module == "foolbox" else object())
    monkeypatch.setattr(parts, "_cells", lambda *_, attack, **__: iter([{"attack": attack}]))
    found = list(parts.peers(parts.torch.device("cpu"), False))
    assert found == [
        {"attack": "foolbox", "status": "not installed"},
        {"attack": "auto,autoattack,torchattacks/AutoAttack"},
    ]


@pytest.mark.slow
def test_the_record_is_rehearsed_on_the_processor(tmp_path):
    """Every part with a few small cases, by the script as it is called on a machine with a GPU."""
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "ADVBENCH_CACHE": str(tmp_path / "cache")}
    command = ["bash", str(ROOT / "tests/cuda/run.sh"), "cpu", str(tmp_path / "out"), "900", "--rehearsed"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    found = json.loads((tmp_path / "out" / "record.json").read_text())
    for name in parts.PARTS:
        assert found[name].get("rows"), (name, found[name])
        assert not found[name].keys() & {"error", "cut off", "left out"}, (name, found[name])
    assert {row["alike"] for row in found["contract"]["rows"]} == {"6 of 6"}
    assert all(row["on the device"] for row in found["contract"]["rows"])
    assert all(row["ms"] > 0 and row["peak MiB"] >= 0 for row in found["covariances"]["rows"] + found["jacobians"]["rows"])
    assert "ok" in {row["status"] for row in found["peers"]["rows"]}
    assert found["kind"] == "cpu"
