from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from advbench.zoo import checkpoints
from advbench.zoo.checkpoints import cache_dir, fingerprint, load, save, verify

Maker = Callable[[], nn.Sequential]


def _scrambled(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    return model


@pytest.fixture
def saved(tmp_path: Path, small_net: Maker) -> Path:
    path = tmp_path / "models" / "net.safetensors"
    save(path, small_net(), {"note": "ünïcode"})
    return path


def test_a_round_trip_restores_every_tensor_and_the_metadata(saved: Path, small_net: Maker) -> None:
    other = _scrambled(small_net())
    assert load(saved, other) == {"note": "ünïcode"}
    expected = small_net().state_dict()
    assert other.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())
    assert [entry.name for entry in saved.parent.iterdir()] == [saved.name]


def test_shared_and_overlapping_tensors_survive(tmp_path: Path) -> None:
    def make() -> nn.ModuleDict:
        inner = nn.Linear(4, 4)
        modules = nn.ModuleDict({"model": inner, "surrogate": inner, "tied": nn.Linear(4, 4, bias=False)})
        modules["tied"].weight = inner.weight
        modules["tied"].register_buffer("row", inner.weight.detach()[0])
        modules["tied"].register_buffer("nothing", torch.zeros(0, 3))
        return modules

    path, module = tmp_path / "shared.safetensors", make()
    save(path, module, {})
    assert len(safetensors.torch.load_file(path)) == 4
    other = make()
    load(path, other)
    assert fingerprint(other) == fingerprint(module)
    assert other["tied"].weight is other["model"].weight


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
def test_other_dtypes_survive(tmp_path: Path, dtype: torch.dtype) -> None:
    module = nn.Module()
    module.register_buffer("values", torch.tensor([0, 1, 1]).to(dtype))
    save(tmp_path / "x", module, {})
    other = nn.Module()
    other.register_buffer("values", torch.zeros(3, dtype=dtype))
    load(tmp_path / "x", other)
    assert torch.equal(other.values, module.values)


def test_no_flipped_bit_of_a_checkpoint_goes_unnoticed(tmp_path: Path) -> None:
    """Every byte in turn: of the length, the names, the texts, the hashes and the weights. Spaces pad the header."""
    path, module, chance = tmp_path / "x", nn.Linear(3, 2), random.Random(0)
    save(path, module, {"seconds": "1.5", "note": "ünï"})
    verify(path)
    content, weights = path.read_bytes(), fingerprint(module)
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :])
        said = complaint(path)
        if said:
            assert str(path) in said
            assert "\n" not in said
        else:
            other = nn.Linear(3, 2)
            assert load(path, other) == {"seconds": "1.5", "note": "ünï"}
            assert fingerprint(other) == weights


def complaint(path: Path) -> str:
    """What `verify` says; empty where all is well."""
    try:
        verify(path)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, -100, -1])
def test_a_truncated_checkpoint_is_damaged(saved: Path, length: int) -> None:
    saved.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(ValueError, match="damaged"):
        verify(saved)


def test_a_checkpoint_of_an_earlier_version_loads_but_counts_as_damaged(tmp_path: Path, small_net: Maker) -> None:
    path, net = tmp_path / "x", small_net()
    texts = {"advbench.aliases": "{}", "advbench.weights_sha256": fingerprint(net), "note": "old"}
    safetensors.torch.save_file(net.state_dict(), path, texts)
    other = _scrambled(small_net())
    assert load(path, other) == {"note": "old"}
    assert fingerprint(other) == fingerprint(net)
    with pytest.raises(ValueError, match="texts"):
        verify(path)


def test_a_fingerprint_is_the_hash_of_names_shapes_dtypes_and_bytes() -> None:
    module = nn.Module()
    module.register_buffer("b", torch.tensor([[1.0, 2.0]]))
    module.register_buffer("a", torch.tensor(7))
    digest = hashlib.sha256()
    digest.update(b"a () torch.int64\n" + (7).to_bytes(8, "little"))
    digest.update(b"b (1, 2) torch.float32\n" + bytes.fromhex("0000803f00000040"))
    assert fingerprint(module) == digest.hexdigest()


def test_a_fingerprint_ignores_the_layout_and_sees_everything_else() -> None:
    def of(name: str, value: torch.Tensor) -> str:
        module = nn.Module()
        module.register_buffer(name, value)
        return fingerprint(module)

    value = torch.arange(6.0).view(2, 3)
    assert of("w", value) == of("w", value.T.contiguous().T)
    others = [of("v", value), of("w", value.view(3, 2)), of("w", value.double()), of("w", value + 1)]
    assert len({of("w", value), *others}) == 5


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _garbage(path: Path) -> None:
    path.write_bytes(b"not a checkpoint at all" * 9)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 0x40
    path.write_bytes(content)


def _foreign(path: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(2)}, path)


@pytest.mark.parametrize("damage", [_truncate, _empty, _garbage, _flip, _foreign])
def test_a_damaged_file_is_one_clear_line_and_changes_nothing(
    saved: Path, small_net: Maker, damage: Callable[[Path], None]
) -> None:
    damage(saved)
    model = small_net()
    before = fingerprint(model)
    with pytest.raises(ValueError, match=r"^Expected ") as caught:
        load(saved, model)
    assert "\n" not in str(caught.value)
    assert str(saved) in str(caught.value)
    assert fingerprint(model) == before


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 12)), "got \\(12,\\) torch.float32 in"),
        (nn.Linear(16, 3), "Expected no such tensor for '1.bias'"),
    ],
)
def test_a_checkpoint_of_another_structure_is_refused(saved: Path, other: nn.Module, message: str) -> None:
    before = fingerprint(other)
    with pytest.raises(ValueError, match=message):
        load(saved, other)
    assert fingerprint(other) == before


def test_another_precision_is_refused(saved: Path, small_net: Maker) -> None:
    with pytest.raises(ValueError, match=r"torch\.float64 for '1\.bias', got \(12,\) torch\.float32"):
        load(saved, small_net().double())


def test_a_missing_file_says_where_it_was_sought(tmp_path: Path, small_net: Maker) -> None:
    with pytest.raises(FileNotFoundError, match=r"got no file at .*missing"):
        load(tmp_path / "missing", small_net())


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(
    saved: Path, small_net: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError("disk full")

    content = saved.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        save(saved, _scrambled(small_net()), {})
    assert saved.read_bytes() == content
    assert [entry.name for entry in saved.parent.iterdir()] == [saved.name]


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVBENCH_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("ADVBENCH_CACHE")
    assert cache_dir() == checkpoints.platformdirs.user_cache_path("advbench")
