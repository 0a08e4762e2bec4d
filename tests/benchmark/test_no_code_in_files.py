"""Weights, cached ones of torchvision's too, are read without running the code that a pickle holds."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from advbench.user_models.networks import TorchvisionNetwork
from advbench.user_models.weights import load_weights


class _Code:
    """A pickle that makes a file when it is read."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of torchvision's weights, and the file of resnet18's in it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    file = tmp_path / "hub" / "checkpoints" / name
    file.parent.mkdir(parents=True)
    return file


def _dump(path, content):
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


@pytest.mark.parametrize("how", [_dump, lambda path, content: torch.save(content, path)])
def test_cached_weights_of_torchvision_run_no_code(hub, tmp_path, how):
    how(hub, {"x": _Code(tmp_path / "ran")})
    before = dict(os.environ)
    with pytest.raises(ValueError, match=r"\Atorchvision/resnet18:DEFAULT: .*\Z"):
        TorchvisionNetwork("resnet18", "DEFAULT")((3, 32, 32), 10)
    assert not (tmp_path / "ran").exists()
    assert dict(os.environ) == before


def test_cached_weights_of_torchvision_are_read(hub):
    torch.manual_seed(0)
    network = models.resnet18()
    torch.save(network.state_dict(), hub)
    found = TorchvisionNetwork("resnet18", "DEFAULT")((3, 32, 32), 1000)
    torch.testing.assert_close(found.state_dict(), network.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("how", [_dump, lambda path, content: torch.save(content, path)])
@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_weights_of_the_users_run_no_code(tmp_path, how, suffix):
    how(tmp_path / f"w{suffix}", {"weight": _Code(tmp_path / "ran")})
    with pytest.raises(ValueError, match=r"\AExpected safetensors, or a state dict .*\Z"):
        load_weights(nn.Linear(2, 2), tmp_path / f"w{suffix}")
    assert not (tmp_path / "ran").exists()
