"""Networks of timm and of RobustBench's zoo, with libraries in their place that have the same functions."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from torch import nn

from advbench.registry import registry
from advbench.user_models.library_networks import RobustBenchNetwork, TimmNetwork
from advbench.user_models.target import plan_target

TIMM = """
    import os
    from types import SimpleNamespace
    from torch import nn

    def is_model(name):
        return name.partition(".")[0] == "tiny" and name.partition(".")[2] in ("", "tag", "other")

    def create_model(name, pretrained=False, num_classes=1000, in_chans=3):
        made = nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))
        made.asked = (name, pretrained, num_classes, in_chans, os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD"))
        return made

    def get_pretrained_cfg(name):
        if name == "tiny.gone":
            raise RuntimeError("Invalid pretrained tag (gone) for tiny.")
        return SimpleNamespace(mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3), has_weights=name != "tiny.other")
"""
ZOO = """
    from enum import Enum
    class Data(Enum):
        cifar_10 = "cifar10"
    class Threat(Enum):
        Linf = "Linf"
    models = {"Mine2020": {"gdrive_id": "abc"}, "Two2021": {"gdrive_id": ["a", "b"]}, "Timm2022": {"gdrive_id": None}}
    model_dicts = {Data.cifar_10: {Threat.Linf: models}}
"""
UTILS = """
    import os
    import torch
    from torch import nn

    def load_model(model_name, model_dir, dataset, threat_model):
        made = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
        file = os.path.join(model_dir, dataset, threat_model, model_name + ".pt")
        names = [file] if os.path.isfile(file) else [file + "_m0.pt", file + "_m1.pt"]
        state = [torch.load(name, map_location="cpu", weights_only=False)["state_dict"] for name in names][-1]
        made.load_state_dict({name[len("module."):]: value for name, value in state.items()})
        return made.eval()
"""


@pytest.fixture
def libraries(tmp_path, monkeypatch):
    """A folder with both libraries, from which they are imported, and which is the current one."""
    for name, text in {
        "timm/__init__": TIMM,
        "robustbench/__init__": "",
        "robustbench/model_zoo": ZOO,
        "robustbench/utils": UTILS,
    }.items():
        file = tmp_path / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(dedent(text), encoding="utf-8")
    _forget()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    _forget()


def _forget():
    for name in [name for name in sys.modules if name.partition(".")[0] in ("timm", "robustbench")]:
        del sys.modules[name]


@pytest.fixture
def none_installed(monkeypatch):
    _forget()
    for name in ("timm", "robustbench"):
        monkeypatch.setitem(sys.modules, name, None)


def test_timm_networks_are_bare_or_have_the_weights_that_are_named(libraries):
    bare = registry.architectures.factory("own:timm/tiny")((1, 2, 2), 7)
    assert bare.asked == ("tiny", False, 7, 1, None) or bare.asked == ("tiny", False, 7, 1, "1")
    for weights, name in {"DEFAULT": "tiny", "tag": "tiny.tag"}.items():
        network = registry.architectures.factory(f"own:timm/tiny:{weights}")
        assert network((3, 2, 2), 7).asked == (name, True, 1000, 3, "1"), "weights are read without pickle's code"
        assert network.statistics() == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in __import__("os").environ


def test_what_timm_has_not_is_one_line(libraries):
    with pytest.raises(ValueError, match=r"\AExpected a model of timm such as timm/resnet18, got 'big'\Z"):
        TimmNetwork("big")((3, 2, 2), 7)
    with pytest.raises(ValueError, match=r"\Atimm/tiny:gone: .*Invalid pretrained tag"):
        TimmNetwork("tiny", "gone").statistics()
    with pytest.raises(ValueError, match=r"\AExpected weights that timm has for tiny, got 'other'\Z"):
        TimmNetwork("tiny", "other").statistics()
    with pytest.raises(ValueError, match="Expected --weights for timm/tiny, a file or timm's own such as DEFAULT, got none"):
        plan_target("timm/tiny", dataset="digits")


@pytest.mark.parametrize("target", ["timm/resnet18:DEFAULT", "robustbench/cifar10/Linf/Mine2020"])
def test_a_library_that_is_not_there_is_named_in_one_line(none_installed, target):
    package = target.partition("/")[0]
    with pytest.raises(
        ValueError, match=rf"\AExpected {package} for {package}/\w+, got no such package: pip install {package}\Z"
    ):
        registry.architectures.factory(f"own:{target}")((3, 2, 2), 3)


def test_a_library_that_cannot_be_imported_says_why(libraries):
    (libraries / "timm/__init__.py").write_text("raise RuntimeError('another torch')", encoding="utf-8")
    with pytest.raises(ValueError, match=r"\Atimm cannot be imported: RuntimeError: another torch\Z"):
        TimmNetwork("tiny")((3, 2, 2), 3)


def checkpoint(folder, name="Mine2020.pt", **more):
    torch.manual_seed(3)
    linear = nn.Linear(12, 3)
    file = folder / "cifar10" / "Linf" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    state = {"module.1.weight": linear.weight.detach(), "module.1.bias": linear.bias.detach()}
    torch.save({"state_dict": state, **more}, file)
    return linear, file


def test_a_checkpoint_of_robustbench_is_loaded_from_the_disk(libraries):
    linear, _ = checkpoint(libraries / "models")
    x = torch.rand(4, 3, 2, 2)
    for name in ("robustbench/cifar10/Linf/Mine2020", f"robustbench/{libraries}/models/cifar10/Linf/Mine2020.pt"):
        network = registry.architectures.factory(f"own:{name}")
        torch.testing.assert_close(network((3, 2, 2), 3)(x), linear(x.flatten(1)))
    before = network.identity
    torch.save({"state_dict": {}}, libraries / "models/cifar10/Linf/Mine2020.pt")
    assert network.identity != before


def test_an_ensemble_needs_all_of_its_files(libraries):
    linear, _ = checkpoint(libraries / "models", "Two2021.pt_m0.pt")
    network = RobustBenchNetwork(Path("models/cifar10/Linf/Two2021"))
    with pytest.raises(ValueError, match=r"checkpoint at models/cifar10/Linf/Two2021\.pt_m1\.pt, got no such file"):
        network((3, 2, 2), 3)
    checkpoint(libraries / "models", "Two2021.pt_m1.pt")
    assert network((3, 2, 2), 3)(torch.zeros(1, 3, 2, 2)).tolist() == [linear.bias.tolist()]


class Code:
    """A pickle that makes a file when it is read."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def test_a_checkpoint_runs_no_code_even_where_the_library_would_let_it(libraries):
    checkpoint(libraries / "models", epoch=Code())
    with pytest.raises(ValueError, match=r"\AExpected the weights of robustbench/Mine2020 in models/[^\n]*\Z"):
        RobustBenchNetwork(Path("models/cifar10/Linf/Mine2020"))((3, 2, 2), 3)
    (libraries / "models/cifar10/Linf/Mine2020.pt").write_bytes(pickle.dumps({"state_dict": Code()}))
    with pytest.raises(ValueError, match=r"\AExpected the weights of robustbench/Mine2020 in models/[^\n]*\Z"):
        RobustBenchNetwork(Path("models/cifar10/Linf/Mine2020"))((3, 2, 2), 3)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("robustbench/Mine2020", "Expected a model of RobustBench as robustbench/DATASET/THREAT/NAME, such as"),
        ("robustbench/cifar10/L7/Mine2020", "Expected DATASET/THREAT of RobustBench, one of cifar10/Linf, got cifar10/L7"),
        ("robustbench/cifar10/Linf/Other", "Expected a model of RobustBench's cifar10/Linf, got 'Other'"),
        ("robustbench/cifar10/Linf/Timm2022", "whose weights are another library's: try timm/NAME"),
        ("robustbench/cifar10/Linf/Mine2020", "download it there first"),
    ],
)
def test_what_robustbench_has_not_is_one_line(libraries, name, message):
    with pytest.raises(ValueError, match=message) as caught:
        registry.architectures.factory(f"own:{name}")((3, 2, 2), 3)
    assert "\n" not in str(caught.value)


def test_a_file_of_weights_as_the_target_is_told_where_it_belongs():
    with pytest.raises(ValueError, match="give a file of weights with --weights, beside the code of its model"):
        registry.architectures.factory("own:model.pth")((3, 2, 2), 3)
