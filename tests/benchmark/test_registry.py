"""Names become components: registered ones, those of plug-ins, and those that the table of schemes resolves."""

import dataclasses
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from advbench.attacks import ATTACKS
from advbench.defenses import DEFENSES
from advbench.registry import registry, schemes
from advbench.registry.registry import Registry, UnknownNameError
from advbench.registry.schemes import KINDS, SCHEMES, scheme_of
from advbench.registry.specs import Spec
from advbench.reports import reproduce
from advbench.zoo import image_folder, npz, whitened
from advbench.zoo.architectures import torchvision_models

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (3, 32, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_every_name_resolves_and_describes_itself_with_its_paper(kind):
    for name in registry.of(kind).names():
        assert callable(registry.of(kind).factory(name))
        line = registry.of(kind).describe(name)
        assert line
        assert not line.startswith("unavailable")


@pytest.mark.parametrize("kind", ["attacks", "defenses", "parts"])
def test_a_component_comes_back_from_its_content(kind):
    for name in registry.of(kind).names():
        component = registry.of(kind).create(Spec(name))
        content = registry.content(kind, Spec(name), component)
        assert registry.restore(kind, content) == component
        assert set(content["arguments"]) == {field.name for field in dataclasses.fields(component)}


@pytest.mark.parametrize(
    ("kind", "name", "hint"),
    [
        ("attacks", "pdg", "did you mean pgd?"),
        ("attacks", "PGD", "did you mean pgd or "),
        ("attacks", "zzz", "`advbench list attacks` shows all"),
        ("defenses", "trade", "did you mean trades"),
        ("architectures", "gu2014/convnt", "did you mean gu2014/convnet"),
        ("architectures", "torchvison/resnet18", "did you mean torchvision/resnet18"),
        ("architectures", "torchvision", "did you mean torchvision/NAME"),
        ("architectures", "own:", "did you mean own:file.py:factory or own:package.module:factory or own:file.onnx"),
        ("attacks", "advlib/ddn", "did you mean adv-lib/ddn"),
        ("attacks", "foolbx/LinfPGD", "did you mean foolbox/LinfPGD"),
        ("attacks", "foolbox/", "did you mean foolbox/NAME"),
        ("datasets", "npz:", "did you mean npz:PATH"),
        ("datasets", "npz", "did you mean npz:PATH"),
        ("datasets", "nzp:a.npz", "did you mean npz:a.npz?"),
        ("datasets", "folders:/a/b", "did you mean folder:/a/b"),
        ("datasets", "digit", "did you mean digits"),
        ("datasets", "zca:digit", "did you mean digits"),
        ("datasets", "own:net.py:make", "`advbench list datasets` shows all"),
    ],
)
def test_a_misspelt_name_is_one_line_with_a_hint(kind, name, hint):
    with pytest.raises(UnknownNameError, match=re.escape(hint)) as caught:
        registry.of(kind).factory(name)
    assert str(caught.value).startswith(f"Expected one of the registered {kind}, got {name.removeprefix('zca:')!r}: ")
    assert "\n" not in str(caught.value)


HOSTILE = [
    "",
    " ",
    "\n",
    "\0",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "C:\\Windows\\win.ini",
    "pgd\n",
    " pgd",
    "pgd\0",
    "p\u0261d",
    "\uff50\uff47\uff44",
    "\u202epgd",
    "\ud800",
    "__class__",
    "os:system",
    "advbench.attacks.pgd:PGD",
    "pgd" * 10_000,
    "%s%n",
    "{name}",
    "own:",
    ":",
    "/",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_name_that_nothing_has_is_refused_in_one_line_and_imports_nothing(kind, name):
    before = set(sys.modules)
    with pytest.raises(UnknownNameError) as caught:
        registry.of(kind).check(name)
    assert "\n" not in str(caught.value)
    with pytest.raises(UnknownNameError):
        registry.of(kind).factory(name)
    assert name not in registry.of(kind)
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("architectures", "torchvision/../resnet18", "got '../resnet18'"),
        ("architectures", "torchvision/", "did you mean torchvision/NAME"),
        ("architectures", "torchvision/__class__", "got '__class__'"),
        ("architectures", "own:torchvision/../resnet18", "got '../resnet18'"),
        ("architectures", "own:../gone.py:make", "gone.py cannot be loaded: FileNotFoundError"),
        ("architectures", "own:os:system('x')", "Expected a model as file.py:factory"),
        ("architectures", "own:no_such_module:make", "no_such_module cannot be loaded: ModuleNotFoundError"),
        ("architectures", "own::make", "Expected a model as file.py:factory"),
        ("architectures", "own:../gone.onnx", "Expected an ONNX file, got none at ../gone.onnx"),
        ("architectures", "own:held:gone", "held cannot be loaded"),
        ("datasets", "npz:../gone.npz", "got no file at ../gone.npz"),
        ("datasets", "npz:\0", "got no file at"),
        ("datasets", "folder:../gone", "got no folder there"),
        ("datasets", "zca:npz:../gone.npz", "got no file at ../gone.npz"),
        ("datasets", "own:held:gone", "registered datasets, got 'own:held:gone'"),
    ],
)
def test_what_stands_behind_a_prefix_is_checked_by_its_resolver(tmp_path, monkeypatch, kind, name, message):
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)) as caught:
        registry.load_dataset(name) if kind == "datasets" else registry.build_network(Spec(name), SHAPE, 10)
    assert "\n" not in str(caught.value)


def test_an_argument_that_a_component_does_not_have_gets_a_hint():
    with pytest.raises(ValueError, match="The attack 'pgd' has no argument 'step': did you mean steps"):
        registry.attacks.create(Spec.of("pgd", {"step": 3}))
    with pytest.raises(ValueError, match=r"^pgd\(steps=-1\): Expected `steps`"):
        registry.attacks.create(Spec.of("pgd", {"steps": -1}))
    with pytest.raises(ValueError, match="'gu2014/convnet' has no argument 'width': it takes shape, n_classes"):
        registry.build_network(Spec.of("gu2014/convnet", {"width": 3}), SHAPE, 10)


# --- plug-ins

PLUGINS = {
    "boom": "raise RuntimeError('no such\\nluck')",
    "exits": "raise SystemExit(0)",
    "syntax": "def (:",
    "fine": "class Fine:\n    '''Does nothing (nobody 2026).'''\n    norms = ('linf',)\n\n"
    "    def __call__(self, access, x, goal, threat, rng):\n        return x\n\nnumber = 3\n",
}


@pytest.fixture
def plugged(tmp_path, monkeypatch):
    """A registry of attacks with plug-ins good and bad, beside one of advbench's own."""
    for name, text in PLUGINS.items():
        (tmp_path / f"advbench_plugin_{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        metadata.EntryPoint(name, f"advbench_plugin_{value}", "advbench.attacks")
        for name, value in {
            "fine": "fine:Fine",
            "pgd": "fine:Fine",
            "boom": "boom:Attack",
            "exits": "exits:Attack",
            "syntax": "syntax:Attack",
            "gone": "gone:Attack",
            "lacks": "fine:Attack",
            "number": "fine:number",
            "foolbox/Mine": "fine:Fine",
        }.items()
    ]
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point for point in points if point.group == group])
    yield Registry("attacks", {"pgd": "advbench.attacks.pgd:PGD"})
    for name in PLUGINS:
        sys.modules.pop(f"advbench_plugin_{name}", None)


def test_a_plug_in_joins_the_table_behind_our_own_and_cannot_take_a_name(plugged):
    with pytest.warns(UserWarning, match="plug-in advbench_plugin_fine:Fine was left out: attacks already has .* 'pgd'"):
        names = plugged.names()
    assert names == ["pgd", "fine", "boom", "exits", "syntax", "gone", "lacks", "number", "foolbox/Mine"]
    assert plugged.factory("pgd").__name__ == "PGD"
    assert type(plugged.create(Spec("fine"))).__name__ == "Fine"
    assert plugged.describe("fine") == "Does nothing (nobody 2026)"


@pytest.mark.filterwarnings("ignore:plug-in")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("boom", "RuntimeError: no such luck"),
        ("exits", "SystemExit: 0"),
        ("syntax", "SyntaxError: "),
        ("gone", "ModuleNotFoundError: "),
        ("lacks", "AttributeError: "),
        ("number", "TypeError: Expected a factory at advbench_plugin_fine:number, got int"),
    ],
)
def test_a_broken_plug_in_is_one_line(plugged, name, reason):
    with pytest.raises(ValueError, match=f"^The attack '{name}' cannot be loaded: {reason}") as caught:
        plugged.factory(name)
    assert "\n" not in str(caught.value)
    assert plugged.describe(name) == f"unavailable: {caught.value}"
    assert (name, f"unavailable: {caught.value}") in plugged.listing()
    assert plugged.create(Spec("fine"))


@pytest.mark.filterwarnings("ignore:plug-in")
def test_a_registered_name_goes_before_a_scheme(plugged):
    assert plugged.scheme("foolbox/Mine") is None
    assert type(plugged.create(Spec("foolbox/Mine"))).__name__ == "Fine"
    assert plugged.scheme("foolbox/LinfPGD").prefix == "foolbox/"


# --- schemes


def images(path: Path) -> str:
    """A small archive by Keras' convention."""
    x = np.random.default_rng(0).random((20, 6, 6)).astype(np.float32)
    y = np.arange(20) % 2
    np.savez(path / "mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    return "mine.npz"


def folders(path: Path) -> str:
    """A small folder of images by class."""
    for part in ("train", "test"):
        for label in "ab":
            (path / "mine" / part / label).mkdir(parents=True)
            for number in range(6):
                Image.new("RGB", (4, 4), (10 * number, 5, 200 if label == "a" else 0)).save(
                    path / "mine" / part / label / f"{number}.png"
                )
    return "mine"


NET = "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a user's images and code."""
    images(tmp_path)
    folders(tmp_path)
    (tmp_path / "mine_net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("mine_net", None)


EXAMPLES = {
    "foolbox/NAME": "foolbox/LinfPGD",
    "torchattacks/NAME": "torchattacks/PGD",
    "adv-lib/NAME": "adv-lib/ddn",
    "images:FILE": "images:mine.npz",
    "own(weights='FILE')": "own",
    "torchvision/NAME": "torchvision/resnet18",
    "own:file.py:factory": "own:mine_net.py:make",
    "own:package.module:factory": "own:mine_net:make",
    "own:file.onnx": "own:mine.onnx",
    "own:file.pt2": "own:mine.pt2",
    "own:file.ts": "own:mine.ts",
    "own:timm/NAME": "own:timm/resnet18",
    "own:robustbench/DATASET/THREAT/NAME": "own:robustbench/cifar10/Linf/Carmon2019Unlabeled",
    "own:torchvision/NAME": "own:torchvision/resnet18",
    "own:held:NAME": "own:held:mine",
    "npz:PATH": "npz:mine.npz",
    "folder:PATH": "folder:mine",
    "zca:NAME": "zca:npz:mine.npz",
}
"""A name of every form, as it is in `folder`."""


def test_every_scheme_has_an_example_that_it_alone_resolves():
    assert {scheme.form for scheme in SCHEMES} == set(EXAMPLES)
    for scheme in SCHEMES:
        found = scheme_of(scheme.kind, EXAMPLES[scheme.form])
        assert found is not None
        assert (found.resolver, found.kind) == (scheme.resolver, scheme.kind)
        registry.of(scheme.kind).check(EXAMPLES[scheme.form])
        assert registry.of(scheme.kind).scheme(EXAMPLES[scheme.form]) is found
        others = [kind for kind in KINDS if not any(each.kind == kind and each.form == scheme.form for each in SCHEMES)]
        assert not [kind for kind in others if scheme_of(kind, EXAMPLES[scheme.form])]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: f"{scheme.kind} {scheme.form}")
def test_the_reference_of_every_resolver_exists(scheme):
    module = registry.of(scheme.kind).reference(EXAMPLES[scheme.form])
    assert module == scheme.resolver
    assert callable(registry._loaded(scheme.resolver))
    assert registry.module_of(scheme.kind, EXAMPLES[scheme.form]) == scheme.resolver.partition(":")[0]


@pytest.mark.parametrize(
    ("name", "shape", "box"),
    [("npz:mine.npz", (1, 6, 6), (0.0, 1.0)), ("folder:mine", (3, 4, 4), (0.0, 1.0)), ("zca:npz:mine.npz", (1, 6, 6), None)],
)
def test_data_sets_come_by_name_and_say_the_name_that_brings_them(folder, name, shape, box):
    data = registry.load_dataset(name, Path("elsewhere"))
    assert (data.name, data.shape, data.box) == (name, shape, box)
    again = registry.load_dataset(data.name)
    assert again.fingerprint == data.fingerprint
    assert torch.equal(again.test.x, data.test.x)


def test_a_path_in_the_home_folder_is_found(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert registry.load_dataset("npz:~/mine.npz").fingerprint == registry.load_dataset("npz:mine.npz").fingerprint


@pytest.mark.parametrize("name", ["own:mine_net.py:make", "own:mine_net:make"])
def test_networks_come_by_name_and_their_identity_follows_their_code(folder, name):
    factory = registry.architectures.factory(name)
    network = registry.build_network(Spec(name), SHAPE, 10)
    assert network(torch.zeros(2, *SHAPE)).shape == (2, 10)
    assert registry.content("architectures", Spec(name), None)["identity"] == factory.identity
    before = factory.identity
    (folder / "mine_net.py").write_text(NET + "# edited\n")
    assert registry.architectures.factory(name).identity != before


def test_torchvision_comes_standardised_as_an_architecture_and_bare_as_a_target():
    ours, bare = (
        registry.build_network(Spec(name), SHAPE, 7) for name in ("torchvision/resnet18", "own:torchvision/resnet18")
    )
    assert [type(layer).__name__ for layer in ours] == ["Standardise", "ResNet"]
    assert type(bare).__name__ == "ResNet"
    assert ours[1].fc.out_features == bare.fc.out_features == 7
    weighted = registry.architectures.factory("own:torchvision/resnet18:DEFAULT")
    assert (weighted.name, weighted.weights) == ("resnet18", "DEFAULT")
    assert weighted.statistics() == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_a_file_of_weights_makes_a_defense():
    made = registry.defenses.create(Spec.of("own", {"weights": "mine.pt", "stochastic": True}))
    assert (type(made).__name__, made.weights, made.stochastic) == ("Own", "mine.pt", True)
    assert "own" not in registry.defenses.names()
    for name in ("own:", "owner", "ow"):
        with pytest.raises(UnknownNameError):
            registry.defenses.check(name)


def test_a_module_that_is_called_held_is_still_found(folder):
    (folder / "held.py").write_text(NET)
    assert isinstance(registry.build_network(Spec("own:held:make"), SHAPE, 10), nn.Sequential)
    sys.modules.pop("held", None)


def test_the_prefixes_that_names_are_built_from_are_those_of_the_table():
    assert {scheme.prefix for scheme in SCHEMES} >= {
        npz.PREFIX,
        image_folder.PREFIX,
        whitened.PREFIX,
        torchvision_models.PREFIX,
        schemes.HELD,
        schemes.OWN,
    }
    assert (reproduce._OWN, reproduce._PREFIX, reproduce._HELD) == ("own", schemes.OWN, schemes.HELD)


# --- what people are shown


@pytest.mark.parametrize("kind", KINDS)
def test_the_list_shows_every_name_and_every_listed_scheme(kind):
    rows = registry.of(kind).listing()
    forms = [scheme.form for scheme in SCHEMES if scheme.kind == kind and scheme.listed]
    assert [name for name, _ in rows] == registry.of(kind).names() + forms
    assert all(description and not description.endswith(".") for _, description in rows)


def test_the_command_lists_the_rows_of_the_table():
    command = [sys.executable, "-m", "advbench", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for scheme in SCHEMES:
        line = re.search(rf"^{re.escape(scheme.form)}\s+{re.escape(scheme.description)}$", listed, re.MULTILINE)
        assert bool(line) is scheme.listed


def test_targets_are_written_as_the_table_says():
    assert schemes.targets() == (
        "file.py:factory, package.module:factory, file.onnx, file.pt2, file.ts, timm/NAME, "
        "robustbench/DATASET/THREAT/NAME or torchvision/NAME"
    )
    help_text = subprocess.run(
        [sys.executable, "-m", "advbench", "evaluate", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "300", "TERM": "dumb"},
    ).stdout
    assert schemes.targets() in help_text


@pytest.mark.skipif(not (ROOT / "README.md").is_file(), reason="not a checkout")
def test_the_readme_names_every_listed_form():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [scheme.form for scheme in SCHEMES if scheme.listed and f"`{scheme.form}`" not in text] == []


@pytest.mark.skipif(not (ROOT / "README.md").is_file(), reason="not a checkout")
def test_the_readme_names_every_attack_and_defense_of_ours():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in (*ATTACKS, *DEFENSES) if f"`{name}`" not in text] == []


def test_importing_the_registry_imports_no_component():
    heavy = ("torch", "torchvision", "numpy", "advbench.user_models", "advbench.attacks.pgd", "advbench.zoo.datasets")
    code = (
        "import sys; from advbench.registry import registry, schemes;"
        "[registry.of(kind).names() for kind in schemes.KINDS];"
        "[registry.of(kind).check(name) for kind, name in (('attacks', 'foolbox/LinfPGD'), ('datasets', 'zca:npz:x'))];"
        f"raise SystemExit(' '.join(name for name in {heavy} if name in sys.modules) or 0)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
