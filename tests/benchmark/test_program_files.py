"""Programs of torch.export and TorchScript as targets, against the module that they were saved from."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from advbench.registry import registry
from advbench.user_models.batches import in_batches
from advbench.user_models.handed import Handed
from advbench.user_models.program_files import FixedBatch, ProgramNetwork

SHAPE, CLASSES = (1, 6, 6), 4
pytestmark = pytest.mark.filterwarnings("ignore")


class Named(nn.Module):
    """Logits under a name, beside a loss."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return {"logits": self.net(x), "size": x.mean()}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, CLASSES)).eval()


def images(n, seed=1):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def exported(model, file, n, *, dynamic=False):
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    torch.export.save(torch.export.export(model, (images(n),), dynamic_shapes=shapes), file)
    return file


SAVED = {
    "any.pt2": lambda file: exported(net(), file, 4, dynamic=True),
    "one.pt2": lambda file: exported(net(), file, 1),
    "three.pt2": lambda file: exported(net(), file, 3),
    "named.pt2": lambda file: exported(Named(net()).eval(), file, 3),
    "script.ts": lambda file: torch.jit.script(net()).save(str(file)),
    "trace.ts": lambda file: torch.jit.trace(net(), images(2)).save(str(file)),
}


@pytest.mark.parametrize("name", SAVED)
def test_a_program_answers_and_differentiates_as_the_module_that_it_was_saved_from(tmp_path, name):
    SAVED[name](tmp_path / name)
    made = Handed(registry.architectures.factory(f"own:{tmp_path / name}")(SHAPE, CLASSES)).eval()
    for n in (1, 5, 7):
        x, same = images(n).requires_grad_(), images(n).requires_grad_()
        answers, right = made(x), net()(same)
        torch.testing.assert_close(answers, right)
        answers.pow(2).sum().backward()
        right.pow(2).sum().backward()
        torch.testing.assert_close(x.grad, same.grad)


def test_a_program_for_a_fixed_batch_is_known_by_its_input(tmp_path):
    sizes = {}
    for name in ("any.pt2", "one.pt2", "three.pt2"):
        SAVED[name](tmp_path / name)
        made = ProgramNetwork(tmp_path / name)(SHAPE, CLASSES)
        sizes[name] = made.size if isinstance(made, FixedBatch) else None
    assert sizes == {"any.pt2": None, "one.pt2": 1, "three.pt2": 3}


def test_batches_are_filled_up_with_the_first_image_and_the_surplus_dropped():
    seen = []

    def answer(x):
        seen.append(x[:, 0].tolist())
        return x * 10

    x = torch.arange(5.0)[:, None]
    assert torch.equal(in_batches(answer, x, 3), x * 10)
    assert seen == [[0, 1, 2], [3, 4, 0]]
    assert torch.equal(in_batches(answer, x, None), x * 10)
    assert len(seen[-1]) == 5


class Code:
    """A pickle that makes a file when it is read."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def _replaced(file, part, content):
    """The archive with other contents of the entries that have `part` in their names, or with such an entry."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    found = [name for name in entries if part in name] or [f"{next(iter(entries)).partition('/')[0]}/data/constants/{part}0"]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, old in (entries | dict.fromkeys(found)).items():
            archive.writestr(name, content if name in found else old)


@pytest.mark.parametrize("part", ["opaque_obj_", "custom_obj_", "weight_"])
def test_pickles_in_a_program_run_no_code(tmp_path, part):
    SAVED["any.pt2"](tmp_path / "any.pt2")
    _replaced(tmp_path / "any.pt2", part, pickle.dumps(Code(tmp_path / "ran")))
    before = dict(os.environ)
    try:
        ProgramNetwork(tmp_path / "any.pt2")(SHAPE, CLASSES)
    except ValueError as error:
        assert "Expected a model that torch.export.save has written" in str(error)  # noqa: PT017 - it may be read raw
    assert not (tmp_path / "ran").exists()
    assert dict(os.environ) == before


@pytest.mark.parametrize("name", ["x.pt2", "x.ts"])
def test_what_is_no_program_is_one_line(tmp_path, name, capfd):
    for content in (b"", b"PK\x03\x04 cut off", b"text"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"\AExpected a model that torch\.(export|jit)\.save has written at [^\n]*\Z"):
            ProgramNetwork(tmp_path / name)(SHAPE, CLASSES)
    torch.save(net(), tmp_path / name)
    with pytest.raises(ValueError, match=r"\AExpected a model that [^\n]*\Z"):
        ProgramNetwork(tmp_path / name)(SHAPE, CLASSES)
    with pytest.raises(ValueError, match="no such file"):
        ProgramNetwork(tmp_path / f"absent{name}")(SHAPE, CLASSES)
    assert "Traceback" not in capfd.readouterr().err


def test_a_changed_file_is_another_network(tmp_path):
    SAVED["script.ts"](tmp_path / "a.ts")
    first = ProgramNetwork(tmp_path / "a.ts").identity
    torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES))).save(str(tmp_path / "a.ts"))
    assert ProgramNetwork(tmp_path / "a.ts").identity != first
