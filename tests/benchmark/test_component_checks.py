"""Every check of an architecture and of a data set fires on one that was built to deserve it, and on no honest one."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from advbench import component_checks as checks
from advbench.cli.app import app
from advbench.registry import registry
from advbench.registry.specs import Spec
from advbench.zoo.data import DataSet, Split


class Honest(nn.Module):
    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.normalised = nn.BatchNorm2d(shape[0])
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(shape[0] * shape[1] * shape[2], classes))

    def forward(self, x: Tensor) -> object:
        return self.layers(self.normalised(x))


class Probabilities(Honest):
    def forward(self, x: Tensor) -> object:
        return {"logits": super().forward(x)}


class TooMany(Honest):
    def forward(self, x: Tensor) -> object:
        return torch.cat((super().forward(x), x.flatten(1)[:, :1]), dim=1)


class Doubles(Honest):
    def forward(self, x: Tensor) -> object:
        return super().forward(x).double()


class ByBatch(Honest):
    def forward(self, x: Tensor) -> object:
        return self.layers((x - x.mean(dim=0)) / (x.std(dim=0, unbiased=False) + 0.1))


class Random(Honest):
    def forward(self, x: Tensor) -> object:
        return super().forward(x + 0.1 * torch.rand_like(x))


class Counting(Honest):
    def forward(self, x: Tensor) -> object:
        self.normalised.num_batches_tracked += 1
        return super().forward(x)


class OwnSeed(Honest):
    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__(shape, classes)
        self.layers[2].weight.data = torch.from_numpy(
            np.random.default_rng().normal(size=self.layers[2].weight.shape)
        ).float()


class Fixed(Honest):
    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__(shape, classes)
        self.layers[2].weight.data.fill_(0.1)
        self.layers[2].bias.data.fill_(0.0)


class Rounded(Honest):
    def forward(self, x: Tensor) -> object:
        return super().forward((255 * x).round() / 255)


CASES = {
    Honest: {},
    Probabilities: {"logits": "gave dict", "image alone": "", "repeats": "", "gradient": ""},
    TooMany: {"logits": "5 images of 7 classes gave (5, 8)"},
    Doubles: {"logits": "torch.float64"},
    ByBatch: {"image alone": "in a batch and alone differ"},
    Random: {"repeats": "two passes in evaluation mode differ", "image alone": "differ"},
    Counting: {"repeats": "changes weights or buffers"},
    OwnSeed: {"seeds": "the same seed gives other weights"},
    Rounded: {"gradient": "zero everywhere"},
}


@pytest.mark.parametrize("made", CASES, ids=lambda made: made.__name__)
def test_a_check_of_architectures_fails_where_it_should_and_nowhere_else(made, monkeypatch):
    monkeypatch.setattr(registry, "build_network", lambda spec, shape, classes: made(shape, classes))
    verdicts = checks.examine_architecture(Spec("mine"))
    failed = {verdict.check: verdict.reason for verdict in verdicts if verdict.status == "fails"}
    assert failed.keys() == CASES[made].keys()
    for check, reason in CASES[made].items():
        assert reason in failed[check]
    assert [verdict.check for verdict in verdicts] == list(checks.ARCHITECTURE_CHECKS)


def test_weights_without_a_draw_say_nothing_of_seeds(monkeypatch):
    monkeypatch.setattr(registry, "build_network", lambda spec, shape, classes: Fixed(shape, classes))
    status = {verdict.check: verdict.status for verdict in checks.examine_architecture(Spec("mine"))}
    assert status.pop("seeds") == "n/a"
    assert set(status.values()) == {"holds"}


@pytest.mark.parametrize("name", ["gu2014/n100-100-10", "wong2018/small", "mosca2018/dnn"])
def test_registered_architectures_hold(name):
    assert {verdict.status for verdict in checks.examine_architecture(Spec(name))} == {"holds"}


def test_an_architecture_may_refuse_a_shape_but_not_both(monkeypatch):
    def grey(spec: Spec, shape: tuple[int, int, int], classes: int) -> nn.Module:
        if shape[0] != 1:
            raise ValueError("Expected grey images")
        return Honest(shape, classes)

    monkeypatch.setattr(registry, "build_network", grey)
    assert {verdict.status for verdict in checks.examine_architecture(Spec("mine"))} == {"holds"}

    def none(spec: Spec, shape: tuple[int, int, int], classes: int) -> nn.Module:
        raise ValueError("Expected images of 99 x 99")

    monkeypatch.setattr(registry, "build_network", none)
    with pytest.raises(ValueError, match="99 x 99"):
        checks.examine_architecture(Spec("mine"))


def data_set(**changes: object) -> DataSet:
    x = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(40) % 4
    parts = {
        name: Split.of(x[rows], y[rows])
        for name, rows in (("train", slice(20)), ("validation", slice(20, 28)), ("test", slice(28, 40)))
    }
    return DataSet(**{"name": "mine", **parts, "n_classes": 4, "radii": {}, **changes})


def spoilt(split: Split, **changes: Tensor) -> Split:
    return dataclasses.replace(split, **changes)


GOOD = data_set()
SPOILT = {
    "values, nan": (data_set(test=spoilt(GOOD.test, x=GOOD.test.x / 0)), "values", "not finite"),
    "values, 255": (data_set(train=spoilt(GOOD.train, x=255 * GOOD.train.x)), "values", "outside the box"),
    "labels, from 1": (data_set(validation=spoilt(GOOD.validation, y=GOOD.validation.y + 1)), "labels", "labels 1 to 4"),
    "labels, missing": (data_set(n_classes=6), "labels", "no image of 2 of 6 classes, the first 4"),
    "positions": (data_set(test=spoilt(GOOD.test, index=GOOD.test.index // 2)), "positions", "test: positions repeat"),
    "apart, train": (
        data_set(train=spoilt(GOOD.train, x=torch.cat((GOOD.test.x[:3], GOOD.train.x[3:])))),
        "splits apart",
        "3 of 20 train images are in the test split",
    ),
    "apart, validation": (data_set(validation=GOOD.test), "splits apart", "12 of 12 validation images"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_check_of_data_sets_fails_where_it_should_and_nowhere_else(case, monkeypatch):
    data, check, reason = SPOILT[case]
    monkeypatch.setattr(registry, "load_dataset", lambda name, data_dir: data)
    failed = [verdict for verdict in checks.examine_data("mine") if verdict.status == "fails"]
    assert [verdict.check for verdict in failed] == [check]
    assert reason in failed[0].reason


def test_an_honest_data_set_holds_and_a_test_split_alone_says_nothing_of_others(monkeypatch):
    monkeypatch.setattr(registry, "load_dataset", lambda name, data_dir: GOOD)
    assert {verdict.status for verdict in checks.examine_data("mine")} == {"holds"}
    none = Split.of(GOOD.train.x[:0], GOOD.train.y[:0])
    alone = data_set(train=none, validation=none)
    monkeypatch.setattr(registry, "load_dataset", lambda name, data_dir: alone)
    status = {verdict.check: verdict.status for verdict in checks.examine_data("mine")}
    assert status.pop("splits apart") == "n/a"
    assert set(status.values()) == {"holds"}


def test_one_that_loads_otherwise_each_time_fails(monkeypatch):
    loads = iter([GOOD, data_set(test=spoilt(GOOD.test, x=GOOD.test.x.flip(0)))])
    monkeypatch.setattr(registry, "load_dataset", lambda name, data_dir: next(loads))
    failed = [verdict.check for verdict in checks.examine_data("mine") if verdict.status == "fails"]
    assert failed == ["loads again"]


def test_the_command_takes_all_three_kinds(tmp_path, monkeypatch):
    x = np.random.default_rng(0).integers(0, 256, (24, 6, 6, 1), dtype=np.uint8)
    y = np.arange(24) % 3
    np.savez(tmp_path / "d.npz", x_train=x[:12], y_train=y[:12], x_test=np.concatenate((x[:2], x[14:])), y_test=y[12:])
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 7))\n"
    )
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["conformance", "npz:d.npz", "fgm", "digits", "gu2014/n100-100-10", "--format", "json"])
    verdicts = json.loads(done.stdout)
    assert done.exit_code == 1
    failed = [(one["attack"], one["check"]) for one in verdicts if one["status"] == "fails"]
    assert failed == [("npz:d.npz", "splits apart")]
    assert list(dict.fromkeys(one["attack"] for one in verdicts)) == ["fgm", "gu2014/n100-100-10", "npz:d.npz", "digits"]
    text = CliRunner().invoke(app, ["conformance", "digits", "gu2014/n100-100-10"])
    assert text.exit_code == 0, text.output
    assert text.output.count("holds") == len(checks.ARCHITECTURE_CHECKS) + len(checks.DATA_CHECKS) + 1
    unknown = CliRunner().invoke(app, ["conformance", "npz:nowhere.npz"])
    assert unknown.exit_code == 2
