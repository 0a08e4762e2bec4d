"""The package that `advbench new` writes is CONTRIBUTING's, and runs; what a component lacks is said in one line."""

from __future__ import annotations

import dataclasses
import importlib
import sys
import tomllib
from pathlib import Path

import pytest

import advbench
from advbench.attacks.access import ScoreBased, WhiteBox
from advbench.conformance import CHECKS, shortened
from advbench.plugin_package import package, write_package
from advbench.registry import explain, registry
from advbench.registry.contracts import ContractError, completed
from advbench.registry.specs import Spec

ROOT = Path(__file__).resolve().parents[2]
NAME = "test-plug-in"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The package as an installer leaves it: its module on the path, beside its metadata."""
    write_package(NAME, tmp_path)
    project = tomllib.loads((tmp_path / NAME / "pyproject.toml").read_text())["project"]
    information = tmp_path / NAME / "test_plug_in-0.1.0.dist-info"
    information.mkdir()
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in named.items())
        for group, named in project["entry-points"].items()
    ]
    (information / "entry_points.txt").write_text("".join(groups))
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 0.1.0\n")
    (information / "top_level.txt").write_text("test_plug_in\n")
    monkeypatch.syspath_prepend(tmp_path / NAME)
    points = [value for named in project["entry-points"].values() for value in named.values()]
    kinds = [registry.of(kind) for kind in ("attacks", "defenses", "architectures", "datasets")]
    for each in kinds:
        each.__dict__.pop("_plugins", None)
    yield points
    for each in kinds:
        each.__dict__.pop("_plugins", None)
    module = NAME.replace("-", "_")
    for each in [each for each in sys.modules if each.partition(".")[0] == module]:
        del sys.modules[each]


def test_contributing_shows_the_package_as_it_is_written(tmp_path):
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for place, content in package("my-attacks").items():
        assert place.endswith("__init__.py") or content in text, place
    files = write_package("my-attacks", tmp_path)
    assert {str(file.relative_to(tmp_path / "my-attacks")): file.read_text() for file in files} == package("my-attacks")
    with pytest.raises(FileExistsError, match="Expected no my-attacks in"):
        write_package("my-attacks", tmp_path)


@pytest.mark.parametrize("name", ["", "My", "../up", "advbench", "class", "a b", "-a", "torch"])
def test_a_name_that_no_package_can_have_is_refused(name):
    with pytest.raises(ValueError, match="small letters, digits and dashes"):
        package(name)


def test_every_component_of_the_package_runs_together(installed, cache, tmp_path):
    result = advbench.run(
        dataset=f"{NAME}-stripes",
        architecture=f"{NAME}/net",
        defense=f"none,{NAME}-training,{NAME}-purifier",
        attack=f"{NAME}-attack",
        matrix="white-box",
        epsilon=0.1,
        epochs=3,
        n_examples=30,
        batch=30,
        device="cpu",
        jobs=1,
        backend="threading",
        out=tmp_path / "out",
    )
    assert result.exit_code == 0, result.failures
    frame = result.frame.query("matrix == 'white-box'")
    assert len(frame) == 3
    found = advbench.adversarial_images(tmp_path / "out", target="none", matrix="white-box")
    assert found.clean_correct.double().mean() > 0.9
    assert found.success.any(), "it fools the undefended network"


def test_the_package_s_attack_conforms(installed):
    attack = shortened(Spec(f"{NAME}-attack"))
    for name in ("budget", "box", "dtype", "seeds", "zero gradient", "model untouched"):
        CHECKS[name](attack, "l2")  # raises where it does not hold


def test_what_has_a_default_gets_it(installed):
    attack = registry.attacks.create(Spec(f"{NAME}-attack"))
    assert (attack.minimal_norm, attack.targeted, attack.knowledge) == (False, False, WhiteBox)
    content = registry.content("attacks", Spec(f"{NAME}-attack"), attack)
    assert registry.restore("attacks", content) == attack


class _Bare:
    norms = ("linf",)

    def __call__(self, access, x, goal, threat, rng):
        return x


class _Scores:
    norms = frozenset({"l2"})

    def __call__(self, access: ScoreBased, x, goal, threat, rng):
        return x


def test_norms_of_any_collection_and_the_annotated_access_count():
    assert completed("attacks", "bare", _Bare()).norms == frozenset({"linf"})
    assert completed("attacks", "bare", _Bare()).knowledge is WhiteBox
    assert completed("attacks", "scores", _Scores()).knowledge is ScoreBased


@dataclasses.dataclass(frozen=True)
class _NoNorms:
    steps: int = 3

    def __call__(self, access, x, goal, threat, rng):
        return x


class _Strange(_NoNorms):
    norms = frozenset({"l3"})


class _Short:
    norms = frozenset({"l2"})

    def __call__(self, model, x, y):
        return x


class _Half:
    def fit(self, architecture, data, *, inputs, seed, device, budget, progress=None):
        return None


class _Old(_Half):
    def build(self, architecture, data, inputs):
        return None

    def fit(self, architecture, data, *, inputs, seed, device):
        return None


class _Whole(_Half):
    def build(self, architecture, data, inputs):
        return None


@pytest.mark.parametrize(
    ("kind", "made", "said"),
    [
        ("attacks", _NoNorms(), "The attack 'mine' (_NoNorms) lacks `norms`, those that it knows: norms: ClassVar"),
        ("attacks", object(), "The attack 'mine' (object) lacks `__call__(self, access, x, goal, threat, rng)`"),
        ("attacks", _Strange(), "must have `norms`, a frozenset of some of linf, l2, l1, l0, none, got frozenset({'l3'})"),
        ("attacks", _Short(), "must be called with access, x, goal, threat, rng, got model, x, y"),
        ("defenses", object(), "The defense 'mine' (object) lacks `build` and `fit`: define them, or subclass "),
        ("defenses", _Half(), "The defense 'mine' (_Half) lacks `build`: define them"),
        ("defenses", _Old(), "must have `fit(architecture, data, *, inputs, seed, device, budget, progress)`, got arch"),
    ],
)
def test_what_is_missing_is_one_line(kind, made, said):
    with pytest.raises(ContractError) as error:
        completed(kind, "mine", made)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_defense_is_built_on_nothing_unless_it_says_so():
    assert dict(completed("defenses", "whole", _Whole()).inputs) == {}


def test_a_component_is_explained_with_arguments_norms_and_a_command():
    text = explain.explained("deepfool")
    made = registry.attacks.create(Spec("deepfool"))
    for field in dataclasses.fields(made):
        assert f"  {field.name}={getattr(made, field.name)!r}" in text
    assert "norms: l2, linf" in text
    assert "arXiv:1511.04599" in text
    assert "it asks for: gradients" in text
    assert text.splitlines()[-1].startswith('advbench run --attack "deepfool(')
    assert explain.explained("wong2018/small").endswith("advbench run --architecture wong2018/small")
    with pytest.raises(ValueError, match="got 'pdg': did you mean pgd"):
        explain.explained("pdg")
    with pytest.raises(ValueError, match="did you mean attacks"):
        explain.explained("atacks")


def test_the_modules_of_the_package_import_by_themselves(installed):
    for point in installed:
        assert importlib.import_module(point.partition(":")[0]).__doc__
