"""Evidence: a number with its images, and the script that checks it without advbench."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import advbench
from advbench.cli.app import app
from advbench.records import evidence
from advbench.records.evidence import NAMES, write_evidence

N, EPSILON = 40, 0.04
MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Dropout(0.5))

    def forward(self, x):
        return self.layers(x)

def make():
    return Net()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, nn.Module, Tensor, Tensor]:
    """A finished run of a file's model, the file, the model, and the images with labels, two of them wrong."""
    folder = tmp_path_factory.mktemp("evidence")
    file = folder / "model.py"
    file.write_text(MODEL)
    spec = importlib.util.spec_from_file_location("evidence_model", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.make().eval()
    x = 0.2 + 0.6 * torch.rand(N, 3, 2, 2, generator=torch.Generator().manual_seed(4))
    y = model(x).argmax(dim=1)
    y[[2, 9]] = (y[[2, 9]] + 1) % 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVBENCH_CACHE", str(folder / "cache"))
        advbench.evaluate(model, x, y, epsilon=EPSILON, attack="pgd(steps=20),fgsm", out=folder / "out", batch=16)
    return folder / "out", file, model, x, y


@pytest.fixture
def folder(run, tmp_path) -> Path:
    out, _, _, x, _ = run
    write_evidence(out, tmp_path / "folder", x=x)
    return tmp_path / "folder"


def check(folder: Path, target: str, *more: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-I", str(folder / "verify.py"), target, *more], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_the_images_show_the_number_that_the_board_has(run, folder):
    out, _, model, x, y = run
    claim, arrays = json.loads((folder / "evidence.json").read_text()), dict(np.load(folder / "evidence.npz"))
    assert np.array_equal(arrays["x"], x.numpy())
    assert np.array_equal(arrays["y"], y.numpy())
    assert np.abs(arrays["x_adv"].astype(float) - arrays["x"]).max() <= EPSILON * 1.00001
    right = (model(x).argmax(dim=1) == y) & (model(torch.from_numpy(arrays["x_adv"])).argmax(dim=1) == y)
    assert claim["robust_correct"] == int(right.sum())
    assert claim["clean_correct"] == N - 2
    worst = np.ones(N, bool)
    for attack in ("pgd(steps=20)", "fgsm", "fmn"):
        found = advbench.adversarial_images(out, attack, x=x)
        near = (found.x_adv - x).abs().flatten(1).amax(dim=1) <= EPSILON * 1.00001
        worst &= ~((model(found.x_adv).argmax(dim=1) != y) & near).numpy()
    worst[[2, 9]] = False
    assert right.tolist() == worst.tolist()
    assert 0 < claim["robust_correct"] < claim["clean_correct"]
    assert len(claim["attackers"]) == 3


def test_the_script_needs_no_advbench_and_says_that_the_claims_stand(run, folder):
    _, file, _, _, _ = run
    source = (folder / "verify.py").read_text()
    imported = {
        (alias.name if isinstance(node, ast.Import) else node.module or "").split(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported <= {
        "__future__",
        "argparse",
        "importlib",
        "json",
        "sys",
        "pathlib",
        "typing",
        "numpy",
        "torch",
        "safetensors",
    }
    assert len(source.splitlines()) < 120
    code, said = check(folder, f"{file}:make")
    claim = json.loads((folder / "evidence.json").read_text())
    assert code == 0, said
    assert f"clean: {N - 2} of {N} right" in said
    assert f"claimed {claim['robust_correct']}: stands" in said


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
def test_a_program_and_weights_are_read(run, folder, tmp_path):
    _, _, model, x, _ = run
    torch.jit.trace(model, x[:1]).save(tmp_path / "model.ts")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = tmp_path / "other.py"
    other.write_text(MODEL.replace("manual_seed(3)", "manual_seed(8)"))
    assert check(folder, str(tmp_path / "model.ts"))[0] == 0
    assert check(folder, f"{other}:make")[0] == 1
    assert check(folder, f"{other}:make", "--weights", str(tmp_path / "weights.pt"))[0] == 0


def test_a_claim_that_is_too_low_or_too_high_does_not_stand(run, folder):
    file = run[1]
    claim = json.loads((folder / "evidence.json").read_text())
    for name, by in (("robust_correct", 1), ("robust_correct", -1), ("clean_correct", 1)):
        (folder / "evidence.json").write_text(json.dumps(claim | {name: claim[name] + by}))
        code, said = check(folder, f"{file}:make")
        assert (code, said.count("does not")) == (1, 1)


def test_an_image_outside_the_ball_or_the_box_makes_nothing_count(run, folder):
    file = run[1]
    arrays = dict(np.load(folder / "evidence.npz"))
    for by in (0.05, 2.0, np.nan):
        moved = arrays["x_adv"].copy()
        moved[5, 0, 0, 0] = arrays["x"][5, 0, 0, 0] + by
        np.savez(folder / "evidence.npz", **{**arrays, "x_adv": moved})
        code, said = check(folder, f"{file}:make")
        assert code == 1
        assert said.startswith(f"1 of {N} images are outside linf 0.04 or the box")


def test_bad_input_of_the_script_is_one_line(folder):
    code, said = check(folder, "nowhere.py:make")
    assert (code, said.count("\n")) == (2, 1)
    assert "Expected FILE.py:FACTORY" in said


def test_its_images_are_an_attack_too(run, folder, tmp_path, cache):
    _, _, model, x, y = run
    found = advbench.evaluate(
        model, x, y, epsilon=EPSILON, attack=f"images:{folder / 'evidence.npz'}", out=tmp_path / "out", batch=16, curve=False
    )
    assert found.robust.value == json.loads((folder / "evidence.json").read_text())["robust_correct"] / N


def test_what_is_no_model_or_several_is_refused_in_one_line(run, tmp_path):
    out, _, _, x, _ = run
    for given, message in (
        ({"target": "cnn"}, r"with target='cnn', got 0: target"),
        ({"epsilon": 0.5}, r"with epsilon=0.5, got 0"),
        ({"seed": 7}, r"with seed=7, got 0"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            write_evidence(out, tmp_path, x=x, **given)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="an archive holds outcomes"):
        write_evidence(tmp_path / "run.tar.xz", tmp_path)
    assert write_evidence(out, tmp_path, x=x, epsilon=0.04 * (1 + 1e-9))[0].name == "evidence.json"


def test_a_random_model_is_refused(cache, tmp_path):
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = 9 * (x.flatten(1).mean(dim=1) - 0.5) + 0.01 * torch.randn(len(x))
            return torch.stack((-score, score), dim=1)

    x = torch.linspace(0.1, 0.9, 8)[:, None, None, None].expand(8, 1, 2, 2).clone()
    y = (torch.arange(8) > 3).long()
    out = tmp_path / "out"
    advbench.evaluate(Noisy(), x, y, epsilon=0.1, attack="fgsm", out=out, stochastic=True, curve=False, batch=8)
    with pytest.raises(ValueError, match="Expected a deterministic model without a detector"):
        write_evidence(out, tmp_path / "folder", x=x)


def test_the_command_writes_three_files(run, tmp_path, monkeypatch):
    out, _, _, x, _ = run
    monkeypatch.setattr(evidence, "clean_images", lambda *_: x)
    done = CliRunner().invoke(app, ["evidence", str(out), "--to", str(tmp_path), "--epsilon", "0.04"])
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)
    refused = CliRunner().invoke(app, ["evidence", str(out), "--to", str(tmp_path), "--epsilon", "8/0"])
    assert refused.exit_code == 2


def test_a_model_whose_answers_hang_on_rounding_makes_no_claim_stand(run, folder, tmp_path):
    shifted = tmp_path / "shifted.py"
    shifted.write_text(MODEL.replace("return self.layers(x)", "return self.layers(x) + 1e6"))
    code, said = check(folder, f"{shifted}:make")
    assert code == 1
    assert "too close to call" in said
